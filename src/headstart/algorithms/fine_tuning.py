"""A new classifier for each task, by gradient steps on its support set, after pre-training on all training classes.

The classifier alone (`linear_probe`, `baseline_plus_plus`), or with it the network's weights, or some of them.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn

from headstart.algorithms.adaptation import InnerLoss, Now, uniform
from headstart.algorithms.adapters import LowRank, low_rank
from headstart.algorithms.heads.head import (
    Head,
    class_members,
    features_of,
    of_classes,
    read_classes,
    shown,
    unseen,
)
from headstart.algorithms.kernels import with_one
from headstart.algorithms.maml import Rate, Steps, maml
from headstart.algorithms.pooled_classes import CLASSES, pretrained, pretrained_head
from headstart.core import losses
from headstart.core.adjoints import FirstOrder
from headstart.core.parameters import Leaf
from headstart.core.rules import chain, only, scale as scaled
from headstart.errors import check_known
from headstart.schema import Count, NotNegative, Positive, extends
from headstart.types import Adapted, Batch, Info, Learner, Meta, Params, Tree

Tuned = Literal["all", "last", "low_rank"]


@extends(pretrained_head, without=("cosine",))
def linear_probe(
    module: nn.Module | None = None,
    *,
    fit_steps: Steps = 100,
    fit_rate: Rate = 1.0,
    decay: NotNegative = 0.001,
    ways: int | None = None,
    **options: Any,
) -> Learner:
    """Fit a linear classifier to each task on features that stay as they are: "Baseline" of Chen et al. 2019.

    The network is pre-trained on all training classes at once (`pretrained`). A task's W and b start from 0 and take
    ``fit_steps`` steps down the gradient of its mean support loss and decay/2 ‖W, b‖². (The paper takes 100 epochs of
    stochastic steps from a random start; of a convex loss these come close to the same.)

    Args:
        module: the embedding, its outputs flattened; by default the inputs themselves, flattened.
        fit_steps: gradient steps on a task's support set.
        fit_rate: the size of those steps, in units of 1 / (1 + the mean of ‖f(x)‖² over the support set),
            with which the loss falls up to 2.
        decay: the weight of the penalty on the classifier's weights.
        ways: number of classes; by default the largest support label plus one.
        options: those of `pretrained_head`.

    Reference: Chen, Liu, Kira, Wang, Huang 2019, arXiv:1904.04232.
    """
    head = _fitted_by_steps(fit_steps, fit_rate, decay, ways, None)
    return pretrained_head(module, head, ways=ways, **options)


@extends(pretrained_head, without=("cosine",))
def baseline_plus_plus(
    module: nn.Module | None = None,
    *,
    fit_steps: Steps = 100,
    fit_rate: Rate = 1.0,
    decay: NotNegative = 0.001,
    scale: Positive = 10.0,
    ways: int | None = None,
    **options: Any,
) -> Learner:
    """Baseline++: pre-train with a cosine classifier, and fit a new one to each task on features that stay.

    The logit of class k is τ cos(w_k, f(x)), for all training classes (`pretrained`) as for a task's own, whose w_k
    start from numbers that are the same for all tasks, drawn as ``nn.Linear`` draws its weights. τ is learned with the
    training classes; a task takes it as it is.

    Args:
        module: the embedding, its outputs flattened; by default the inputs themselves, flattened.
        fit_steps: gradient steps on a task's support set, all of it at each (the paper: 100 epochs of batches of 4).
        fit_rate: the size of those steps, in units of 1 / τ².
        decay: the weight of the penalty on the classifier's weights.
        scale: where the scale τ of the cosines starts.
        ways: number of classes; by default the largest support label plus one.
        options: those of `pretrained_head`.

    Reference: Chen, Liu, Kira, Wang, Huang 2019, arXiv:1904.04232.
    """
    head = _fitted_by_steps(fit_steps, fit_rate, decay, ways, scale)
    return pretrained_head(module, head, ways=ways, cosine=True, **options)


def _fitted_by_steps(steps: int, rate: float, decay: float, ways: int | None, tau: float | None) -> Head:
    """Return the head of `baseline_plus_plus`, or without ``tau`` that of `linear_probe`."""
    cosine = tau is not None

    def seen(features: Tensor) -> Tensor:
        return nn.functional.normalize(features, dim=-1) if cosine else with_one(features)

    def fit(structure: Params, features: Tensor, support: Batch) -> Params:
        member, x = class_members(features, support, ways), seen(features)
        counts, here = member.sum(1), member.sum(-1, keepdim=True)
        absent = ((counts == 0) & (counts.sum(1, keepdim=True) > 0)).unsqueeze(1)
        share = here / here.sum(1, keepdim=True).clamp(min=1)
        tau = structure["scale"] if cosine else 1.0
        stride = rate / (tau**2 * (share * x.square()).sum((1, 2)).clamp(min=1)).view(-1, 1, 1)
        weights = x.new_zeros(len(x), member.shape[-1], x.shape[-1])
        if cosine:  # the first rows are the same however many there are
            draw = Generator().manual_seed(0)
            weights = weights + uniform(weights.shape[1:], x.shape[-1] ** -0.5, x, draw)
        for _ in range(steps):
            length = weights.norm(dim=-1, keepdim=True).clamp(min=1e-12) if cosine else 1.0
            directions = weights / length
            chances = (tau * x @ directions.mT).masked_fill(absent, -torch.inf).softmax(-1)
            slope = tau * (share * (chances - member)).mT @ x
            if cosine:
                slope = (slope - directions * (slope * directions).sum(-1, keepdim=True)) / length
            weights = weights - stride * (slope + decay * weights)
        return {"weights": weights, "counts": counts}

    def outputs(structure: Params, fitted: Params, features: Tensor) -> Tensor:
        if not cosine:
            return with_one(features) @ fitted["weights"].mT
        return structure["scale"] * seen(features) @ nn.functional.normalize(fitted["weights"], dim=-1).mT

    return Head({} if tau is None else {"scale": tau}, fit, outputs, losses.cross_entropy, False)


@extends(maml, without=("loss", "rule", "adjoint", "examples", "start", "inner_loss", "check", "precision"))
def fine_tuning(
    module: nn.Module | None = None,
    *,
    tune: Tuned = "all",
    rank: Count = 4,
    steps: Steps = 20,
    rate: Rate = 0.1,
    inputs: int | None = None,
    features: int | None = None,
    classes: int | None = None,
    ways: int | None = None,
    shared_classes: bool = False,
    **options: Any,
) -> Learner:
    """Fine-tune a network with a new linear classifier on each task, from pre-training on all training classes.

    The network is pre-trained as in `pretrained`, and no adaptation takes place in training. A task's classifier starts
    from 0; it and what is tuned take ``steps`` steps down the gradient of the support loss.

    Args:
        module: the embedding, its outputs flattened; by default the inputs themselves, flattened.
        tune: what moves with the classifier: all weights, those of the last block (the last of the module's blocks that
            has any), or low-rank additions to all linear and convolution layers (`low_rank`).
        rank: the rank of the low-rank additions.
        steps: gradient steps on a task's support set.
        rate: the size of those steps.
        inputs, features: number of features of an input, needed without a module; of the module's features, by default
            read off its last linear layer.
        classes: how many training classes there are; ``None`` where nothing is trained any more.
        ways: number of classes; by default the largest support label plus one.
        shared_classes: as in `prototypes`.
        options: those of `maml`.

    Reference: Hu et al. 2021, arXiv:2106.09685, for low-rank additions.
    """
    check_known("tune", tune, get_args(Tuned))
    size, given = features_of(module, inputs, features), nn.Flatten() if module is None else module
    body = low_rank(given, rank=rank) if tune == "low_rank" else given
    last = f"body.{_last_block(body)}".rstrip(".")

    def moves(leaf: Leaf) -> bool:
        if leaf.name.startswith("head.") or tune == "all":
            return True
        return issubclass(leaf.module, LowRank) if tune == "low_rank" else f"{leaf.name}.".startswith(f"{last}.")

    @cache
    def inner(count: int) -> Learner:
        parts = OrderedDict(body=body, flat=nn.Flatten(), head=nn.Linear(size, count).to(like))
        rule = chain(only(moves), scaled(rate))
        own = InnerLoss(_of_those_there, lambda params, generator: {})
        made: Any = {"steps": steps, "rule": rule, "adjoint": FirstOrder(), "inner_loss": own, "check": False}
        return maml(nn.Sequential(parts), **made, **options)

    like = next((p.detach() for p in body.parameters() if p.is_floating_point()), torch.zeros(()))

    def tuned(meta: Meta) -> Params:
        return {name: value for name, value in meta.params.items() if not name.startswith(CLASSES)}

    def begun(meta: Meta, support: Batch) -> tuple[Learner, Meta, Params]:
        """Return the learner for so many classes, θ with a classifier of 0, and how many examples a class has."""
        counts = class_members(like.new_zeros(support.y.shape), support, ways).sum(1)
        head = {"head.weight": like.new_zeros(counts.shape[1], size), "head.bias": like.new_zeros(counts.shape[1])}
        return inner(counts.shape[1]), meta._replace(params=tuned(meta) | head), {"counts": counts}

    def init(generator: Generator | None = None) -> Meta:
        start = inner(ways or 1).init(generator)
        params = {name: value for name, value in start.params.items() if not name.startswith("head.")}
        return Meta(params, start.structure | (unseen(ways or 0, like) if shared_classes else {}))

    def path(
        meta: Meta, support: Batch, /, stops: Sequence[int] | None = None, detached: bool = False
    ) -> Iterator[tuple[Adapted, Info]]:
        one, start, counts = begun(meta, support)
        assert one.path is not None
        for adapted, info in one.path(start, support, stops, detached):
            yield adapted._replace(meta=meta, params=adapted.params | counts), info

    def adapt(meta: Meta, support: Batch, /, steps: Any = None) -> tuple[Adapted, Info]:
        one, start, counts = begun(meta, support)
        adapted, info = one.adapt(start, support, steps=steps)
        return adapted._replace(meta=meta, params=adapted.params | counts), info

    def predict(adapted: Adapted, x: Tree) -> Tensor:
        counts = adapted.params["counts"]
        own = {name: value for name, value in adapted.params.items() if name != "counts"}
        meta = adapted.meta._replace(params=tuned(adapted.meta))
        logits = inner(counts.shape[1]).predict(adapted._replace(meta=meta, params=own), x)
        return of_classes(meta.structure if shared_classes else {}, logits, counts)

    made = inner(ways or 1)._replace(init=init, adapt=adapt, path=path, predict=predict, shown=shown)
    made = made._replace(prepare=read_classes if shared_classes else None)
    held = {name: options[name] for name in ("taskmap", "buffers", "training") if name in options}
    return pretrained(made, nn.Sequential(OrderedDict(body=body)), features=size, classes=classes, **held)


def _of_those_there(structure: Params, outputs: Tensor, support: Batch, step: int, now: Now) -> Tensor:
    """The support loss among the classes that the support set has."""
    counts = class_members(outputs, support, outputs.shape[-1]).sum(1)
    absent = ((counts == 0) & (counts.sum(1, keepdim=True) > 0)).unsqueeze(1)
    return losses.cross_entropy(outputs.masked_fill(absent, -torch.inf), support)


def _last_block(module: nn.Module) -> str:
    """Return the path of the last of a module's blocks that has trainable weights; empty where it is all one."""
    path, chosen = "", False
    while True:
        children = [
            (name, one) for name, one in module.named_children() if any(p.requires_grad for p in one.parameters())
        ]
        if not children or (chosen and len(children) > 1 and not isinstance(module, nn.ModuleList)):
            return path
        chosen = chosen or len(children) > 1
        path, module = f"{path}.{children[-1][0]}".lstrip("."), children[-1][1]
