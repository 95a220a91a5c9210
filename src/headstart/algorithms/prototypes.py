"""Nearest class mean: prototypical networks, which learn an embedding for it, and the raw inputs as a baseline."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from headstart.algorithms.heads.head import Head, class_members, embedding, learner
from headstart.algorithms.kernels import squared_distances
from headstart.core import losses
from headstart.errors import check_known
from headstart.schema import extends
from headstart.types import Batch, Learner, Params

Distance = Literal["euclidean", "cosine"]


@extends(embedding)
def prototypes(
    module: nn.Module | None = None,
    *,
    distance: Distance = "euclidean",
    ways: int | None = None,
    shared_classes: bool = False,
    **options: Any,
) -> Learner:
    """Learn an embedding f in which the nearest class mean is right.

    c_k = mean of f(x) over the support examples of class k; the logit of class k for a query x is −‖f(x) − c_k‖²
    (``"euclidean"``), or τ · cos(f(x), c_k) (``"cosine"``) with the scale τ learned in M, from 10.

    Args:
        module: the embedding f, its outputs flattened; by default the inputs themselves, flattened.
        distance: how far a query is from a class mean: ``"euclidean"`` as in the paper, or ``"cosine"``.
        ways: number of classes; by default the largest support label plus one (which reads it from the device).
        shared_classes: whether class ids mean the same in all tasks, so that a class that a support set lacks is as
            likely as the training tasks say; else it is never predicted.
        options: those of `embedding`.

    Reference: Snell, Swersky, Zemel 2017, arXiv:1703.05175; cosine: Gidaris, Komodakis 2018, arXiv:1804.09458.
    """
    check_known("distance", distance, ("euclidean", "cosine"))

    def outputs(structure: Params, fitted: Params, features: Tensor) -> Tensor:
        centres = fitted["prototypes"]
        if distance == "cosine":
            queries, keys = (nn.functional.normalize(v, dim=-1) for v in (features, centres))
            return structure["scale"] * queries @ keys.transpose(1, 2)
        return -squared_distances(features, centres)

    numbers = {"scale": 10.0} if distance == "cosine" else {}
    head = Head(
        numbers, lambda _, features, support: class_means(features, support, ways), outputs, losses.cross_entropy, False
    )
    return learner(module, head, ways=ways, shared_classes=shared_classes, **options)


def nearest(module: nn.Module | None = None, *, ways: int | None = None, shared_classes: bool = False) -> Learner:
    """Classify by the nearest class mean of the raw inputs; no embedding is learned: a baseline.

    Args:
        module: not used; it is accepted so that all methods are made alike.
        ways: number of classes; by default the largest support label plus one.
        shared_classes: as in `prototypes`.
    """
    return prototypes(None, ways=ways, shared_classes=shared_classes)._replace(gradient=None)


def class_means(embedded: Tensor, support: Batch, ways: int | None = None) -> Params:
    """Return the ``prototypes``: the mean ``(B, ways, d)`` of each class's embedded support examples ``(B, n, d)``.

    Masks are respected. Beside the means stand the ``counts`` ``(B, ways)``: a class without a support example has no
    mean, and 0 in its place.

    Raises:
        ShapeError: labels that are not integers, or not one an example.
    """
    member = class_members(embedded, support, ways)
    if support.mask is not None:
        embedded = torch.where(support.mask.unsqueeze(-1), embedded, 0)
    means = member.mT @ embedded / member.sum(1).clamp(min=1).unsqueeze(-1)
    return {"prototypes": means, "counts": member.sum(1)}
