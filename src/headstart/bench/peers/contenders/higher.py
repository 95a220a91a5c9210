"""higher (Grefenstette et al. 2019, arXiv:1910.01727): ``innerloop_ctx`` and its differentiable SGD."""

from collections.abc import Mapping
from typing import Any

import torch

from headstart.bench.peers.case import case_of, module
from headstart.bench.peers.prepared import Prepared
from headstart.bench.peers.torch_case import loss_of, tasks_of, trained


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Return higher's loop, as in its MAML example."""
    import higher  # pyrefly: ignore

    case = case_of(values)
    model, tasks, loss = module(case), tasks_of(case), loss_of(case)
    inner = torch.optim.SGD(model.parameters(), lr=case.rate)

    def backward() -> None:
        for task in tasks:
            with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (learner, optimizer):
                for _ in range(case.steps):
                    optimizer.step(loss(learner(task.support_x), task.support_y))
                (loss(learner(task.query_x), task.query_y) / len(tasks)).backward()

    return trained(model.named_parameters(), backward)
