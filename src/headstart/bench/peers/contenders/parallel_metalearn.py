"""parallel-metalearn: its ``MAML`` with ``backend="vmap"``, all tasks in one chunk."""

from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from headstart.bench.peers.case import Case, case_of, module
from headstart.bench.peers.prepared import Arrays, Prepared
from headstart.bench.peers.torch_case import batched, gradients, loss_of, outer_optimizer


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Return parallel-metalearn's step.

    Batch normalisation is the library's own layer: PyTorch's, mapped by its functional transforms and differentiated
    twice, has another meta-gradient.
    """
    from metalearn.algorithms import MAML  # pyrefly: ignore
    from metalearn.inner_optimizers import InnerSGD  # pyrefly: ignore

    case = case_of(values)
    model = _Wrapped(_own_normalisation(module(case)), case)
    parameters: dict[str, Tensor] = dict(model.module.named_parameters())
    outer = outer_optimizer(parameters.values())
    method = MAML(
        model=model,
        optimizer=outer,
        inner_optimizer=InnerSGD(model.get_fast_weights(), inner_lr=case.rate, learn_lr=False),
        support_loss_fn=_Loss(case),
        inner_steps=case.steps,
        chunk_size=case.tasks,
    )
    task = batched(case)
    episodes: Iterator[tuple[Tensor, ...]] = repeat((task.support_x, task.support_y, task.query_x, task.query_y))

    def answer() -> Arrays:
        before = {name: value.detach().clone() for name, value in parameters.items()}
        method.step(episodes)  # which ends with a step of the optimiser: undone here
        found = gradients(parameters)
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(before[name])
        outer.state.clear()
        return found

    return Prepared(lambda: method.step(episodes), answer)


class _Wrapped(nn.Module):
    """The model in the form that the library asks for."""

    def __init__(self, module: nn.Module, case: Case) -> None:
        super().__init__()
        self.module = module
        self.anil = case.what == "anil"

    def forward(self, x: Tensor, **options: Any) -> dict[str, Any]:
        return {"logits": self.module(x), "buffers": {}}

    def get_fast_weights(self) -> dict[str, Tensor]:
        return {
            name: value for name, value in self.named_parameters() if not self.anil or name.startswith("module.head.")
        }


class _Loss(nn.Module):
    """The loss in the form that the library asks for, without a metric, which costs time."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.loss = loss_of(case)
        self.register_buffer("none", torch.zeros(()))

    def forward(self, out_dict: dict[str, Any], targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        return self.loss(out_dict["logits"], targets), self.none


def _own_normalisation(model: nn.Module) -> nn.Module:
    """Replace batch normalisation in the model by the library's."""
    from metalearn.nn_models.basic_layers.BatchNormalization import BatchNorm  # pyrefly: ignore

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                own = BatchNorm(child.num_features, eps=child.eps, track_running_stats=False)
                own.load_state_dict(child.state_dict())
                setattr(parent, name, own.to(child.weight.dtype))
    return model
