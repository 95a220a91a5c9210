"""Leaving inference mode."""

import torch

from headstart.core.inference import ordinary, out_of_inference_mode
from headstart.types import Batch


def state():
    return torch.is_inference_mode_enabled(), torch.is_grad_enabled()


def test_a_function_runs_outside_of_the_mode_and_without_gradients():
    within = out_of_inference_mode(lambda batch, *, more: (state(), batch.x.is_inference(), more["a"].is_inference()))
    with torch.inference_mode():
        one = torch.ones(2)
        assert within(Batch(one, one), more={"a": one}) == ((False, False), False, False)
        assert state() == (True, False)


def test_elsewhere_nothing_changes():
    within = out_of_inference_mode(lambda x: (state(), x))
    x = torch.ones(2)
    with torch.no_grad():
        found, given = within(x)
    assert found == (False, False) and given is x
    assert within(x)[0] == (False, True)


def test_a_generator_leaves_the_mode_whenever_it_goes_on_and_is_closed():
    seen = []

    @out_of_inference_mode
    def steps(count):
        try:
            for number in range(count):
                seen.append(state())
                yield number
        finally:
            seen.append("closed")

    with torch.inference_mode():
        going = steps(3)
        assert next(going) == 0 and state() == (True, False)
    assert next(going) == 1 and state() == (False, True)
    going.close()
    assert seen == [(False, False), (False, True), "closed"]
    assert list(steps(2)) == [0, 1]


def test_only_what_was_made_in_the_mode_is_copied():
    x = torch.ones(2)
    with torch.inference_mode():
        y = torch.ones(2)
    batch = Batch({"a": [x, y]}, x)
    found = ordinary(batch)
    assert found.y is x and found.x["a"][0] is x
    assert not found.x["a"][1].is_inference() and torch.equal(found.x["a"][1], y)
    assert ordinary(found) is found
