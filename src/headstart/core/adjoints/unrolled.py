"""Derivatives through remembered steps: through all of them, the last ones, or none."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.core.inner import Given, Inner, Step, run
from headstart.errors import UsageError


@dataclass(frozen=True)
class Unrolled:
    """Remember every step and differentiate through all of them: exact, memory grows with T."""

    exact = True

    def __call__(self, step: Step, given: Given, start: Inner, steps: int) -> tuple[Inner, list[Tensor]]:
        return run(step, given, start, range(steps), torch.is_grad_enabled())


@dataclass(frozen=True)
class FirstOrder:
    """Take the inner gradients as constants, ∂(θ − α g)/∂θ = I: cheap, not exact (FOMAML)."""

    exact = False

    def __call__(self, step: Step, given: Given, start: Inner, steps: int) -> tuple[Inner, list[Tensor]]:
        return run(step, given, start, range(steps), create_graph=False)


@dataclass(frozen=True)
class Truncated:
    """Differentiate through the ``last`` steps only, and take the inner gradients of those before as constants.

    Memory and time of the backward pass are those of ``last`` steps, whatever T is. With ``last=0`` it is
    `FirstOrder`, from ``last=T`` on `Unrolled`. θ, where adaptation starts, gets its derivative as if the first
    T − last steps only shifted it; what multiplies their gradients, such as a learned rate, gets its own still.

    Reference: Shaban, Cheng, Hatch, Boots 2019, arXiv:1810.10667 (K-RMD; there the outer parameters enter every step,
    and the derivative with respect to the start is left out).
    """

    last: int

    exact = False

    def __post_init__(self) -> None:
        if not isinstance(self.last, int) or self.last < 0:
            raise UsageError(f"Truncated(last=...) must be a number of steps from 0 up, got {self.last!r}")

    def __call__(self, step: Step, given: Given, start: Inner, steps: int) -> tuple[Inner, list[Tensor]]:
        kept = min(self.last, steps)
        inner, before = run(step, given, start, range(steps - kept), create_graph=False)
        end, after = run(step, given, inner, range(steps - kept, steps), torch.is_grad_enabled())
        return end, before + after
