import json
import signal

import pytest

from headstart.errors import ConfigError, DivergenceError, UsageError
from headstart.training import side_by_side
from headstart.training.over_seeds import OverSeeds
from headstart.training.progress import View
from headstart.training.sweep import Judged, Setting, Sweep, _best, _compared, markdown, rows, sweep

pytestmark = pytest.mark.usefixtures("unrendered")

SMALL = {
    "tasks": {"name": "sinusoid", "shots": 2, "queries": 2},
    "model": {"name": "mlp", "hidden": [4]},
    "outer": {"steps": 2, "tasks_per_step": 2},
    "run": {"evaluate_tasks": 2, "test_tasks": 3, "threads": 1},
}
GRID = {"outer.rate": ["1e-2", 0.1]}


@pytest.fixture
def trained(monkeypatch):
    """The folders that runs are trained in, whether or not they end there."""
    names, train = [], side_by_side.train

    def told(config, out, **options):
        names.append(out.name)
        return train(config, out, **options)

    monkeypatch.setattr(side_by_side, "train", told)
    return names


def test_a_run_for_each_setting_and_seed_and_what_has_ended_is_not_trained_again(tmp_path, trained):
    found = sweep(SMALL, ["maml", "scratch"], tmp_path, grid=GRID, seeds=2)
    settings = ["maml-outer_rate=0.01", "maml-outer_rate=0.1", "scratch"]
    assert sorted(trained) == sorted(f"{name}-seed={seed}" for name in settings for seed in (0, 1))
    assert [one.name for one in found.settings] == settings and not found.failed
    table = json.loads((tmp_path / "sweep.json").read_text())["settings"]
    assert table == rows(found)
    scores = [json.loads((tmp_path / f"scratch-seed={seed}" / "results.json").read_text())["mean"] for seed in (0, 1)]
    assert table[2]["mse"] == pytest.approx(sum(scores) / 2) and table[2]["seeds"] == 2 and table[2]["tasks"] == 6
    assert (tmp_path / "sweep.csv").exists() and (tmp_path / "sweep.md").read_text() == markdown(found)

    trained.clear()
    (tmp_path / "scratch-seed=1" / "README.md").unlink()  # as if killed while it was written
    assert sweep(SMALL, ["maml", "scratch"], tmp_path, grid=GRID, seeds=2) == found
    assert trained == ["scratch-seed=1"]

    trained.clear()
    more = {**SMALL, "outer": {"steps": 3, "tasks_per_step": 2}}
    sweep(more, ["maml"], tmp_path, grid={"outer.rate": [0.1]}, seeds=3)
    assert trained == [f"maml-outer_rate=0.1-seed={seed}" for seed in range(3)]


def test_what_fails_is_reported_the_others_go_on_and_it_is_tried_again(tmp_path, monkeypatch):
    train = side_by_side.train

    def diverging(config, out, **options):
        if config.run.seed == 0:
            raise DivergenceError("the loss of step 1 is not finite")
        return train(config, out, **options)

    monkeypatch.setattr(side_by_side, "train", diverging)
    found = sweep(SMALL, ["maml"], tmp_path, seeds=2)
    assert list(found.failed) == ["maml-seed=0"] and list(found.settings[0].runs) == [1]
    assert "not finite" in json.loads((tmp_path / "sweep.json").read_text())["failed"]["maml-seed=0"]
    monkeypatch.setattr(side_by_side, "train", train)
    found = sweep(SMALL, ["maml"], tmp_path, seeds=2)
    assert not found.failed and list(found.settings[0].runs) == [0, 1]


def test_a_signal_stops_all_and_the_same_call_goes_on(tmp_path):
    class StopIn(View):
        def step(self, record, validation):
            signal.raise_signal(signal.SIGINT)

    found = sweep(SMALL, ["maml"], tmp_path, seeds=2, view=StopIn())
    assert found.stopped == signal.SIGINT and not (tmp_path / "sweep.json").exists()
    assert not (tmp_path / "maml-seed=1").exists()
    assert list(sweep(SMALL, ["maml"], tmp_path, seeds=2).settings[0].runs) == [0, 1]


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"seeds": 0}, UsageError, "seeds must be at least 1"),
        ({"grid": {"run.seed": [1, 2]}}, UsageError, "--seeds"),
        ({"grid": {"method.rate": ["0.1", 0.1]}}, UsageError, "each once"),
        ({"grid": {"method.rate": []}}, UsageError, "one or more"),
        ({"grid": {"method.rate": ["x"]}}, ConfigError, "--inner-rate is 'x'"),
        ({"grid": {"method.kernel": ["rbf"]}}, ConfigError, "none of maml takes --method.kernel"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_training(options, error, told, tmp_path):
    with pytest.raises(error, match=told):
        sweep(SMALL, ["maml"], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def setting(name, validation, test, seeds=(0, 1), method="maml", tasks="icons", metric="accuracy"):
    runs = {
        seed: Judged(metric, {(seed, task): test + seed + task / 10 for task in range(3)}, validation) for seed in seeds
    }
    return Setting(name, method, {"rate": name}, tasks, runs, OverSeeds(test, 0.1, 0.1, 0.1))


@pytest.mark.parametrize(("metric", "chosen"), [("accuracy", "high"), ("mse", "low")])
def test_the_best_is_chosen_on_validation_tasks_alone_among_settings_that_all_ended(metric, chosen):
    settings = [
        setting("low", 0.6, 0.9, metric=metric),
        setting("high", 0.7, 0.1, metric=metric),
        setting("failed", 0.65 if metric == "accuracy" else 0.1, 0.5, seeds=(1,), metric=metric),
        setting("failing", 0.9, 0.5, seeds=(1,), metric=metric),
        setting("alone", 0.9, 0.9, method="joint", metric=metric),
        setting("elsewhere", 0.9, 0.9, tasks="flags", metric=metric),
    ]
    assert [one.name for one in _best(settings, 2) if one.best] == [chosen]


def test_differences_are_of_the_same_tasks_and_seeds():
    base, other = setting("a", 0.6, 0.5), setting("b", 0.7, 0.75, seeds=(1,))
    _, more = _compared([base, other, setting("c", 0.7, 0.7, tasks="flags")])[:2]
    assert more.more.mean == pytest.approx(0.25) and more.more.tasks == pytest.approx(0)
    table = markdown(Sweep([base, more], {}))
    assert "than the first" in table and "+25.00 %" in table and "50.00 % | 10.00 %" in table
