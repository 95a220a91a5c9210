"""TorchOpt (Ren, Feng, Liu et al. 2022, arXiv:2211.06934): ``MetaSGD`` with extracted and recovered states."""

from collections.abc import Mapping
from typing import Any

from headstart.bench.peers.case import case_of, module
from headstart.bench.peers.prepared import Prepared
from headstart.bench.peers.torch_case import loss_of, tasks_of, trained


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Return TorchOpt's loop, as in its MAML example."""
    import torchopt  # pyrefly: ignore

    case = case_of(values)
    model, tasks, loss = module(case), tasks_of(case), loss_of(case)
    named = list(model.named_parameters())  # the module holds other tensors while it is adapted
    inner = torchopt.MetaSGD(model, lr=case.rate)

    def backward() -> None:
        before = torchopt.extract_state_dict(model, by="reference")
        inner_before = torchopt.extract_state_dict(inner, by="reference")
        for task in tasks:
            for _ in range(case.steps):
                inner.step(loss(model(task.support_x), task.support_y))
            (loss(model(task.query_x), task.query_y) / len(tasks)).backward()
            torchopt.recover_state_dict(model, before)
            torchopt.recover_state_dict(inner, inner_before)

    return trained(named, backward)
