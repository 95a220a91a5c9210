"""A score as JSON and as words."""

import json
import math

import pytest
import torch

from headstart.algorithms.prototypes import nearest
from headstart.data.rows import Rows, row_tasks
from headstart.errors import FileError
from headstart.training.evaluate import Calibration, Errors, Interval, Score, evaluate
from headstart.training.report import figures
from headstart.training.report.report import confusions, read_choice, read_results, score_to_json, shown
from headstart.training.report.score_plots import _validation

SCORE = Score("mse", 0.5, 0.1, 3, "test", (0.4, 0.5, 0.6), {1: Interval(0.5, 0.1), 2: Interval(math.inf, math.nan)})


def test_a_score_without_a_distribution_is_as_it_always_was():
    told = score_to_json(SCORE)
    assert sorted(told) == ["by_inner_step", "ci95", "episodes", "mean", "median", "metric", "split", "worst"]
    assert (told["median"], told["worst"]) == (0.5, 0.6)
    assert told["by_inner_step"] == {"1": {"mean": 0.5, "ci95": 0.1}, "2": {"mean": None, "ci95": None}}


def test_calibration_is_told_where_there_is_any():
    told = score_to_json(SCORE._replace(calibration=Calibration(Interval(1.25, 0.5), 0.91, 2.0)))
    assert told["calibration"] == {"nll": {"mean": 1.25, "ci95": 0.5}, "coverage": 0.91, "width": 2.0, "level": 0.9}


def test_a_single_task_has_no_interval_in_json_or_words():
    one = SCORE._replace(ci95=math.nan, episodes=1, calibration=Calibration(Interval(1.25, math.nan), 1.0, 2.0))
    told = json.loads(json.dumps(score_to_json(one), allow_nan=False))
    assert told["ci95"] is None and told["calibration"]["nll"] == {"mean": 1.25, "ci95": None}
    assert shown("regression", 0.5, math.nan) == "mse 0.5"
    assert shown("classification", 0.5, math.nan) == "accuracy 50.00 %"


def test_results_of_runs_with_and_without_calibration_are_read(tmp_path):
    with pytest.raises(FileError, match="no test score yet"):
        read_results(tmp_path)
    told = SCORE._replace(errors=Errors(1.5, 1.0, 0.5))
    for score in (told, told._replace(calibration=Calibration(Interval(1.25, 0.5), 0.91, 2.0))):
        of_run = {"step": 3, "best_step": 3, "best_validation": 0.5, "device": "cpu", "headstart": "0.1.0"}
        (tmp_path / "results.json").write_text(json.dumps({**score_to_json(score), **of_run}))
        assert read_results(tmp_path).get("calibration") == score_to_json(score).get("calibration")
    whole = json.loads((tmp_path / "results.json").read_text())
    for name, value in (("mean", "0.5"), ("best_step", 1e30), ("by_inner_step", {"x": {}}), ("metric", "loss")):
        (tmp_path / "results.json").write_text(json.dumps({**whole, name: value}))
        with pytest.raises(FileError, match=f"results.json is not as it was written: {name}.*train. again"):
            read_results(tmp_path)
    (tmp_path / "choice.json").write_text('{"chosen": "a", "metric": "mse", "validation_tasks": 3, "candidates": [3]}')
    with pytest.raises(FileError, match="choice.json is not as it was written: candidates.0"):
        read_choice(tmp_path)


def test_every_query_row_is_counted_once_among_the_confusions_and_nothing_else():
    task = torch.arange(8).repeat_interleave(torch.tensor([4, 9, 5, 12, 7, 4, 6, 11]))
    y = torch.arange(len(task)) % 3
    rows = Rows(torch.randn(len(task), 2), y, task, tuple("abcdefgh"))
    splits = {"train": (0, 1), "validation": (2,), "test": range(3, 8)}
    tasks = row_tasks(rows, splits, support=3, order="first")._replace(names=lambda split, number: ("p", "q", "r"))
    learner = nearest(ways=3, shared_classes=True)
    meta = learner.init(None)
    there = torch.cat([y[task == own][3:] for own in splits["test"]])
    score = evaluate(learner, meta, tasks)
    sizes = [int((task == own).sum()) - 3 for own in splits["test"]]
    wrong = sum(round((1 - value) * size) for value, size in zip(score.values, sizes))
    found = confusions(tasks, learner, meta)
    assert sum(row["times"] for row in found) == wrong > 0
    assert {(row["class"], row["of"]) for row in found} <= {("pqr"[own], int((there == own).sum())) for own in range(3)}


def test_a_picture_of_accuracies_ends_at_100_percent():
    axis = figures.new_figure(4, 3).subplots()
    axis.errorbar([1], [75], [300])
    figures.within(axis, "mse")
    assert axis.get_ylim()[1] > 375
    figures.within(axis, "accuracy")
    assert axis.get_ylim() == (-2, 102)


def test_a_history_in_which_a_step_comes_twice_is_drawn():
    axis = figures.new_figure(4, 3).subplots()
    rows = [{"step": step, "accuracy": 0.5, "ci95": 0.1} for step in (1, 2, 2)]
    _validation(rows, {"metric": "accuracy", "best_step": 2}, axis)
    assert len(axis.collections[0].get_paths()) == 1 and axis.lines[0].get_xdata().tolist() == [1, 2]
