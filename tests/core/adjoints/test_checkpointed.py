import pytest
import torch

from headstart import Checkpointed, FirstOrder, Unrolled
from headstart.core.adjoints.needs import kept_bytes, measured
from headstart.core.adjoints.sweep import reverse
from headstart.core.rules import scale
from headstart.core.step import Given, Inner, Step
from headstart.errors import UsageError


@pytest.mark.parametrize("buffers", ["batch", "task"])
@pytest.mark.parametrize("taskmap", ["vmap", "loop", "auto"])
@pytest.mark.parametrize("every", [1, 3, "sqrt", 7])
def test_checkpoints_change_no_gradient(images, every, taskmap, buffers):
    known = "loop" if taskmap == "auto" else taskmap
    expected, told = images.gradient(Unrolled(), taskmap=known, buffers=buffers)
    got, info = images.gradient(Checkpointed(every), taskmap=taskmap, buffers=buffers)
    tolerance = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(got.params, expected.params, **tolerance)
    torch.testing.assert_close(info, told, **tolerance)


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("memory", ["300 KB", "400 KB", "1GB"])
def test_nor_does_an_amount_of_memory(images, memory, taskmap):
    assert images.gap(Checkpointed(memory=memory), Unrolled(), taskmap=taskmap, buffers="task") < 1e-12


def test_the_memory_of_checkpoints_grows_slower_than_that_of_an_unrolled_loop(rows, peak_bytes):
    def peak(adjoint, steps):
        return peak_bytes(lambda: rows.gradient(adjoint, steps=steps))

    unrolled = [peak(Unrolled(), steps) for steps in (3, 12)]
    square_root = [peak(Checkpointed(), steps) for steps in (3, 12)]
    assert unrolled[1] / unrolled[0] > 2.5
    assert square_root[1] / square_root[0] < 1.2
    assert square_root[1] < 0.3 * unrolled[1]
    assert peak(Checkpointed(1), 12) < 0.3 * unrolled[1]


@pytest.fixture
def needs(rows):
    """What a sweep over the steps of ``rows`` needs."""
    seen = []

    def adjoint(step, given, start, steps):
        seen.append(measured(step, given, start, reverse))
        return FirstOrder()(step, given, start, steps)

    adjoint.exact = False
    rows.gradient(adjoint)
    return seen[0]


@pytest.mark.parametrize("states", [1, 2, 5])
def test_an_amount_of_memory_is_kept_to(rows, peak_bytes, needs, states):
    # the query loss and θ with its gradient come on top
    besides = peak_bytes(lambda: rows.gradient(Unrolled(), steps=0)) + needs.state
    room = needs.backward + states * needs.state
    peak = peak_bytes(lambda: rows.gradient(Checkpointed(memory=room), steps=10))
    assert 0.9 * room < peak <= room + besides < 0.5 * peak_bytes(lambda: rows.gradient(Unrolled(), steps=10))


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_where_all_has_room_no_step_is_taken_again(share):
    taken = []

    def loss(given, params, buffers, number):
        taken.append(number)
        return (params["w"] * given.structure["m"]).sin().sum(1), buffers

    step = Step(loss, scale(0.1))
    start = Inner({"w": torch.ones(2, 3000, requires_grad=True)}, {}, {})
    given = Given({"m": torch.ones((), requires_grad=True)})
    needs, kept = measured(step, given, start, reverse), kept_bytes(step, given, start)
    taken.clear()
    adjoint = Checkpointed(memory=int(share * (needs.backward + 19 * kept)))
    adjoint(step, given, start, 20)[0].params["w"].sum().backward()
    first = [0, 0]  # to measure it
    assert (sorted(taken) == sorted(first + list(range(20)))) == (share == 1)
    # a sweep takes each step once more at least, to differentiate it
    assert share == 1 or len(taken) >= 2 + 2 * 20


def test_an_amount_that_one_step_does_not_fit_in_is_refused(rows, needs):
    with pytest.raises(UsageError, match="one inner step of these tasks needs about .* KiB of memory, .*fewer tasks"):
        rows.gradient(Checkpointed(memory=needs.backward))
    assert rows.gap(Checkpointed(memory=needs.backward + needs.state), Unrolled()) < 1e-12


@pytest.mark.parametrize("every", [0, -1, 1.5, "root"])
def test_checkpoints_at_no_interval_are_refused(every):
    with pytest.raises(UsageError, match=r"Checkpointed\(every=...\) must be a positive number of steps or 'sqrt'"):
        Checkpointed(every)


def test_one_says_how_often_or_how_much():
    with pytest.raises(UsageError, match="takes every= or memory=, not both; got 2 and 1GB"):
        Checkpointed(2, memory="1GB")
    with pytest.raises(UsageError, match="memory must be"):
        Checkpointed(memory="much")


def test_adjoints_are_values():
    assert Unrolled() == Unrolled() and Checkpointed(2) == Checkpointed(2) != Checkpointed(3)
    assert (Unrolled().exact, Checkpointed().exact, FirstOrder().exact) == (True, True, False)
