"""Learning new classes from a folder, and predicting with the result."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from headstart.data.images.files import SkippedImageWarning
from headstart.data.images.icons import load_icons
from headstart.errors import ConfigError, DataError, FileError, HeadstartError
from headstart.training.adapted import adapt, open_adapted, predict
from headstart.training.config import make_config
from headstart.training.run import train

BASE: dict[str, Any] = {
    "tasks": "icons", "ways": 3, "filters": 4, "steps": 2, "tasks_per_step": 2, "threads": 1, "rotations": False,
    "evaluate_tasks": 2, "test_tasks": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    taught: dict[str, Any] = {"maml": {}, "maml_plus_plus": {"inner_steps": 2, "outer_rate": 0.1}, "prototypes": {}}
    for method, options in {**taught, "nearest": {"steps": None, "tasks_per_step": None}}.items():
        made[method] = tmp_path_factory.mktemp("runs") / method
        values = {**BASE, **options, "method": method} | ({"filters": None} if method == "nearest" else {})
        train(make_config(values), made[method])
    made["sinusoid"] = tmp_path_factory.mktemp("runs") / "sinusoid"
    train(make_config({"tasks": "sinusoid", "steps": 0, "test_tasks": 2, "evaluate_tasks": 2}), made["sinusoid"])
    return made


def _images(folder: Path, classes: int, images: int, dark_on_light: bool = True) -> list[Path]:
    """Save drawings of the test classes as people would, and return the paths of some others."""
    store, others = load_icons()["test"], []
    for index in range(classes):
        name = store.names[index]
        (folder / "support" / name).mkdir(parents=True)
        for place in range(images + 1):
            drawn = store.images[store.starts[index] + place, 0].numpy()
            picture = Image.fromarray(255 - drawn if dark_on_light else drawn)
            path = folder / f"{name}.png" if place == images else folder / "support" / name / f"{place}.png"
            picture.save(path)
            others += [path] if place == images else []
    return others


@pytest.mark.parametrize(
    ("method", "classes"),
    [("maml", 3), ("maml_plus_plus", 3), ("prototypes", 2), ("prototypes", 7), ("nearest", 4)],
)
def test_what_was_adapted_predicts_the_same_when_read_back(
    runs: dict[str, Path], tmp_path: Path, method: str, classes: int
) -> None:
    queries = _images(tmp_path, classes, 2)
    model = adapt(runs[method], tmp_path / "support", tmp_path / "out")
    found, again = predict(model, queries), predict(open_adapted(tmp_path / "out"), queries)
    assert [p.label for p in found] == [p.label for p in again]
    for one, other in zip(found, again):
        assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=1e-6)
        assert sum(one.probabilities.values()) == pytest.approx(1)
        assert one.probability == max(one.probabilities.values()) == one.probabilities[one.label]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "adapted.safetensors", "config.json"
    ]  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(name in card for name in model.classes) and "None" not in card


@pytest.mark.parametrize("method", ["maml", "prototypes", "nearest"])
def test_a_support_image_is_known_again_and_company_does_not_matter(
    runs: dict[str, Path], tmp_path: Path, method: str
) -> None:
    queries = _images(tmp_path, 3, 1)
    model = adapt(runs[method], tmp_path / "support", tmp_path / "out")
    known = [tmp_path / "support" / name / "0.png" for name in model.classes]
    if method != "maml":  # the class means are the images themselves
        assert [p.label for p in predict(model, known)] == list(model.classes)
    alone = predict(model, queries[:1])[0].probabilities
    together = predict(model, [*queries, *known])[0].probabilities
    assert list(alone.values()) == pytest.approx(list(together.values()), abs=1e-5)


def test_dark_on_light_is_turned_as_the_tasks_have_it(runs: dict[str, Path], tmp_path: Path) -> None:
    found = []
    for dark in (True, False):
        folder = tmp_path / str(dark)
        queries = _images(folder, 3, 1, dark_on_light=dark)
        model = adapt(runs["prototypes"], folder / "support", folder / "out")
        found.append(torch.tensor([list(p.probabilities.values()) for p in predict(model, queries)]))
    assert torch.allclose(found[0], found[1], atol=1e-5)


def test_a_fixed_number_of_classes_is_kept_to(runs: dict[str, Path], tmp_path: Path) -> None:
    _images(tmp_path, 4, 1)
    with pytest.raises(ConfigError, match="maml for 3 classes, but the folder has 4"):
        adapt(runs["maml"], tmp_path / "support", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_curves_and_filled_folders_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    _images(tmp_path, 3, 1)
    with pytest.raises(ConfigError, match=r"is of sinusoid \(regression\); adapt takes runs on images"):
        adapt(runs["sinusoid"], tmp_path / "support", tmp_path / "out")
    with pytest.raises(ConfigError, match="is not empty"):
        adapt(runs["maml"], tmp_path / "support", tmp_path / "support")


def test_an_image_that_cannot_be_read_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    queries = _images(tmp_path, 3, 1)
    model = adapt(runs["maml"], tmp_path / "support", tmp_path / "out")
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(DataError, match="bad.png"):
        predict(model, [*queries, tmp_path / "bad.png"])
    with pytest.raises(FileError, match="none.png"):
        predict(model, [tmp_path / "none.png"])
    broken = next((tmp_path / "support").iterdir()) / "1.png"
    broken.write_text("no image")
    with pytest.raises(DataError, match="1.png"):
        adapt(runs["maml"], tmp_path / "support", tmp_path / "other", strict=True)
    assert not (tmp_path / "other").exists()
    with pytest.warns(SkippedImageWarning, match="1.png"):
        adapt(runs["maml"], tmp_path / "support", tmp_path / "other")
    assert (tmp_path / "other").is_dir()


def test_a_photograph_of_any_shape_is_taken(runs: dict[str, Path], tmp_path: Path) -> None:
    _images(tmp_path, 3, 1)
    model = adapt(runs["prototypes"], tmp_path / "support", tmp_path / "out")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8))
    ImageDraw.Draw(photo).line((0, 0, 100, 80), fill="red", width=9)
    photo.save(tmp_path / "photo.jpg")
    assert predict(model, [tmp_path / "photo.jpg"])[0].label in model.classes


def test_damaged_folders_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    _images(tmp_path, 3, 1)
    out = tmp_path / "out"
    adapt(runs["maml"], tmp_path / "support", out)
    described = json.loads((out / "config.json").read_text())
    weights = (out / "adapted.safetensors").read_bytes()
    for change in (
        {"format": "other"}, {"classes": ["a"]}, {"classes": ["a", "b"]}, {"classes": 3}, {"input_shape": [1]},
        {"input_shape": [1, 10**9, 10**9]}, {"input_shape": [3, 28, 28]}, {"base": {"method": "maml"}}, {"base": 1},
    ):  # fmt: skip
        (out / "config.json").write_text(json.dumps({**described, **change}))
        with pytest.raises(HeadstartError):
            open_adapted(out)
    (out / "config.json").write_text(json.dumps(described))
    for data in (weights[:-3], b"", weights[:100] + b"\xff" * 100):
        (out / "adapted.safetensors").write_bytes(data)
        with pytest.raises(FileError):
            open_adapted(out)
    with pytest.raises(FileError, match="holds no adapted model"):
        open_adapted(tmp_path / "nowhere")
