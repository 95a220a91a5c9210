"""What validation tasks of several sizes (`headstart.training.trials`) say of how far answers can be believed.

By what logits are to be divided, what an example of none of the classes looks like, and how many labels a set needs to
hold the right one. Each task weighs the same, however many examples it has.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from headstart.training.calibration import LEVEL
from headstart.training.reliability import auroc
from headstart.training.trials import Trial
from headstart.training.trust import (
    SCORES,
    SHARES,
    Doubt,
    Judged,
    Line,
    Size,
    Trust,
    Unknown,
    among_classes,
    before,
    mixed,
    nearness_of,
    score_of,
)

#: Examples of a trial that are fitted to, at most; of the run's own size eight times as many.
_MOST = 1000
#: More tasks than any trial has.
_APART = 2**32
#: |log| of the slope of odds, at most.
_STEEPEST = 5.0


def fitted(trials: Sequence[Trial]) -> Trust | None:
    """Return what validation tasks say, of which the run's own size comes first; ``None`` where there is nothing.

    The temperature is a line in the logarithms of ways and shots. Doubt is kept only where it makes examples of other
    validation tasks likelier than a temperature alone does.
    """
    trials = [one for one in map(_possible, trials) if len(one.y)]
    if not trials:
        return None
    halves = [[_of_tasks(one, half) for one in trials] for half in (0, 1)]
    doubted = False
    if all(len(one.y) for half in halves for one in half):

        def held_out(doubted: bool) -> float:
            return sum(float(_loss(_fit(a, doubted), b, _usual(b))) for a, b in (halves, halves[::-1]))

        doubted = held_out(True) < held_out(False)
    bare = _as_trust(_fit(trials, doubted), trials)
    unknown = _unknown(bare, trials)
    return bare._replace(unknown=unknown, mass=max(_mass(bare, one) for one in trials))


def _possible(trial: Trial) -> Trial:
    """Return a trial without examples of a class that was called impossible: nothing here can mend that."""
    kept = trial.logits.gather(1, trial.y.unsqueeze(1)).squeeze(1) > -torch.inf
    return trial._replace(logits=trial.logits[kept], y=trial.y[kept], task=trial.task[kept])


def _of_tasks(trial: Trial, half: int) -> Trial:
    kept = trial.task % 2 == half
    return trial._replace(logits=trial.logits[kept], y=trial.y[kept], task=trial.task[kept])


def _columns(size: Size) -> Tensor:
    return torch.tensor((1.0, math.log(size.shots), math.log(size.ways)), dtype=torch.float64)


def _size(trial: Trial) -> Size:
    return Size(trial.ways, trial.shots)


def _usual(trials: Sequence[Trial]) -> tuple[float, float]:
    """Return mean and standard deviation of the largest logits of the run's own size."""
    largest = trials[0].logits.amax(-1)
    return float(largest.mean()), max(float(largest.std(correction=0)), 1e-6)


def _parts(numbers: Tensor, trial: Trial, usual: tuple[float, float]) -> tuple[Tensor, Tensor | None]:
    """Return log T, and log ε / (1 − ε) where numbers say any."""
    columns = _columns(_size(trial))
    temperature, *doubt = numbers[:6].view(-1, 3) @ columns
    # which starts at ε = 0.05
    return temperature, doubt[0] - 3 + numbers[-1] * nearness_of(trial.logits, *usual) if doubt else None


def _loss(numbers: Tensor, trials: Sequence[Trial], usual: tuple[float, float]) -> Tensor:
    """Return −log p of the right labels."""

    def of(one: Trial) -> Tensor:
        found = mixed(one.logits, *_parts(numbers, one, usual)).gather(1, one.y.unsqueeze(1))
        return -found.clamp(min=1e-12).log().mean()

    return _own_first(torch.stack([of(one) for one in trials]))


def _own_first(costs: Tensor) -> Tensor:
    """Return the mean over sizes, of which the run's own, the first, counts as much as all others together."""
    return costs[0] if len(costs) == 1 else (costs[0] + costs[1:].mean()) / 2


def _fit(trials: Sequence[Trial], doubted: bool) -> Tensor:
    """Return the numbers under which the right labels are likeliest: three of log T, and where doubted four of ε."""
    usual = _usual(trials)
    thinned = [_thinned(one, _MOST * (1 if place else 8)) for place, one in enumerate(trials)]
    count = sum(len(one.y) for one in thinned)
    return _least(lambda numbers: _loss(numbers, thinned, usual), 7 if doubted else 3, count)


def _least(loss: Callable[[Tensor], Tensor], count: int, examples: int) -> Tensor:
    """Return the numbers ``(count,)`` of which the loss is least, with a standard normal distribution as their prior.

    Where no example of few is wrong, nothing else ends.

    Args:
        loss: the mean over examples.
        count: how many numbers there are.
        examples: of how many that is the mean.
    """
    numbers = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([numbers], max_iter=60, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = loss(numbers) + numbers.square().sum() / (2 * examples)
        found.backward()
        return found

    with torch.enable_grad():
        optimizer.step(closure)
    found = numbers.detach()
    return found if bool(found.isfinite().all()) else torch.zeros_like(found)


def _thinned(trial: Trial, most: int) -> Trial:
    step = -(-len(trial.y) // most)
    return trial._replace(logits=trial.logits[::step], y=trial.y[::step], task=trial.task[::step])


def _as_trust(numbers: Tensor, trials: Sequence[Trial]) -> Trust:
    temperature, *doubt = (Line(*line) for line in numbers[:6].view(-1, 3).tolist())
    found = None
    if doubt:
        found = Doubt(doubt[0]._replace(at=doubt[0].at - 3), float(numbers[-1]), *_usual(trials))
    judged = (
        Judged(one.ways, one.shots, len(one.task.unique()), float((one.logits.argmax(-1) == one.y).double().mean()))
        for one in trials
    )
    return Trust(temperature, found, None, 0.0, tuple(judged))


def _mass(trust: Trust, trial: Trial) -> float:
    """Return what labels before the right one may have together, so that sets hold `LEVEL` of a new task's examples."""
    ahead = before(among_classes(trust, trial.logits, trial.shots)).gather(1, trial.y.unsqueeze(1)).squeeze(1)
    values, weights = _by_task(ahead, trial.task, worst=lambda task: float(task.quantile(LEVEL)))
    order = values.argsort()
    held = weights[order].cumsum(0) >= LEVEL - 1e-9
    return min(float(values[order][held.int().argmax()]) + 1e-9, 1.0)


def _by_task(values: Tensor, task: Tensor, worst: Callable[[Tensor], float]) -> tuple[Tensor, Tensor]:
    """Return the values of all tasks, and again those of the worst one in place of the one to come, with weights.

    As `headstart.training.calibration.spread_of` does: every task weighs the same.
    """
    parts = [values[task == number] for number in task.unique().tolist()]
    parts.append(max(parts, key=worst))
    weights = [torch.full((len(part),), 1 / (len(part) * len(parts)), dtype=torch.float64) for part in parts]
    return torch.cat(parts), torch.cat(weights)


def _unknown(trust: Trust, trials: Sequence[Trial]) -> Unknown | None:
    """Return the score that tells unknown classes best, in the mean over sizes."""
    trials = [one for one in trials if len(one.unknown)]
    if not trials:
        return None
    found = [_scored(trust, trials, name) for name in SCORES]
    return max(found, key=lambda one: one.auroc)


def _scored(trust: Trust, trials: Sequence[Trial], name: str) -> Unknown:
    scores = [
        [score_of(name, logits, trust.log_temperature(_size(one))) for logits in (one.logits, one.unknown)]
        for one in trials
    ]
    sizes = [_size(one) for one in trials]
    mean = _line(sizes, [float(known.mean()) for known, _ in scores])
    deviation = _line(sizes, [math.log(max(float(known.std(correction=0)), 1e-6)) for known, _ in scores])

    def standard(place: int, values: Tensor) -> Tensor:
        return (values - mean(sizes[place])) / math.exp(deviation(sizes[place]))

    standardised = [tuple(standard(place, part) for part in both) for place, both in enumerate(scores)]
    every = torch.cat([known for known, _ in standardised])
    known = _quantiles(every, torch.cat([one.task + place * _APART for place, one in enumerate(trials)]))
    told = sum(auroc(known, other) for known, other in scores) / len(trials)
    return Unknown(name, mean, deviation, *_odds(sizes, standardised), tuple(known.tolist()), told)


def _odds(sizes: Sequence[Size], scores: Sequence[tuple[Tensor, ...]]) -> tuple[Line, Line]:
    """Return the logistic regression of known examples' scores against others', of each size as many of both.

    That is its intercept, and the logarithm of its slope. The run's own size counts as much as all others together.
    """
    rows = torch.stack([_columns(size) for size in sizes])

    def loss(numbers: Tensor) -> Tensor:
        odds, rise = rows @ numbers[:3], (rows @ numbers[3:]).clamp(-_STEEPEST, _STEEPEST).exp()
        costs = [
            (softplus(-at - by * known).mean() + softplus(at + by * other).mean()) / 2
            for at, by, (known, other) in zip(odds, rise, scores)
        ]
        return _own_first(torch.stack(costs))

    numbers = _least(loss, 6, sum(len(part) for both in scores for part in both)).tolist()
    return Line(*numbers[:3]), Line(*numbers[3:])


def _quantiles(values: Tensor, task: Tensor) -> Tensor:
    values, weights = _by_task(values, task, worst=lambda one: -float(one.quantile(0.05)))
    order = values.argsort()
    places = torch.searchsorted(weights[order].cumsum(0), torch.tensor(SHARES, dtype=torch.float64) - 1e-9)
    return values[order][places.clamp(max=len(values) - 1)]


def _line(sizes: Sequence[Size], values: Sequence[float]) -> Line:
    """Return the least squares line; of all that fit as well, the one that depends least on sizes."""
    rows = torch.stack([_columns(size) for size in sizes]).numpy()
    middle = rows.mean(0)
    slopes = np.linalg.lstsq(rows[:, 1:] - middle[1:], np.array(values) - np.mean(values), rcond=None)[0]
    return Line(float(np.mean(values) - middle[1:] @ slopes), *slopes.tolist())
