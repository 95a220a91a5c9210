"""headstart with the tasks of a step shared among processes, which exchange their gradients; and in one process."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from headstart.bench.peers.case import case_of
from headstart.bench.peers.contenders.ours import episodes_of, learner_of, stepping
from headstart.bench.peers.keeping import keep_memory
from headstart.bench.peers.prepared import Prepared
from headstart.core.objective import meta_gradient
from headstart.engine.accelerate import accelerate
from headstart.training.loop import copied
from headstart.types import Meta


def whole(values: Mapping[str, Any]) -> Prepared:
    """Take all tasks together."""
    return _prepared(values, parts=1)


def in_halves(values: Mapping[str, Any]) -> Prepared:
    """Take one half of the tasks after the other."""
    return _prepared(values, parts=2)


def part(values: Mapping[str, Any]) -> Prepared:
    """Take the tasks that are this process's, and exchange gradients in every step (gloo)."""
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group(
        "gloo", init_method=f"file://{values['meeting']}", rank=values["rank"], world_size=values["of"]
    )
    return _prepared(values, parts=1)


def _prepared(values: Mapping[str, Any], parts: int) -> Prepared:
    keep_memory()
    case = case_of({name: value for name, value in values.items() if name not in ("rank", "of", "meeting")})
    learner = accelerate(learner_of(case), chunk=-(-case.tasks // parts))
    meta, episodes = copied(learner.init(None)), episodes_of(case)

    def gradient() -> Meta:
        return _mean(meta_gradient(learner, meta, episodes)[0])

    return stepping(meta, gradient, gradient(), meet=dist.barrier if dist.is_initialized() else None)


def _mean(own: Meta) -> Meta:
    """Return the mean over the processes, each of which has as many tasks."""
    if not dist.is_initialized():
        return own
    tensors = [*own.params.values(), *own.structure.values()]
    flat = torch.cat([tensor.ravel() for tensor in tensors])
    dist.all_reduce(flat)
    pieces = (flat / dist.get_world_size()).split([tensor.numel() for tensor in tensors])
    left = iter(piece.view_as(tensor) for piece, tensor in zip(pieces, tensors))
    return Meta(*({name: next(left) for name in part} for part in own))
