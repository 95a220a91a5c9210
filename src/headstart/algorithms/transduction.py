"""Classifiers that read a task's query set together: what they say of one query depends on the others beside it."""

from typing import Annotated, Any

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

from headstart.algorithms.heads.head import Head, class_members
from headstart.algorithms.pooled_classes import pretrained_head
from headstart.algorithms.prototypes import class_means
from headstart.core import losses
from headstart.core.values import readable
from headstart.errors import UsageError
from headstart.schema import Count, Positive, Whole, extends
from headstart.types import Batch, Learner, Params

#: Distances that are held at a time, of all tasks together.
_DISTANCES = 2**22
#: Steps of conjugate gradients: with α = 0.99 the error shrinks by (√199 − 1) / (√199 + 1) = 0.87 in each.
_STEPS = 200


@extends(pretrained_head, without=("cosine",))
def label_propagation(
    module: nn.Module | None = None,
    *,
    neighbours: Count = 20,
    alpha: Annotated[float, Gt(0), Lt(1)] = 0.8,
    width: Positive = 0.2,
    ways: int | None = None,
    **options: Any,
) -> Learner:
    """Spread the support labels Y over a graph of support and query examples: F = (1 − α)(I − αS)⁻¹ Y.

    S = D^−½ W D^−½, with W_ij = exp(−‖f(x_i) − f(x_j)‖² / 2σ²) where one of i and j is among the ``neighbours`` nearest
    of the other, and D its row sums. f has length 1, and σ is ``width`` times the root of the task's mean of those
    squared distances. Logits are log F. The network is pre-trained on all training classes at once (`pretrained`), not
    through the propagation, and no σ is learned, as both are in the propagation networks of Liu et al. 2018
    (arXiv:1805.10002). Defaults are the best on validation tasks of icons, by their pixels; with a large σ, α and k
    one class runs over all. **Transductive**: a query's answer depends on the others that are asked with it.

    Args:
        module: the embedding f, its outputs flattened; by default the inputs themselves, flattened.
        neighbours: k; memory is in proportion to k and the number of examples.
        alpha: α, how much a node takes of its neighbours' labels against its own.
        width: σ in units of the usual distance to a neighbour; the smaller, the more the very nearest count.
        ways: number of classes; by default the largest support label plus one.
        options: those of `pretrained_head`.

    Reference: Zhou, Bousquet, Lal, Weston, Schölkopf 2003, "Learning with local and global consistency", NIPS 16.
    """
    if not (0 < alpha < 1 and width > 0):
        raise UsageError(f"alpha must be above 0 and below 1, and width above 0; got {alpha} and {width}")

    def fit(structure: Params, found: Tensor, support: Batch) -> Params:
        member = class_members(found, support, ways)
        return {"support": nn.functional.normalize(found, dim=-1), "labels": member, "counts": member.sum(1)}

    def outputs(structure: Params, fitted: Params, found: Tensor) -> Tensor:
        queries = nn.functional.normalize(found, dim=-1)
        nodes, labels = torch.cat([fitted["support"], queries], 1), fitted["labels"]
        there = torch.cat([labels.sum(-1) > 0, torch.ones_like(queries[..., 0], dtype=torch.bool)], 1)
        start = torch.cat([labels, labels.new_zeros(*queries.shape[:2], labels.shape[-1])], 1)
        spread = propagated(nodes, start, there, neighbours, alpha, width)[:, labels.shape[1] :]
        return spread.clamp(min=torch.finfo(spread.dtype).tiny).log()

    head = Head({}, fit, outputs, losses.cross_entropy)
    return pretrained_head(module, head, ways=ways, **options)._replace(transductive=True)


def propagated(
    nodes: Tensor, start: Tensor, there: Tensor, neighbours: int, alpha: float, width: float = 1.0
) -> Tensor:
    """Return F ``(B, N, ways)`` of `label_propagation`, to rounding.

    Args:
        nodes: ``(B, N, d)``.
        start: Y, ``(B, N, ways)``.
        there: which nodes there are, ``(B, N)`` bool.
        neighbours, alpha, width: k, α and σ in units of the root mean square distance to neighbours.
    """
    weights = _weights(nodes, there, neighbours, width)
    degrees = torch.sparse.mm(weights, nodes.new_ones(weights.shape[0], 1))
    roots = torch.where(degrees > 0, degrees.clamp(min=1e-300).rsqrt(), 0)

    def system(values: Tensor) -> Tensor:
        return values - alpha * (roots * torch.sparse.mm(weights, roots * values.flatten(0, 1))).view_as(values)

    # conjugate gradients, of each task and class by itself
    solution, left = torch.zeros_like(start), (1 - alpha) * start
    direction, size = left, left.square().sum(1, keepdim=True)
    enough = size * torch.finfo(size.dtype).eps ** 2
    for step in range(_STEPS):
        image = system(direction)
        length = size / (direction * image).sum(1, keepdim=True).clamp(min=1e-300)
        solution, left = solution + length * direction, left - length * image
        new = left.square().sum(1, keepdim=True)
        direction, size = left + new / size.clamp(min=1e-300) * direction, new
        if step % 10 == 9 and readable(size) and bool((size <= enough).all()):
            break
    return solution


def _weights(nodes: Tensor, there: Tensor, neighbours: int, width: float) -> Tensor:
    """Return W of all tasks as one sparse matrix ``(B N, B N)``, in which no task meets another."""
    tasks, count = nodes.shape[:2]
    squares, near = _nearest(nodes, there, min(neighbours, count - 1))
    real = squares.isfinite()
    mean = torch.where(real, squares, 0).sum((1, 2), keepdim=True) / real.sum((1, 2), keepdim=True).clamp(min=1)
    values = torch.where(real, torch.exp(-squares / (2 * width**2 * mean).clamp(min=1e-300)), 0).flatten()
    first = torch.arange(0, tasks * count, count, device=nodes.device).view(-1, 1, 1)
    one = torch.arange(tasks * count, device=nodes.device).repeat_interleave(near.shape[2])
    other = (first + near).flatten()
    places = torch.stack([torch.cat([one, other]), torch.cat([other, one])])
    # where each is among the other's nearest, the two are there twice
    twice = torch.stack([values, torch.ones_like(values)], 1).repeat(2, 1)
    found = torch.sparse_coo_tensor(places, twice, (tasks * count, tasks * count, 2), check_invariants=False).coalesce()
    mean = found.values()[:, 0] / found.values()[:, 1]
    size = (tasks * count, tasks * count)
    return torch.sparse_coo_tensor(found.indices(), mean, size, is_coalesced=True, check_invariants=False)


def _nearest(nodes: Tensor, there: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return squared distances to each node's nearest others, ascending, and which: ``(B, N, count)``; ∞ for none."""
    size, found = nodes.shape[1], []
    together = max(1, _DISTANCES // max(1, len(nodes) * size))
    for first in range(0, size, together):
        rows = nodes[:, first : first + together]
        squares = torch.cdist(rows, nodes, compute_mode="donot_use_mm_for_euclid_dist").square()
        same = torch.arange(first, first + rows.shape[1], device=nodes.device).view(1, -1, 1)
        none = (same == torch.arange(size, device=nodes.device)) | ~there.unsqueeze(1)
        none = none | ~there[:, first : first + together].unsqueeze(-1)
        found.append(squares.masked_fill(none, torch.inf).topk(count, largest=False))
    return torch.cat([one.values for one in found], 1), torch.cat([one.indices for one in found], 1)


@extends(pretrained_head, without=("cosine",))
def bd_cspn(
    module: nn.Module | None = None,
    *,
    scale: Positive = 10.0,
    confident: Whole = 8,
    ways: int | None = None,
    **options: Any,
) -> Learner:
    """BD-CSPN: cosine class means, less the bias of few support examples, by a task's query set.

    With features f of length 1, the queries are shifted by the difference of the sets' means, x ← x + s̄ − q̄. Then
    each class takes in the ``confident`` queries of those nearest to its mean c_k that are surest of it: with those and
    its support examples X_k, p_k = Σ_{x ∈ X_k} w(x) x, w = the softmax over X_k of τ cos(x, c_k). The logits of
    a query are τ cos(x, p_k). The network is pre-trained as a cosine classifier of all training classes (`pretrained`),
    where τ is learned (the paper fixes it). **Transductive**: a query's answer depends on the others asked with it, and
    one that is asked alone is shifted on top of the support mean, so ask many, of all classes.

    Args:
        module: the embedding f, its outputs flattened; by default the inputs themselves, flattened.
        scale: where the scale τ of the cosines starts.
        confident: how many queries a class takes in, at most.
        ways: number of classes; by default the largest support label plus one.
        options: those of `pretrained_head`.

    Reference: Liu, Song, Qin 2020, arXiv:1911.10713.
    """

    def fit(structure: Params, found: Tensor, support: Batch) -> Params:
        found = nn.functional.normalize(found, dim=-1)
        means = class_means(found, support, ways)
        return {**means, "support": found, "labels": class_members(found, support, ways)}

    def outputs(structure: Params, fitted: Params, found: Tensor) -> Tensor:
        tau, labels, support = structure["scale"], fitted["labels"], fitted["support"]
        here = labels.sum(-1, keepdim=True)
        middle = (here * support).sum(1, keepdim=True) / here.sum(1, keepdim=True).clamp(min=1)
        queries = nn.functional.normalize(found, dim=-1)
        queries = queries + middle - queries.mean(1, keepdim=True)
        absent = (fitted["counts"] == 0).unsqueeze(1)
        near = tau * _cosines(queries, fitted["prototypes"])
        chosen = _surest(near.masked_fill(absent, -torch.inf), confident)
        logits = torch.cat([tau * _cosines(support, fitted["prototypes"]), near], 1)
        members = torch.cat([labels > 0, chosen & ~absent], 1)
        some = members.any(1, keepdim=True)
        shares = logits.masked_fill(~members & some, -torch.inf).softmax(1) * some
        means = shares.mT @ torch.cat([support, queries], 1)
        return tau * _cosines(queries, means)

    head = Head({"scale": scale}, fit, outputs, losses.cross_entropy)
    return pretrained_head(module, head, ways=ways, cosine=True, **options)._replace(transductive=True)


def _cosines(left: Tensor, right: Tensor) -> Tensor:
    return nn.functional.normalize(left, dim=-1) @ nn.functional.normalize(right, dim=-1).mT


def _surest(logits: Tensor, count: int) -> Tensor:
    """Return which queries ``(B, m, ways)`` each class takes: the surest of those that are its own."""
    own = logits.argmax(-1, keepdim=True) == torch.arange(logits.shape[-1], device=logits.device)
    chances = torch.where(own, logits.softmax(-1), -1)
    places = chances.topk(min(count, chances.shape[1]), 1).indices
    return torch.zeros_like(own).scatter(1, places, True) & own
