"""Relation networks: how a query relates to a class is a network's to say, and is learned."""

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

from headstart.algorithms.adaptation import uniform
from headstart.algorithms.heads.head import Head, class_members, embedding, features_of, learner
from headstart.core.losses import checked_labels, masked_mean
from headstart.core.values import one_hot
from headstart.schema import Size, extends
from headstart.types import Batch, Learner, Meta, Params


@extends(embedding)
def relation_networks(
    module: nn.Module | None = None,
    *,
    hidden: Size = 64,
    inputs: int | None = None,
    features: int | None = None,
    ways: int | None = None,
    shared_classes: bool = False,
    **options: Any,
) -> Learner:
    """Learn an embedding f and a network g that scores how a query relates to a class, r = σ(g(s_k, f(x))).

    s_k is the sum of f over the support examples of class k, and g two fully connected layers with ReLU between them,
    in M. Trained on the mean over classes of (r − [k = y])², a query's outputs are g, so that the class with the best
    relation is predicted. (The paper's g on images has two convolution blocks before, on f's maps; here f's outputs are
    flattened, as theirs are in zero-shot learning.)

    Args:
        module: the embedding f, its outputs flattened; by default the inputs themselves, flattened.
        hidden: how many units are between the two layers of g.
        inputs: number of features of an input, needed without a module.
        features: number of the module's features; by default, read off its last linear layer.
        ways: number of classes; by default the largest support label plus one.
        shared_classes: as in `prototypes`.
        options: those of `embedding`.

    Reference: Sung, Yang, Zhang, Xiang, Torr, Hospedales 2017, arXiv:1711.06025.
    """
    size = features_of(module, inputs, features)
    shapes = {
        "first.weight": (hidden, 2 * size),
        "first.bias": (hidden,),
        "last.weight": (1, hidden),
        "last.bias": (1,),
    }
    blank = {f"relation.{name}": torch.zeros(shape) for name, shape in shapes.items()}

    def fit(structure: Params, found: Tensor, support: Batch) -> Params:
        member = class_members(found, support, ways)
        return {"sums": member.mT @ found, "counts": member.sum(1)}

    def outputs(structure: Params, fitted: Params, found: Tensor) -> Tensor:
        of_class, of_query = structure["relation.first.weight"].split(size, 1)  # of [s_k, f(x)], which is never built
        shared = linear(fitted["sums"], of_class, structure["relation.first.bias"])
        pairs = torch.relu(shared.unsqueeze(1) + linear(found, of_query).unsqueeze(2))
        return linear(pairs, structure["relation.last.weight"], structure["relation.last.bias"]).squeeze(-1)

    head = Head(blank, fit, outputs, relation_loss, False)
    made = learner(module, head, ways=ways, shared_classes=shared_classes, **options)

    def init(generator: Generator | None = None) -> Meta:
        meta = made.init(generator)
        bounds = {name: (2 * size if "first" in name else hidden) ** -0.5 for name in blank}  # as in nn.Linear
        drawn = {name: uniform(blank[name].shape, bounds[name], meta.structure[name], generator) for name in blank}
        return meta._replace(structure=meta.structure | drawn)

    return made._replace(init=init)


def relation_loss(outputs: Tensor, batch: Batch) -> Tensor:
    """Return (σ(outputs_k) − [k = y])², averaged over the possible classes k and each task's examples.

    Args:
        outputs: ``(B, n, ways)``; −∞ where a class is impossible.
        batch: ``y`` ``(B, n)`` int64 in ``[0, ways)``.
    """
    target = one_hot(checked_labels("relation_loss", outputs, batch), outputs.shape[-1], outputs)
    possible = (outputs > -torch.inf).sum(-1)
    return masked_mean((outputs.sigmoid() - target).square().sum(-1) / possible, batch.mask)
