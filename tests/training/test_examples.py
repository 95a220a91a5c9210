"""Support sets that grow, shrink and are merged, as values."""

import pytest
import torch
from torch import Tensor

from headstart.data.kind import NewTask
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.training.examples import Support, joined, merged, without, without_class
from headstart.types import Batch


def support(name: str | None, *classes: str, shots: int = 2, first: int = 0) -> Support:
    """A task whose examples are numbers of their own, from ``first`` on; without classes, numbers are predicted."""
    count = shots * max(len(classes), 1)
    x = torch.arange(first, first + count, dtype=torch.float32).view(1, -1, 1)
    if not classes:
        return NewTask(name, (), (count,)), Batch(x, x * 2)
    y = torch.arange(len(classes)).repeat_interleave(shots).view(1, -1)
    return NewTask(name, classes, (shots,) * len(classes)), Batch(x, y)


def values(one: Support) -> dict[str, list[float]]:
    task, batch = one
    return {label: batch.x[0, batch.y[0] == place, 0].tolist() for place, label in enumerate(task.labels)}


def test_a_class_goes_with_its_examples_and_the_others_keep_theirs() -> None:
    found = without_class(support("t", "a", "b", "c"), "b")
    assert values(found) == {"a": [0, 1], "c": [4, 5]} and found[0].counts == (2, 2)
    assert without_class(found, "b") is found


def test_tasks_and_classes_are_removed_by_their_names() -> None:
    tasks = [support("one", "a", "b", "c"), support("two", "b", "c", "d")]
    assert [task.name for task, _ in without(tasks, ["one"])] == ["two"]
    assert [task.labels for task, _ in without(tasks, ["b"])] == [("a", "c"), ("c", "d")]
    assert [task.labels for task, _ in without(tasks, ["two/b"])] == [("a", "b", "c"), ("c", "d")]
    assert [task.labels for task, _ in without(tasks, ["one", "d"])] == [("b", "c")]


def test_what_is_added_and_removed_is_as_if_it_had_not_been_there() -> None:
    before, more = support("t", "a", "c"), support("t", "b", first=9)
    (grown,) = joined([before], [more])
    ((task, batch),) = without([grown], ["b"])
    assert task == before[0] and torch.equal(batch.x, before[1].x) and torch.equal(batch.y, before[1].y)


def test_what_cannot_be_removed_is_told() -> None:
    tasks = [support("a", "a", "b"), support("two", "a", "c")]
    with pytest.raises(UnknownNameError, match="unknown task or class 'twoo'; did you mean 'two'"):
        without(tasks, ["twoo"])
    with pytest.raises(UsageError, match="'a' is a task, and a class of one.*TASK/CLASS"):
        without(tasks, ["a"])
    assert [task.labels for task, _ in without(tasks, ["two/a"])] == [("a", "b"), ("c",)]
    with pytest.raises(DataError, match="no task is left"):
        without(tasks[1:], ["two"])
    with pytest.raises(DataError, match="means the same in all tasks"):
        without(tasks, ["c"], shared_classes=True)


def test_merging_counts_what_both_have_once() -> None:
    ours = joined([support("t", "a", "b")], [support("t", "c", first=10)])
    theirs = joined([support("t", "a", "b")], [support("t", "b", first=20), *[support("other", "x", "y")]])
    found = merged(ours, theirs)
    assert [task.name for task, _ in found] == ["t", "other"]
    assert values(found[0]) == {"a": [0, 1], "b": [2, 3, 20, 21], "c": [10, 11]}
    assert found[0][0].counts == (2, 4, 2)
    assert [task.counts for task, _ in merged(ours, ours)] == [(2, 2, 2)]


def test_merging_keeps_one_input_of_two_labels_and_repeated_examples() -> None:
    (same,) = merged([support("t", "a", "b", shots=1)], [support("t", "b", "a", shots=1)])
    assert values(same) == {"a": [0, 1], "b": [1, 0]}
    twice = (NewTask("t", (), (2,)), support("t")[1]._replace(x=torch.ones(1, 2, 1), y=torch.ones(1, 2, 1)))
    assert merged([support("t", shots=1, first=5)], [twice])[0][0].counts == (3,)
    assert merged([twice], [twice])[0][0].counts == (2,)


def test_merging_texts_of_other_lengths() -> None:
    def tokens(*rows: list[int]) -> Support:
        x = torch.tensor([rows])
        return NewTask("t", ("a", "b"), (1, 1)), Batch(x, torch.tensor([[0, 1]]))

    (found,) = merged([tokens([5, 6, 0], [7, 0, 0])], [tokens([5, 6], [8, 9])], pad=0)
    assert found[0].counts == (1, 2)
    kept: Tensor = found[1].x[0]
    assert kept.tolist() == [[5, 6, 0], [7, 0, 0], [8, 9, 0]]
