"""The benchmark of searches: what it compares, and what it writes."""

import json
import math
import statistics

import pytest
import torch

import headstart
from benchmarks import search as benchmark
from headstart.types import Batch, Episodes, Tasks


def test_a_search_is_judged_and_written(tmp_path, capsys):
    few = ["--trials", "2", "--tasks-per-trial", "2", "--tasks", "3", "--out", str(tmp_path)]
    benchmark.main(["--estimators", "svm,neighbors", *few])
    found = json.loads((tmp_path / "search.json").read_text())
    rows = found["suites"]["icons-1"]
    assert [row["estimator"] for row in rows] == ["svm", "neighbors"]
    for row in rows:
        assert row["difference"]["mean"] == pytest.approx(row["searched"]["mean"] - row["defaults"]["mean"])
        assert row["trials"] == row["tasks_per_trial"] == 2
        assert 0.2 < row["defaults"]["mean"] < 1
    text = (tmp_path / "search.md").read_text()
    assert "| `svm` |" in text and "| `svm` |" in capsys.readouterr().out
    assert "--tasks 3" in found["command"]


def test_both_sides_are_judged_on_the_same_rows():
    episodes = benchmark.SUITES["icons-1"].tasks(None).sample("test", range(4))
    assert episodes.query.x.shape == (4, 55, 196)
    learner = headstart.nearest(ways=5)
    assert len(benchmark.of_learner(learner, learner.init(None), episodes)) == 4
    # one shot a class: a support vector machine with a radial kernel is the nearest row
    ours = benchmark.of_learner(learner, learner.init(None), episodes)
    theirs = benchmark.of_defaults("svm", episodes)
    assert statistics.fmean(ours) == pytest.approx(statistics.fmean(theirs), abs=0.05)


def test_images_become_smaller_rows_of_the_same_ink():
    x = torch.rand(2, 3, 1, 28, 28)
    tasks = Tasks("t", lambda split, n: Episodes(Batch(x, torch.zeros(2, 3)), Batch(x, x)), "regression", (1,), 1, {})
    small = benchmark.reduced(tasks).sample("train", [0, 1]).support.x
    assert small.shape == (2, 3, 196) and torch.allclose(small.mean(-1), x.mean((2, 3, 4)))


def test_the_interval_is_that_of_the_mean():
    assert benchmark.interval([0.0, 1.0]) == pytest.approx({"mean": 0.5, "ci95": 1.96 * math.sqrt(0.5 / 2)})


def test_an_unknown_estimator_is_refused(tmp_path):
    with pytest.raises(headstart.errors.UnknownNameError, match="svn"):
        benchmark.main(["--estimators", "svn", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        benchmark.main(["--tasks", "1", "--out", str(tmp_path)])
