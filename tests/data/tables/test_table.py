"""Tasks out of a table."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from headstart.data.tables.read import strings
from headstart.data.tables.schema import UnseenValueWarning, schema_from_json
from headstart.data.tables.table import LeftOutWarning, group, repeated, split_tasks, table
from headstart.errors import DataError, FileError, UnknownNameError, UsageError
from headstart.testing import check_tasks
from headstart.testing.contract import same_bits
from headstart.types import Tasks

PANEL = {
    "sleepstudy": {"task_column": "Subject", "target": "Reaction", "columns": "Days"},
    "dietox": {"task_column": "Pig", "target": "Weight", "columns": "Time"},
    "spruce": {"task_column": "id", "target": "logsize", "columns": "time"},
    "Cigar": {"task_column": "state", "target": "sales", "columns": "price, ndi, year", "time_column": "year"},
}


def pig_tasks(path: Path, **options: Any) -> Tasks:
    return table(data=path, **{"task_column": "pig", "target": "weight", "shots": 3, **options})


@pytest.mark.parametrize("order", ["random", "first"])
def test_the_contract_is_kept(write: Any, pigs: Any, order: Any) -> None:
    path = write(pigs)
    tasks = pig_tasks(path, order=order)
    check_tasks(tasks, numbers=range(2))
    check_tasks(lambda seed: pig_tasks(path, order=order, seed=seed), numbers=range(2))
    assert tasks.name == "table" and tasks.kind == "regression" and tasks.output_size == 1
    assert tasks.counts == {"train": 6, "validation": 2, "test": 2}
    assert tasks.input_shape == (6,)
    assert tasks.details["features"] == ["week", "food=corn", "food=oats", "food=rye", "ill", "born"]
    json.dumps(tasks.details)  # it goes into files


def test_the_details_tell_what_was_made_of_the_table(write: Any, pigs: Any) -> None:
    tasks = pig_tasks(write({"": range(1, 81), **pigs, "always": ["x"] * 80}))
    details = tasks.details
    assert details["source"] == "some.csv" and details["rows"] == 80
    assert details["left_out"] == {"": "names the rows", "always": "constant: always x in the training tasks"}
    names = details["task_names"]
    assert sorted(name for split in names.values() for name in split) == sorted(f"p{pig}" for pig in range(10))
    assert {split: len(found) for split, found in names.items()} == tasks.counts
    schema = schema_from_json(details["schema"], "details")
    assert schema.scale == tasks.unit and len(schema.inputs) == tasks.input_shape[0]
    assert list(schema.inputs) == details["features"]


def test_an_unnamed_column_that_names_no_rows_is_a_feature(write: Any, pigs: Any) -> None:
    tasks = pig_tasks(write({"": [row % 5 for row in range(80)], **pigs}))
    assert "" in tasks.details["features"] and not tasks.details["left_out"]
    tasks = pig_tasks(write({"": range(1, 81), **pigs}), columns=["", "week"])
    assert tasks.details["features"] == ["", "week"]


def test_the_index_of_a_data_frame_is_no_feature(pigs: Any, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.DataFrame(pigs).sort_values("week").to_parquet(tmp_path / "some.parquet")
    assert pig_tasks(tmp_path / "some.parquet").details["left_out"] == {"__index_level_0__": "names the rows"}


def test_the_first_rows_by_time_are_the_support_set(write: Any, pigs: Any) -> None:
    order = random.Random(0).sample(range(80), 80)
    mixed = {name: [values[row] for row in order] for name, values in pigs.items()}
    tasks = pig_tasks(write(mixed), columns="week", time_column="week", order="first", shots=3)
    schema = schema_from_json(tasks.details["schema"], "details")
    week = schema.features[0]
    for number, name in enumerate(tasks.details["task_names"]["test"]):
        support, query = tasks.sample("test", [number])
        own = [row for row in range(80) if pigs["pig"][row] == name]
        weeks, weights = ([pigs[key][row] for row in own] for key in ("week", "weight"))
        assert (support.x[0, :, 0] * week.scale + week.mean).tolist() == pytest.approx(weeks[:3], abs=1e-4)
        assert (query.x[0, :, 0] * week.scale + week.mean).tolist() == pytest.approx(weeks[3:], abs=1e-4)
        assert (query.y[0, :, 0] * schema.scale + schema.mean).tolist() == pytest.approx(weights[3:], abs=1e-3)


def test_nothing_of_validation_and_test_tasks_reaches_the_training_tasks(write: Any, pigs: Any) -> None:
    path = write(pigs)
    before = pig_tasks(path)
    held_out = {name for split in ("validation", "test") for name in before.details["task_names"][split]}
    changed = {name: list(values) for name, values in pigs.items()}
    for row, pig in enumerate(pigs["pig"]):
        if pig in held_out:
            changed["week"][row] = 1e4 + row
            changed["food"][row] = "swill"
            changed["weight"][row] *= -77
            changed["born"][row] = "1999-12-31"
            changed["ill"][row] = ""
    with pytest.warns(UnseenValueWarning):
        after = pig_tasks(write(changed, "other.csv"))
    assert same_bits(before.sample("train", range(20)), after.sample("train", range(20)))
    assert before.details["schema"] == after.details["schema"] and before.unit == after.unit
    assert not same_bits(before.sample("test", range(2)), after.sample("test", range(2)))


def test_training_tasks_are_standardised(write: Any, pigs: Any) -> None:
    tasks = pig_tasks(write(pigs), shots=3, order="first")
    episodes = tasks.sample("train", range(6))
    x, y = (torch.cat([getattr(part, name) for part in episodes], 1).flatten(0, 1) for name in ("x", "y"))
    place = tasks.details["features"].index("week")
    for values in (x[:, place], y[:, 0]):
        assert abs(float(values.mean())) < 1e-5 and float(values.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_a_split_can_be_kept_while_other_support_rows_are_drawn(write: Any, pigs: Any) -> None:
    path = write(pigs)
    first, second, third = pig_tasks(path, seed=1), pig_tasks(path, seed=2, split_seed=1), pig_tasks(path, seed=2)
    assert first.details["task_names"] == second.details["task_names"] != third.details["task_names"]
    assert first.details["schema"] == second.details["schema"]
    assert not same_bits(first.sample("test", range(4)), second.sample("test", range(4)))


def test_classification_needs_every_class_in_training_or_says_so(write: Any, pigs: Any) -> None:
    path = write(pigs)
    tasks = pig_tasks(path, target="food", shots=1)
    check_tasks(tasks, numbers=range(2))
    assert tasks.kind == "classification" and tasks.output_size == 3 and tasks.unit == 1
    assert tasks.names is not None and tasks.names("test", 0) == ("corn", "oats", "rye")
    last = tasks.details["task_names"]["test"][0]
    food = ["algae" if pig == last and kind == "rye" else kind for pig, kind in zip(pigs["pig"], pigs["food"])]
    with pytest.warns(UnseenValueWarning, match="column 'food': class 'algae' in line.* is in no training task"):
        other = pig_tasks(write({**pigs, "food": food}, "other.csv"), target="food", shots=1)
    assert other.details["schema"]["classes"] == ["corn", "oats", "rye", "algae"]
    assert other.details["new_classes"] == food.count("algae") > 0
    assert same_bits(tasks.sample("train", range(9)), other.sample("train", range(9)))


def test_repeated_rows_are_refused_kept_or_dropped(write: Any, pigs: Any) -> None:
    doubled = {name: [*values, *values[:5]] for name, values in pigs.items()}
    path = write(doubled)
    with pytest.raises(DataError, match=r"lines 2, 82: rows of one task with the same .*\(5 repeated rows in all\)"):
        pig_tasks(path)
    kept, dropped = (pig_tasks(path, on_duplicates=how) for how in ("keep", "drop"))
    assert kept.details["rows"] == 85 and dropped.details["rows"] == 80
    assert kept.details["duplicates"] == dropped.details["duplicates"] == 5
    once = pig_tasks(write(pigs, "once.csv"))
    assert same_bits(once.sample("test", range(4)), dropped.sample("test", range(4)))


def test_rows_at_other_times_are_no_repetitions(write: Any, pigs: Any) -> None:
    path = write({**pigs, "weight": [row % 8 // 4 + row // 8 % 2 / 2 for row in range(80)]})
    with pytest.raises(DataError, match="repeated rows"):
        pig_tasks(path, columns="food", on_duplicates="error")
    assert pig_tasks(path, columns="food", time_column="week").details["duplicates"] == 0


def test_text_of_many_values_is_left_out_with_a_warning(write: Any, pigs: Any) -> None:
    path = write({**pigs, "note": [f"n{row}" for row in range(80)]})
    with pytest.warns(LeftOutWarning, match="column 'note': left out: text with .* nearly one a row|more than"):
        tasks = pig_tasks(path)
    assert "note" in tasks.details["left_out"]
    with pytest.raises(DataError, match=r"column 'note': text with"):
        pig_tasks(path, columns="week,note")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_column": "Pgi"}, r"no column 'Pgi' \(--task-column\); did you mean 'pig'\? It has: 'pig', 'week'"),
        ({"target": "Weigth"}, r"no column 'Weigth' \(--target\); did you mean 'weight'"),
        ({"time_column": "weak"}, r"no column 'weak' \(--time-column\); did you mean 'week'"),
        ({"columns": "week,fod"}, r"no column 'fod' \(--columns\); did you mean 'food'"),
        ({"target": "pig"}, "column 'pig' is asked for twice"),
        ({"time_column": "weight"}, "column 'weight' is asked for twice"),
        ({"columns": "week,weight"}, "column 'weight' is the target, so it is no feature"),
        ({"columns": "pig,week"}, "column 'pig' is the task column, so it is no feature"),
        ({"shots": 8}, "column 'pig': task 'p.' has 8 rows, too few for 8 support rows and a query row"),
        ({"shots": 8, "on_short": "skip"}, "split 'train' has no task left"),
        ({"target": "born", "target_kind": "regression"}, "line 2, column 'born': '2020-03-01' is not a number"),
    ],
)
def test_tables_that_do_not_fit_the_options_are_refused(write: Any, pigs: Any, options: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        pig_tasks(write(pigs), **options)
    assert "some.csv" in str(caught.value)


def test_wrong_options_are_refused(write: Any, pigs: Any, tmp_path: Path) -> None:
    path = write(pigs)
    with pytest.raises(UnknownNameError, match="unknown target_kind 'clasification'; did you mean 'classification'"):
        pig_tasks(path, target_kind="clasification")
    with pytest.raises(UnknownNameError, match="unknown on_duplicates 'droop'; did you mean 'drop'"):
        pig_tasks(path, on_duplicates="droop")
    with pytest.raises(UsageError, match="together below 1"):
        pig_tasks(path, validation_share=0.7, test_share=0.4)
    with pytest.raises(UsageError, match="columns is empty"):
        pig_tasks(path, columns=[])
    with pytest.raises(FileError, match="none.csv: there is no such file"):
        pig_tasks(tmp_path / "none.csv")


def test_parquet_gives_the_same_tasks(write: Any, pigs: Any, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.DataFrame(pigs).to_parquet(tmp_path / "some.parquet")
    found = pig_tasks(tmp_path / "some.parquet")
    expected = pig_tasks(write(pigs))
    assert found.details["schema"] == expected.details["schema"]
    assert same_bits(found.sample("train", range(9)), expected.sample("train", range(9)))
    pigs["weight"][9] = float("nan")
    pandas.DataFrame(pigs).to_parquet(tmp_path / "some.parquet")
    with pytest.raises(DataError, match="row 10, column 'weight': the target is missing"):
        pig_tasks(tmp_path / "some.parquet")


@pytest.mark.parametrize("name", list(PANEL))
@pytest.mark.parametrize("order", ["random", "first"])
def test_real_panels_keep_the_contract(shared_data: Path, name: str, order: Any) -> None:
    path = shared_data / "panel" / f"{name}.csv"
    if not path.exists():
        pytest.skip(f"the panel {name}.csv is not in the shared data")
    tasks = table(data=path, shots=3, order=order, **PANEL[name])
    check_tasks(tasks, numbers=range(3))
    assert tasks.kind == "regression" and not tasks.details["skipped"]["train"]
    everything = {key: value for key, value in PANEL[name].items() if key != "columns"}
    assert table(data=path, shots=3, order=order, **everything).details["left_out"][""] == "names the rows"


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


def test_a_file_as_people_write_it_is_the_same_as_a_plain_one(tmp_path: Path, write: Any, pigs: Any) -> None:
    week = [str(value) for value in pigs["week"]]
    # a tenth of the cells bad: it was left out with a warning
    plain = write({**pigs, "week": [text if row % 10 else "" for row, text in enumerate(week)]}, "plain.csv")
    marks = [text if row % 10 else ("-", "?", "lost", "NA")[row // 10 % 4] for row, text in enumerate(week)]
    shown = {**pigs, "week": marks, "weight": [f"${value}.00" for value in pigs["weight"]]}
    odd = write(shown, "odd.csv")
    with pytest.raises(DataError, match=r"column 'week': 'lost' in line \d+ is not a number.*--na-values"):
        pig_tasks(odd)
    commas = [";".join([text.replace(".", ",") for text in line.split(",")]) for line in odd.read_text().splitlines()]
    (tmp_path / "commas.csv.gz").write_bytes(gzip.compress("\n".join(commas).replace("$", "").encode("utf-16")))
    expected = pig_tasks(plain).sample("test", range(2))
    for path in (odd, tmp_path / "commas.csv.gz"):
        found = pig_tasks(path, na_values="lost")
        assert same_bits(found.sample("test", range(2)), expected)
        assert schema_from_json(found.details["schema"], "here").missing == ("lost",)
