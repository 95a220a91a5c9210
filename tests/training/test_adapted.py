"""Learning new tasks from images, tables and curves, and predicting with the result."""

import csv
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from headstart.cli.app import run as command
from headstart.data.images import kind as images
from headstart.data.images.folder import SkippedImageWarning
from headstart.data.images.icons import load_icons
from headstart.data.tables.schema import UnseenValueWarning, schema_from_json
from headstart.errors import (
    ConfigError,
    DataError,
    DivergenceError,
    FileError,
    HeadstartError,
    UnknownNameError,
    UsageError,
)
from headstart.training import head_start, predictions as module
from headstart.training.adapt import adapt
from headstart.training.adapted import AdaptedModel, open_adapted
from headstart.training.files import from_safetensors, read_json, to_json, to_safetensors, write_together
from headstart.training.predictions import predict, predictions
from headstart.training.run import open_run, train
from headstart.types import Adapted, Gaussian, Tree
from tests.short import tree

BASE: dict[str, Any] = {"steps": 2, "tasks_per_step": 2, "threads": 1, "evaluate_tasks": 2, "test_tasks": 2}
IMAGES = {"tasks": "icons", "ways": 3, "filters": 4, "rotations": False}
TABLE = {"tasks": "pigs.csv", "task_column": "pig", "columns": "week,food", "target": "weight", "shots": 3}
CLASSES = {**TABLE, "target": "ill", "shots": 1}
NOTHING = {"steps": None, "tasks_per_step": None, "filters": None}
RUNS: dict[str, dict[str, Any]] = {
    "images maml": {**IMAGES, "method": "maml"},
    "images maml_plus_plus": {**IMAGES, "method": "maml_plus_plus", "inner_steps": 2, "outer_rate": 0.1},
    "images prototypes": {**IMAGES, "method": "prototypes"},
    "images nearest": {**IMAGES, "method": "nearest", **NOTHING},
    "table maml": {**TABLE, "method": "maml"},
    "table maml of classes": {**CLASSES, "method": "maml"},
    "table prototypes": {**CLASSES, "method": "prototypes"},
    "table nearest": {**CLASSES, "method": "nearest", **NOTHING},
    # what it has learned of a task is as large as its support set, and it knows what it does not know
    "table gaussian_process": {**TABLE, "method": "gaussian_process"},
    "table mixed_effects": {**TABLE, "method": "mixed_effects", **NOTHING},
    # it keeps the training tasks' rows, however many there are
    "table boosted_trees": {**TABLE, "method": "boosted_trees", "trees": 5, **NOTHING},
    "curves maml": {"tasks": "sinusoid", "method": "maml"},
    "curves gaussian_process": {"tasks": "gp_curves", "method": "gaussian_process"},
    "plateaus ridge": {"tasks": "plateaus", "method": "ridge"},
}
Columns = dict[str, list[Any]]


def pigs(count: int = 9) -> Columns:
    rows = range(8 * count)
    return {
        "pig": [f"p{row // 8}" for row in rows],
        "week": [row % 8 - row // 8 * 0.01 for row in rows],
        "food": [("corn", "oats", "rye")[row * 7 // 5 % 3] for row in rows],
        "weight": [20 + 6 * (row % 8) + row // 8 for row in rows],
        "ill": ["yes" if row % 3 else "no" for row in rows],
    }


def write(path: Path, columns: Columns) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values())])
    return path


def without(columns: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values for name, values in columns.items() if name not in names}


def changed(**columns: list[Any]) -> Columns:
    return {name: values[:4] for name, values in pigs(1).items()} | {"pig": ["new"] * 4} | columns


def draw(folder: Path, tasks: list[str | None], classes: int = 3, shots: int = 2, dark: bool = True) -> list[str]:
    """Save drawings of test classes as people would, and return the paths of some others."""
    store, others = load_icons()["test"], []
    for number, task in enumerate(tasks):
        for index in range(number, number + classes):
            name, start = store.names[index], int(store.starts[index])
            places = [folder / "support" / (task or "") / name / f"{shot}.png" for shot in range(shots)]
            others.append(folder / "queries" / (task or "") / f"{name}.png")
            for offset, path in enumerate([*places, others[-1]]):
                path.parent.mkdir(parents=True, exist_ok=True)
                drawn = store.examples[start + offset, 0].numpy()
                Image.fromarray(255 - drawn if dark else drawn).save(path)
    return [str(path) for path in others]


def give(case: str, folder: Path, tasks: list[str | None]) -> tuple[Path, list[str]]:
    """Write examples of new tasks to learn from, and others to predict; tasks of a list differ."""
    if case.startswith("images"):
        return folder / "support", draw(folder, tasks)
    rows: list[dict[str, Any]] = []
    for number, task in enumerate(tasks):
        for row in range(8):
            week, one = row + number / 8, number + row / 4
            values = {"week": week, "food": ("corn", "oats")[row % 2], "weight": 20 + week * (6 + number)}
            values |= {"ill": "yes" if row % 3 else "no", "y": one**2, "x": one}
            values |= {f"x{place + 1}": one - place / 4 for place in range(8)}
            column = "pig" if case.startswith("table") else "task"
            rows.append(values | ({} if task is None else {column: task}))
    folder.mkdir(parents=True, exist_ok=True)
    halves = ([row for place, row in enumerate(rows) if (place % 8 < 4) is first] for first in (True, False))
    paths = [
        write(folder / name, {key: [row[key] for row in half] for key in half[0]})
        for name, half in zip(("support.csv", "queries.csv"), halves)
    ]
    return paths[0], [str(paths[1])]


def only(name: str, source: Path, queries: list[str], folder: Path) -> tuple[Path, list[str]]:
    """Return what `give` has written of one of its tasks."""
    if source.is_dir():
        return source / name, [path for path in queries if f"/{name}/" in path]
    paths = []
    for path in (source, *map(Path, queries)):
        header, *lines = path.read_text().splitlines()
        paths.append(folder / f"{name} {path.name}")
        paths[-1].write_text("\n".join([header, *(line for line in lines if line.endswith(f",{name}"))]) + "\n")
    return paths[0], [str(path) for path in paths[1:]]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def trained(case: str) -> Path:
        if case not in made:
            data = write(folder / "pigs.csv", pigs())
            values = BASE | RUNS[case]
            values["tasks"] = str(data) if values["tasks"] == "pigs.csv" else values["tasks"]
            made[case] = folder / case.replace(" ", "-")
            train(tree(values), made[case])
            data.unlink()  # adapting must not need it
        return made[case]

    return trained


pytestmark = pytest.mark.usefixtures("unrendered")

Run = Callable[[str], Path]


def numbers(rows: list[dict[str, Any]]) -> list[float]:
    """Return all that is predicted as numbers."""
    return [
        value
        for row in rows
        for answer in (row.get("probabilities") or {key: row.get(key) for key in ("prediction", "low", "high")},)
        for value in answer.values()
        if value is not None
    ]


@pytest.mark.parametrize("case", RUNS)
def test_what_was_adapted_predicts_the_same_when_read_back(run_of: Run, tmp_path: Path, case: str) -> None:
    source, queries = give(case, tmp_path, [None])
    model = adapt(run_of(case), source, tmp_path / "out")
    found, again = predict(model, queries), predict(open_adapted(tmp_path / "out"), queries)
    assert numbers(found) == pytest.approx(numbers(again), rel=1e-5, abs=1e-6) and len(found) in (3, 4)
    assert [set(row) for row in found] == [set(row) for row in again]
    for row in found:
        if "probabilities" in row:
            assert sum(row["probabilities"].values()) + row.get("unknown", 0) == pytest.approx(1)
            assert row["probability"] == max(row["probabilities"].values()) == row["probabilities"][row["prediction"]]
            assert tuple(row["probabilities"]) == model.tasks[0].labels
        else:
            assert row["low"] < row["prediction"] < row["high"] and not {"probability"} & row.keys()
    for one, other in zip(model.tasks, open_adapted(tmp_path / "out").tasks):
        assert one.adapted.step == other.adapted.step
    files = ["README.md", "adapted.safetensors", "config.json", "examples", "manifest.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    card = (tmp_path / "out" / "README.md").read_text()
    assert "None" not in card and all(label in card for label in model.tasks[0].labels)


@pytest.mark.parametrize("case", [case for case in RUNS if case != "images maml_plus_plus"])
def test_tasks_learned_together_are_what_each_is_alone(run_of: Run, tmp_path: Path, case: str) -> None:
    names: list[str | None] = ["a", "b", "c"]
    source, queries = give(case, tmp_path / "all", names)
    model = adapt(run_of(case), source, tmp_path / "out")
    assert [task.name for task in model.tasks] == names
    for opened in (model, open_adapted(tmp_path / "out")):
        found = predict(opened, queries)
        tasks = [row.get("task", row.get("pig")) for row in found]
        assert sorted(set(tasks)) == names
    for name in names:
        own, asked = only(str(name), source, queries, tmp_path)
        alone = predict(adapt(run_of(case), own, tmp_path / f"out {name}"), asked)
        expected = [row for row, task in zip(found, tasks) if task == name]
        assert numbers(alone) == pytest.approx(numbers(expected), rel=1e-4, abs=1e-5)
    with pytest.raises(UnknownNameError, match="unknown task 'd'.* Known: a, b, c"):
        predict(model, queries, task="d")


@pytest.mark.parametrize(
    "case", ["images prototypes", "table maml of classes", "table gaussian_process", "curves maml"]
)
def test_what_is_added_is_learned_as_if_it_had_been_there(run_of: Run, tmp_path: Path, case: str) -> None:
    """New tasks beside those that are known, and more examples of one of them."""
    source, queries = give(case, tmp_path / "all", ["a", "b"])
    whole = numbers(predict(adapt(run_of(case), source, tmp_path / "whole"), queries))
    first, _ = only("a", source, queries, tmp_path)
    more = tmp_path / "more"
    if source.is_dir():
        first = tmp_path / "first"
        shutil.copytree(source / "a", first / "a")
        shutil.copytree(source, more)
        for folder in (first / "a").iterdir():
            (folder / "1.png").unlink()
            (more / "a" / folder.name / "0.png").unlink()
    else:
        header, *lines = source.read_text().splitlines()
        first, more = tmp_path / "first.csv", tmp_path / "more.csv"
        first.write_text("\n".join([header, *lines[:2]]) + "\n")
        more.write_text("\n".join([header, *lines[2:]]) + "\n")
    adapt(run_of(case), first, tmp_path / "before")
    model = adapt(tmp_path / "before", more, tmp_path / "out")
    assert [task.name for task in model.tasks] == ["a", "b"]
    assert numbers(predict(model, queries)) == pytest.approx(whole, rel=1e-4, abs=1e-5)
    assert numbers(predict(open_adapted(tmp_path / "out"), queries)) == pytest.approx(whole, rel=1e-4, abs=1e-5)


def test_a_thousand_tasks_are_one_folder_that_predicts_by_each(run_of: Run, tmp_path: Path) -> None:
    few_pigs = pigs()  # again and again, by names of their own
    every: Columns = {name: [values[row % 72] for row in range(8000)] for name, values in few_pigs.items()}
    every["pig"] = [f"p{row // 8}" for row in range(8000)]
    model = adapt(run_of("table maml"), write(tmp_path / "every.csv", every), tmp_path / "out")
    opened = open_adapted(tmp_path / "out")
    assert {task.name for task in opened.tasks} == {f"p{place}" for place in range(1000)}
    few = write(tmp_path / "few.csv", {name: values[-16:] for name, values in every.items()})
    assert numbers(predict(opened, few)) == pytest.approx(numbers(predict(model, few)), rel=1e-5, abs=1e-6)
    # what adapting moved of each task, and its eight rows; what all share is there once
    (task, *_), size = opened.tasks, sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.safetensors"))
    own = sum(4 * value.numel() for value in task.adapted.params.values())
    assert size < 1000 * (own + 8 * 4 * 6 + 300)


@pytest.mark.parametrize("case", ["images maml", "images prototypes", "table maml", "curves maml"])
def test_company_does_not_matter(run_of: Run, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, queries = give(case, tmp_path, [None])
    model = adapt(run_of(case), source, tmp_path / "out")
    together = numbers(predict(model, queries))
    monkeypatch.setattr(module, "_CHUNK", 1)
    monkeypatch.setattr("headstart.data.images.kind._CHUNK", 2)
    assert numbers(predict(model, queries)) == pytest.approx(together, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("case", ["images maml", "table maml", "curves maml"])
def test_files_folders_and_globs_are_predicted(run_of: Run, tmp_path: Path, case: str) -> None:
    source, queries = give(case, tmp_path, [None])
    model = adapt(run_of(case), source, tmp_path / "out")
    folder = tmp_path / "queries" if case.startswith("images") else tmp_path / "more"
    folder.mkdir(exist_ok=True)
    if not case.startswith("images"):
        queries = [str(Path(queries[0]).rename(folder / "queries.csv"))]
    (folder / "note.md").write_text("not an example")
    (folder / ".hidden").mkdir()
    expected = numbers(predict(model, sorted(queries)))
    assert numbers(predict(model, folder)) == expected
    assert numbers(predict(model, f"{folder}/*{Path(queries[0]).suffix}")) == expected
    assert numbers(predict(model, [folder, *sorted(queries)])) == expected * 2
    with pytest.raises(FileError, match="no file is matched by"):
        predict(model, str(tmp_path / "*.none"))
    with pytest.raises(FileError, match="none"):
        predict(model, tmp_path / "none")
    with pytest.raises(DataError, match="holds no file of these"):
        predict(model, folder / ".hidden")


@pytest.mark.parametrize("case", ["images maml", "table gaussian_process", "curves maml"])
def test_damaged_folders_are_refused(run_of: Run, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # slow, and no crash is to be outlived here
    source, queries = give(case, tmp_path, ["a", "b"])
    out = tmp_path / "out"
    adapt(run_of(case), source, out)
    described = read_json(out / "config.json")
    weights = (out / "adapted.safetensors").read_bytes()
    prepared, (one, other) = described["preparation"], described["tasks"]
    wrong: list[dict[str, Any]] = [
        {"format": "other"},
        {"kind": "sounds"},
        {"config": {"method": "maml"}},
        {"config": 1},
    ]
    wrong += [
        {"preparation": {}},
        {"tasks": []},
        {"tasks": [one, one]},
        {"tasks": 3},
        {"tasks": [one]},
        {"tasks": [{}]},
    ]
    if case.startswith("images"):
        wrong += [
            {"preparation": {**prepared, "input_shape": s}}
            for s in ([1], [1, 10**9, 10**9], [1, 4096, 4096], [3, 28, 28], "abc")
        ]
        wrong += [{"preparation": {**prepared, "classes": 1}}]
    else:
        extra = [*prepared["features"], {**prepared["features"][0], "column": "other"}]
        wrong += [{"preparation": {**prepared, "features": extra}}, {"preparation": {**prepared, "mean": "a"}}]
    for change in (
        {"labels": ["a"]}, {"labels": ["a", "a", "b"]}, {"labels": 3}, {"labels": [1, 2, 3]}, {"counts": [1, 2]},
        {"counts": [0] * len(one["counts"])}, {"counts": [10**9] * len(one["counts"])}, {"counts": "many"}, {"name": 1},
    ):  # fmt: skip
        wrong.append({"tasks": [{**one, **change}, other]})
    deeper = described["config"]["model"] if described["config"].get("model") else described["config"]["method"]
    wrong += [
        {"config": {**described["config"], **change}}
        for change in ({"model": {"name": "mlp", "hidden": [3]}}, {"outer": 3})
    ]
    wrong += [{"config": {**described["config"], "model": {**deeper, "filters": 90_000, "hidden": [90_000] * 2}}}]
    wrong += [{"tasks": [{**one, "name": "\x1b[31m"}, other]}, {"tasks": [one, {**other, "labels": ["\x1b[2J"]}]}]

    def together(**contents: bytes) -> None:
        write_together(out, {"adapted.safetensors": contents["weights"], "config.json": contents["config"]})

    for change in wrong:
        together(weights=weights, config=to_json({**described, **change}))
        with pytest.raises(HeadstartError):
            open_adapted(out)
    told, tensors = to_json(described), from_safetensors(weights, "here")
    used = [name for name in tensors if not name.endswith("num_batches_tracked")]  # nobody reads those
    name = min(name for name in used if name.startswith(("adapted.", "buffers.")))
    damaged = [weights[:-3], b"", weights[:100] + b"\xff" * 100]
    damaged += [
        to_safetensors({**tensors, "other.w": torch.zeros(1)}),
        to_safetensors({**tensors, "x": torch.zeros(1)}),
    ]
    damaged += [to_safetensors({**tensors, name: tensors[name][:1]}), to_safetensors(without(tensors, name))]
    for data in damaged:
        together(weights=data, config=told)
        with pytest.raises(FileError):
            predict(open_adapted(out), queries)
    together(weights=weights, config=told)
    open_adapted(out)
    # one bit of either file, anywhere, is seen
    for path in (out / "adapted.safetensors", out / "config.json"):
        good = path.read_bytes()
        for place in range(0, len(good), len(good) // 9):
            path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            with pytest.raises(FileError):
                open_adapted(out)
        path.write_bytes(good)
    (out / "manifest.json").unlink()
    with pytest.raises(FileError, match=r"manifest.json: there is no such file"):
        open_adapted(out)
    with pytest.raises(FileError, match="holds no adapted model"):
        open_adapted(tmp_path / "nowhere")


@pytest.mark.parametrize("case", ["images maml", "table maml", "curves maml"])
def test_what_is_not_finite_is_refused(run_of: Run, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, queries = give(case, tmp_path, [None])
    model = adapt(run_of(case), source, tmp_path / "out")
    task = model.tasks[0]

    def spoiled(adapted: Adapted, x: Tree) -> Tensor:
        found = task.learner.predict(adapted, x).clone()
        found[0, 2] = torch.nan
        return found

    where = re.escape(sorted(queries)[2] if case.startswith("images") else f"{queries[0]}, line 4")
    with pytest.raises(DivergenceError, match=f"{where}: the prediction is not finite"):
        predict(_with(model, predict=spoiled), sorted(queries))
    nothing = Adapted(task.adapted.meta, {"w": torch.full((1, 2), torch.nan)}, {}, None)
    learner = task.learner._replace(adapt=lambda meta, support, /, steps=None: (nothing, None))
    monkeypatch.setattr(head_start, "learners", lambda *_: lambda classes: learner)
    with pytest.raises(DivergenceError, match=r"adapting gives numbers that are not finite \(adapted.0.w\)"):
        adapt(run_of(case), source, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def _with(model: AdaptedModel, **changes: Any) -> AdaptedModel:
    task = model.tasks[0]
    return model._replace(tasks=(task._replace(learner=task.learner._replace(**changes)),))


def test_other_runs_and_filled_folders_are_refused(run_of: Run, tmp_path: Path) -> None:
    source, _ = give("images", tmp_path, [None])
    with pytest.raises(ConfigError, match="is not empty"):
        adapt(run_of("images maml"), source, source)
    with pytest.raises(FileError, match="is neither a run nor a network"):
        adapt(tmp_path, source, tmp_path / "out")
    with pytest.raises(FileError, match="cannot read the table"):
        adapt(run_of("curves maml"), source, tmp_path / "out")
    (run_of("images nearest") / "preparation.json").rename(tmp_path / "kept")
    with pytest.raises(ConfigError, match="there is no preparation.json in .* it was deleted"):
        adapt(run_of("images nearest"), source, tmp_path / "out")
    (tmp_path / "kept").rename(run_of("images nearest") / "preparation.json")
    assert not (tmp_path / "out").exists()


class TestImages:
    def test_the_number_of_classes_is_kept_to_unless_any_will_do(self, run_of: Run, tmp_path: Path) -> None:
        draw(tmp_path, [None], classes=4)
        with pytest.raises(ConfigError, match=r"with maml for 3 classes, but .*support has 4; give 3, or train with"):
            adapt(run_of("images maml"), tmp_path / "support", tmp_path / "out")
        draw(tmp_path / "two", ["a"], classes=3)
        draw(tmp_path / "two", ["b"], classes=2)
        with pytest.raises(ConfigError, match="for 3 classes, but task 'b' of .*support has 2; give 3"):
            adapt(run_of("images maml"), tmp_path / "two" / "support", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        model = adapt(run_of("images prototypes"), tmp_path / "two" / "support", tmp_path / "out")
        assert [len(task.labels) for task in model.tasks] == [3, 2]
        found = predict(open_adapted(tmp_path / "out"), tmp_path / "two" / "queries")
        assert [len(row["probabilities"]) for row in found] == [3, 3, 3, 2, 2]

    def test_classes_are_added_and_none_is_forgotten(self, run_of: Run, tmp_path: Path) -> None:
        queries = draw(tmp_path / "all", [None], 5)
        whole = predict(adapt(run_of("images prototypes"), tmp_path / "all" / "support", tmp_path / "whole"), queries)
        names = sorted(path.name for path in (tmp_path / "all" / "support").iterdir())
        for place, name in enumerate(names):  # the new ones are not the last of the alphabet
            part = tmp_path / ("more" if place % 2 else "few")
            shutil.copytree(tmp_path / "all" / "support" / name, part / name)
        few = adapt(run_of("images prototypes"), tmp_path / "few", tmp_path / "before")
        model = adapt(tmp_path / "before", tmp_path / "more", tmp_path / "out")
        assert few.tasks[0].labels == tuple(names[::2]) and model.tasks[0].labels == tuple(names)
        assert model.tasks[0].counts == (2,) * 5
        assert numbers(predict(model, queries)) == pytest.approx(numbers(whole), rel=1e-5, abs=1e-6)

    def test_classes_and_tasks_are_removed_as_if_they_had_not_been_there(self, run_of: Run, tmp_path: Path) -> None:
        draw(tmp_path, ["a", "b"], 4)
        run, names = run_of("images prototypes"), sorted(path.name for path in (tmp_path / "support" / "a").iterdir())
        adapt(run, tmp_path / "support", tmp_path / "all")
        words = ["adapt", str(tmp_path / "all"), "--remove", "b", f"a/{names[1]}", "--out", str(tmp_path / "less")]
        assert command(words) == 0
        shutil.rmtree(tmp_path / "support" / "b")
        shutil.rmtree(tmp_path / "support" / "a" / names[1])
        adapt(run, tmp_path / "support", tmp_path / "again")
        less, again = (open_adapted(tmp_path / name) for name in ("less", "again"))
        assert [task[:3] for task in less.tasks] == [task[:3] for task in again.tasks]
        queries = tmp_path / "queries"
        assert numbers(predict(less, queries, task="a")) == pytest.approx(numbers(predict(again, queries, task="a")))
        with pytest.raises(DataError, match="one class only"):
            adapt(tmp_path / "less", None, tmp_path / "none", remove=[names[0], names[2]])
        with pytest.raises(ConfigError, match="no adapted model, so there is nothing to remove"):
            adapt(run, tmp_path / "support", tmp_path / "none", remove=["a"])
        assert not (tmp_path / "none").exists()

    def test_two_models_of_one_run_are_merged_and_of_two_are_not(self, run_of: Run, tmp_path: Path) -> None:
        queries = draw(tmp_path, [None], 5)
        run, names = run_of("images prototypes"), sorted(path.name for path in (tmp_path / "support").iterdir())
        whole = adapt(run, tmp_path / "support", tmp_path / "whole")
        for part, classes in (("one", names[:3]), ("other", names[2:])):  # both have the third
            for name in classes:
                shutil.copytree(tmp_path / "support" / name, tmp_path / part / name)
            adapt(run, tmp_path / part, tmp_path / f"adapted {part}")
        model = adapt(tmp_path / "adapted one", tmp_path / "adapted other", tmp_path / "merged")
        assert model.tasks[0][:3] == whole.tasks[0][:3]
        assert numbers(predict(model, queries)) == pytest.approx(numbers(predict(whole, queries)), rel=1e-5, abs=1e-6)
        adapt(run_of("images nearest"), tmp_path / "one", tmp_path / "of another")
        with pytest.raises(ConfigError, match="was not adapted from what .* was"):
            adapt(tmp_path / "adapted one", tmp_path / "of another", tmp_path / "none")
        with pytest.raises(ConfigError, match="which is merged with another one"):
            adapt(run, tmp_path / "adapted one", tmp_path / "none")
        assert not (tmp_path / "none").exists()

    def test_examples_that_were_not_kept_or_do_not_fit_are_told(self, run_of: Run, tmp_path: Path) -> None:
        run, source = run_of("images prototypes"), tmp_path / "support"
        draw(tmp_path, [None])
        adapt(run, source, tmp_path / "lean", keep_examples=False)
        with pytest.raises(DataError, match="keeps no examples"):
            adapt(tmp_path / "lean", source, tmp_path / "out")
        adapt(run, source, tmp_path / "full")
        place = tmp_path / "full" / "examples"
        tensors = from_safetensors((place / "examples.safetensors").read_bytes(), "here")
        weight = next(name for name in tensors if name.startswith("params."))
        wrong = [{**tensors, "0.x": tensors["0.x"][:, 1:]}, {**tensors, weight: tensors[weight][:1]}]
        wrong += [without(tensors, "0.y"), without(tensors, weight), {**tensors, "0.y": tensors["0.y"] + 1}]
        wrong += [{**tensors, "0.x": tensors["0.x"][..., :9]}, {**tensors, "0.y": tensors["0.y"].float()}]
        for change in wrong:
            write_together(place, {"examples.safetensors": to_safetensors(change)})
            with pytest.raises(FileError, match="does not hold"):
                adapt(tmp_path / "full", source, tmp_path / "out")
        (place / "examples.safetensors").write_bytes(b"other")
        with pytest.raises(FileError, match="damaged"):
            adapt(tmp_path / "full", source, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_method_of_fixed_classes_takes_no_more(self, run_of: Run, tmp_path: Path) -> None:
        draw(tmp_path, [None])
        draw(tmp_path / "more", [None, None])
        adapt(run_of("images maml"), tmp_path / "support", tmp_path / "before")
        with pytest.raises(ConfigError, match="for 3 classes, but .* has 4"):
            adapt(tmp_path / "before", tmp_path / "more" / "support", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("method", ["prototypes", "nearest"])
    def test_a_support_image_is_known_again(self, run_of: Run, tmp_path: Path, method: str) -> None:
        draw(tmp_path, [None], classes=4, shots=1)
        model = adapt(run_of(f"images {method}"), tmp_path / "support", tmp_path / "out")
        found = predict(model, tmp_path / "support")
        assert [row["prediction"] for row in found] == [Path(row["image"]).parent.name for row in found]

    def test_dark_on_light_is_turned_as_the_tasks_have_it(self, run_of: Run, tmp_path: Path) -> None:
        found = []
        for dark in (True, False):
            queries = draw(tmp_path / str(dark), [None], dark=dark)
            model = adapt(run_of("images prototypes"), tmp_path / str(dark) / "support", tmp_path / f"out {dark}")
            found.append(numbers(predict(model, queries)))
        assert found[0] == pytest.approx(found[1], abs=1e-5)

    def test_an_image_that_cannot_be_read_is_named(self, run_of: Run, tmp_path: Path) -> None:
        queries = draw(tmp_path, [None])
        model = adapt(run_of("images maml"), tmp_path / "support", tmp_path / "out")
        (tmp_path / "bad.png").write_text("no image")
        with pytest.raises(DataError, match="bad.png"):
            predict(model, [*queries, tmp_path / "bad.png"])
        broken = next((tmp_path / "support").iterdir()) / "1.png"
        broken.write_text("no image")
        with pytest.raises(DataError, match="1.png"):
            adapt(run_of("images maml"), tmp_path / "support", tmp_path / "other", strict=True)
        assert not (tmp_path / "other").exists()
        with pytest.warns(SkippedImageWarning, match="1.png"):
            model = adapt(run_of("images maml"), tmp_path / "support", tmp_path / "other")
        assert sum(model.tasks[0].counts) == 5

    def test_without_images_there_are_no_classes(self, run_of: Run, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="classes of images are learned from images"):
            adapt(run_of("images maml"), None, tmp_path / "out")

    def test_what_cannot_be_predicted_is_named_at_the_end(
        self, run_of: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        queries, out, found = draw(tmp_path, [None]), str(tmp_path / "out"), tmp_path / "found.csv"
        adapt(run_of("images maml"), tmp_path / "support", out)
        (tmp_path / "bad.png").write_text("no image")
        asked = [queries[0], str(tmp_path / "bad.png"), str(tmp_path / "none.png"), *queries[1:]]
        monkeypatch.setattr(images, "_NUMBERS", 2 * 28 * 28)  # two at a time
        assert command(["predict", out, *asked]) == 3
        printed, told = capsys.readouterr()
        assert [row["image"] for row in csv.DictReader(printed.splitlines())] == queries
        assert "not predicted, 2:" in told and "bad.png" in told and "none.png is not a file" in told
        assert command(["predict", out, *asked, "--out", str(found)]) == 3 and found.read_text() == printed
        assert command(["predict", out, *asked, "--json"]) == 3
        assert [row["image"] for row in json.loads(capsys.readouterr().out.partition("\n")[2])] == queries
        found.unlink()
        assert command(["predict", out, asked[1], "--out", str(found)]) == 3 and not found.exists()

    def test_images_in_memory_are_predicted_as_their_files(self, run_of: Run, tmp_path: Path) -> None:
        queries = draw(tmp_path, [None])
        model = adapt(run_of("images maml"), tmp_path / "support", tmp_path / "out")
        expected = numbers(predict(model, queries))
        opened = [Image.open(path) for path in queries]
        arrays = [np.asarray(image.convert("RGB")) for image in opened]
        tensors = torch.from_numpy(np.stack(arrays)).movedim(-1, 1)
        for given in (opened, arrays, tensors, tensors / 255, np.stack(arrays), [*arrays[:1], *opened[1:]]):
            found = predict(model, given)
            assert numbers(found) == expected and [row["image"] for row in found] == [0, 1, 2]
        one = expected[: len(expected) // 3]
        assert numbers(predict(model, opened[0])) == pytest.approx(one, abs=1e-5)
        for bad in (tensors.float(), torch.zeros(2, 8, 8), np.zeros(3), object(), np.full((4, 4), np.nan)):
            with pytest.raises(DataError, match="is no image; expected a PIL image"):
                predict(model, bad)
        with pytest.raises(UsageError, match="expected files, folders or globs"):
            predict(model, [queries[0], opened[1]])
        with pytest.raises(FileError, match="is an adapted model; give the run that it was adapted from"):
            open_run(tmp_path / "out")
        with pytest.raises(FileError, match="is a run; adapt it to your task first"):
            open_adapted(run_of("images maml"))

    def test_memory_does_not_grow_with_the_number_of_images(self, run_of: Run, tmp_path: Path) -> None:
        draw(tmp_path, [None])
        model, asked = adapt(run_of("images maml"), tmp_path / "support", tmp_path / "out"), list[int]()

        def predict(adapted: Adapted, x: Tree) -> Tensor:
            assert isinstance(x, Tensor)
            asked.append(x.shape[1])
            return torch.zeros(1, x.shape[1], 3)

        prepared = model.by.kind.read({**model.by.preparation, "input_shape": [1, 512, 512]}, "a run")
        large = _with(model, predict=predict)._replace(by=model.by._replace(prepared=prepared))
        rows = predictions(large, [tmp_path / "support"] * 3)
        first = next(rows)
        assert 3 * first["probability"] + first.get("unknown", 0) == pytest.approx(1) and asked == [8]
        assert len(list(rows)) == 17 and asked == [8, 8, 2]

    def test_a_class_that_is_called_as_a_task_is_not_taken_for_it(self, run_of: Run, tmp_path: Path) -> None:
        draw(tmp_path, ["a", "b"])
        labels = sorted(path.name for path in (tmp_path / "support" / "a").iterdir())
        (tmp_path / "support" / "b").rename(tmp_path / "support" / labels[0])
        model = adapt(run_of("images maml"), tmp_path / "support", tmp_path / "out")
        inside, called = tmp_path / "support" / "a", labels[0]
        assert {row["task"] for row in predict(model, [inside / label for label in labels[1:]])} == {"a"}
        assert {row["task"] for row in predict(model, tmp_path / "support" / called)} == {called}
        failed: list[HeadstartError] = []
        assert {row["task"] for row in predictions(model, inside, failed=failed.append)} == {"a"} and len(failed) == 2
        with pytest.raises(DataError, match=r"is a task, and a class of the task 'a'; say by which .* --task"):
            predict(model, inside)
        assert len(predict(model, inside, task="a")) == 6

    def test_an_image_that_names_no_task_needs_one(self, run_of: Run, tmp_path: Path) -> None:
        queries = draw(tmp_path, ["a", "b"])
        model = adapt(run_of("images maml"), tmp_path / "support", tmp_path / "out")
        plain = str(Path(queries[0]).rename(tmp_path / "photo.png"))
        with pytest.raises(DataError, match="photo.png: it does not say of which task it is.*: 'a', 'b'"):
            predict(model, plain)
        assert set(predict(model, plain, task="b")[0]["probabilities"]) == set(model.tasks[1].labels)


class TestTables:
    def test_predictions_are_in_the_targets_own_units(self, run_of: Run, tmp_path: Path) -> None:
        model = adapt(run_of("table maml"), write(tmp_path / "s.csv", changed()), tmp_path / "out")
        schema = schema_from_json(model.by.preparation, "the run")
        inputs = torch.zeros(1, 2, len(schema.inputs))
        for row, (week, food) in enumerate([(4.0, "corn"), (5.0, "rye")]):
            inputs[0, row, 0] = (week - schema.features[0].mean) / schema.features[0].scale
            inputs[0, row, schema.inputs.index(f"food={food}")] = 1
        task = model.tasks[0]
        with torch.no_grad():
            outputs = task.learner.predict(task.adapted, inputs)[0, :, 0].double()
        path = write(tmp_path / "two.csv", {"food": ["corn", "rye"], "other": [1, 2], "week": [4, 5]})
        found = predict(model, path)
        assert [row["prediction"] for row in found] == pytest.approx(
            (outputs * schema.scale + schema.mean).tolist(), rel=1e-5
        )
        assert [row["other"] for row in found] == [1, 2]

    def test_an_interval_holds_nine_tenths_of_a_normal_distribution(self, run_of: Run, tmp_path: Path) -> None:
        source, queries = give("table", tmp_path, [None])
        model = adapt(run_of("table maml"), source, tmp_path / "out")
        learner = model.tasks[0].learner

        def distribution(adapted: Adapted, x: Tree) -> Gaussian:
            return Gaussian(learner.predict(adapted, x), torch.full((*x.shape[:2], 1), 4.0))

        normal = torch.distributions.Normal(0.0, 2.0 * schema_from_json(model.by.preparation, "the run").scale)
        for row in predict(_with(model, distribution=distribution), queries):
            ends = normal.cdf(torch.tensor([row[end] - row["prediction"] for end in ("low", "high")]))
            assert ends.tolist() == pytest.approx([0.05, 0.95], abs=1e-4)

    def test_a_process_is_surer_where_it_has_seen_rows(self, run_of: Run, tmp_path: Path) -> None:
        source, queries = give("table", tmp_path, [None])
        found = predict(adapt(run_of("table gaussian_process"), source, tmp_path / "out"), queries)
        widths = [row["high"] - row["low"] for row in found]
        assert 0 < widths[0] < widths[3]

    def test_a_class_may_be_absent_from_the_support(self, run_of: Run, tmp_path: Path) -> None:
        support = write(tmp_path / "support.csv", changed(ill=["yes"] * 4))
        model = adapt(run_of("table prototypes"), support, tmp_path / "out")
        assert model.tasks[0].counts == (0, 4)
        for opened in (model, open_adapted(tmp_path / "out")):
            found = predict(opened, write(tmp_path / "rows.csv", changed()))
            assert [row["prediction"] for row in found] == ["yes"] * 4
            # each class was in every support set of training, so one that is not is out of the question
            assert all(0 <= row["probabilities"]["no"] < 1e-6 for row in found)

    @pytest.mark.parametrize("case", ["table maml", "table gaussian_process", "table prototypes", "curves maml"])
    def test_a_task_without_rows_is_predicted_as_training_says(self, run_of: Run, tmp_path: Path, case: str) -> None:
        model = adapt(run_of(case), None, tmp_path / "out")
        assert sum(model.tasks[0].counts) == 0
        queries = give("curves" if "curves" in case else "table", tmp_path, ["one", "two"])[1]
        found = predict(model, queries)
        assert found == predict(open_adapted(tmp_path / "out"), queries)
        if case == "table prototypes":
            assert [row["probabilities"]["no"] for row in found] == pytest.approx([0.35] * len(found), abs=0.05)
        else:
            assert all(row["prediction"] < 1e3 for row in found)
        if case == "table gaussian_process":
            sure = predict(adapt(run_of(case), give("table", tmp_path, [None])[0], tmp_path / "rows"), queries)
            assert found[0]["high"] - found[0]["low"] > sure[0]["high"] - sure[0]["low"]

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            (changed(pig=["a", "a", "", "b"]), "line 4, column 'pig': the task is missing"),
            (without(changed(), "food"), r"no column 'food' \(a feature of the run\)"),
            (without(changed(), "weight"), r"no column 'weight' \(the target of the run\)"),
            (changed(weight=[1, "", 3, 4]), "line 3, column 'weight': the target is missing"),
            (changed(weight=[1, 2, "x", 4]), "line 4, column 'weight': 'x' is not a number"),
            (changed(week=[1, 2, "x", 4]), "line 4, column 'week': 'x' is not a number; the column's other values are"),
        ],
    )
    def test_rows_that_do_not_fit_are_refused(
        self, run_of: Run, tmp_path: Path, columns: Columns, message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            adapt(run_of("table maml"), write(tmp_path / "support.csv", columns), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_unknown_categories_warn_and_unknown_classes_are_refused(self, run_of: Run, tmp_path: Path) -> None:
        hay, maybe = changed(food=["corn", "hay", "rye", "rye"]), changed(ill=["maybe", "no", "no", "yes"])
        with pytest.warns(UnseenValueWarning, match="column 'food': 'hay' in line 3 is in no training task"):
            adapt(run_of("table maml"), write(tmp_path / "a.csv", hay), tmp_path / "a")
        with pytest.raises(DataError, match="line 2, column 'ill': class 'maybe' is not among those learned: no, yes"):
            adapt(run_of("table nearest"), write(tmp_path / "b.csv", maybe), tmp_path / "b")

    def test_rows_go_to_their_own_task_and_to_no_other(self, run_of: Run, tmp_path: Path) -> None:
        def rows(*names: str) -> Path:
            return write(tmp_path / "rows.csv", changed(pig=list(names)))

        named = adapt(run_of("table maml"), write(tmp_path / "named.csv", changed()), tmp_path / "named")
        with pytest.raises(DataError, match="rows.csv, line 4: 'b' is another task than 'new', from which was learned"):
            predict(named, rows("new", "", "b", "b"))
        unnamed = without(changed(), "pig")
        model = adapt(run_of("table maml"), write(tmp_path / "unnamed.csv", unnamed), tmp_path / "unnamed")
        assert numbers(predict(model, rows("a", "a", "", "a"))) == numbers(predict(named, rows(*[""] * 4)))
        with pytest.raises(DataError, match="line 5: 'b' is another task than 'a' before it"):
            predict(model, rows("a", "a", "a", "b"))
        two = adapt(run_of("table maml"), rows("a", "a", "b", "b"), tmp_path / "two")
        with pytest.raises(DataError, match="line 3: 'c' is none of the tasks that were learned: 'a', 'b'"):
            predict(two, rows("a", "c", "a", "b"))
        with pytest.raises(DataError, match="line 3: it does not say of which task it is"):
            predict(two, rows("a", "", "a", "b"))
        with pytest.raises(DataError, match="line 2: 'a' is another task than 'b'"):
            predict(two, rows("a", "", "a", "b"), task="b")
        assert len(predict(two, rows("", "", "b", "b"), task="b")) == 4

    @pytest.mark.parametrize("name", ["prediction", "probabilities"])
    def test_a_column_that_is_called_as_the_predictions_is_refused(
        self, run_of: Run, tmp_path: Path, name: str
    ) -> None:
        model = adapt(run_of("table maml"), write(tmp_path / "support.csv", changed()), tmp_path / "out")
        with pytest.raises(DataError, match=f"there is a column '{name}', as the predictions are called; rename it"):
            predict(model, write(tmp_path / "named.csv", changed(**{name: [1, 2, 3, 4]})))


def test_the_inputs_alone_are_enough_to_predict_a_curve(run_of: Run, tmp_path: Path) -> None:
    points = write(tmp_path / "points.csv", {"x": [-1, 0, 2], "y": [1, 0, 2]})
    model = adapt(run_of("curves maml"), points, tmp_path / "out")
    found = predict(model, write(tmp_path / "x.csv", {"x": [-1, 0, 2]}))
    assert [set(row) for row in found] == [{"x", "prediction", "low", "high"}] * 3 and numbers(found) == numbers(
        predict(model, points)
    )


class TestCommands:
    def test_adapt_and_predict(self, run_of: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source, (queries,) = give("table", tmp_path, ["a", "b"])
        out, found, lines = tmp_path / "out", tmp_path / "found.csv", tmp_path / "found.jsonl"
        assert command(["adapt", str(run_of("table maml")), str(source), "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"learned 2 tasks from 8 rows: {out}\n"
        assert command(["predict", str(out), queries]) == 0
        printed = capsys.readouterr().out
        rows = list(csv.DictReader(printed.splitlines()))
        assert [row["week"] for row in rows[:4]] == ["4.0", "5.0", "6.0", "7.0"] and len(rows) == 8
        assert command(["predict", str(out), queries, "--out", str(found)]) == 0
        assert capsys.readouterr().out == f"predicted 8: {found}\n" and found.read_text() == printed
        assert command(["predict", str(out), queries, "--json", "--out", str(lines)]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told == [json.loads(line) for line in lines.read_text().splitlines()]
        assert [row["week"] for row in told[:4]] == [4.0, 5.0, 6.0, 7.0] and told[0]["pig"] == "a"
        assert told[0]["unseen"] == [] and rows[0]["unseen"] == ""
        odd = write(tmp_path / "odd.csv", {"pig": ["a"], "week": [1e9], "food": ["algae"]})
        with warnings.catch_warnings(action="default", category=UnseenValueWarning):
            assert command(["predict", str(out), str(odd)]) == 0
        assert next(csv.DictReader(capsys.readouterr().out.splitlines()))["unseen"] == "week; food"
        mixed = {"week": ["1", "2.50", "3", "4e0"], "id": ["007", "1", "2", "3"], "n": ["1", "", "-3", "40"]}
        rough = write(tmp_path / "rough.csv", changed(**mixed, pig=["a"] * 4, weight=["1", "2", "x", ""]))
        for path in (lines, tmp_path / "same.csv"):
            assert command(["predict", str(out), str(rough), "--out", str(path)]) == 0
        parsed = [json.loads(line) for line in lines.read_text().splitlines()]
        assert {name: [row[name] for row in parsed] for name in ("week", "id", "n", "weight")} == {
            "week": [1, 2.5, 3, 4], "id": mixed["id"], "n": [1, None, -3, 40], "weight": ["1", "2", "x", ""]
        }  # fmt: skip
        with (tmp_path / "same.csv").open() as file:
            again = list(csv.DictReader(file))
        assert {name: [row[name] for row in again] for name in mixed} == mixed
        capsys.readouterr()
        assert [row["prediction"] for row in told] == [float(row["prediction"]) for row in rows]
        assert command(["predict", str(out), queries, "--out", "found.txt"]) == 2
        assert "a .csv or a .jsonl file" in capsys.readouterr().err
        assert command(["predict", str(out), queries, "--task", "c"]) == 2

    @pytest.mark.filterwarnings("always:checkpoint")
    @pytest.mark.parametrize("case", ["table gaussian_process", "curves gaussian_process"])
    def test_every_reader_of_a_run_tells_of_a_damaged_checkpoint(
        self, run_of: Run, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run, (source, _) = tmp_path / "run", give(case, tmp_path, [None])
        shutil.copytree(run_of(case), run)
        newest = run / "checkpoints" / "step-000000002.safetensors"
        newest.write_bytes(newest.read_bytes()[:-1] + b"?")
        readers = [["adapt", str(run), str(source), "--out", str(tmp_path / "out")]]
        if case.startswith("curves"):
            readers += [["evaluate", str(run), "--episodes", "2"], ["report", str(run)]]
        for words in readers:
            assert command(words) == 0
            told = capsys.readouterr().err
            assert f"warning: checkpoint {newest.name} cannot be used, taking the one before" in told, words

    def test_classes_are_told_and_have_a_column_each(
        self, run_of: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        queries, out = draw(tmp_path, [None]), str(tmp_path / "out")
        adapting = ["adapt", str(run_of("images maml")), str(tmp_path / "support"), "--out"]
        assert command([*adapting, out]) == 0
        labels = sorted(Path(path).stem for path in queries)
        first, second, *more = capsys.readouterr().out.splitlines()
        assert first == f"learned 1 task of 3 classes ({', '.join(labels)}) from 6 images: {out}"
        assert re.match(r"By 5-fold cross-validation, \d of 6 images are told right by the others", second) and not more
        assert command([*adapting, out + "2", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        (task,) = told.pop("tasks")
        assert task.pop("judged") == [2, 2, 2] and all(right <= 2 for right in task.pop("right"))
        assert task == {"name": None, "labels": labels, "counts": [2, 2, 2]}
        assert told == {"out": out + "2", "kind": "images", "named": False, "warnings": []}
        assert command(["predict", out, *queries]) == 0
        rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
        assert [row["image"] for row in rows] == queries
        told = ["prediction", "probability", "set", "unknown", *(f"probability of {label}" for label in labels)]
        assert list(rows[0])[1:] == told
