"""What all contenders in PyTorch share: tensors, losses, and the outer optimiser."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.bench.peers.case import OUTER_RATE, Case, arrays
from headstart.bench.peers.prepared import Arrays, Prepared


class Task(NamedTuple):
    """One task's tensors."""

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor


def batched(case: Case) -> Task:
    """Return the tensors of all tasks, which are along the first axis."""
    return Task(**{name: torch.from_numpy(value) for name, value in arrays(case).items()})


def tasks_of(case: Case) -> list[Task]:
    """Return each task's tensors."""
    return [Task(*parts) for parts in zip(*batched(case))]


def loss_of(case: Case) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of a task's outputs and targets."""
    return F.cross_entropy if case.ways else F.mse_loss


def outer_optimizer(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Return the optimiser of the outer steps, which is `headstart.fit`'s: Adam, in one operation for all tensors."""
    return torch.optim.Adam(list(parameters), lr=OUTER_RATE, fused=True)


def trained(named: Iterable[tuple[str, Tensor]], backward: Callable[[], object], note: str = "") -> Prepared:
    """Return a contender whose ``backward`` adds the meta-gradient to the ``grad`` of the named parameters."""
    parameters = dict(named)
    optimizer = outer_optimizer(parameters.values())

    def answer() -> Arrays:
        optimizer.zero_grad()
        backward()
        return gradients(parameters)

    def step() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    return Prepared(step, answer, note)


def gradients(parameters: dict[str, Tensor]) -> Arrays:
    """Return what backward has left in each ``grad``; zero where nothing did."""
    return {
        name: (torch.zeros_like(value) if value.grad is None else value.grad).detach().numpy().copy()
        for name, value in parameters.items()
    }
