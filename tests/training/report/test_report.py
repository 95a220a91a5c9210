"""A score as JSON and as words."""

import json
import math

import pytest

from headstart.errors import FileError
from headstart.training.evaluate import Calibration, Interval, Score
from headstart.training.report.report import read_results, score_to_json, shown

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
    for score in (SCORE, SCORE._replace(calibration=Calibration(Interval(1.25, 0.5), 0.91, 2.0))):
        (tmp_path / "results.json").write_text(
            json.dumps({**score_to_json(score), "best_step": 3, "best_validation": 0.5})
        )
        assert read_results(tmp_path).get("calibration") == score_to_json(score).get("calibration")
