"""Ridge regression as the head of a learned embedding (R2-D2)."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from headstart.algorithms.heads.head import Head, class_members, embedding, learner
from headstart.core import losses
from headstart.errors import ShapeError, UsageError, check_known
from headstart.schema import Positive, extends
from headstart.types import Batch, Learner, Params

RidgeLoss = Literal["cross_entropy", "mse"]


@extends(embedding)
def ridge(
    module: nn.Module | None = None,
    *,
    ways: int | None = None,
    loss: RidgeLoss = "cross_entropy",
    regularisation: Positive = 1.0,
    scale: Positive = 1.0,
    intercept: bool | None = None,
    shared_classes: bool = False,
    **options: Any,
) -> Learner:
    """Learn an embedding on which ridge regression, solved exactly for each task, is right.

    With the support features X ``(n, d)`` and targets Y, W = (XᵀX + λI)⁻¹ XᵀY; where n < d, by Woodbury's identity,
    W = Xᵀ(XXᵀ + λI)⁻¹ Y. λ is learned in M, by its logarithm.

    For classes Y is one-hot, and the logits of a query x are α xW + β, with α and β learned in M (the softmax does not
    see β). For targets the outputs are xW, and with an intercept, which is not penalised, X and Y are centred on their
    means over the task's support set: (x − x̄) W + ȳ.

    Args:
        module: the embedding, its outputs flattened; ``None``: the inputs themselves, flattened.
        ways: number of classes; by default the largest support label plus one (which reads it from the device).
        loss: ``"cross_entropy"`` for classes, ``"mse"`` for targets.
        regularisation: where the penalty λ starts, which is learned.
        scale: where the scale α of the logits starts, which is learned.
        intercept: whether there is one; by default for all but classification over a network (the paper has none).
        shared_classes: whether class ids mean the same in all tasks, so that a class that a support set lacks is as
            likely as the training tasks say; else it is never predicted.
        options: those of `embedding`.

    Raises:
        UsageError: a start that is not above 0.
        UnknownNameError: another loss.

    Reference: Bertinetto, Henriques, Torr, Vedaldi 2018, arXiv:1805.08136.

    >>> import torch, headstart
    >>> from headstart.algorithms.heads.ridge import ridge
    >>> learner = ridge(loss="mse", regularisation=1e-6)
    >>> x = torch.arange(4.0).view(1, 4, 1)
    >>> adapted, _ = learner.adapt(learner.init(None), headstart.Batch(x, 3 * x + 1))
    >>> learner.predict(adapted, torch.full((1, 1, 1), 10.0)).round(decimals=3)
    tensor([[[31.]]])
    """
    check_known("loss", loss, get_args(RidgeLoss))
    if not (regularisation > 0 and scale > 0):
        raise UsageError(f"ridge starts from λ and α above 0, got regularisation {regularisation} and scale {scale}")
    classes = loss == "cross_entropy"
    centred = (module is None or not classes) if intercept is None else intercept
    structure = {"log_regularisation": math.log(regularisation)}

    def fit(structure: Params, features: Tensor, support: Batch) -> Params:
        if classes:
            targets = class_members(features, support, ways)
        elif support.y.is_floating_point() and support.y.shape[:2] == features.shape[:2]:
            targets = support.y.to(features)
        else:
            raise ShapeError(
                f"ridge with loss='mse' needs floating targets (tasks, examples, *targets) for {features.shape[0]} "
                f"tasks and {features.shape[1]} examples; got y {tuple(support.y.shape)} of {support.y.dtype}"
            )
        flat = targets.flatten(2) if targets.ndim > 2 else targets.unsqueeze(-1)
        weights, offset = solve(features, flat, support.mask, structure["log_regularisation"].exp(), centred)
        # the shape of what is learned says that of a target
        shape = targets.shape[2:]
        fitted = {"weights": weights.reshape(*weights.shape[:2], *shape), "offset": offset.reshape(len(offset), *shape)}
        return {**fitted, "counts": targets.sum(1)} if classes else fitted

    def outputs(structure: Params, fitted: Params, features: Tensor) -> Tensor:
        values = torch.einsum("bnd,bd...->bn...", features, fitted["weights"]) + fitted["offset"].unsqueeze(1)
        if not classes:
            return values
        return structure["log_scale"].exp() * values + structure["bias"]

    if classes:
        structure |= {"log_scale": math.log(scale), "bias": 0.0}
    head = Head(structure, fit, outputs, losses.resolve(loss))
    return learner(module, head, ways=ways, shared_classes=shared_classes and classes, **options)


def solve(
    features: Tensor, targets: Tensor, mask: Tensor | None, penalty: Tensor, centred: bool
) -> tuple[Tensor, Tensor]:
    """Return the weights ``(B, d, k)`` and offsets ``(B, k)`` of ridge regression.

    Args:
        features, targets: ``(B, n, d)`` and ``(B, n, k)``, 0 where the ``mask`` ``(B, n)`` is false.
        penalty: λ.
        centred: whether to centre both, which an intercept without a penalty comes to.
    """
    here = torch.ones_like(features[..., :1]) if mask is None else mask.unsqueeze(-1).to(features)
    count = here.sum(1, keepdim=True).clamp(min=1)
    middle = features.sum(1, keepdim=True) / count
    level = targets.sum(1, keepdim=True) / count
    if centred:
        features, targets = (features - middle) * here, (targets - level) * here
    examples, width = features.shape[1:]
    if examples < width:
        weights = features.mT @ _regularised(features @ features.mT, targets, penalty)
    else:
        weights = _regularised(features.mT @ features, features.mT @ targets, penalty)
    offset = level - middle @ weights if centred else torch.zeros_like(level)
    return weights, offset.squeeze(1)


def _regularised(matrix: Tensor, right: Tensor, penalty: Tensor) -> Tensor:
    """Return (A + λI)⁻¹ R for positive semidefinite A ``(B, n, n)`` and R ``(B, n, k)``."""
    size = matrix.shape[-1]
    # a smaller penalty is lost in the rounding of A, and A + λI may have no Cholesky factor
    rounding = 4 * size * torch.finfo(matrix.dtype).eps * matrix.detach().diagonal(dim1=1, dim2=2).sum(1)
    least = torch.maximum(penalty, rounding).view(-1, 1, 1)
    lower = torch.linalg.cholesky_ex(matrix + least * torch.eye(size).to(matrix))[0]
    return torch.cholesky_solve(right, lower)
