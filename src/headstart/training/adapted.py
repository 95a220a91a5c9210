"""Learners that have learned new tasks from a user's own data, and the small folder that keeps them.

::

    ADAPTED/
      config.json            the run's options, how data are read, and the tasks: names, labels, numbers of examples
      adapted.safetensors    what adaptation changed for each task, and once what prediction needs besides
      manifest.json          size and SHA-256 of these two; a folder whose files are others is refused
      examples/              what was learned from (`headstart.training.examples`), unless asked not to keep it
      README.md              what this is, and how to use it

The run keeps how its data became numbers (``preparation.json``), so that adapting does not need them again.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import TypeAdapter

from headstart.data.kind import DataKind, NewTask, find_kind
from headstart.errors import DivergenceError, FileError
from headstart.training.build import find_device
from headstart.training.calibration import Spread
from headstart.training.checkpoint import alike
from headstart.training.config import Config, resolve
from headstart.training.cross_validation import Told
from headstart.training.examples import Support, read_examples
from headstart.training.files import (
    explained,
    from_json,
    from_safetensors,
    make_folder,
    read_json,
    read_together,
    to_json,
    to_safetensors,
    write,
    write_together,
)
from headstart.training.head_start import AdaptedTask, HeadStart, alone, learners, of_one_size
from headstart.training.loop import start
from headstart.training.trust import Trust
from headstart.types import Adapted, Meta, Params, not_sent

FORMAT = "headstart-adapted-1"
WEIGHTS, CONFIG = "adapted.safetensors", "config.json"

#: What there may be of a task: examples, and numbers in them.
_MOST_EXAMPLES, _MOST_NUMBERS = 10_000_000, 2**29
#: What to do where numbers are not finite.
SMALLER = "train with a lower --inner-rate, or fewer --inner-steps"


class AdaptedModel(NamedTuple):
    """What an adapted folder holds."""

    by: HeadStart
    """What the tasks were learned by; its ``meta`` is what adapting started from, where that is at hand."""
    tasks: tuple[AdaptedTask, ...]
    untrained: bool = False
    """Whether there was no run, but a network as it is."""
    names: bool | None = None
    """Whether names were asked to count as examples; ``None``: where they tell, without a run."""
    named: bool = False
    """Whether they did."""
    read: bool = False
    """Whether it comes from a file."""
    told: tuple[Told, ...] = ()
    """How well each task's examples are told by the others; not of a model from a file."""
    warnings: tuple[str, ...] = ()
    """What there is to warn of, such as a task that looks unlike those that were trained on; likewise."""

    def __getstate__(self) -> Any:
        raise not_sent("an adapted model")

    def __deepcopy__(self, memo: Any) -> "AdaptedModel":
        return self


def supports_of(folder: Path, model: AdaptedModel) -> tuple[HeadStart, list[Support]]:
    """Return what an adapted model was learned by, and from, as its folder keeps it.

    A network as it is, is given what is new anew.

    Raises:
        DataError: no examples were kept.
        FileError: a file that is damaged, or does not fit what was learned.
    """
    tasks = [NewTask(*task[:3]) for task in model.tasks]
    meta, supports = read_examples(folder, tasks, start(model.by.learner_of(0)).meta, model.by.like)
    return model.by._replace(meta=None if model.untrained else meta), supports


def _parts(tasks: Sequence[Adapted], group: int) -> dict[str, Params]:
    """Return the tensors that prediction needs: what all share, and what each task of a group changed."""
    one = tasks[0]

    def joined(part: Literal["params", "buffers"]) -> Params:
        return {name: torch.cat([getattr(task, part)[name] for task in tasks]) for name in getattr(one, part)}

    return {
        "params": {name: value for name, value in one.meta.params.items() if name not in one.params},
        "structure": one.meta.structure,
        f"adapted.{group}": joined("params"),
        f"buffers.{group}": joined("buffers"),
    }


def weights_of(model: AdaptedModel) -> Params:
    """Return what is kept, by name; `DivergenceError` where that is not finite."""
    weights: Params = {}
    for number, (_, group) in enumerate(of_one_size(model.tasks)):
        for part, values in _parts([model.tasks[place].adapted for place in group], number).items():
            weights |= {f"{part}.{name}": value for name, value in values.items()}
    bad = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise DivergenceError(f"adapting gives numbers that are not finite ({bad[0]}); {SMALLER}")
    return weights


def write_adapted(out: Path, model: AdaptedModel, weights: Params, card: str) -> None:
    """Write a model to a folder, and what is said of it."""
    described = {
        "format": FORMAT,
        "kind": model.by.kind.name,
        "config": model.by.config.tree(),
        "preparation": model.by.preparation,
        "intervals": model.by.spread and model.by.spread._asdict(),
        "trust": model.by.trust and model.by.trust.to_json(),
        "untrained": model.untrained,
        "names": model.names,
        "named": model.named,
        "tasks": [NewTask(*task[:3])._asdict() for task in model.tasks],
    }
    make_folder(out)
    write(out / "README.md", card.encode())
    write_together(out, {WEIGHTS: to_safetensors(weights), CONFIG: to_json(described)})


@explained("use")
def open_adapted(folder: str | Path, *, device: str = "auto") -> AdaptedModel:
    """Read what `adapt` has written.

    Raises:
        FileError: no such folder, or its files are not what they should be.
    """
    folder, where = Path(folder), find_device(device)
    path = folder / CONFIG
    if not path.exists():
        raise FileError(f"{folder} holds no adapted model; make one with `headstart adapt RUN SOURCE --out {folder}`")
    looked: Any = read_json(path)
    if not isinstance(looked, dict) or looked.get("format") != FORMAT:
        if isinstance(looked, dict) and "method" in looked:
            raise FileError(f"{folder} is a run; adapt it to your task first: `headstart adapt {folder} SOURCE`")
        raise FileError(f"{path} does not describe an adapted model of format {FORMAT}")
    contents = read_together(folder, (WEIGHTS, CONFIG))
    try:
        described: Any = from_json(contents[CONFIG], str(path))
        kind, options = find_kind(str(described["kind"])), dict(described["config"])
        prepared = kind.read(described["preparation"], str(path))
        tasks = TypeAdapter(list[NewTask]).validate_json(json.dumps(described["tasks"]), strict=True)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} does not describe an adapted model: {error}") from error
    check_sizes(kind, prepared, tasks, str(path))
    config, spread = resolve(options, str(path)), Spread.from_json(described.get("intervals"), str(path))
    trust = Trust.from_json(described.get("trust"), str(path))
    found = from_safetensors(contents[WEIGHTS], str(folder / WEIGHTS))
    adapted = _tasks_in(found, str(folder / WEIGHTS), tasks, _shapes(config, kind, prepared, tasks), where)
    learner_of = learners(config, kind, prepared, where, spread)
    adapted = [one._replace(step=learner_of(len(task.labels)).steps or 0) for task, one in zip(tasks, adapted)]
    found = (AdaptedTask(*task, learner_of(len(task.labels)), own) for task, own in zip(tasks, adapted))
    untrained, named = (described.get(name) is True for name in ("untrained", "named"))
    names = described.get("names")
    if not isinstance(names, bool | None):
        raise FileError(f"{path} does not describe an adapted model: names is {names!r}")
    every, preparation = tuple(found), described["preparation"]
    by = HeadStart(kind, preparation, prepared, config, where, spread, learner_of, None, trust)
    return AdaptedModel(by, every, untrained, names, named, read=True)


def check_sizes(kind: DataKind, prepared: Any, tasks: Sequence[NewTask], where: str) -> None:
    """Refuse what is not whole, or would take more memory than anybody has, before anything is made of it."""
    if not tasks or len({task.name for task in tasks}) < len(tasks):
        raise FileError(f"{where} has {len(tasks)} tasks; expected at least one, and none of them twice")
    if (odd := odd_name(tasks)) is not None:
        raise FileError(f"{where} has a task or class {odd!r}, whose name is none to print")
    for task in tasks:
        like, total = kind.like(prepared, len(task.labels)), sum(task.counts)
        labels = like.output_size if like.kind == "classification" else 0
        if not len(task.labels) == len(set(task.labels)) == labels != 1 or len(task.counts) != (labels or 1):
            raise FileError(f"{where} has a task of {len(task.labels)} classes, and {len(task.counts)} counts of them")
        # classes that are a task's own are not known without an example
        least, most = labels and not like.shared_classes, min(_MOST_EXAMPLES, _MOST_NUMBERS / prod(like.input_shape))
        if min(task.counts) < 0 or not least <= total <= most:
            raise FileError(f"{where} has a task of {total} examples of shape {like.input_shape}")


def odd_name(tasks: Sequence[NewTask]) -> str | None:
    """Return the first name of a task or class that is none to print in a line, or ``None``."""
    names = (text for task in tasks for text in (task.name or "", *task.labels))
    odd = (one for one in names for letter in map(ord, one) if letter < 32 or 127 <= letter < 160 or letter >> 11 == 27)
    return next(odd, None)


def _shapes(config: Config, kind: DataKind, prepared: Any, tasks: Sequence[NewTask]) -> list[Meta]:
    """Return θ and M of each task as they would be at the start, without memory for their numbers."""
    blank = torch.device("meta")
    with blank:
        learner_of = learners(config, kind, prepared, blank, None)
        start_of = cache(lambda classes: learner_of(classes).init(None))
        return [start_of(len(task.labels)) for task in tasks]


def _tasks_in(
    found: Params, where: str, tasks: Sequence[NewTask], like: Sequence[Meta], device: torch.device
) -> list[Adapted]:
    """Return what was learned of each task, of tensors whose names and shapes are those of the models ``like`` it."""
    parts: dict[str, Params] = {}
    for key, value in found.items():
        split = re.fullmatch(r"(params|structure|(?:adapted|buffers)\.\d+)\.(.*)", key, re.DOTALL)
        part, name = split.groups() if split else (key, "")
        parts.setdefault(part, {})[name] = value.to(device)
    params, structure = parts.pop("params", {}), parts.pop("structure", {})
    adapted: dict[int, Adapted] = {}

    def check(fits: bool, name: str) -> None:
        if not fits:
            raise FileError(f"{where} does not hold the tensors of its model ({name}); adapt again")

    for number, (_, group) in enumerate(of_one_size(tasks)):
        wanted, changed, buffers = (
            like[group[0]],
            parts.pop(f"adapted.{number}", {}),
            parts.pop(f"buffers.{number}", {}),
        )
        for name, value in {**changed, **buffers}.items():
            check(value.ndim > 0 and len(value) == len(group), name)
        for name, value in wanted.params.items():
            check((name in params) != (name in changed), name)
            own = params[name] if name in params else changed[name][0]
            check(alike(own, value), name)
        for name in params.keys() - wanted.params.keys() | structure.keys() ^ wanted.structure.keys():
            check(False, name)
        for name, value in wanted.structure.items():
            check(alike(structure[name], value), name)
        meta = Meta({name: params[name] if name in params else changed[name][0] for name in wanted.params}, structure)
        every = Adapted(meta, changed, buffers, None)
        adapted |= {place: alone(every, row) for row, place in enumerate(group)}
    for name in parts:
        check(False, name)
    return [adapted[place] for place in range(len(tasks))]
