"""How the derivative of the adapted parameters with respect to what adaptation started from is computed.

An adjoint runs T inner steps of ``step(state, number, create_graph) -> (next state, losses)``. It decides what is
remembered for the backward pass; the mathematics of a step is not its business.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from headstart.errors import UsageError

State: TypeAlias = Any
Step: TypeAlias = Callable[[State, int, bool], tuple[State, Tensor]]
"""``(state, number, create_graph) -> (next state, support losses (B,) without history)``."""


class Adjoint(Protocol):
    """``(step, state, steps) -> (last state, [losses of each step])``."""

    @property
    def exact(self) -> bool:
        """Whether the derivative is exact."""

    def __call__(self, step: Step, state: State, steps: int, /) -> tuple[State, list[Tensor]]: ...


def _run(step: Step, state: State, numbers: range, create_graph: bool) -> tuple[State, list[Tensor]]:
    losses = []
    for number in numbers:
        state, loss = step(state, number, create_graph)
        losses.append(loss)
    return state, losses


@dataclass(frozen=True)
class Unrolled:
    """Remember every step and differentiate through all of them: exact, memory grows with T."""

    exact = True

    def __call__(self, step: Step, state: State, steps: int) -> tuple[State, list[Tensor]]:
        return _run(step, state, range(steps), torch.is_grad_enabled())


@dataclass(frozen=True)
class FirstOrder:
    """Take the inner gradients as constants, ∂(θ − α g)/∂θ = I: cheap, not exact (FOMAML)."""

    exact = False

    def __call__(self, step: Step, state: State, steps: int) -> tuple[State, list[Tensor]]:
        return _run(step, state, range(steps), create_graph=False)


@dataclass(frozen=True)
class Checkpointed:
    """Remember the state of every ``every``-th step and compute the steps between again: exact, less memory.

    ``every="sqrt"`` takes √T, so memory grows with √T at about one more forward and backward pass a step.

    Reference: Griewank, Walther 2000, doi:10.1145/347837.347846; Chen et al. 2016, arXiv:1604.06174.
    """

    every: int | Literal["sqrt"] = "sqrt"

    exact = True

    def __post_init__(self) -> None:
        if self.every != "sqrt" and not (isinstance(self.every, int) and self.every > 0):
            raise UsageError(
                f"Checkpointed(every=...) must be a positive number of steps or 'sqrt', got {self.every!r}"
            )

    def __call__(self, step: Step, state: State, steps: int) -> tuple[State, list[Tensor]]:
        if not torch.is_grad_enabled():
            return _run(step, state, range(steps), create_graph=False)
        every = max(1, math.isqrt(steps)) if self.every == "sqrt" else self.every
        losses: list[Tensor] = []
        for start in range(0, steps, every):
            numbers = range(start, min(start + every, steps))
            state, group = checkpoint(_run, step, state, numbers, True, use_reentrant=False)
            losses.extend(group)
        return state, losses
