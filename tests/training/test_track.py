"""Trackers are given every line of a run's metrics once, whenever it was stopped, and end no run."""

import json
import struct
import sys
from contextlib import ExitStack
from typing import get_args

import pytest

from headstart.errors import FileError, UsageError
from headstart.schema import options_of
from headstart.training import track
from headstart.training.config import Run, resolve
from headstart.training.metrics import MetricsFile, read_lines
from headstart.training.run import train
from headstart.training.track import TRACKERS, Tracker, tracking
from tests.short import tree

SMALL = {"tasks": "sinusoid", "tasks_per_step": 2, "evaluate_tasks": 2, "test_tasks": 3, "threads": 1}
SCORE = {"metric": "mse", "mean": 0.5, "ci95": 0.1, "median": 0.4, "worst": 0.9}


def config(*names, **options):
    return resolve(tree(SMALL, steps=6, track=list(names), **options))


def line(step):
    return {"step": step, "loss": 1.0 / (step + 1), "rate": 0.25}


def tensorboard_held(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return {name: [(one.step, one.value) for one in read.Scalars(name)] for name in read.Tags()["scalars"]}


def mlflow_held(run):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    (own,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert own.data.params["tasks.name"] == "sinusoid" and own.info.status == "FINISHED"
    history = {name: client.get_metric_history(own.info.run_id, name) for name in own.data.metrics}
    return {name: [(one.step, one.value) for one in points] for name, points in history.items()}


def wandb_held(run):
    """Read the file of an offline run: LevelDB's log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    data, at, whole, found = path.read_bytes(), 7, b"", {}
    while at < len(data):
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7]) if 32768 - at % 32768 >= 7 else (0, 0)
        if not kind:  # the rest of a block is empty
            at += 32768 - at % 32768
            continue
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):
            record = Record.FromString(whole)
            for one in record.history.item:
                name = one.key or "/".join(one.nested_key)
                found.setdefault(name, []).append((record.history.step.num, json.loads(one.value_json)))
            whole = b""
    return {name: points for name, points in found.items() if not name.startswith("_")}


HELD = {"tensorboard": tensorboard_held, "mlflow": mlflow_held, "wandb": wandb_held}


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of theirs
def test_a_tracker_holds_every_line_once_after_going_back_and_on(name, tmp_path, monkeypatch):
    pytest.importorskip(name, reason=f"{name} is not installed (the extra track)")
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    metrics = MetricsFile(tmp_path)
    metrics.add(line(0))  # before anybody is told
    with tracking(config(name), tmp_path, metrics):
        metrics.add(line(1))
        metrics.add(line(2))
        known = metrics.sync()
        metrics.add(line(3))
    metrics.close()
    metrics = MetricsFile(tmp_path, 2, known)  # the third step is taken again
    with tracking(config(name), tmp_path, metrics) as result:
        for step in (3, 4):
            metrics.add(line(step))
        result(4, SCORE)
    metrics.close()
    held = HELD[name](tmp_path)
    assert held["loss"] == [(step, pytest.approx(line(step)["loss"])) for step in range(5)]
    assert held["rate"] == [(step, 0.25) for step in range(5)]
    assert held["test/mse"] == [(4, 0.5)]


@pytest.fixture
def store(monkeypatch):
    """A tracker that keeps all in a list, and fails where it is told to."""

    class Store(list):
        fails = False
        ended = None

        def send(self, points):
            if self.fails:
                raise OSError("the server is\ndown")
            self.extend(points)

        def close(self, ended):
            self.ended = ended

    one = Store()
    monkeypatch.setattr(track, "TRACKERS", {"wandb": lambda *_: Tracker(one.send, one.close)})
    monkeypatch.setattr(track, "SECONDS", 0.0)
    monkeypatch.setattr(track, "PAUSE", 0.0)
    return one


@pytest.mark.usefixtures("unrendered")
def test_a_run_tells_its_steps_looks_and_score_and_can_be_told_of_later(store, tmp_path):
    options = tree(SMALL, steps=2)
    train(options, tmp_path)
    assert not store and not (tmp_path / "tracked.json").exists()
    score = train(tree(SMALL, steps=4, track=["wandb"]), tmp_path).score
    lines = read_lines(tmp_path)
    assert [step for step, _ in store] == [0, 1, 2, 3, 4, 4] == [one["step"] for one in lines] + [4]
    assert [values.get("loss") for _, values in store[:-1]] == [one.get("loss") for one in lines]
    assert "validation/mse" in store[0][1] and store[-1][1]["test/mse"] == score.mean and store.ended is True


def test_what_cannot_be_sent_is_said_once_and_sent_later(store, tmp_path):
    metrics, store.fails = MetricsFile(tmp_path), True
    with pytest.warns(UserWarning, match="the server is down") as told, ExitStack() as stack:
        stack.enter_context(tracking(config("wandb"), tmp_path, metrics))
        metrics.add(line(0))
        metrics.add(line(1))
        store.fails = False
        metrics.add(line(2))
    assert [step for step, _ in store] == [0, 1, 2] and len(told) == 1 and store.ended is False
    metrics.close()


def test_a_tracker_that_is_not_there_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    metrics = MetricsFile(tmp_path)
    with pytest.raises(UsageError, match=r"--track mlflow needs mlflow: pip install headstart\[track\]"):
        tracking(config("mlflow"), tmp_path, metrics).__enter__()
    (tmp_path / "tracked.json").write_text("[]")
    with pytest.raises(FileError, match="tracked.json"):
        tracking(config("mlflow"), tmp_path, metrics).__enter__()
    metrics.close()


def test_every_tracker_can_be_chosen():
    assert tuple(TRACKERS) == get_args(get_args(options_of(Run)["track"].type)[0])
