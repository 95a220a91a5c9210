"""The private copy of a module's structure that the forward pass of all tasks runs through.

A skeleton has the module's layers and no weights (it lives on the ``meta`` device): every tensor is handed in at
the call. Its normalisation layers follow the buffer policy and its dropout layers take their masks from a seed.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from headstart.core.parameters import Stepped
from headstart.errors import DifferentiationError
from headstart.forward.batch_norm import TaskStatistics
from headstart.forward.dropout import TaskDropout, refuse_unseeded, replace_dropout
from headstart.forward.max_pool import MaxPool
from headstart.forward.normalisation import STAND_INS
from headstart.forward.over_tasks import chained, entangled, hooked, native, tied
from headstart.forward.python_state import changeable, copied, put_back_state, refuse_astray
from headstart.types import Params

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Kept(NamedTuple):
    """What was set on a layer."""

    layer: nn.Module
    attributes: dict[str, Any]


class Skeleton:
    """The layers of a module without its weights, in one mode of use."""

    def __init__(self, module: nn.Module, policies: Mapping[str, str], *, training: bool, support: bool) -> None:
        self.body = without_weights(module)
        replace_dropout(self.body)
        self.body.train(training)
        if chained(self.body) and not entangled(self.body):
            _out_of_place(self.body)
        _make_exact(self.body)
        for name, layer in _norms(self.body).items():
            _follow(self.body, name, layer, policies[_join(name, "running_mean")], support)
        if training:
            refuse_unseeded(self.body)
        named = dict(self.body.named_modules())
        self.statistics = {name: layer for name, layer in named.items() if isinstance(layer, TaskStatistics)}
        self.dropouts = {name: layer for name, layer in named.items() if isinstance(layer, TaskDropout)}
        self.stepped = [layer for layer in self.body.modules() if isinstance(layer, Stepped)]
        # the support set leaves statistics behind, the query set goes by them
        moving = any(layer.training for layer in self.statistics.values())
        changing = bool(moving or self.stepped or (training and self.dropouts))
        whole = tied(self.body) or entangled(self.body)
        self.chain = chained(self.body) and not whole and not changing
        self.native = self.chain and native(self.body)
        self.own = [layer for layer in self.body.modules() if not is_known(layer)]
        self.held = changeable(self.own)

    def afresh(self) -> contextlib.AbstractContextManager[list[Kept]]:
        """Forget at the end what was set on the layers meanwhile, so that every pass is a module's first one.

        A module that we have not seen may keep a number, or tensors of one task, for its next pass.
        """
        return _put_back(self.own, self.held) if self.own else contextlib.nullcontext([])

    def updated_statistics(self) -> Params:
        """Return the buffers that the last forward pass left, by name, and let go of them."""
        updated: Params = {}
        for name, layer in self.statistics.items():
            updated.update({_join(name, key): value for key, value in layer.updated.items()})
            layer.updated = {}
        return updated

    def statistics_alone(self, buffers: Params) -> bool:
        """Return whether buffers are statistics of tasks, and nothing else."""
        return all(name.rpartition(".")[0] in self.statistics for name in buffers)

    def restart(self, draw: int, step: int) -> None:
        """Make the next pass draw the masks of pass number ``draw`` after ``step`` steps; forget one broken off."""
        for layer in self.dropouts.values():
            layer.draw, layer.calls = draw, 0
        for stepped in self.stepped:
            stepped.step = step
        for norm in self.statistics.values():
            norm.updated = {}


@contextlib.contextmanager
def _put_back(layers: list[nn.Module], held: list[Any]) -> Iterator[list[Kept]]:
    before = [Kept(layer, dict(vars(layer))) for layer in layers]
    with put_back_state(held):
        try:
            yield before
        finally:
            for layer, attributes in before:
                vars(layer).clear()
                vars(layer).update(attributes)


def is_known(layer: nn.Module) -> bool:
    """Return whether a layer is of a type that is tested, PyTorch's or ours, and does what its type does."""
    ours = ("torch.nn.modules", "headstart.models.", "headstart.forward.")
    known = type(layer).__module__.startswith(ours) and not isinstance(layer, nn.EmbeddingBag)
    return known and not hooked(layer) and not _fix_of_derivatives(layer)


def _out_of_place(chain: nn.Module) -> None:
    """Let the layers of a chain leave their inputs alone, which nobody else reads there.

    In a module of another kind the input of a layer that works in place may be read once more.
    """
    for layer in chain.children():
        if chained(layer):
            _out_of_place(layer)
        elif getattr(layer, "inplace", False) is True and is_known(layer):
            layer.inplace = False  # type: ignore[assignment]


class _Padded(nn.Embedding):
    """An embedding whose padding row takes no part in gradients; ``vmap``'s own rule forgets about that."""

    def forward(self, input: Tensor) -> Tensor:
        out = F.embedding(input, self.weight)
        return torch.where(input.eq(self.padding_idx or 0).unsqueeze(-1), out.detach(), out)


class _Hardsigmoid(nn.Hardsigmoid):
    """The same by a function that has a second derivative."""

    def forward(self, input: Tensor) -> Tensor:
        out = F.relu6(input + 3) / 6
        return input.copy_(out) if self.inplace else out


class _Normed(_WeightNorm):
    """Weight normalisation, v · g / ‖v‖, by operations whose second derivative is right; that of PyTorch's is not."""

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        return _normed(weight_v, weight_g, self.dim)


class _NormedBefore(WeightNorm):
    """The same as a hook, which came before parametrisations."""

    def compute_weight(self, module: nn.Module) -> Tensor:
        return _normed(getattr(module, f"{self.name}_v"), getattr(module, f"{self.name}_g"), self.dim)


def _normed(v: Tensor, g: Tensor, dim: int) -> Tensor:
    """Return v · g / ‖v‖ with a norm for each place along ``dim``, or one, where that is −1."""
    axes = [axis for axis in range(v.ndim + 1) if dim == -1 or axis != dim % v.ndim]
    norm = torch.linalg.vector_norm(v.unsqueeze(-1), dim=axes, keepdim=dim != -1)
    return v * (g / (norm if dim == -1 else norm.squeeze(-1)))


_EXACT: dict[type[nn.Module], type[nn.Module]] = {
    nn.Hardsigmoid: _Hardsigmoid,
    _WeightNorm: _Normed,
    nn.MaxPool2d: MaxPool,
    **STAND_INS,
}


def _make_exact(body: nn.Module) -> None:
    """Let layers of a private copy do the same by operations whose derivatives are right, and for all tasks at once."""
    for layer in body.modules():
        kind = type(layer)
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None and kind.forward is nn.Embedding.forward:
            layer.__class__ = type(kind.__name__, (_Padded, kind), {})
        elif kind in _EXACT:
            layer.__class__ = _EXACT[kind]
        for hook in layer._forward_pre_hooks.values():
            if type(hook) is WeightNorm:
                hook.__class__ = _NormedBefore  # type: ignore[assignment]


def without_weights(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose tensors are on the ``meta`` device; what was tied stays tied."""
    memo: dict[int, object] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    memo |= {id(buffer): buffer.detach().to("meta") for buffer in module.buffers()}
    body = copied(module, memo)
    refuse_astray(body)
    return body


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


def refuse_untwiceable(module: nn.Module, check: bool = True) -> None:
    """Raise `DifferentiationError` for a layer whose tasks would see each other, or that is not ready.

    Where asked to ``check``, also for one that is known to have no second derivative, or none that is right.
    """
    for path, layer in module.named_modules():
        if fix := _fix(layer) or (check and _fix_of_derivatives(layer)):
            raise DifferentiationError(f"{type(layer).__name__} at {path or 'the top'!r} {fix}")


def _is_sharded(layer: nn.Module) -> bool:
    # by name: what defines them takes long to import, and is not part of every PyTorch
    kinds = [kind.__name__ for kind in (*type(layer).__mro__, *map(type, layer.parameters(recurse=False)))]
    return not {"FSDPModule", "FullyShardedDataParallel", "DTensor"}.isdisjoint(kinds)


def _fix(layer: nn.Module) -> str:
    if isinstance(layer, torch.jit.ScriptModule):
        return "is compiled by torch.jit, which takes no other tensors; give the module that it was made from"
    if isinstance(layer, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "copies its weights to devices of its own; give the module inside it, `.module`"
    if _is_sharded(layer):
        return (
            "holds its parameters in parts (FSDP, DTensor), and adaptation moves whole ones, of which each process has "
            "all; give the module as it was before fully_shard. Of a large one, tune a part (headstart.low_rank, or "
            "requires_grad_(False) for the rest), which is all that adaptation and the optimiser hold copies of"
        )
    if isinstance(layer, LazyModuleMixin) and any(is_lazy(tensor) for tensor in layer.parameters()):
        return "has no parameters yet; run one forward pass of the module first"
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.sparse:
        return "gives sparse gradients, which cannot be mapped over tasks; use sparse=False"
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.max_norm is not None:
        return "changes its weight in place (max_norm), so tasks would see each other; use max_norm=None"
    if isinstance(layer, nn.SyncBatchNorm):
        return "mixes the statistics of processes, and so of tasks; use nn.BatchNorm2d"
    return ""


def _fix_of_derivatives(layer: nn.Module) -> str:
    if isinstance(layer, nn.EmbeddingBag) and layer.weight.requires_grad:
        return "has no second derivative; use nn.Embedding and take the mean (or sum) over the bag yourself"
    if isinstance(layer, nn.Embedding) and layer.scale_grad_by_freq:
        return "counts ids for its gradient, which has no right second derivative; use scale_grad_by_freq=False"
    return ""
