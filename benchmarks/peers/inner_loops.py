"""One meta-gradient, without an outer step, by each way of going back over the inner steps."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePath
from tempfile import gettempdir
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from benchmarks.peers import libraries
from benchmarks.peers.case import batched, case_of, loss_of, module, tasks_of
from benchmarks.peers.prepared import Arrays, Prepare, Prepared
from headstart.algorithms.maml import maml
from headstart.core.adjoints import Adjoint, Checkpointed, Unrolled
from headstart.core.objective import meta_gradient
from headstart.training.on_disk import OnDisk
from headstart.types import Batch, Episodes


def _ours(adjoint: Adjoint, values: Mapping[str, Any]) -> Prepared:
    case = case_of(values)
    loss = "cross_entropy" if case.ways else "mse"
    learner = maml(module(case), loss=loss, steps=case.steps, rate=case.rate, adjoint=adjoint)
    meta, task = learner.init(None), batched(case)
    episodes = Episodes(Batch(task.support_x, task.support_y), Batch(task.query_x, task.query_y))
    found: Arrays = {}

    def step() -> None:
        gradient, _ = meta_gradient(learner, meta, episodes)
        found.update({name: value.numpy() for name, value in gradient.params.items()})

    return _prepared(step, found)


#: headstart, by what it remembers of the inner steps.
unrolled: Prepare = partial(_ours, Unrolled())
every_state: Prepare = partial(_ours, Checkpointed(every=1))
square_root: Prepare = partial(_ours, Checkpointed())


def on_disk(values: Mapping[str, Any]) -> Prepared:
    """Keep every state in a file, in the folder of temporary files."""
    folder = gettempdir()
    prepared = _ours(Checkpointed(every=1, place=OnDisk(folder)), values)
    if kind_of(folder, _mounts()) in ("tmpfs", "ramfs"):
        return prepared._replace(note="its file is in memory, where the folder of temporary files is on this machine")
    return prepared


def kind_of(folder: str, mounts: str) -> str:
    """Return the kind of file system that a folder is in.

    >>> kind_of("/tmp/here", "/dev/a / ext4 rw 0 0\\ntmpfs /tmp tmpfs rw 0 0")
    'tmpfs'
    """
    path = PurePath(folder)
    lines = (line.split() for line in mounts.splitlines())
    found = [(len(words[1]), words[2]) for words in lines if len(words) > 2 and path.is_relative_to(words[1])]
    return max(found, default=(0, ""))[1]


def _mounts() -> str:
    try:
        return Path("/proc/mounts").read_text()
    except OSError:
        return ""


def learn2learn(values: Mapping[str, Any]) -> Prepared:
    """Return learn2learn's loop."""
    return _without_optimizer(libraries.learn2learn(values))


def loop(values: Mapping[str, Any]) -> Prepared:
    """Return the plain loop of PyTorch."""
    return _without_optimizer(libraries.loop(values))


def loop_checkpointed(values: Mapping[str, Any]) -> Prepared:
    """Return the plain loop with ``torch.utils.checkpoint`` around groups of √T steps, as memory-efficient-maml has it.

    Reference: Chen et al. 2016, arXiv:1604.06174; the package torch_maml.
    """
    case = case_of(values)
    model, tasks, loss = module(case), tasks_of(case), loss_of(case)
    names, weights = zip(*model.named_parameters())
    every = max(1, math.isqrt(case.steps))
    found: Arrays = {}

    def taken(count: int, x: Tensor, y: Tensor, *now: Tensor) -> tuple[Tensor, ...]:
        for _ in range(count):
            slopes = torch.autograd.grad(
                loss(functional_call(model, dict(zip(names, now)), (x,)), y), now, create_graph=True
            )
            now = tuple(value - case.rate * slope for value, slope in zip(now, slopes))
        return now

    def step() -> None:
        total = [torch.zeros_like(value) for value in weights]
        for task in tasks:
            now = weights
            for start in range(0, case.steps, every):
                count = min(every, case.steps - start)
                now = checkpoint(taken, count, task.support_x, task.support_y, *now, use_reentrant=False)
            error = loss(functional_call(model, dict(zip(names, now)), (task.query_x,)), task.query_y) / len(tasks)
            total = [old + new for old, new in zip(total, torch.autograd.grad(error, weights))]
        found.update({name: value.numpy() for name, value in zip(names, total)})

    return _prepared(step, found)


def _prepared(step: Callable[[], object], found: Arrays) -> Prepared:
    """Return what answers with what the last step left in ``found``."""

    def answer() -> Arrays:
        if not found:
            step()
        return found

    return Prepared(step, answer)


def _without_optimizer(prepared: Prepared) -> Prepared:
    """Return what computes the meta-gradient as its step, and nothing else."""
    compute, found = prepared.answer, Arrays()
    assert compute is not None
    return _prepared(lambda: found.update(compute()), found)
