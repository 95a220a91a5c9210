"""The private copy of a module's structure that the forward pass of all tasks runs through.

A skeleton has the module's layers and no weights (it lives on the ``meta`` device): every tensor is handed in at
the call. Its normalisation layers follow the buffer policy and its dropout layers take their masks from a seed.
"""

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from headstart.core.parameters import Stepped
from headstart.errors import DifferentiationError
from headstart.forward.batch_norm import TaskStatistics
from headstart.forward.dropout import TaskDropout, refuse_unseeded, replace_dropout
from headstart.forward.over_tasks import chained, entangled, native, tied
from headstart.types import Params

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Skeleton:
    """The layers of a module without its weights, in one mode of use."""

    def __init__(self, module: nn.Module, policies: Mapping[str, str], *, training: bool, support: bool) -> None:
        self.body = without_weights(module)
        replace_dropout(self.body)
        self.body.train(training)
        for layer in self.body.modules():
            if getattr(layer, "inplace", False):
                layer.inplace = False  # type: ignore[assignment]  # a task's inputs are not the model's to change
        for name, layer in _norms(self.body).items():
            _follow(self.body, name, layer, policies[_join(name, "running_mean")], support)
        if training:
            refuse_unseeded(self.body)
        named = dict(self.body.named_modules())
        self.statistics = {name: layer for name, layer in named.items() if isinstance(layer, TaskStatistics)}
        self.dropouts = {name: layer for name, layer in named.items() if isinstance(layer, TaskDropout)}
        self.stepped = [layer for layer in self.body.modules() if isinstance(layer, Stepped)]
        changing = bool(self.statistics or self.stepped or (training and self.dropouts))
        whole = tied(self.body) or entangled(self.body)
        self.chain = chained(self.body) and not whole and not changing
        self.native = self.chain and native(self.body)

    def updated_statistics(self) -> Params:
        """Return the buffers that the last forward pass left, by name, and let go of them."""
        updated: Params = {}
        for name, layer in self.statistics.items():
            updated.update({_join(name, key): value for key, value in layer.updated.items()})
            layer.updated = {}
        return updated

    def restart(self, draw: int, step: int) -> None:
        """Make the next pass draw the masks of pass number ``draw`` after ``step`` steps; forget one broken off."""
        for layer in self.dropouts.values():
            layer.draw, layer.calls = draw, 0
        for stepped in self.stepped:
            stepped.step = step
        for norm in self.statistics.values():
            norm.updated = {}


def without_weights(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose tensors are on the ``meta`` device; what was tied stays tied."""
    memo: dict[int, object] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    memo |= {id(buffer): buffer.detach().to("meta") for buffer in module.buffers()}
    return copy.deepcopy(module, memo)


def statistics_of(module: nn.Module) -> set[str]:
    """Return the names of the buffers that are running statistics of normalisation layers."""
    return {_join(name, statistic) for name in _norms(module) for statistic in STATISTICS}


def _norms(module: nn.Module) -> dict[str, nn.Module]:
    kinds = (_BatchNorm, _InstanceNorm)
    return {n: m for n, m in module.named_modules() if isinstance(m, kinds) and m.running_mean is not None}


def batch_normalised(module: nn.Module, policies: Mapping[str, str]) -> str:
    """Return the path of a layer that normalises a task's examples together, or nothing where there is none."""
    for path, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and policies.get(_join(path, "running_mean")) != "frozen":
            return path or "the top"
    return ""


def _follow(body: nn.Module, name: str, layer: nn.Module, policy: str, support: bool) -> None:
    if policy == "batch":
        layer.track_running_stats = False  # type: ignore[assignment]
        for statistic in STATISTICS:
            layer.register_buffer(statistic, None)
    elif policy == "frozen":
        layer.eval()
    elif isinstance(layer, _BatchNorm) and name:
        stand_in = TaskStatistics(layer).train(support)
        for path, other in list(body.named_modules(remove_duplicate=False)):
            if other is layer:
                body.set_submodule(path, stand_in)
    else:
        raise DifferentiationError(
            f"{type(layer).__name__} at {name or 'the top'!r} cannot have statistics per task; "
            f"use buffers='batch' or 'frozen'"
        )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def refuse_untwiceable(module: nn.Module) -> None:
    """Raise `DifferentiationError` for a layer known to have no second derivative, or none that is right."""
    for path, layer in module.named_modules():
        if fix := _fix(layer):
            raise DifferentiationError(f"{type(layer).__name__} at {path or 'the top'!r} {fix}")


def _fix(layer: nn.Module) -> str:
    if isinstance(layer, torch.jit.ScriptModule):
        return "is compiled by torch.jit, which takes no other tensors; give the module that it was made from"
    if isinstance(layer, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "copies its weights to devices of its own; give the module inside it, `.module`"
    if isinstance(layer, LazyModuleMixin) and any(is_lazy(tensor) for tensor in layer.parameters()):
        return "has no parameters yet; run one forward pass of the module first"
    if isinstance(layer, nn.EmbeddingBag):
        return "has no second derivative; use nn.Embedding and take the mean (or sum) over the bag yourself"
    if isinstance(layer, nn.Embedding) and layer.sparse:
        return "gives sparse gradients, which have no second derivative; use sparse=False"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "changes its weight in place (max_norm), so tasks would see each other; use max_norm=None"
    if isinstance(layer, nn.SyncBatchNorm):
        return "mixes the statistics of processes, and so of tasks; use nn.BatchNorm2d"
    return ""
