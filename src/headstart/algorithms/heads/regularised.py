"""Logistic regression of which each task chooses penalty and temperature, by its own support examples, held out.

Where nothing is learned across tasks, nobody else can say how much a classifier is to be regularised, and how sure it
may be.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.optim import LBFGS

from headstart.algorithms.heads.head import Head, class_members
from headstart.core import losses
from headstart.types import Batch, Params

#: The penalties λ to choose from, from the largest; each fit starts at the one before.
PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
#: That of a task without two examples of a class, where nothing can be held out.
_UNTOLD = 0.1
#: Where log T is looked for. Few examples that are all right would have it without end, so it is drawn to 0 as by a
#: normal distribution of deviation 1: of 0.25, 0.5, 1 and 3 the one whose probabilities were best on validation tasks.
_LOG_TEMPERATURES = torch.linspace(-3, 3, 61, dtype=torch.float64)
#: Parts that support examples are held out in.
_FOLDS = 5
_STEPS = 200


def regularised(ways: int | None) -> Head:
    """Return logistic regression on features of length 1, whose penalty each task chooses.

    Minimise λ/2 Σ_k ‖w_k‖² + Σ_n −log softmax(w · f(x_n)/‖f(x_n)‖)[y_n]. Of λ, that of `PENALTIES` is taken under which
    the held-out support examples are likeliest, each class's dealt out in turn to five parts; an example that is its
    class's only one is never held out. Logits are then divided by the T under which the same are likeliest: the penalty
    that is best for labels leaves probabilities far too near to each other. Where nothing can be held out, they stay
    so. Memory is linear in the examples.

    Reference: Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599 (T, which there is fitted to other examples).

    Args:
        ways: number of classes; by default the largest support label plus one.
    """

    def fit(structure: Params, features: Tensor, support: Batch) -> Params:
        members = class_members(features, support, ways)
        x = normalize(features.detach(), dim=-1)
        weights = [_of_task(own[there], member[there]) for own, member in zip(x, members) for there in [member.any(-1)]]
        return {"weights": torch.stack(weights), "counts": members.sum(1)}

    def outputs(structure: Params, fitted: Params, features: Tensor) -> Tensor:
        return normalize(features, dim=-1) @ fitted["weights"].mT

    return Head({}, fit, outputs, losses.cross_entropy)


def _of_task(x: Tensor, member: Tensor) -> Tensor:
    """Return the weights ``(ways, d)`` of a task's examples ``(n, d)`` and one-hot labels ``(n, ways)``, over T."""
    if len(x) < x.shape[1]:
        # they lie where the examples do; in coordinates of that space the fits are the same, and n numbers long
        basis, coordinates = torch.linalg.qr(x.mT)
        return _of_task(coordinates.mT.contiguous(), member) @ basis.mT
    weights = x.new_zeros(member.shape[1], x.shape[1])
    penalty, temperature = chosen(x, member)
    for larger in (one for one in PENALTIES if one >= penalty):
        weights = _fitted(x, member, larger, weights, 1e-7 if larger == penalty else 1e-4)
    return weights / temperature


def chosen(x: Tensor, member: Tensor) -> tuple[float, float]:
    """Return the penalty under which examples are likeliest that were held out, and then the temperature."""
    turn = (member.cumsum(0) * member).sum(1).long() - 1
    part = torch.where(member @ member.sum(0) > 1, turn % _FOLDS, -1)
    if not bool((part >= 0).any()):
        return _UNTOLD, 1.0
    found: list[list[Tensor]] = [[] for _ in PENALTIES]
    for number in range(_FOLDS):
        held = part == number
        weights = x.new_zeros(member.shape[1], x.shape[1])
        for logits, penalty in zip(found, PENALTIES):
            weights = _fitted(x[~held], member[~held], penalty, weights, 1e-4)
            logits.append((x[held] @ weights.mT).masked_fill(member.sum(0) == 0, -torch.inf))
    y = torch.cat([member[part == number] for number in range(_FOLDS)]).argmax(1)
    costs = torch.stack([cross_entropy(torch.cat(logits), y, reduction="sum") for logits in found])
    best = int(costs.argmin())
    logits, tried = torch.cat(found[best]), _LOG_TEMPERATURES.to(x)
    costs = torch.stack([cross_entropy(logits / one.exp(), y, reduction="sum") + one.square() / 2 for one in tried])
    return PENALTIES[best], float(tried[costs.argmin()].exp())


def _fitted(x: Tensor, member: Tensor, penalty: float, start: Tensor, tolerance: float) -> Tensor:
    """Return where the loss an example is least, to where no slope is steeper than ``tolerance``."""
    weights, absent, count = start.clone(), member.sum(0) == 0, max(len(x), 1)

    def loss() -> Tensor:
        chances = (x @ weights.mT).masked_fill(absent, -torch.inf).log_softmax(-1)
        weights.grad = (penalty * weights + (chances.exp() - member).mT @ x) / count
        fits = torch.where(member > 0, chances, 0).sum()
        return (penalty / 2 * weights.square().sum() - fits) / count

    settings = {"max_iter": _STEPS, "tolerance_grad": tolerance, "tolerance_change": 0.0}
    LBFGS([weights], line_search_fn="strong_wolfe", **settings).step(loss)
    return weights.detach()
