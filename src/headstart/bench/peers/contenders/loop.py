"""Plain PyTorch: ``functional_call`` and ``autograd.grad`` in a Python loop over the tasks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from headstart.bench.peers.case import case_of, module, moved
from headstart.bench.peers.prepared import Arrays, Prepared
from headstart.bench.peers.torch_case import loss_of, tasks_of, trained


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Return the loop of the case."""
    case = case_of(values)
    model, tasks, loss = module(case), tasks_of(case), loss_of(case)
    weights: dict[str, Tensor] = dict(model.named_parameters())
    names = moved(case, model)

    def adapted(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        now = weights
        for _ in range(case.steps):
            found = torch.autograd.grad(
                loss(functional_call(model, now, (x,)), y), [now[name] for name in names], create_graph=True
            )
            now = {**now, **{name: now[name] - case.rate * slope for name, slope in zip(names, found)}}
        return now

    def backward() -> None:
        for task in tasks:
            after = adapted(task.support_x, task.support_y)
            (loss(functional_call(model, after, (task.query_x,)), task.query_y) / len(tasks)).backward()

    def predict() -> Tensor:
        outputs = []
        for task in tasks:
            now = weights
            for _ in range(case.steps):
                leaves = {name: now[name].detach().requires_grad_() for name in names}
                error = loss(functional_call(model, {**now, **leaves}, (task.support_x,)), task.support_y)
                found = torch.autograd.grad(error, list(leaves.values()))
                now = {**now, **{name: now[name].detach() - case.rate * slope for name, slope in zip(names, found)}}
            with torch.no_grad():
                outputs.append(functional_call(model, now, (task.query_x,)))
        return torch.stack(outputs)

    def answer() -> Arrays:
        return {"predictions": predict().numpy()}

    def backward_twice() -> None:
        # PyTorch's fused attention has no second derivative
        with sdpa_kernel(SDPBackend.MATH):
            backward()

    if case.what == "adapt":
        return Prepared(predict, answer)
    return trained(weights.items(), backward_twice if case.model == "transformer" else backward)
