"""Which tasks a table has, and which split each is in."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headstart.data.tables.file import strings
from headstart.data.tables.split import group, one_task, repeated, split_tasks
from headstart.errors import DataError, UsageError


@given(st.integers(3, 200), st.floats(0.01, 0.49), st.floats(0.01, 0.49), st.integers(0, 2**32 - 1))
def test_splits_are_whole_tasks_and_none_is_empty(count: int, validation: float, test: float, seed: int) -> None:
    found = split_tasks(count, validation, test, seed, "a table")
    assert sorted(task for tasks in found.values() for task in tasks) == list(range(count))
    assert all(found.values())
    for name, share in (("validation", validation), ("test", test)):
        assert abs(len(found[name]) - share * count) <= 1 or len(found["train"]) == 1
    assert found == split_tasks(count, validation, test, seed, "a table")


def test_seeds_split_otherwise() -> None:
    assert len({split_tasks(20, 0.2, 0.2, seed, "a table")["test"] for seed in range(10)}) > 5


def test_too_few_tasks_and_wrong_shares_are_refused() -> None:
    with pytest.raises(DataError, match="some.csv: one task only; expected at least 3"):
        split_tasks(1, 0.2, 0.2, 0, "some.csv")
    with pytest.raises(DataError, match="some.csv: 2 tasks only"):
        split_tasks(2, 0.2, 0.2, 0, "some.csv")
    for shares in ((0.0, 0.2), (0.2, -1.0), (0.5, 0.5), (float("nan"), 0.2)):
        with pytest.raises(UsageError, match="shares of the tasks, above 0 and together below 1"):
            split_tasks(9, *shares, 0, "some.csv")


def test_tasks_are_in_the_order_of_their_names_and_rows_as_in_the_file(in_memory: Any) -> None:
    found = group(in_memory({"task": ["10", "9", "10", "-1"], "x": ["a", "b", "c", "d"]}), "task", None)
    assert found.names == ("-1", "9", "10") and found.task.tolist() == [2, 1, 2, 0]
    assert found.table.columns["x"].tolist() == ["a", "b", "c", "d"]


def test_names_that_are_not_all_whole_numbers_are_sorted_as_text(in_memory: Any) -> None:
    found = group(in_memory({"task": ["10", "--5", "9"]}), "task", None)
    assert found.names == ("--5", "10", "9")


def test_a_time_column_sorts_the_rows_and_keeps_those_of_one_time(in_memory: Any) -> None:
    found = group(in_memory({"task": list("abab"), "t": ["10", "9", "2", "9"], "x": list("pqrs")}), "task", "t")
    assert found.table.columns["x"].tolist() == ["r", "q", "s", "p"]
    assert found.table.lines.tolist() == [4, 3, 5, 2] and found.task.tolist() == [0, 1, 1, 0]
    days = ["2020-10-01", "2020-09-30", "2019-12-31"]
    found = group(in_memory({"task": list("aaa"), "t": days}), "task", "t")
    assert found.table.columns["t"].tolist() == days[::-1]


def test_what_is_missing_or_no_time_is_named(in_memory: Any) -> None:
    with pytest.raises(DataError, match=r"line 3, column 'task': the task is missing \(1 of 2 rows\)"):
        group(in_memory({"task": ["a", ""]}), "task", None)
    with pytest.raises(DataError, match="line 2, column 't': the time is missing"):
        group(in_memory({"task": ["a", "a"], "t": ["", "1"]}), "task", "t")
    with pytest.raises(DataError, match="line 3, column 't': 'soon' is not a number; the time is a number or an ISO"):
        group(in_memory({"task": ["a", "a"], "t": ["1", "soon"]}), "task", "t")
    with pytest.raises(DataError, match="line 2, column 't': 'soon' is no time; expected numbers or ISO 8601 dates"):
        group(in_memory({"task": ["a", "a"], "t": ["soon", "later"]}), "task", "t")


def test_rows_that_repeat_others_are_found() -> None:
    task = torch.tensor([0, 0, 1, 0, 0, 0])
    x = torch.tensor([[1.0], [2.0], [1.0], [1.0], [-0.0], [0.0]])
    y = torch.tensor([[5.0], [5.0], [5.0], [5.0], [1.0], [1.0]])
    assert repeated(task, x, y, None).tolist() == [0, 1, 2, 0, 4, 4]
    assert repeated(task, x, y, strings(["1", "1", "1", "2", "3", "3"])).tolist() == [0, 1, 2, 3, 4, 4]
    assert repeated(task, x, torch.tensor([0, 0, 0, 1, 0, 0]), None).tolist() == [0, 1, 2, 3, 4, 4]


def test_one_task_may_be_named_or_not(in_memory: Any) -> None:
    one_task(in_memory({"x": ["1", "2"]}), "task")
    one_task(in_memory({"task": ["", ""]}), "task")
    one_task(in_memory({"task": ["", "a", "a"]}), "task")
    with pytest.raises(DataError, match=r"line 5, column 'task': 'b' is another task than 'a' before it \(2 tasks in"):
        one_task(in_memory({"task": ["", "a", "a", "b"]}), "task")
