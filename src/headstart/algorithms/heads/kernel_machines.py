"""Support vector machine and logistic regression, solved to convergence for each task, as heads of an embedding."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from headstart.algorithms.heads.duals import Solved, maximum_entropy, maximum_margin
from headstart.algorithms.heads.head import Head, absent, class_members, learner
from headstart.algorithms.heads.solution import implicit
from headstart.algorithms.kernels import squared_distances
from headstart.core import losses
from headstart.errors import UsageError, unknown_name
from headstart.forward.functional import Buffers
from headstart.forward.task_map import TaskMap
from headstart.types import Batch, Learner, Params

HeadKernel = Literal["linear", "rbf"]


def svm(
    module: nn.Module | None = None,
    *,
    ways: int | None = None,
    kernel: HeadKernel = "linear",
    C: float = 0.1,
    width: float = 1.0,
    scale: float = 1.0,
    intercept: float | None = None,
    taskmap: str | TaskMap = "auto",
    buffers: Buffers = "batch",
) -> Learner:
    """Learn an embedding f on which a multi-class support vector machine, solved for each task, is right (MetaOptNet).

    The machine of Crammer and Singer: minimise ½ Σ_k ‖w_k‖² + C Σ_n ξ_n such that, for every example n and class k,
    (w_{y_n} − w_k) · f(x_n) ≥ 1 − [k = y_n] − ξ_n. Its dual is solved to rounding in double precision, all tasks at
    once, and differentiated by the implicit function theorem, which is exact (where an example is about to become, or
    no longer be, a support vector, the solution has a kink). The logit of class k is γ w_k · f(x).

    M is log C, log γ and, with ``kernel="rbf"``, log ℓ: k(x, x′) = exp(−‖f(x) − f(x′)‖² / (2 d ℓ²)) for d features
    takes the place of f(x) · f(x′). (The paper fixes C = 0.1 and the linear kernel.)

    Args:
        module: the embedding, its outputs flattened; ``None``: the inputs themselves, flattened.
        ways: number of classes; by default the largest support label plus one (which reads it from the device).
        kernel: ``"linear"`` or ``"rbf"``.
        C: where C starts, above 0.
        width: where ℓ starts, above 0: a distance between features of size 1 each.
        scale: where γ starts, above 0.
        intercept: a constant feature of this value, so an intercept that is penalised the less the larger it is
            (scikit-learn's ``intercept_scaling``); by default 0 over a network, as in the paper, and 1 without one.
        taskmap: ``"auto"``, ``"vmap"`` or ``"loop"``.
        buffers: what normalisation does with running statistics, as in `prototypes`.

    Raises:
        UsageError: a start that is not above 0.
        UnknownNameError: another kernel.

    Reference: Lee, Maji, Ravichandran, Soatto 2019, arXiv:1904.03758; Crammer, Singer 2001, JMLR 2, 265-292.

    >>> import torch, headstart
    >>> from headstart.algorithms.heads.kernel_machines import svm
    >>> learner = svm(C=100.0)
    >>> support = headstart.Batch(torch.tensor([[[-1.0], [3.0]]]), torch.tensor([[0, 1]]))
    >>> adapted, _ = learner.adapt(learner.init(None), support)
    >>> logits = learner.predict(adapted, torch.tensor([[[-1.0], [3.0]]]))
    >>> (logits[..., 1] - logits[..., 0]).round(decimals=4)  # the margins of the support vectors
    tensor([[-1.,  1.]])
    """
    start = _start(module, kernel, {"C": C, "width": width, "scale": scale}, intercept)
    return _machine(module, maximum_margin, start, ways, taskmap, buffers)


def logistic(
    module: nn.Module | None = None,
    *,
    ways: int | None = None,
    kernel: HeadKernel = "linear",
    regularisation: float = 1.0,
    width: float = 1.0,
    scale: float = 1.0,
    intercept: float | None = None,
    taskmap: str | TaskMap = "auto",
    buffers: Buffers = "batch",
) -> Learner:
    """Learn an embedding f on which multinomial logistic regression, solved for each task, is right.

    Minimise λ/2 Σ_k ‖w_k‖² + Σ_n −log softmax(w · f(x_n))[y_n], by Newton's method until it has converged, in double
    precision and all tasks at once; the derivative is that of the solution, by the implicit function theorem. The
    logit of class k is γ w_k · f(x). M is log λ, log γ and, with ``kernel="rbf"``, log ℓ as in `svm`.

    (LR-D2 of Bertinetto et al. 2018 is another method: it takes few Newton steps, on two classes, and differentiates
    through them.)

    Args:
        module, ways, kernel, width, intercept, taskmap, buffers: as in `svm`.
        regularisation: where λ starts, above 0.
        scale: where γ starts, above 0.

    Raises:
        UsageError: a start that is not above 0.
        UnknownNameError: another kernel.

    >>> import torch, headstart
    >>> from headstart.algorithms.heads.kernel_machines import logistic
    >>> learner = logistic()
    >>> support = headstart.Batch(torch.tensor([[[-1.0], [3.0]]]), torch.tensor([[0, 1]]))
    >>> adapted, _ = learner.adapt(learner.init(None), support)
    >>> learner.predict(adapted, torch.tensor([[[-2.0], [5.0]]])).argmax(-1)
    tensor([[0, 1]])
    """
    numbers = {"regularisation": regularisation, "width": width, "scale": scale}
    start = _start(module, kernel, numbers, intercept)
    return _machine(module, maximum_entropy, start, ways, taskmap, buffers)


class _Start(NamedTuple):
    structure: dict[str, float]
    kernel: HeadKernel
    constant: float
    """What a constant feature adds to the kernel."""


def _start(module: nn.Module | None, kernel: str, numbers: dict[str, float], intercept: float | None) -> _Start:
    if kernel not in get_args(HeadKernel):
        raise unknown_name("kernel", kernel, get_args(HeadKernel))
    for name, value in numbers.items():
        if not value > 0:
            raise UsageError(f"{name} must be above 0, got {value}: it is learned by its logarithm")
    chosen: HeadKernel = "rbf" if kernel == "rbf" else "linear"
    used = {name: value for name, value in numbers.items() if name != "width" or chosen == "rbf"}
    constant = float(module is None) if intercept is None else intercept**2
    return _Start({f"log_{name}": math.log(value) for name, value in used.items()}, chosen, constant)


def _machine(
    module: nn.Module | None,
    optimum: Callable[[Tensor, Tensor, Tensor], Solved],
    start: _Start,
    ways: int | None,
    taskmap: str | TaskMap,
    buffers: Buffers,
) -> Learner:
    linear = start.kernel == "linear"

    def fit(structure: Params, features: Tensor, support: Batch) -> Params:
        member = class_members(features, support, ways)
        gram = kernel_matrix(structure, features, features) + start.constant
        if support.mask is not None:
            gram = gram * (support.mask.unsqueeze(1) & support.mask.unsqueeze(2)).to(gram)
        cost = structure["log_C"].exp() if "log_C" in structure else (-structure["log_regularisation"]).exp()
        coefficients = cost * dual(optimum, cost * gram, member)
        fitted = {"offset": start.constant * coefficients.sum(1), "absent": absent(member)}
        if linear:
            return {**fitted, "weights": features.mT @ coefficients}
        return {**fitted, "support": features, "coefficients": coefficients}

    def outputs(structure: Params, fitted: Params, features: Tensor) -> Tensor:
        if linear:
            scores = features @ fitted["weights"]
        else:
            scores = kernel_matrix(structure, features, fitted["support"]) @ fitted["coefficients"]
        logits = structure["log_scale"].exp() * (scores + fitted["offset"].unsqueeze(1))
        return logits + fitted["absent"].unsqueeze(1)

    head = Head(start.structure, fit, outputs, losses.cross_entropy)
    return learner(module, head, taskmap=taskmap, buffers=buffers)


def kernel_matrix(structure: Params, left: Tensor, right: Tensor) -> Tensor:
    """Return k(x, x′) ``(B, n, m)``: the linear kernel, or the squared exponential where M has a ``log_width``."""
    if "log_width" not in structure:
        return left @ right.mT
    exponent = squared_distances(left, right) / (2 * left.shape[-1])
    return torch.exp(-exponent * torch.exp(-2 * structure["log_width"]))


def dual(optimum: Callable[[Tensor, Tensor, Tensor], Solved], shared: Tensor, member: Tensor) -> Tensor:
    """Return Y − P ``(B, n, K)`` at the optimum, differentiable once with respect to Q.

    Args:
        optimum: `maximum_margin` or `maximum_entropy`.
        shared: Q = C · Gram matrix ``(B, n, n)``.
        member: Y, one-hot ``(B, n, K)``; 0 for an example that is masked out.
    """
    targets = member.mT
    allowed = (targets.sum(1, keepdim=True) > 0) & (targets.sum(2, keepdim=True) > 0)
    spread, solve = optimum(shared.detach(), targets, allowed)
    # of the derivative of the dual, only this part has Q in it
    slope = (spread - targets) @ shared
    return (targets - implicit(spread, slope, solve)).mT
