"""Derivatives through all steps that remember few of them."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from headstart.core.adjoint.adjoint import run
from headstart.core.adjoint.schedule import Segment, binomial, periodic
from headstart.core.adjoint.sweep import Pullback, reverse, sweep
from headstart.core.sizes import to_bytes, to_text
from headstart.core.step import Given, Inner, Step
from headstart.errors import UsageError


@dataclass(frozen=True)
class Checkpointed:
    """Remember the state of every ``every``-th step and compute the steps between again: exact, less memory.

    The backward pass holds the T / every states, those of ``every`` steps, and the graph of one step; the steps that
    are not remembered are taken once more. ``every="sqrt"``, the default, takes √T: memory for 2 √T states at about
    one more gradient a step. ``every=1`` remembers each state, and takes each step once more only to
    differentiate it.

    With ``memory`` in its place, it keeps as many states as that much memory has room for, where they save the most
    (binomial checkpointing), so that any T fits; where there is room for everything, it takes no step again.

    Args:
        every: a number of steps, or ``"sqrt"``.
        memory: for the states and the graph of a step, in bytes or as ``"2GiB"``; the model's parameters, the data
            and the query loss come on top of it.

    Reference: Griewank, Walther 2000, doi:10.1145/347837.347846; Chen et al. 2016, arXiv:1604.06174.
    """

    every: int | Literal["sqrt"] = "sqrt"
    memory: int | str | None = None

    exact = True

    def __post_init__(self) -> None:
        if self.every != "sqrt" and not (isinstance(self.every, int) and self.every > 0):
            raise UsageError(
                f"Checkpointed(every=...) must be a positive number of steps or 'sqrt', got {self.every!r}"
            )
        if self.memory is not None:
            to_bytes(self.memory)
            if self.every != "sqrt":
                raise UsageError(f"Checkpointed takes every= or memory=, not both; got {self.every} and {self.memory}")

    def __call__(self, step: Step, given: Given, start: Inner, steps: int) -> tuple[Inner, list[Tensor]]:
        return in_reverse(step, given, start, steps, self, reverse)


def in_reverse(
    step: Step, given: Given, start: Inner, steps: int, schedule: Checkpointed, pullback: Pullback
) -> tuple[Inner, list[Tensor]]:
    """Take the steps so that a `sweep` differentiates them, as ``schedule`` says."""
    wanted = torch.is_grad_enabled() and any(_wanted(tree) for tree in (given, start))
    if not wanted or steps == 0:
        return run(step, given, start, range(steps), create_graph=False)
    segments = _segments(step, given, start, steps, schedule)
    if segments is None:
        return run(step, given, start, range(steps), create_graph=True)
    return sweep(step, given, start, segments, pullback)


def _segments(step: Step, given: Given, start: Inner, steps: int, schedule: Checkpointed) -> list[Segment] | None:
    """Return the segments of a sweep; ``None`` where all of the graph has room."""
    if schedule.memory is None:
        return periodic(steps, max(1, math.isqrt(steps)) if schedule.every == "sqrt" else schedule.every)
    room = to_bytes(schedule.memory)
    graph, state = graph_size(step, given, start)
    if steps * graph <= room:
        return None
    slots = int((room - graph) / state) - 1
    if slots < 0:
        tasks = len(next(iter(start.params.values())))
        raise UsageError(
            f"one inner step of {tasks} tasks needs about {to_text(graph + state)} of memory, and memory="
            f"{schedule.memory!r} allows {to_text(room)}; allow more, or take fewer tasks at a time"
        )
    return binomial(steps, min(slots, steps - 1))


def graph_size(step: Step, given: Given, start: Inner) -> tuple[int, int]:
    """Return how many bytes differentiating the first step needs, and how many its state has."""
    held = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((given, start)) if isinstance(leaf, Tensor)}
    saved: dict[int, int] = {}
    storages = []  # kept, so that no two have the same address

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            saved[storage.data_ptr()] = storage.nbytes()
            storages.append(storage)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        after, _ = step(given, start, 0, True)
    state = sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(after))
    # beside what is saved: the next state, and the slopes of a state twice, as they are and as they become
    return sum(saved.values()) + 3 * state, state


def _wanted(tree: Given | Inner) -> bool:
    return any(leaf.requires_grad for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
