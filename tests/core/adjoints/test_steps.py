"""Going back over a loop: in which order its steps are taken and differentiated, and how many states that holds."""

import weakref
from functools import cache

import pytest
import torch

from headstart.core.adjoints.steps import Steps
from headstart.core.schedules import Schedule, binomial, periodic


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


class Counting:
    """A step that adds 1, and writes down which were taken, but for those that were then differentiated."""

    def __init__(self):
        self.taken, self.back, self.kept_now, self.most = [], [], weakref.WeakSet(), 0

    def forward(self, given, inner, number):
        assert inner[0].item() == number
        self.taken.append(number)
        after = inner[0] + 1
        return [after], torch.zeros(1), number

    def kept(self, inner, keep):
        fetch = keep(inner)
        if inner[0]:  # the start is the caller's
            self.kept_now.add(fetch()[0].untyped_storage())
        self.most = max(self.most, len(self.kept_now))
        return fetch

    def totals(self, given):
        return []

    def backward(self, kept, given, number, slopes):
        assert kept == number == self.taken.pop()  # taken to be differentiated
        self.back.append(number)
        return slopes


def swept(segments):
    """Go back over steps by a schedule; return (steps taken, differentiated, most states at a time)."""
    step = Counting()
    steps = Steps(step, range(segments[-1].end), 0, Schedule(segments))
    start, slope = torch.zeros(1), torch.ones(1)
    end, losses, tape = steps.forward(start)
    assert end.item() == len(losses) == segments[-1].end
    assert steps.backward(tape, slope) == [slope] and not tape.left
    return step.taken, step.back, step.most


@pytest.mark.parametrize("slots", range(8))
def test_no_schedule_takes_fewer_steps_again(slots):
    for steps in (*range(1, 16), 40, 59):
        taken, back, _ = swept(binomial(steps, slots))
        assert taken[:steps] == list(range(steps)) and back == list(reversed(range(steps)))
        assert len(taken) - steps == fewest_after_a_forward_pass(steps, slots), steps


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
