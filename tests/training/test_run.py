"""Runs in a folder: complete, exact when resumed, and careful with what is there."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from headstart.errors import ConfigError, DivergenceError, FileError
from headstart.training.checkpoint import find
from headstart.training.config import TrainConfig, make_config
from headstart.training.config_file import read_config_file
from headstart.training.defaults import resolve
from headstart.training.loop import StepRecord
from headstart.training.named_tasks import default_folder
from headstart.training.progress import Silent
from headstart.training.report.card import command
from headstart.training.run import open_run, read_config, train
from headstart.training.run import test as judge

SMALL: dict[str, Any] = {
    "threads": 1, "evaluate_tasks": 4, "test_tasks": 4, "evaluate_every": 4, "save_every": 3, "tasks_per_step": 2
}  # fmt: skip
SINE: dict[str, Any] = {"tasks": "sinusoid", "hidden": "8", "steps": 10, **SMALL}
CURVES: dict[str, Any] = {**SINE, "tasks": "curves", "noise": 0.5}
ICONS: dict[str, Any] = {
    "tasks": "icons", "filters": 2, "ways": 2, "queries": 2, "inner_steps": 1, "rotations": False, "steps": 8, **SMALL
}  # fmt: skip
NUMBERS = ("last.safetensors", "best.safetensors", "metrics.jsonl", "results.csv", "test.csv", "results.json")


class _StopAt(Silent):
    """Ask for a stop, as a user would, when a step has been taken."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.at, self.number = step, number

    def step(self, record: StepRecord, validation: str) -> None:
        if record.step == self.at:
            os.kill(os.getpid(), self.number)


def _same(a: Path, b: Path, names: tuple[str, ...] = NUMBERS) -> None:
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.mark.parametrize("options", [SINE, CURVES, ICONS, {**ICONS, "method": "prototypes", "inner_steps": None}])
def test_a_run_folder_is_complete(options: dict[str, Any], tmp_path: Path) -> None:
    result = train(make_config(options), tmp_path)
    assert result.score is not None and result.stopped is None and result.step == options["steps"]
    assert set(NUMBERS) < set(os.listdir(tmp_path))
    for name in ("results.png", "episode.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 300 and len(image.getcolors(1 << 24)) > 20
    card = (tmp_path / "README.md").read_text()
    assert "None" not in card and "TODO" not in card and "{" not in card and "± " in card
    assert options["tasks"] in card and "4 test tasks" in card and "licence" in card and "seed 0" in card
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(options["steps"] + 1))
    assert [line["step"] for line in lines if "validation" in line] == sorted({0, 4, 8, options["steps"]})
    assert len((tmp_path / "test.csv").read_text().splitlines()) == 5
    if result.config.inner_steps is not None:
        assert json.loads((tmp_path / "results.json").read_text())["by_inner_step"]["0"]["mean"] is not None


def test_a_card_says_what_the_curves_are(tmp_path: Path) -> None:
    for place, (values, words) in enumerate(
        [
            ({**SINE, "frequency": "0.8-1.2"}, ("frequency 0.8-1.2", "1707.09835", "--frequency 0.8-1.2")),
            (CURVES, ("noise 0.5, so that no expected error is below 0.25", "1910.13616", "--noise 0.5")),
        ]
    ):
        train(make_config({**values, "steps": 0}), tmp_path / str(place))
        card = (tmp_path / str(place) / "README.md").read_text()
        for word in (*words, "licence: none needed", "the first test tasks before and after adapting", "evaluate RUN"):
            assert word in card


def test_the_best_weights_are_tested(tmp_path: Path) -> None:
    train(make_config({**SINE, "outer_rate": 0.5}), tmp_path)  # so large a rate that later weights are worse
    job, checkpoint = open_run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    looks = {line["step"]: line["validation"]["mse"] for line in lines if "validation" in line}
    assert checkpoint.best.step == min(looks, key=looks.__getitem__) != checkpoint.step
    written = json.loads((tmp_path / "results.json").read_text())
    assert judge(job, checkpoint.best.meta).mean == written["mean"] != judge(job, checkpoint.meta).mean


def test_the_same_configuration_gives_the_same_bits_and_its_file_is_taken_back(tmp_path: Path) -> None:
    train(make_config(SINE), tmp_path / "a")
    train(make_config(read_config_file(tmp_path / "a" / "config.json")), tmp_path / "b")
    _same(tmp_path / "a", tmp_path / "b", (*NUMBERS, "config.json", "README.md"))
    train(make_config({**SINE, "seed": 1}), tmp_path / "c")
    assert (tmp_path / "a" / "last.safetensors").read_bytes() != (tmp_path / "c" / "last.safetensors").read_bytes()


def test_the_cards_command_means_the_same_run(tmp_path: Path) -> None:
    for values in (
        SINE,
        {**SINE, "frequency": "0.8-1.2"},
        CURVES,
        ICONS,
        {"tasks": "icons", "method": "reptile", "model": "mlp", "shots": "1-3"},
    ):
        config = resolve(make_config(values))
        words = shlex.split(command(config))
        assert words[:3] == ["headstart", "train", config.tasks]
        given: dict[str, Any] = {"tasks": words[2]}
        rest = iter(words[3:-2])
        for word in rest:
            name = word[2:].replace("-", "_")
            if name.startswith("no_"):
                given[name[3:]] = False
            elif name == "rotations":
                given[name] = True
            else:
                given[name] = next(rest)
        assert resolve(make_config(given)) == config


@pytest.mark.parametrize("options", [SINE, ICONS, {**SINE, "method": "reptile"}, {**SINE, "method": "meta_sgd"}])
def test_stopping_twice_changes_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    train(make_config(options), tmp_path / "whole")
    for step, number in ((2, signal.SIGTERM), (5, signal.SIGINT)):
        stopped = train(make_config(options), tmp_path / "parts", view=_StopAt(step, number))
        assert stopped.stopped == number and stopped.step == step and stopped.score is None
    assert not (tmp_path / "parts" / "results.json").exists()
    train(make_config(options), tmp_path / "parts")
    _same(tmp_path / "whole", tmp_path / "parts")


def test_a_stop_while_testing_leaves_the_test_for_the_next_call(tmp_path: Path) -> None:
    class StopWhileTesting(Silent):
        def note(self, text: str) -> None:
            if text.startswith("testing"):
                os.kill(os.getpid(), signal.SIGTERM)

    stopped = train(make_config(SINE), tmp_path, view=StopWhileTesting())
    assert (stopped.stopped, stopped.step, stopped.score) == (signal.SIGTERM, SINE["steps"], None)
    assert not (tmp_path / "results.json").exists()
    assert train(make_config(SINE), tmp_path).score is not None


def test_a_second_signal_stops_at_once_and_handlers_are_put_back(request: pytest.FixtureRequest) -> None:
    from headstart.training.signals import stop_signals

    # a process that was started in the background may ignore SIGINT
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.number == signal.SIGINT and stop.requested
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_damaged_newest_checkpoint_costs_some_steps_and_no_bits(tmp_path: Path) -> None:
    train(make_config(SINE), tmp_path / "whole")
    train(make_config(SINE), tmp_path / "parts", view=_StopAt(7))
    newest = tmp_path / "parts" / "checkpoints" / "step-000000007" / "last.safetensors"
    newest.write_bytes(newest.read_bytes()[:50])
    with pytest.warns(UserWarning, match="checkpoint step-000000007 cannot be used, going back"):
        train(make_config(SINE), tmp_path / "parts")
    _same(tmp_path / "whole", tmp_path / "parts")
    assert any(name.startswith("damaged-step-000000007") for name in os.listdir(tmp_path / "parts" / "checkpoints"))


def test_more_steps_go_on_with_the_run(tmp_path: Path) -> None:
    train(make_config({**SINE, "steps": 4}), tmp_path / "a")
    train(make_config({**SINE, "steps": 10}), tmp_path / "a")
    train(make_config({**SINE, "steps": 10}), tmp_path / "b")
    _same(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ConfigError, match="--steps: 10 -> 4"):
        train(make_config({**SINE, "steps": 4}), tmp_path / "a")


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    train(make_config(SINE), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in NUMBERS}
    result = train(make_config(SINE), tmp_path, view=_StopAt(1))  # no step is taken, so nothing is stopped
    assert result.stopped is None
    assert before == {name: (tmp_path / name).read_bytes() for name in NUMBERS}


def test_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    train(make_config({**SINE, "steps": 1}), tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ConfigError) as caught:
        train(make_config({**SINE, "steps": 1, "inner_rate": 0.5, "seed": 3}), tmp_path)
    assert "--inner-rate: 0.01 -> 0.5" in str(caught.value) and "--seed: 0 -> 3" in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before and read_config(tmp_path).seed == 0


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        train(make_config(SINE), tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_mistake_in_the_configuration_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="classifies"):
        train(TrainConfig(tasks="sinusoid", method="prototypes"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_divergence_is_an_error_and_the_run_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="in step"):
        train(make_config({**SINE, "outer_rate": 100, "optimizer": "sgd", "steps": 200}), tmp_path)
    job, checkpoint = open_run(tmp_path)
    assert judge(job, checkpoint.best.meta, episodes=2).mean > 0


def test_two_writers_are_refused(tmp_path: Path) -> None:
    from headstart.training.signals import only_writer

    with only_writer(tmp_path), pytest.raises(ConfigError, match="another process is training"):
        with only_writer(tmp_path):
            pass
    with only_writer(tmp_path):
        pass


def test_what_is_no_run_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds no run"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text('{"tasks": "sinusoid"}')
    with pytest.raises(FileError, match="has no checkpoint yet"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text('{"tasks": "sinusoid", "ways": 1}')
    with pytest.raises(ConfigError, match="--ways is 1.*config.json"):
        open_run(tmp_path)


@pytest.mark.parametrize("method", ["scratch", "nearest"])
def test_methods_that_learn_nothing_across_tasks_are_judged_at_once(method: str, tmp_path: Path) -> None:
    drop = {"steps", "tasks_per_step"} | ({"filters", "inner_steps"} if method == "nearest" else set())
    result = train(make_config({k: v for k, v in ICONS.items() if k not in drop} | {"method": method}), tmp_path)
    assert result.step == 0 and result.score is not None and (tmp_path / "results.png").exists()


def test_default_folders_are_named_by_tasks_and_method(tmp_path: Path) -> None:
    assert default_folder(resolve(TrainConfig(tasks="sinusoid"))) == Path("runs/sinusoid-maml")
    (tmp_path / "birds").mkdir()
    assert default_folder(resolve(TrainConfig(tasks=str(tmp_path / "birds")))) == Path("runs/birds-maml")
    (tmp_path / "visits.csv").write_text("patient,day,pressure\n")
    table = TrainConfig(tasks=str(tmp_path / "visits.csv"), task_column="patient", target="pressure")
    assert default_folder(resolve(table)) == Path("runs/visits-gaussian_process")


def _killed_at(config: Path, out: Path, step: int) -> None:
    """Run the command and SIGKILL it once a checkpoint of ``step`` or later is there."""
    words = [sys.executable, "-m", "headstart", "train", "--config", str(config), "--out", str(out)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            names = [path.name for path in (out / "checkpoints").glob("step-*")]
            if any(int(name[5:]) >= step for name in names):
                break
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("options", "kills"),
    [
        ({**SINE, "steps": 3000, "save_every": 1, "evaluate_every": 1000}, (20, 61)),
        ({**ICONS, "steps": 400, "save_every": 1, "evaluate_every": 100}, (10, 25)),
    ],
)
def test_sigkill_at_any_time_changes_no_bit(options: dict[str, Any], kills: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "long.json").write_text(json.dumps(options))
    for step in kills:
        _killed_at(tmp_path / "long.json", tmp_path / "killed", step)
    job, _ = open_run(tmp_path / "killed")
    found = find(tmp_path / "killed", job.learner.init(None)).checkpoint
    assert found is not None and max(kills) <= found.step < options["steps"]
    # the rest of the way is short: as far as the next steps, of both
    steps = found.step + 7
    for name in ("killed", "whole"):
        ended = make_config({**options, "steps": steps})
        if name == "killed":
            stopped = train(make_config(options), tmp_path / name, view=_StopAt(steps))
            assert stopped.step == steps
        else:
            train(ended, tmp_path / name, view=_StopAt(steps))
    _same(tmp_path / "killed", tmp_path / "whole", ("last.safetensors",))
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines()[:steps] for name in ("killed", "whole")]
    assert lines[0] == lines[1] and len(lines[0]) == steps


def test_raised_steps_are_refused_where_the_rates_would_change(tmp_path: Path) -> None:
    train(make_config({**SINE, "steps": 4, "schedule": "linear"}), tmp_path)
    with pytest.raises(ConfigError, match="--steps: 4 -> 6"):
        train(make_config({**SINE, "steps": 6, "schedule": "linear"}), tmp_path)


def test_results_of_fewer_steps_do_not_outlive_them(tmp_path: Path) -> None:
    train(make_config({**SINE, "steps": 4}), tmp_path)
    assert (tmp_path / "results.json").exists()
    result = train(make_config({**SINE, "steps": 10}), tmp_path, view=_StopAt(8))
    assert result.stopped is not None
    assert not any((tmp_path / name).exists() for name in ("results.json", "test.csv", "README.md"))


def _numbers(path: Path) -> dict[str, Any]:
    return load_file(str(path / "last.safetensors"))


def test_parts_of_a_budget_of_memory_give_the_weights_to_rounding(tmp_path: Path) -> None:
    options = {**SINE, "steps": 4, "tasks_per_step": 6}
    for name, more in (("whole", {}), ("parts", {"memory": "64KiB"})):
        train(make_config({**options, **more}), tmp_path / name)
    whole, parts = _numbers(tmp_path / "whole"), _numbers(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert (parts[name].double() - value.double()).abs().max() < 1e-5, name


@pytest.mark.parametrize("kind", ["compile", "memory"])
def test_how_a_step_is_computed_may_change_when_a_run_goes_on(kind: str, tmp_path: Path) -> None:
    value: Any = {"compile": True, "memory": "1MiB"}[kind]
    options = {**SINE, "steps": 4, "hidden": "4", "inner_steps": 1}
    run = tmp_path / "run"
    train(make_config({**options, kind: value}), run, view=_StopAt(2))
    assert not (run / "results.json").exists()
    train(make_config(options), run)
    train(make_config(options), tmp_path / "plain")
    one, other = _numbers(run), _numbers(tmp_path / "plain")
    for name, tensor in other.items():
        assert (one[name].double() - tensor.double()).abs().max() < 1e-4, name
