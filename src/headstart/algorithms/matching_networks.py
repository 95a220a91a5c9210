"""Matching networks: a query's label is those of the support examples, by how much it attends to each."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from headstart.algorithms.heads.head import Head, class_members, embedding, learner
from headstart.core import losses
from headstart.errors import UsageError
from headstart.schema import Positive, extends
from headstart.types import Batch, Learner, Params


@extends(embedding)
def matching_networks(
    module: nn.Module | None = None,
    *,
    scale: Positive = 10.0,
    ways: int | None = None,
    shared_classes: bool = False,
    **options: Any,
) -> Learner:
    """Learn an embedding f in which attention over the support examples gives a query the right label.

    p(y = k | x, S) = Σ_i a(x, x_i) [y_i = k], with a(x, ·) = the softmax over the support examples of τ cos(f(x),
    f(x_i)); logits are log p. M holds log τ. (The paper's τ is 1, with which p is never far from uniform; one embedding
    of support and query examples, and no full context embeddings, whose answer depends on the support set's order.)

    Args:
        module: the embedding f, its outputs flattened; by default the inputs themselves, flattened.
        scale: where τ starts, which is learned.
        ways: number of classes; by default the largest support label plus one.
        shared_classes: as in `prototypes`.
        options: those of `embedding`.

    Reference: Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra 2016, arXiv:1606.04080.
    """
    if not scale > 0:
        raise UsageError(f"scale must be above 0, got {scale}: it is learned by its logarithm")

    def fit(structure: Params, features: Tensor, support: Batch) -> Params:
        member = class_members(features, support, ways)
        return {"support": nn.functional.normalize(features, dim=-1), "labels": member, "counts": member.sum(1)}

    def outputs(structure: Params, fitted: Params, features: Tensor) -> Tensor:
        near = nn.functional.normalize(features, dim=-1) @ fitted["support"].mT
        seen = fitted["labels"].sum(-1) > 0
        seen = (seen | ~seen.any(1, keepdim=True)).unsqueeze(1)  # without any example, all alike
        attention = (structure["log_scale"].exp() * near).masked_fill(~seen, -torch.inf).softmax(-1)
        # a class that is not attended to at all is as unlikely as a number can say
        return (attention @ fitted["labels"]).clamp(min=torch.finfo(near.dtype).tiny).log()

    head = Head({"log_scale": math.log(scale)}, fit, outputs, losses.cross_entropy)
    return learner(module, head, ways=ways, shared_classes=shared_classes, **options)
