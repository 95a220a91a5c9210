"""Learning from losses alone: at randomly perturbed points they tell which way is down; and MAML by it.

For a function F and ε ~ N(0, I), the smoothed function F_σ(φ) = E F(φ + σε) has the gradient

    ∇F_σ(φ) = E[(F(φ + σε) − F(φ)) ε] / σ = E[(F(φ + σε) − F(φ − σε)) ε] / (2σ),

even where F is a step function. For a smooth F it tends to ∇F(φ) as σ → 0.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headstart.algorithms.adaptation import Adaptation
from headstart.algorithms.maml import maml
from headstart.core import tree
from headstart.core.adjoints import FirstOrder
from headstart.core.inner import Given
from headstart.core.objective import meta_loss
from headstart.core.philox import WORD, philox
from headstart.errors import UsageError, check_known, unknown_name
from headstart.schema import Count, Positive, extends
from headstart.types import Episodes, Info, Learner, Meta, MetaGradient, Params

Shaping = Literal["ranks"]

_OUTER, _INNER = 0x45564F00, 0x45564F01
"""Half of the key of the random words, so that no two uses of a seed (dropout, too) share any."""

_AT_ONCE = 2**18
"""How many random numbers to compute at once."""


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """The `MetaGradient` of learners that have no gradient, or whose gradient is not to be trusted.

    It estimates the gradient of the meta-loss smoothed by a Gaussian, over θ and M together, from the meta-losses at
    perturbed values of them alone; nothing is differentiated. Every perturbation is judged by all B tasks, whose
    random numbers (dropout) are the same for all perturbations. The error of the estimate falls like
    √(d / ``samples``), with d numbers in θ and M: fit for few numbers, rough for many.

    The directions are a function of the sum of the tasks' seeds (``Batch.seed``, which `headstart.fit` gives to every
    task) and of the number of the sample; without seeds they are always the same. They are computed a few at a time,
    and again where they are needed, so that memory does not grow with ``samples``.

    Args:
        deviation: σ, the standard deviation of the perturbations, in the units of θ and M.
        samples: the number of random directions.
        antithetic: take the losses on both sides of each direction, two evaluations a sample, which cancels the
            even terms of the loss; else on one side, less the loss in the middle.
        shaping: ``"ranks"`` puts centred ranks in [−½, ½] in place of the losses (the least is −½; no number is as
            bad as infinity). It withstands outliers, but its length says nothing of the loss's slope, and it is no
            unbiased estimate, not even of the smoothed loss's gradient. ``None``: the losses themselves.

    Reference: Salimans, Ho, Chen, Sidor, Sutskever 2017, arXiv:1703.03864, also for mirrored samples and ranks.

    >>> import torch, headstart
    >>> learner = headstart.maml(torch.nn.Linear(2, 1), loss="mse", steps=1)
    >>> learner = learner._replace(gradient=Evolution(samples=8), exact=False)
    >>> batch = headstart.Batch(torch.ones(3, 4, 2), torch.ones(3, 4, 1))
    >>> gradient, info = headstart.meta_gradient(learner, learner.init(None), headstart.Episodes(batch, batch))
    >>> gradient.params["weight"].shape
    torch.Size([1, 2])
    """

    deviation: float = 0.05
    samples: int = 32
    antithetic: bool = True
    shaping: Shaping | None = None

    def __post_init__(self) -> None:
        if not (self.deviation > 0 and math.isfinite(self.deviation)):
            raise UsageError(f"the deviation of Evolution must be greater than 0, got {self.deviation}")
        if self.samples < 1:
            raise UsageError(f"the samples of Evolution must be at least 1, got {self.samples}")
        if self.shaping not in (None, "ranks"):
            raise unknown_name("shaping", str(self.shaping), ("ranks",))

    @torch.no_grad()
    def __call__(self, learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Meta, Info]:
        """Return the estimate of the gradient of the mean meta-loss, and `Info` of the meta value itself."""
        return self._estimate(lambda values: values, 1.0, learner, meta, episodes)

    def among(self, total: Callable[[Tensor], Tensor], share: float, /) -> MetaGradient:
        """Return the estimate by the losses of all processes' tasks at the same perturbed values."""
        return partial(self._estimate, total, share)

    @torch.no_grad()
    def _estimate(
        self, total: Callable[[Tensor], Tensor], share: float, learner: Learner, meta: Meta, episodes: Episodes
    ) -> tuple[Meta, Info]:
        here, info = meta_loss(learner, meta, episodes)
        seed = episodes.support.seed if episodes.query.seed is None else episodes.query.seed
        seed = here.new_zeros((), dtype=torch.int64) if seed is None else seed.sum().to(here.device)
        seed = total(seed * (share > 0))
        packed, values = tree.pack(meta)

        def loss(directions: list[Tensor], distance: float) -> Tensor:
            moved = [value + distance * direction for value, direction in zip(values, directions)]
            return meta_loss(learner, packed.unpack(moved), episodes)[0]

        sides = (self.deviation, -self.deviation) if self.antithetic else (self.deviation,)
        samples = _directions(values, seed, self.samples)
        losses = torch.stack([here, *(loss(directions, side) for directions in samples for side in sides)])
        here, losses = total(share * losses).split((1, self.samples * len(sides)))
        weights = self._weights(losses.view(self.samples, len(sides)), here)
        sums = [torch.zeros_like(value) for value in values]
        for weight, directions in zip(weights.unbind(), _directions(values, seed, self.samples)):
            sums = [value + weight.to(value.dtype) * direction for value, direction in zip(sums, directions)]
        return packed.unpack(sums), info

    def _weights(self, values: Tensor, here: Tensor) -> Tensor:
        """Return what to multiply each direction by, ``(samples,)``, for their sum to be the estimate.

        Args:
            values: the losses ``(samples, sides)``.
            here: that in the middle.
        """
        if self.shaping == "ranks":
            values = centred_ranks(values.flatten()).view(values.shape)
        elif not self.antithetic:
            values = values - here
        scale = values.shape[1] * self.samples * self.deviation
        return (values[:, 0] - values[:, 1] if self.antithetic else values[:, 0]) / scale


def smoothed_gradient(
    loss: Callable[[Params], Tensor], params: Params, seed: Tensor, deviation: float, samples: int, draw: int = 0
) -> Params:
    """Return every task's own estimate of the gradient of its loss ``params -> (B,)``, from antithetic samples.

    A task's directions are a function of its own ``seed`` ``(B,)``, of ``draw`` and of the sample's number.
    """
    sums = tree.zeros_like(params)
    with torch.no_grad():
        for directions in _directions([value[0] for value in params.values()], seed, samples, (_INNER, draw)):
            drawn = dict(zip(params, directions))
            up, down = (
                loss({name: value + side * drawn[name] for name, value in params.items()})
                for side in (deviation, -deviation)
            )
            slope = (up - down) / (2 * deviation * samples)
            sums = {name: total + tree.over_tasks(slope, total) * drawn[name] for name, total in sums.items()}
    return sums


def _directions(
    like: list[Tensor], seed: Tensor, samples: int, key: tuple[int, int] = (_OUTER, 0)
) -> Iterator[list[Tensor]]:
    """Yield the directions of one sample after another, each a list of ``(*seed.shape, *shape)`` like ``like``."""
    sizes = [value.numel() for value in like]
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in like) else torch.float32
    each = max(1, _AT_ONCE // max(1, sum(sizes) * seed.numel()))
    for first in range(0, samples, each):
        for drawn in normals(sum(sizes), range(first, min(first + each, samples)), seed, key, dtype):
            parts = zip(drawn.split(sizes, -1), like)
            yield [part.reshape(seed.shape + value.shape).to(value.dtype) for part, value in parts]


def normals(
    count: int, samples: range, seed: Tensor, key: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return standard normal numbers ``(samples, *seed.shape, count)``, each a function of its place, seed and key.

    Philox words, two by two through the transform of Box and Muller 1958, doi:10.1214/aoms/1177706645. ``samples`` says
    which ones, in ``[0, 2**32)``, and ``key`` (two words) which of the independent sets of numbers.
    """
    number = torch.arange(samples.start, samples.stop, device=seed.device).view(-1, *(1,) * seed.ndim, 1)
    lane = torch.arange(-(-count // 4), device=seed.device)
    words = philox((lane, number, (seed & WORD)[None, ..., None], (seed >> 32 & WORD)[None, ..., None]), key)
    # never 0; rounding may make it 1, whose logarithm is 0
    first, second, third, fourth = ((word.to(dtype) + 0.5) * 2.0**-32 for word in words)
    found = []
    for length, turn in ((first, second), (third, fourth)):
        radius, angle = (-2 * length.log()).clamp(min=0).sqrt(), 2 * math.pi * turn
        found += [radius * angle.cos(), radius * angle.sin()]
    return torch.cat(found, -1)[..., :count]


def centred_ranks(values: Tensor) -> Tensor:
    """Return the ranks of ``values`` ``(n,)`` spread evenly over [−½, ½]; equal values share their mean rank."""
    if len(values) < 2:
        return torch.zeros_like(values)
    values = torch.where(values.isnan(), torch.inf, values)
    less, equal = values[None] < values[:, None], values[None] == values[:, None]
    ranks = less.sum(1).to(values.dtype) + (equal.sum(1) - 1).to(values.dtype) / 2
    return ranks / (len(values) - 1) - 0.5


@extends(maml, without=("adjoint",))
def es_maml(
    module: nn.Module,
    *,
    deviation: Positive = 0.05,
    samples: Count = 32,
    antithetic: bool = True,
    shaping: Shaping | None = None,
    inner: Literal["gradient", "evolution"] = "gradient",
    inner_deviation: Positive = 0.05,
    inner_samples: Count = 32,
    **options: Any,
) -> Learner:
    """Learn initial weights from which a task adapts, as `maml` does, by an evolution strategy (`Evolution`).

    ∇L_σ(θ) = E[(L(θ + σε) − L(θ − σε)) ε] / (2σ), where L(θ) = Σᵢ loss(U(θ, Sᵢ), Qᵢ) and U adapts to the support
    set; no derivative passes through U, so there is none of second order, and memory is that of adapting alone.

    U is the paper's choice: ``inner="gradient"`` takes MAML's T exact gradient steps; ``inner="evolution"`` takes T
    steps along ∇̂loss = meanₖ (loss(θᵢ + σε, Sᵢ) − loss(θᵢ − σε, Sᵢ)) ε / (2σ), so that the model need not be
    differentiable anywhere. The paper's third, hill climbing, is not offered. Every perturbation is judged by all B
    tasks, where there each task has one of its own (the same on average, with less noise a perturbation).

    Args:
        deviation: σ, the standard deviation of the perturbations of θ and M.
        samples: the number of random directions of an outer step.
        antithetic: whether losses are taken on both sides of each direction, for two evaluations a sample.
        shaping: ``"ranks"`` puts centred ranks in place of the losses, against outliers (see `Evolution`).
        inner: what an inner step follows: the ``"gradient"``, or its estimate by ``"evolution"``.
        inner_deviation: σ of an inner step's estimate.
        inner_samples: the number of antithetic directions of an inner step's estimate, which are a function of the
            task's seed (without one, a fixed one) and of the step.
        options: those of `maml`.

    Reference: Song, Gao, Yang, Choromanski, Pacchiano, Tang 2019, arXiv:1910.01215.
    """
    check_known("inner", inner, ("gradient", "evolution"))
    outer = Evolution(deviation=deviation, samples=samples, antithetic=antithetic, shaping=shaping)
    learner = maml(module, adjoint=FirstOrder(), **options)._replace(gradient=outer, exact=False)
    if inner == "gradient":
        return learner
    if not inner_deviation > 0 or inner_samples < 1:
        raise UsageError(
            f"inner_deviation must be greater than 0 and inner_samples at least 1, "
            f"got {inner_deviation} and {inner_samples}"
        )
    # maml's functions are those of an Adaptation
    made: Adaptation = learner.adapt.__self__  # type: ignore[attr-defined]
    parts = {part.name: getattr(made, part.name) for part in fields(made) if part.init}
    own = _Evolved(**parts, deviation=inner_deviation, samples=inner_samples)
    return learner._replace(init=own.init, adapt=own.adapt, predict=own.predict, path=own.path)


@dataclass(frozen=True)
class _Evolved(Adaptation):
    deviation: float
    samples: int

    def support_loss(self, given: Given, moved: Params, buffers: Params, step: int) -> tuple[Tensor, Params]:
        support, exact = given.support, super().support_loss
        seed = support.y.new_zeros(len(support.y), dtype=torch.int64) if support.seed is None else support.seed
        with torch.no_grad():
            points = {name: value.detach() for name, value in moved.items()}
            losses, after = exact(given, points, buffers, step)
            slopes = smoothed_gradient(
                lambda params: exact(given, params, buffers, step)[0], points, seed, self.deviation, self.samples, step
            )
        # of the loss's value, with the estimate as its derivative
        tilts = [((moved[n] - points[n]) * slope).reshape(len(slope), -1).sum(1) for n, slope in slopes.items()]
        return losses + torch.stack(tilts).sum(0), after
