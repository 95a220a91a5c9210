"""What an adjoint is, and how it runs steps."""

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from headstart.core.step import Given, Inner, Step


class Adjoint(Protocol):
    """``(step, given, start, steps) -> (state after the steps, [losses of each step])``."""

    @property
    def exact(self) -> bool:
        """Whether the derivative is exact."""

    def __call__(self, step: Step, given: Given, start: Inner, steps: int, /) -> tuple[Inner, list[Tensor]]: ...


def run(
    step: Step, given: Given, inner: Inner, numbers: Iterable[int], create_graph: bool
) -> tuple[Inner, list[Tensor]]:
    """Take the steps of these numbers one after another."""
    losses = []
    for number in numbers:
        inner, loss = step(given, inner, number, create_graph)
        losses.append(loss)
    return inner, losses
