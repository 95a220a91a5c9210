"""The other libraries, each in its own best way, and the plain loop of PyTorch: all compute the same meta-gradient."""

import importlib
import sys
import types
from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peers.case import (
    Case,
    batched,
    case_of,
    gradients,
    loss_of,
    module,
    moved,
    outer_optimizer,
    tasks_of,
    trained,
)
from benchmarks.peers.environment import source_folder
from benchmarks.peers.prepared import Arrays, Prepared


def loop(values: Mapping[str, Any]) -> Prepared:
    """Return plain PyTorch: ``functional_call`` and ``autograd.grad`` in a Python loop over the tasks."""
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


def learn2learn(values: Mapping[str, Any]) -> Prepared:
    """Return learn2learn's loop, ``MAML.clone`` and ``adapt``; for ANIL as in its own example, features once a set.

    Reference: Arnold, Mahajan, Datta, Bunner, Zarkias 2020, arXiv:2008.12284.
    """
    case = case_of(values)
    model, tasks, loss = module(case), tasks_of(case), loss_of(case)
    names = [name for name, _ in model.named_parameters()]
    features, adapting = _parts(model, case.what == "anil")
    parameters = list(model.parameters())
    maml = _library().MAML(adapting, lr=case.rate)

    def backward() -> None:
        for task in tasks:
            learner = maml.clone()
            support, query = features(task.support_x), features(task.query_x)
            for _ in range(case.steps):
                learner.adapt(loss(learner(support), task.support_y))
            (loss(learner(query), task.query_y) / len(tasks)).backward()

    return trained(zip(names, parameters), backward)


def _parts(model: nn.Module, anil: bool) -> tuple[nn.Module, nn.Module]:
    """Return what is computed once, and what is adapted."""
    if not anil:
        return nn.Identity(), model
    children = dict(model.named_children())
    return nn.Sequential(*(child for name, child in children.items() if name != "head")), children["head"]


def _library() -> Any:
    """Import ``learn2learn.algorithms`` alone: the rest of the package needs modules that no longer compile."""
    if "learn2learn" not in sys.modules:
        package = types.ModuleType("learn2learn")
        package.__path__ = [str(source_folder("learn2learn"))]
        sys.modules["learn2learn"] = package
    return importlib.import_module("learn2learn.algorithms.maml")


def higher(values: Mapping[str, Any]) -> Prepared:
    """Return higher's loop, ``innerloop_ctx``, as in its MAML example (Grefenstette et al. 2019, arXiv:1910.01727)."""
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


def torchopt(values: Mapping[str, Any]) -> Prepared:
    """Return TorchOpt's loop, ``MetaSGD`` with states put back, as in its MAML example.

    Reference: Ren, Feng, Liu et al. 2022, arXiv:2211.06934.
    """
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


def iteryne(values: Mapping[str, Any]) -> Prepared:
    """Return iteryne's loop, as in its documentation; ANIL by the names of what is adapted."""
    from iteryne import MAML  # pyrefly: ignore

    case = case_of(values)
    model, tasks, loss = module(case), tasks_of(case), loss_of(case)
    maml = MAML(model, inner_lr=case.rate, inner_steps=case.steps, adapt_names=moved(case, model))

    def backward() -> None:
        for task in tasks:
            learner = maml.clone()
            learner.adapt_on(loss, task.support_x, task.support_y)
            (loss(learner(task.query_x), task.query_y) / len(tasks)).backward()

    return trained(model.named_parameters(), backward)


def parallel_metalearn(values: Mapping[str, Any]) -> Prepared:
    """Return parallel-metalearn's step, ``MAML`` with ``backend="vmap"``, all tasks in one chunk.

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
