import weakref
from functools import cache

import pytest
import torch

from headstart.core.adjoints.schedule import binomial, periodic, repeated
from headstart.core.adjoints.sweep import sweep
from headstart.core.step import Given, Inner


@cache
def fewest(steps, slots):
    """Return the least number of steps to take again in going back over ``steps``, by trying every split."""
    if steps < 2:
        return 0
    without = steps * (steps - 1) // 2
    if slots == 0:
        return without
    return min(without, *(first + fewest(steps - first, slots - 1) + fewest(first, slots) for first in range(1, steps)))


@cache
def fewest_after_a_forward_pass(steps, slots):
    """Return the same where the forward pass keeps states on its way."""
    splits = (fewest_after_a_forward_pass(steps - first, slots - 1) + fewest(first, slots) for first in range(1, steps))
    return min(fewest(steps, slots), *splits) if slots and steps > 1 else fewest(steps, slots)


@pytest.mark.parametrize("slots", range(12))
def test_no_schedule_takes_fewer_steps_again(slots):
    for steps in range(1, 60):
        assert repeated(steps, slots) == fewest_after_a_forward_pass(steps, slots), steps


def swept(segments):
    """Sweep back through steps that do nothing; return (steps taken, steps differentiated, most states at a time)."""
    taken, back, kept, most = [], [], weakref.WeakSet(), 0

    def step(given, inner, number, create_graph):
        taken.append(number)
        after = inner.params["w"] + 1
        kept.add(after.untyped_storage())
        return Inner({"w": after}, {}, {}), torch.zeros(1)

    def pullback(step, given, inner, number, slopes):
        nonlocal most
        assert inner.params["w"].item() == number
        back.append(number)
        most = max(most, len(kept))
        return [], slopes

    start = Inner({"w": torch.zeros(1, requires_grad=True)}, {}, {})
    end, _ = sweep(step, Given({}), start, segments, pullback)
    kept.discard(end.params["w"].untyped_storage())  # the last state is the caller's
    torch.autograd.grad(end.params["w"].sum(), start.params["w"])
    return taken, back, most


@pytest.mark.parametrize("steps, slots", [(1, 0), (7, 0), (10, 1), (25, 3), (40, 5), (40, 39), (59, 11)])
def test_a_sweep_takes_the_steps_that_its_schedule_says(steps, slots):
    taken, back, _ = swept(binomial(steps, slots))
    assert taken[:steps] == list(range(steps)) and back == list(reversed(range(steps)))
    assert len(taken) - steps == repeated(steps, slots)


@pytest.mark.parametrize("steps, every", [(1, 1), (10, 1), (10, 3), (10, 10), (16, 4)])
def test_with_periodic_states_no_step_is_taken_more_than_twice(steps, every):
    taken, back, _ = swept(periodic(steps, every))
    assert taken[:steps] == list(range(steps)) and back == list(reversed(range(steps)))
    assert sorted(taken[steps:]) == [number for number in range(steps) if (number + 1) % every and number + 1 < steps]


@pytest.mark.parametrize("steps, slots", [(7, 0), (10, 1), (25, 3), (40, 5), (59, 11)])
def test_no_more_states_are_kept_than_there_are_slots(steps, slots):
    segments = binomial(steps, slots)
    assert len(segments) - 1 <= slots
    assert all(len(segments[: number + 1]) - 1 + s.slots <= slots for number, s in enumerate(segments))
    # and the one from which a step is differentiated
    assert swept(segments)[2] <= slots + 1
