"""What adapted models of all kinds of data share: their folder, and how what was learned is read back.

::

    ADAPTED/
      config.json            its format, the base's options, and what the inputs are
      adapted.safetensors    what adaptation changed, and what it left but prediction needs
      README.md              what this is, and how to use it
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch

from headstart.errors import ConfigError, DataError, DivergenceError, FileError
from headstart.training.build import make_learner
from headstart.training.config import TrainConfig
from headstart.training.files import from_safetensors, make_folder, read, read_json, to_json, to_safetensors, write
from headstart.types import Adapted, Batch, Episodes, Learner, Meta, Params, Tasks

WEIGHTS, CONFIG = "adapted.safetensors", "config.json"


def refuse_filled(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        ConfigError: it does.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not empty; choose a new folder")


def inductive_learner(config: TrainConfig, tasks: Tasks, device: torch.device) -> Learner:
    """Return the run's learner; normalisation by batches goes by the support set, whatever else is asked for."""
    inductive = config.model_copy(update={"buffers": "task"}) if config.buffers == "batch" else config
    return make_learner(inductive, tasks, device)[0]


def tasks_like(name: str, kind: Literal["classification", "regression"], shape: tuple[int, ...], outputs: int) -> Tasks:
    """Return what a learner needs to know of tasks that nobody will sample."""

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        raise DataError("an adapted model has no tasks to sample")

    return Tasks(name, sample, kind, shape, outputs, {})


def write_adapted(out: Path, adapted: Adapted, described: dict[str, Any], card: str) -> None:
    """Write the folder of an adapted model.

    Args:
        out: the folder; made where it does not exist.
        adapted: what was learned.
        described: what ``config.json`` is to hold, with its ``format``.
        card: the text of ``README.md``.

    Raises:
        DivergenceError: what was learned is not finite; nothing is written.
        FileError: the folder cannot be written.
    """
    weights = _needed(adapted)
    bad = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise DivergenceError(
            f"adapting gives numbers that are not finite ({bad[0]}); train with a lower --inner-rate, or fewer"
            " --inner-steps"
        )
    make_folder(out)
    write(out / WEIGHTS, to_safetensors(weights))
    write(out / "README.md", card.encode())
    write(out / CONFIG, to_json(described))  # last: without it the folder is not a model


def read_description(folder: Path, format_name: str | None = None) -> dict[str, Any]:
    """Return what the ``config.json`` of an adapted model holds.

    Raises:
        FileError: no such file, or, where given, another format.
    """
    if not (folder / CONFIG).exists():
        raise FileError(f"{folder} holds no adapted model; make one with `headstart adapt RUN SUPPORT --out {folder}`")
    described = read_json(folder / CONFIG)
    if not isinstance(described, dict) or format_name not in (None, described.get("format")):
        raise FileError(f"{folder / CONFIG} does not describe an adapted model of format {format_name}")
    return cast(dict[str, Any], described)


def _needed(adapted: Adapted) -> Params:
    """Return the tensors that prediction needs: what adaptation changed takes the place of what it started from."""
    meta = adapted.meta
    parts = {
        "params": {name: value for name, value in meta.params.items() if name not in adapted.params},
        "structure": meta.structure,
        # minus infinity is what a class without a support example starts from; the file holds finite numbers only
        "adapted": {
            name: torch.where(value[0] == -torch.inf, torch.finfo(value.dtype).min, value[0])
            if value.is_floating_point()
            else value[0]
            for name, value in adapted.params.items()
        },
        "buffers": {name: value[0] for name, value in adapted.buffers.items()},
    }
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


def fitted(folder: Path, learner: Learner, blank: Batch, device: torch.device) -> Adapted:
    """Read what was learned, each tensor of the shape that adapting anew would give it.

    Args:
        folder: where `write_adapted` has written it.
        learner: its learner.
        blank: a support set of the same shape, and labels, as the one that was learned from.
        device: where to put the tensors.

    Raises:
        FileError: the file cannot be read, or holds other tensors.
    """
    with torch.no_grad():
        start = learner.init(torch.Generator().manual_seed(0))
        like, _ = learner.adapt(start, Batch(blank.x.to(device), blank.y.to(device)))
    where = str(folder / WEIGHTS)
    wanted, found = _needed(like), from_safetensors(read(folder / WEIGHTS), where)
    if wanted.keys() != found.keys() or any(
        wanted[n].shape != v.shape or wanted[n].dtype != v.dtype for n, v in found.items()
    ):
        raise FileError(f"{where} does not hold the tensors of its model; adapt again")
    parts: dict[str, Params] = {"params": {}, "structure": {}, "adapted": {}, "buffers": {}}
    for key, value in found.items():
        part, _, name = key.partition(".")
        parts[part][name] = value.to(device)
    params = {name: parts["params"].get(name, parts["adapted"].get(name)) for name in like.meta.params}
    changed, buffers = (
        {name: value.unsqueeze(0) for name, value in parts[part].items()} for part in ("adapted", "buffers")
    )
    return Adapted(Meta(cast(Params, params), parts["structure"]), changed, buffers, None, like.step)
