"""The table of defaults: complete, and nothing that is asked for is left out silently."""

from pathlib import Path

import pytest

from headstart.errors import ConfigError, UnknownNameError
from headstart.registry import rows
from headstart.training import defaults
from headstart.training.config import TrainConfig
from headstart.training.defaults import resolve, taken_by


def test_every_registered_name_has_a_row() -> None:
    assert set(defaults.METHODS) == {row.name for row in rows("method")}
    assert set(defaults.TASKS) == {row.name for row in rows("task")}
    assert set(defaults.MODELS) == {row.name for row in rows("model")}


@pytest.mark.parametrize("method", sorted(defaults.METHODS))
@pytest.mark.parametrize("tasks", ["sinusoid", "curves", "icons", "omniglot", "folder"])
def test_resolving_twice_is_resolving_once(tasks: str, method: str, tmp_path: Path) -> None:
    data = str(tmp_path) if tasks == "folder" else None
    once = resolve(TrainConfig(tasks=tasks, method=method, data=data))
    assert resolve(once) == once
    assert {name for name, value in once.model_dump().items() if value is not None} <= taken_by(once)


def test_what_is_given_wins_over_the_table() -> None:
    config = resolve(TrainConfig(tasks="sinusoid", inner_rate=0.5, steps=7, hidden="8"))
    assert (config.inner_rate, config.steps, config.hidden, config.model) == (0.5, 7, "8", "mlp")
    assert resolve(TrainConfig(tasks="icons", model="mlp")).filters is None


def test_curves_start_from_what_sinusoids_start_from_but_for_the_inner_loop() -> None:
    sines, mixed = (resolve(TrainConfig(tasks=tasks)) for tasks in ("sinusoid", "curves"))
    assert (sines.frequency, sines.noise, mixed.frequency, mixed.noise) == (1.0, None, None, 0.3)
    own = {"tasks": "curves", "frequency": None, "noise": 0.3, "inner_steps": 5, "inner_rate": 0.005}
    assert sines.model_copy(update=own) == mixed and mixed.model == "mlp"
    assert resolve(TrainConfig(tasks="curves", method="reptile")).inner_steps == 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": "sinusoid", "ways": 3}, "--ways does not apply to the tasks 'sinusoid'"),
        ({"tasks": "sinusoid", "filters": 3}, "--filters does not apply to the model 'mlp'"),
        (
            {"tasks": "icons", "method": "fomaml", "adjoint": "unrolled"},
            "--adjoint does not apply to the method 'fomaml'",
        ),
        ({"tasks": "icons", "method": "prototypes", "inner_rate": 0.1}, "--inner-rate does not apply"),
        ({"tasks": "icons", "method": "nearest", "model": "mlp"}, "--model does not apply"),
        ({"tasks": "icons", "method": "scratch", "steps": 5}, "--steps does not apply"),
        ({"tasks": "icons", "data": "x"}, "--data does not apply to the tasks 'icons'"),
        ({"tasks": "icons", "frequency": 2}, "--frequency does not apply to the tasks 'icons'"),
        ({"tasks": "curves", "frequency": 2}, "--frequency does not apply to the tasks 'curves'"),
        ({"tasks": "sinusoid", "noise": 0.1}, "--noise does not apply to the tasks 'sinusoid'"),
        ({"tasks": "sinusoid", "shots": "1-3"}, "but sinusoid takes one number of shots"),
        ({"tasks": "curves", "shots": "1-3"}, "but curves takes one number of shots"),
        ({"tasks": "folder"}, "need --data FOLDER"),
        ({"tasks": "./no/such"}, "there is no such folder or file"),
    ],
)
def test_an_option_that_nobody_takes_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(TrainConfig(**options))  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.parametrize("option", ["tasks", "method", "model"])
def test_an_unknown_name_is_refused(option: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown"):
        resolve(TrainConfig(**{"tasks": "icons", option: "maamll"}))


def test_a_folder_in_place_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "birds").mkdir()
    monkeypatch.chdir(tmp_path)
    config = resolve(TrainConfig(tasks="./birds"))
    assert (config.tasks, config.data) == ("folder", str(tmp_path / "birds"))
    with pytest.raises(ConfigError, match="leave out --data"):
        resolve(TrainConfig(tasks="./birds", data="x"))


def test_shots_that_vary_are_refused_under_batch_statistics() -> None:
    with pytest.raises(ConfigError, match="--norm batch would count the padding"):
        resolve(TrainConfig(tasks="icons", shots="1-3"))
    assert resolve(TrainConfig(tasks="icons", shots="1-3", norm="group")).shots == "1-3"
    assert resolve(TrainConfig(tasks="icons", shots="1-3", method="nearest")).norm is None
