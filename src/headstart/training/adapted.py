"""A learner that has learned a new task from a folder of images: a small folder of its own, which predicts labels.

::

    ADAPTED/
      config.json            the base's options and the class names
      adapted.safetensors    what adaptation changed, and what it left but prediction needs
      README.md              what this is, and how to use it
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from headstart.errors import ConfigError, FileError
from headstart.training.adapted_files import (
    fitted,
    inductive_learner,
    read_description,
    refuse_filled,
    tasks_like,
    write_adapted,
)
from headstart.training.build import find_device
from headstart.training.config import TrainConfig, make_config
from headstart.training.defaults import resolve
from headstart.training.run import open_run
from headstart.types import Adapted, Batch, Learner

FORMAT = "headstart-adapted-1"

#: Methods that make their classifier of the support set, whatever classes it has.
ANY_WAYS = frozenset({"prototypes", "nearest", "ridge", "logistic", "svm"})
#: Tasks whose images are light on dark; a support image is turned that way when it is dark on light.
_LIGHT_ON_DARK = frozenset({"omniglot", "icons"})


class AdaptedModel(NamedTuple):
    """What an adapted folder holds."""

    classes: tuple[str, ...]
    learner: Learner
    adapted: Adapted
    config: TrainConfig
    input_shape: tuple[int, ...]
    device: torch.device


class Prediction(NamedTuple):
    """What an image was taken for."""

    image: str
    label: str
    probability: float
    probabilities: dict[str, float]


def adapt(
    run: str | Path, support: str | Path, out: str | Path, device: str = "auto", strict: bool = False
) -> AdaptedModel:
    """Learn new classes from a folder of class folders, and write the result.

    Where the run normalised by batches (``--buffers batch``), normalisation now goes by the support set, so that an
    image's prediction does not depend on which others are asked for.

    Args:
        run: a run folder.
        support: a folder that holds one folder of images a class.
        out: the folder to write; it must be new or empty.
        device: where to compute.
        strict: refuse a folder with an image that cannot be read; else that image is left out with a warning.

    Raises:
        ConfigError: the method cannot do that many classes, or the run is not of images.
        DataError: a class without an image that can be read, or, where ``strict``, one that cannot.
        FileError: no run, or a folder that cannot be read or written.
    """
    from headstart.data.images.folder import read_class_folder
    from headstart.data.images.store import scaled

    job, checkpoint = open_run(run, device)
    config, shape = job.config, job.tasks.input_shape
    if job.tasks.kind != "classification" or len(shape) != 3:
        raise ConfigError(f"the run in {run} is of {config.tasks} ({job.tasks.kind}); adapt takes runs on images")
    refuse_filled(Path(out))
    found = read_class_folder(support, size=shape[-1], channels=_channels(shape), strict=strict)
    _refuse_ways(config, len(found.names))
    x = _as_trained(torch.cat([scaled(images) for images in found.images]), config)
    y = torch.arange(len(found.names)).repeat_interleave(torch.tensor([len(images) for images in found.images]))
    learner = _learner(config, shape, len(found.names), job.device)
    with torch.no_grad():
        batch = Batch(x.unsqueeze(0).to(job.device), y.unsqueeze(0).to(job.device))
        adapted, _ = learner.adapt(checkpoint.best.meta, batch)
    model = AdaptedModel(tuple(found.names), learner, adapted, config, shape, job.device)
    _save(Path(out), model, [len(images) for images in found.images])
    return model


def _as_trained(x: Tensor, config: TrainConfig) -> Tensor:
    """Return images with the polarity of the run's tasks: an image's border tells its background."""
    if config.tasks not in _LIGHT_ON_DARK:
        return x
    border = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], -1)
    light = border.mean((1, 2), keepdim=True).unsqueeze(-1) > 0.5
    return torch.where(light, 1 - x, x)


def _refuse_ways(config: TrainConfig, classes: int) -> None:
    if config.method in ANY_WAYS or classes == config.ways:
        return
    raise ConfigError(
        f"the run was trained with {config.method} for {config.ways} classes, but the folder has {classes};"
        f" give {config.ways} class folders, or train with --ways {classes}, or with a method that"
        f" takes any number: {', '.join(sorted(ANY_WAYS))}"
    )


def _learner(config: TrainConfig, shape: tuple[int, ...], classes: int, device: torch.device) -> Learner:
    return inductive_learner(config, tasks_like(config.tasks, "classification", shape, classes), device)


def _save(out: Path, model: AdaptedModel, counts: list[int]) -> None:
    described = {
        "format": FORMAT,
        "classes": list(model.classes),
        "images": counts,
        "input_shape": list(model.input_shape),
        "base": model.config.model_dump(),
    }
    write_adapted(out, model.adapted, described, _card(model, counts))


def open_adapted(folder: str | Path, device: str = "auto") -> AdaptedModel:
    """Read what `adapt` has written.

    Raises:
        FileError: no such folder, or its files are not what they should be.
    """
    folder = Path(folder)
    described, where = read_description(folder, FORMAT), folder / "config.json"
    try:
        classes = tuple(str(name) for name in described["classes"])
        counts = [int(count) for count in described["images"]]
        shape = tuple(int(size) for size in described["input_shape"])
        base = dict(described["base"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{where} does not describe an adapted model") from error
    if len(classes) < 2 or len(shape) != 3 or not all(0 < size <= 4096 for size in shape):
        raise FileError(f"{where} has {len(classes)} classes and inputs of shape {shape}")
    if len(counts) != len(classes) or not all(0 < count <= 1_000_000 for count in counts):
        raise FileError(f"{where} has {len(classes)} classes of {counts} images")
    config, device_found = resolve(make_config(base, str(where))), find_device(device)
    learner = _learner(config, shape, len(classes), device_found)
    y = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts)).unsqueeze(0)
    blank = Batch(torch.zeros(1, y.shape[1], *shape), y)
    return AdaptedModel(classes, learner, fitted(folder, learner, blank, device_found), config, shape, device_found)


def predict(model: AdaptedModel, images: Sequence[str | Path]) -> list[Prediction]:
    """Predict the label of image files.

    Raises:
        FileError: no such file.
        DataError: a file that is not an image.
    """
    from headstart.data.images.files import read_image
    from headstart.data.images.store import scaled

    read_in = [read_image(path, model.input_shape[-1], _channels(model.input_shape)) for path in images]
    x = _as_trained(torch.stack([scaled(image) for image in read_in]), model.config)
    with torch.no_grad():
        logits = model.learner.predict(model.adapted, x.unsqueeze(0).to(model.device))[0]
    found = []
    for path, row in zip(images, logits.softmax(-1).tolist()):
        best = max(range(len(row)), key=row.__getitem__)
        found.append(Prediction(str(path), model.classes[best], row[best], dict(zip(model.classes, row))))
    return found


def _channels(shape: tuple[int, ...]) -> Literal[1, 3]:
    return cast(Literal[1, 3], shape[0])


def _card(model: AdaptedModel, counts: list[int]) -> str:
    config = model.config
    rows = "\n".join(f"| {name} | {count} |" for name, count in zip(model.classes, counts))
    how: dict[str, Any] = {"prototypes": "class means of the learned embedding", "nearest": "class means of the images"}
    what = how.get(config.method, f"{config.inner_steps} gradient steps of size {config.inner_rate}")
    return f"""# {len(model.classes)} classes learned from {sum(counts)} images

Learned by {config.method} ({what}) from weights meta-learned on {config.tasks}; made with headstart.

| class | images |
|---|---|
{rows}

    headstart predict FOLDER IMAGE

Probabilities are the model's own and were not calibrated.
"""
