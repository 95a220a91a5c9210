"""Reptile: move the initial weights towards each task's adapted weights."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from headstart.algorithms.adaptation import Now
from headstart.algorithms.maml import Rate, Steps, maml
from headstart.core import tree
from headstart.core.adjoints import FirstOrder
from headstart.core.losses import there
from headstart.core.rules import Rule, adam, chain, scale
from headstart.errors import UsageError
from headstart.schema import Count, Positive, extends
from headstart.types import Batch, Episodes, Info, Learner, Meta, MetaGradient, Params


@extends(maml, without=("adjoint", "examples"))
def reptile(
    module: nn.Module,
    *,
    steps: Steps = 5,
    rate: Rate = 0.001,
    rule: Rule | None = None,
    inner_batch: Count | None = None,
    serial: Positive | None = None,
    **options: Any,
) -> Learner:
    """Move θ towards the weights that each task adapts to: θ ← θ + ε · meanᵢ (θᵢ − θ).

    Support and query examples are all adapted to. The outer step size ε is the outer optimiser's (plain SGD in the
    paper, with ε falling linearly to 0).

    Args:
        steps: the inner steps of an adaptation, each on one minibatch.
        rate: the inner step size, of Adam unless ``rule`` is given.
        rule: the inner update; by default Adam without momentum (β₁ = 0), as in the paper, whose moments start anew at
            every task (the authors' code carries them on).
        inner_batch: examples of a minibatch of an inner step; by default all of the task's.
        serial: by default the B tasks adapt from the same θ and are averaged (the paper's Algorithm 2); a number ε
            takes them one after another, each from the θ that the one before left (Algorithm 1), for SGD of rate ε.
        options: those of `maml`.

    Reference: Nichol, Achiam, Schulman 2018, arXiv:1803.02999.
    """
    if serial is not None and not serial > 0:
        raise UsageError(f"serial is the outer step size and must be greater than 0, got {serial}")
    learner = maml(
        module,
        steps=steps,
        rule=chain(adam(decay=0.0), scale(rate)) if rule is None else rule,
        adjoint=FirstOrder(),
        examples=None if inner_batch is None else _minibatches(inner_batch),
        **options,
    )
    return learner._replace(gradient=_batched if serial is None else _Serial(serial), exact=False)


def _batched(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Meta, Info]:
    """Return θ − meanᵢ θᵢ in place of a gradient."""
    with torch.no_grad():
        adapted, info = learner.adapt(meta, joined(episodes))
        # what is each task's own from the beginning has no place to move from
        moved = {n: meta.params[n] - value.mean(0) for n, value in adapted.params.items() if n in meta.params}
        losses = learner.loss(learner.predict(adapted, episodes.query.x), episodes.query)
    return _full(moved, meta), info._replace(query_loss=losses)


@dataclass(frozen=True)
class _Serial:
    epsilon: float

    def __call__(self, learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Meta, Info]:
        """Return (θ − θ after all tasks) / ε."""
        params, losses, infos = dict(meta.params), [], []
        with torch.no_grad():
            for task in range(episodes.query.y.shape[0]):
                one = tree.mapped(itemgetter(slice(task, task + 1)), episodes)
                adapted, info = learner.adapt(Meta(params, meta.structure), joined(one))
                losses.append(learner.loss(learner.predict(adapted, one.query.x), one.query))
                infos.append(info.support_loss)
                for name in params.keys() & adapted.params.keys():
                    params[name] = params[name] + self.epsilon * (adapted.params[name][0] - params[name])
        moved = {name: (meta.params[name] - value) / self.epsilon for name, value in params.items()}
        return _full(moved, meta), Info(torch.cat(infos, 1), torch.cat(losses))

    def among(self, total: Callable[[Tensor], Tensor], share: float, /) -> MetaGradient:
        """Refuse."""
        raise UsageError(
            "reptile with --serial takes tasks one after another, each from the weights that the one before left, so"
            " they cannot be shared among processes; leave out --serial, or train in one process"
        )


def _full(moved: Params, meta: Meta) -> Meta:
    return Meta({**tree.zeros_like(meta.params), **moved}, tree.zeros_like(meta.structure))


def joined(episodes: Episodes) -> Batch:
    """Return support and query examples as one batch."""
    support, query = episodes
    packed, parts = tree.pack(support.x)
    x = packed.unpack(torch.cat(pair, 1) for pair in zip(parts, tree.tensors_of(query.x)))
    masked = support.mask is not None or query.mask is not None
    mask = torch.cat([there(support), there(query)], 1) if masked else None
    return Batch(x, torch.cat([support.y, query.y], 1), mask, support.seed)


def _minibatches(size: int) -> Any:
    """Return the choice of examples of a step: ``size`` at a time, through a shuffled order of all of them."""
    if size < 1:
        raise UsageError(f"inner_batch must be at least 1, got {size}")

    def examples(batch: Batch, step: int, now: Now) -> Batch:
        count = batch.y.shape[1]
        # a fixed shuffle: examples come ordered by class, and every task has random examples anyway
        order = torch.randperm(count, generator=torch.Generator().manual_seed(count)).to(batch.y.device)
        places = torch.arange(step * size, (step + 1) * size, device=batch.y.device) % count
        x, y, mask = tree.mapped(itemgetter((slice(None), order[places])), (batch.x, batch.y, batch.mask))
        return Batch(x, y, mask, batch.seed)

    return examples
