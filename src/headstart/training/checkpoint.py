"""Checkpoints: what a run needs to go on exactly where it was, and its best weights so far.

``checkpoints/step-000000200.safetensors`` is one file, and sealed (`headstart.training.files`): it holds

- ``last.…``: θ and M after that step;
- ``best.…``: θ and M with the best validation score so far;
- ``optimizer.…``: the outer optimiser's tensors;
- in its metadata the step, which step the best weights are of, the size and SHA-256 of the run's metrics so far, and
  the SHA-256 of the whole file.

At least the last two are kept, so that one may be damaged.
"""

import contextlib
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headstart.core.process import pool
from headstart.core.tree import within
from headstart.errors import FileError
from headstart.training import files
from headstart.training.fit_best import Best
from headstart.training.loop import State, flat, tensors_of
from headstart.types import Meta, Params

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{9,12})\.safetensors")
_FOLDER_OF_BEFORE = re.compile(r"step-\d{9,12}")


class Keep(NamedTuple):
    """Which checkpoints stay when a new one is there."""

    last: int = 2
    """So many, those of the last steps; at least 2."""
    every: int | None = None
    """Those of the steps that this divides, too."""

    def removed(self, steps: list[int]) -> list[int]:
        """Return those that go, of the steps that there are, the last one first.

        >>> Keep(2, every=4).removed([9, 8, 6, 4, 3, 0])
        [6, 3]
        """
        return [step for step in steps[max(2, self.last) :] if self.every is None or step % self.every]


class Checkpoint(NamedTuple):
    """A moment of a run."""

    step: int
    meta: Meta
    best: Best
    optimizer: Params
    """The optimiser's tensors, named ``index.key`` by the place of the tensor that they belong to."""
    metrics: dict[str, Any] | None = None
    """Size and SHA-256 of what ``metrics.jsonl`` holds then."""
    lost: int = 0
    """As in the state."""


class Found(NamedTuple):
    """What a run folder's checkpoints came to."""

    checkpoint: Checkpoint | None
    """The newest good one; ``None`` where there never was any."""
    damaged: list[tuple[Path, str]]
    """Newer ones that cannot be used, and why."""


def take(state: State, best: Best, metrics: dict[str, Any] | None = None) -> Checkpoint:
    """Return the checkpoint of a state; it shares the state's tensors."""
    entries = {} if state.optimizer is None else state.optimizer.state_dict()["state"]
    held = {f"{place}.{key}": value for place, own in entries.items() for key, value in own.items()}
    tensors: Params = {}
    for name, value in held.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif value is not None:
            raise FileError(f"the optimiser keeps {name!r} as a {type(value).__name__}; only tensors can be saved")
    return Checkpoint(state.step, state.meta, best, tensors, metrics, state.lost)


def restore(state: State, checkpoint: Checkpoint) -> None:
    """Put a fresh state where the checkpoint was.

    Raises:
        FileError: the optimiser's tensors do not fit the weights.
    """
    owners = tensors_of(state.meta)
    for own, saved in zip(owners, tensors_of(checkpoint.meta)):
        own.resize_(saved.shape).copy_(saved)
    state.step, state.lost = checkpoint.step, checkpoint.lost
    if state.optimizer is None:
        return
    places: dict[int, dict[str, Tensor]] = {}
    for name, value in checkpoint.optimizer.items():
        place, _, key = name.partition(".")
        if not place.isdigit() or int(place) >= len(owners) or value.shape not in (owners[int(place)].shape, ()):
            raise FileError(f"the checkpoint's optimiser has a tensor {name!r} that does not fit the weights")
        places.setdefault(int(place), {})[key] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": places, "param_groups": groups})


def save(run: Path, checkpoint: Checkpoint, keep: Keep = Keep()) -> Path:
    """Write a checkpoint as a whole or not at all, then remove those that are not to be kept.

    Raises:
        FileError: the folder cannot be written or is full; the checkpoints before are intact.
    """
    return write(run, checkpoint.step, to_bytes(checkpoint), keep)


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """Return what a checkpoint's file holds, but for its digest."""
    state = {
        "step": checkpoint.step,
        "best": {"step": checkpoint.best.step, "value": checkpoint.best.value},
        "lost": checkpoint.lost,
        "torch": str(torch.__version__),
        "metrics": checkpoint.metrics,
    }
    parts = {"last": flat(checkpoint.meta), "best": flat(checkpoint.best.meta), "optimizer": checkpoint.optimizer}
    tensors = {f"{part}.{name}": value for part, own in parts.items() for name, value in own.items()}
    return files.unsealed(tensors, state)


def write(run: Path, step: int, data: bytes, keep: Keep = Keep()) -> Path:
    """Write the bytes of a checkpoint, as `save` does."""
    place = run / FOLDER / _name(step)
    if not place.parent.is_dir():
        with files.explained("write the checkpoint", place):
            place.parent.mkdir()  # not its parents: a run's folder that has gone is not made anew
    files.write(place, files.sealed(data, str(place)))
    there = dict(listed(run))
    for old in keep.removed(list(there)):
        with contextlib.suppress(OSError):
            there[old].unlink()
    return place


class Saver:
    """Saves a run's checkpoints as `save` does, in a thread: training goes on while they are written.

    One at a time: the next waits for the one before, so that which steps are saved does not depend on the disk. A kill
    costs the steps since the last save that was whole. At the end of a ``with`` block all is on the disk.
    """

    def __init__(self, run: Path, keep: Keep = Keep()) -> None:
        self.run, self.keep = run, keep
        self.writing: futures.Future[Path] | None = None

    def begin(self, checkpoint: Checkpoint, first: Callable[[], Any] = lambda: None) -> None:
        """Copy what a checkpoint holds and begin to write it.

        Args:
            checkpoint: what it holds may change from here on.
            first: called in the thread before anything is written.

        Raises:
            FileError: the save before this one failed.
        """
        self.wait()
        data = to_bytes(checkpoint)  # a copy, made here, since threads that work on tensors at once wait for each other

        def written() -> Path:
            first()
            return write(self.run, checkpoint.step, data, self.keep)

        self.writing = pool(1).submit(written)

    def check(self) -> None:
        """Raise what went wrong with a save that has ended, and return at once in any case."""
        if self.writing is not None and self.writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until all is on the disk.

        Raises:
            FileError: it could not be written; the checkpoints before are intact.
        """
        if self.writing is not None:
            futures.wait([self.writing])  # where this is interrupted, it is still to be waited for
            written, self.writing = self.writing, None
            written.result()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.wait()
        except FileError as ours:
            if error is None:
                raise
            error.add_note(f"besides, the last checkpoint could not be saved: {ours}")


def find(run: Path, like: Meta) -> Found:
    """Return the newest checkpoint that is whole and fits ``like``, and the damaged ones that are newer.

    Raises:
        FileError: there are checkpoints, but none is good.
    """
    damaged: list[tuple[Path, str]] = []
    for _, place in listed(run):
        try:
            return Found(_load(place, like), damaged)
        except FileError as error:
            damaged.append((place, str(error)))
    if damaged:
        reasons = "\n".join(reason for _, reason in damaged)
        raise FileError(f"no checkpoint in {run / FOLDER} can be used; remove it to start over:\n{reasons}")
    return Found(None, damaged)


def newest(run: Path, like: Meta) -> Checkpoint:
    """Return what `find` finds; a warning tells of the damaged ones.

    Raises:
        FileError: there is no good checkpoint.
    """
    found = find(run, like)
    for place, reason in found.damaged:
        warnings.warn(f"checkpoint {place.name} cannot be used, taking the one before: {reason}", stacklevel=3)
    if found.checkpoint is None:
        raise FileError(f"the run in {run} has no checkpoint yet")
    return found.checkpoint


def refuse_larger(run: Path, size: int) -> None:
    """Refuse weights of more bytes than any checkpoint of a run holds, before memory is taken for them.

    Raises:
        FileError: all checkpoints are smaller.
    """
    held = 0
    for _, place in listed(run):
        with contextlib.suppress(OSError):
            held = max(held, place.stat().st_size // 2)  # the last weights, and the best
    if 0 < held < size:
        raise FileError(f"the weights of the run in {run} have {held} bytes, but its configuration asks for {size}")


def clean(run: Path) -> None:
    """Remove what unfinished writes left behind."""
    for holder in (run, run / FOLDER):
        for path in holder.glob(f"{files.TEMPORARY}*") if holder.is_dir() and not holder.is_symlink() else ():
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def set_aside(damaged: list[tuple[Path, str]]) -> None:
    """Rename damaged checkpoints, so that they are kept but never looked at again."""
    for place, _ in damaged:
        with files.explained("rename", place):
            os.replace(place, place.with_name(f"damaged-{uuid.uuid4().hex[:6]}-{place.name}"))


def alike(found: Tensor, wanted: Tensor) -> bool:
    """Return whether a tensor is of the type and shape of another; of one without rows, it may have any number.

    >>> alike(torch.zeros(5, 3), torch.zeros(0, 3)), alike(torch.zeros(5, 3), torch.zeros(4, 3))
    (True, False)
    """
    open_ended = wanted.ndim > 0 and not len(wanted) and found.ndim == wanted.ndim
    same = found.shape[1:] == wanted.shape[1:] if open_ended else found.shape == wanted.shape
    return same and found.dtype == wanted.dtype


def listed(run: Path) -> list[tuple[int, Path]]:
    """Return the steps and places of a run's checkpoints, the last one first; none is looked into.

    Raises:
        FileError: what is in their folder's place is none, or a link to one.
    """
    holder = run / FOLDER
    if not holder.is_dir() or holder.is_symlink():
        if not os.path.lexists(holder):
            return []
        raise FileError(f"{holder} is not a folder (or is a link to one); expected the run's checkpoints")
    names = os.listdir(holder)
    matches = [(_NAME.fullmatch(name), name) for name in names]
    if any(_FOLDER_OF_BEFORE.fullmatch(name) for name in names):
        raise FileError(f"{holder} holds checkpoints of an older headstart; go on with that, or choose another --out")
    return sorted(((int(match[1]), holder / name) for match, name in matches if match), reverse=True)


def _name(step: int) -> str:
    return f"step-{step:09d}.safetensors"


def _load(place: Path, like: Meta) -> Checkpoint:
    tensors, state = files.from_sealed(files.read(place), str(place))
    try:
        step, best_step, value = int(state["step"]), int(state["best"]["step"]), float(state["best"]["value"])
        lost, metrics = int(state["lost"]), state["metrics"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FileError(f"{place} does not say the step, the best step, the lost ones and the metrics") from error
    if _name(step) != place.name:
        raise FileError(f"{place} is of step {step}, not of the step that it is called by")
    if not (metrics is None or (isinstance(metrics, dict) and type(metrics.get("bytes")) is int)):
        raise FileError(f"{place} does not say how large the run's metrics were")
    last, best = (_meta(tensors, part, str(place), like) for part in ("last", "best"))
    return Checkpoint(step, last, Best(best_step, value, best), within(tensors, "optimizer"), metrics, lost)


def _meta(tensors: Params, part: str, where: str, like: Meta) -> Meta:
    """Return θ and M of a part of the tensors; names, shapes and types must be those of ``like`` (`alike`)."""
    found, wanted = within(tensors, part), flat(like)
    for name in sorted(found.keys() ^ wanted.keys()):
        has = "has" if name in found else "lacks"
        raise FileError(f"{where} {has} the tensor '{part}.{name}'; it is of another model")
    for name, value in wanted.items():
        if not alike(found[name], value):
            raise FileError(
                f"{where}: tensor '{part}.{name}' is {tuple(found[name].shape)} of {found[name].dtype}; the model has"
                f" {tuple(value.shape)} of {value.dtype}"
            )
    moved = {name: found[name].to(value.device) for name, value in wanted.items()}
    return Meta(*(within(moved, group) for group in like._fields))
