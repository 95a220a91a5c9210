"""How far what is answered of a new task's examples can be believed: pure functions over logits.

All that is fitted comes from validation tasks of several sizes (`headstart.training.trials`): by what logits are to
be divided, what an example of none of the classes looks like, and how many labels a set needs to hold the right
one. Each task weighs the same, however many examples it has.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from headstart.errors import FileError, UsageError
from headstart.training.calibration import LEVEL
from headstart.training.trials import Trial

#: Bins of confidence in which it is held against accuracy.
BINS = 15
#: Share of known examples that are turned away where figures are given.
REJECTED = 0.05
#: Examples of a trial that are fitted to, at most; of the run's own size eight times as many.
_MOST = 1000
#: More tasks than any trial has.
_APART = 2**32
#: How many standard deviations from its mean the largest logit counts, at most.
_FAR = 4.0
#: |log T| at most: beyond, few examples that are all right, or all wrong, tell nothing more.
_HOTTEST = 7.0
#: Shares of known examples at which their scores are kept: finer where few are turned away.
_SHARES = (*(place / 1000 for place in range(100)), *(place / 100 for place in range(10, 101)))


class Line(NamedTuple):
    """A number that depends on a task's size: ``at + shots · log(shots) + ways · log(ways)``."""

    at: float
    shots: float = 0.0
    ways: float = 0.0

    def __call__(self, size: "Size") -> float:
        return self.at + self.shots * math.log(size.shots) + self.ways * math.log(size.ways)


class Size(NamedTuple):
    """Of a task."""

    ways: float
    shots: float
    """Examples of a class; the mean over classes."""


class Doubt(NamedTuple):
    """ε, how likely an example is one that logits say nothing about."""

    line: Line
    """log ε / (1 − ε) where the largest logit is as usual."""
    nearness: float
    """What is added for each standard deviation by which it is larger."""
    mean: float
    deviation: float


class Unknown(NamedTuple):
    """What tells that an example is of none of a task's classes."""

    score: str
    """One of `SCORES`: it is larger where an example is more like those of the classes."""
    mean: Line
    log_deviation: Line
    known: tuple[float, ...]
    """Quantiles, from the least, of the scores of examples that are of the classes; in standard deviations."""
    auroc: float
    """How often such an example has the larger score than one of other classes, on the validation tasks."""


class Judged(NamedTuple):
    """How validation tasks of one size did."""

    ways: int
    shots: int
    tasks: int
    accuracy: float


class Trust(NamedTuple):
    """What is known of how far answers can be believed."""

    log_temperature: Line
    doubt: Doubt | None
    """``None`` where the temperature alone does as well on validation tasks that it was not fitted to."""
    unknown: Unknown | None
    """``None`` where no validation task could be asked about classes that it does not have."""
    mass: float
    """A label is in the set where those that are more probable have no more than this together."""
    judged: tuple[Judged, ...]
    """Of each size, the run's own first."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return _plain(self)

    @classmethod
    def from_json(cls, value: Any, where: str) -> "Trust | None":
        """Return what JSON says, ``None`` for null.

        Raises:
            FileError: something else.
        """
        if value is None:
            return None
        try:
            found = TypeAdapter(cls).validate_json(json.dumps(value), strict=True)
            if found.unknown is not None and (
                found.unknown.score not in SCORES or len(found.unknown.known) != len(_SHARES)
            ):
                raise ValueError("its scores are of another kind")
            if not found.judged or min(min(one[:3]) for one in found.judged) < 1:
                raise ValueError("it was fitted to nothing")
        except (ValidationError, ValueError) as error:
            raise FileError(f"{where} does not say how far answers can be believed: {error}"[:300]) from error
        return found

    def within(self, ways: float, shots: float) -> Size:
        """Return the size that is nearest among those that it was fitted on."""
        found = [
            min(max(value, min(known)), max(known))
            for value, known in ((ways, [one.ways for one in self.judged]), (shots, [one.shots for one in self.judged]))
        ]
        return Size(*found)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def probabilities(trust: Trust, logits: Tensor, shots: float) -> Tensor:
    """Return calibrated probabilities ``(n, ways)``: p = (1 − ε) softmax(logits / T) + ε / ways.

    log T depends on the numbers of ways and shots, and ε besides on how large the largest logit is: the nearest class
    may be far. Which label is the most probable, no T and ε change. A class that logits call impossible stays so.

    References: Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599 (one T); the rest is our own.
    """
    size = trust.within(logits.shape[-1], shots)
    return _mixed(
        logits, trust.log_temperature(size), None if trust.doubt is None else _doubt(trust.doubt, size, logits)
    )


def _doubt(doubt: Doubt, size: Size, logits: Tensor) -> Tensor:
    return doubt.line(size) + doubt.nearness * _nearness(logits, doubt.mean, doubt.deviation)


def _nearness(logits: Tensor, mean: float, deviation: float) -> Tensor:
    return ((logits.amax(-1, keepdim=True) - mean) / deviation).clamp(-_FAR, _FAR)


def _mixed(logits: Tensor, log_temperature: Tensor | float, doubt: Tensor | None) -> Tensor:
    scale = torch.as_tensor(log_temperature, dtype=logits.dtype).clamp(-_HOTTEST, _HOTTEST).exp()
    possible = logits > -torch.inf
    # infinity over T has no derivative
    found = (torch.where(possible, logits, 0) / scale).masked_fill(~possible, -torch.inf).softmax(-1)
    if doubt is None:
        return found
    share = doubt.sigmoid()
    return (1 - share) * found + share * possible / possible.sum(-1, keepdim=True)


def unknown_of(trust: Trust, logits: Tensor, shots: float) -> Tensor:
    """Return how surely each example is of none of the classes, ``(n,)`` in [0, 1]: 1 − p.

    p is which share of examples that are of the classes look no more like them than it (a conformal p-value): of those,
    no more than a share r has p ≤ r, over tasks such as the validation tasks.

    Raises:
        UsageError: nothing is known of unknown classes.
    """
    if trust.unknown is None:
        raise UsageError("what examples of other classes look like was not seen")
    found, size = trust.unknown, trust.within(logits.shape[-1], shots)
    score = _score(found.score, logits, trust.log_temperature(size))
    standard = (score - found.mean(size)) / math.exp(found.log_deviation(size))
    return 1 - _between(standard, found.known, _SHARES)


def _between(x: Tensor, places: Sequence[float], values: Sequence[float]) -> Tensor:
    """Return ``values`` that stand at ascending ``places``, and between them what lies between: as `numpy.interp`."""
    at, value = (torch.tensor(part, dtype=torch.float64, device=x.device) for part in (places, values))
    width, rise = at.diff(), value.diff()
    # of how many steps x is past, and by how much of the one that it is in
    past = (x.double().unsqueeze(-1) - at[:-1]) / torch.where(width > 0, width, 1)
    return value[0] + (torch.where(width > 0, past.clamp(0, 1), (past >= 0).double()) * rise).sum(-1)


def label_sets(trust: Trust, probabilities: Tensor) -> Tensor:
    """Return which labels are in the set of each example, ``(n, ways)`` bool; the most probable one always is.

    The sets hold the right label of `LEVEL` of examples at least, in tasks of each size that was tried (conformal by
    task, adaptive sets: Romano, Sesia, Candès 2020, arXiv:2006.02544, without their random part).
    """
    return _before(probabilities) <= trust.mass


def _before(probabilities: Tensor) -> Tensor:
    """Return what the labels that are more probable than each have together."""
    ordered, order = probabilities.sort(-1, descending=True)
    return torch.empty_like(ordered).scatter(-1, order, ordered.cumsum(-1) - ordered).clamp(min=0)


Scored: TypeAlias = Callable[[Tensor], Tensor]

#: Scores of logits that were divided by the temperature: each is larger for examples that are more like the classes.
SCORES: Mapping[str, Scored] = {
    "largest logit": lambda logits: logits.amax(-1),  # for heads of distances, the least one
    "energy": lambda logits: logits.logsumexp(-1),
    "probability": lambda logits: logits.softmax(-1).amax(-1),
    "margin": lambda logits: (top := logits.topk(2).values)[:, 0] - top[:, 1],
}


def _score(name: str, logits: Tensor, log_temperature: float) -> Tensor:
    scale = math.exp(min(max(log_temperature, -_HOTTEST), _HOTTEST))
    return SCORES[name](logits / scale).nan_to_num(posinf=1e30, neginf=-1e30)


def fitted(trials: Sequence[Trial]) -> Trust | None:
    """Return what validation tasks say, of which the run's own size comes first; ``None`` where there is nothing.

    A temperature that depends on sizes, and a doubt, are each kept only where they make examples of other validation
    tasks likelier than the simpler one does.
    """
    trials = [one for one in map(_possible, trials) if len(one.y)]
    if not trials:
        return None
    halves = [[_of_tasks(one, half) for one in trials] for half in (0, 1)]
    chosen = _Form(False, False)
    if all(len(one.y) for half in halves for one in half):

        def held_out(form: _Form) -> float:
            return sum(_cost(_fit(a, form), b, form) for a, b in (halves, halves[::-1]))

        chosen = min(_FORMS, key=held_out)
    bare = _as_trust(_fit(trials, chosen), chosen, trials)
    unknown = _unknown(bare, trials)
    return bare._replace(unknown=unknown, mass=max(_mass(bare, one) for one in trials))


def _possible(trial: Trial) -> Trial:
    """Return a trial without examples of a class that was called impossible: nothing here can mend that."""
    kept = trial.logits.gather(1, trial.y.unsqueeze(1)).squeeze(1) > -torch.inf
    return trial._replace(logits=trial.logits[kept], y=trial.y[kept], task=trial.task[kept])


def _of_tasks(trial: Trial, half: int) -> Trial:
    kept = trial.task % 2 == half
    return trial._replace(logits=trial.logits[kept], y=trial.y[kept], task=trial.task[kept])


class _Form(NamedTuple):
    """Which of the numbers are fitted; the others are 0."""

    sizes: bool
    doubt: bool


#: From the simplest.
_FORMS = (_Form(False, False), _Form(True, False), _Form(True, True))


def _columns(trial: Trial, form: _Form) -> Tensor:
    found = (1.0, math.log(trial.shots), math.log(trial.ways)) if form.sizes else (1.0,)
    return torch.tensor(found, dtype=torch.float64)


def _usual(trials: Sequence[Trial]) -> tuple[float, float]:
    """Return mean and standard deviation of the largest logits of the run's own size."""
    largest = trials[0].logits.amax(-1)
    return float(largest.mean()), max(float(largest.std(correction=0)), 1e-6)


def _parts(numbers: Tensor, trial: Trial, form: _Form, usual: tuple[float, float]) -> tuple[Tensor, Tensor | None]:
    columns = _columns(trial, form)
    count = len(columns)
    if not form.doubt:
        return columns @ numbers, None
    # which starts at ε = 0.05
    doubt = columns @ numbers[count : 2 * count] - 3 + numbers[-1] * _nearness(trial.logits, *usual)
    return columns @ numbers[:count], doubt


def _loss(numbers: Tensor, trials: Sequence[Trial], form: _Form, usual: tuple[float, float]) -> Tensor:
    """Return −log p of the right labels; the run's own size counts as much as all others together."""
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for place, one in enumerate(trials):
        found = _mixed(one.logits, *_parts(numbers, one, form, usual)).gather(1, one.y.unsqueeze(1))
        weight = 1.0 if not place else 1 / (len(trials) - 1)
        total, weights = total - weight * found.clamp(min=1e-12).log().mean(), weights + weight
    return total / weights


def _cost(numbers: Tensor, trials: Sequence[Trial], form: _Form) -> float:
    return float(_loss(numbers, trials, form, _usual(trials)))


def _fit(trials: Sequence[Trial], form: _Form) -> Tensor:
    """Return the numbers under which the right labels are likeliest: of log T, and of ε."""
    usual = _usual(trials)
    thinned = [_thinned(one, _MOST * (1 if place else 8)) for place, one in enumerate(trials)]
    count = len(_columns(trials[0], form))
    numbers = torch.zeros(count * (2 if form.doubt else 1) + form.doubt, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([numbers], max_iter=60, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        # a hair of a penalty: where no example is wrong, nothing else ends
        found = _loss(numbers, thinned, form, usual) + 1e-4 * numbers.square().sum()
        found.backward()
        return found

    with torch.enable_grad():
        optimizer.step(loss)
    found = numbers.detach()
    return found if bool(found.isfinite().all()) else torch.zeros_like(found)


def _thinned(trial: Trial, most: int) -> Trial:
    step = -(-len(trial.y) // most)
    return trial._replace(logits=trial.logits[::step], y=trial.y[::step], task=trial.task[::step])


def _as_trust(numbers: Tensor, form: _Form, trials: Sequence[Trial]) -> Trust:
    values = numbers.tolist()
    count = 3 if form.sizes else 1
    doubt = None
    if form.doubt:
        line = Line(*values[count : 2 * count])
        doubt = Doubt(line._replace(at=line.at - 3), values[-1], *_usual(trials))
    judged = (
        Judged(one.ways, one.shots, len(one.task.unique()), float((one.logits.argmax(-1) == one.y).double().mean()))
        for one in trials
    )
    return Trust(Line(*values[:count]), doubt, None, 0.0, tuple(judged))


def _mass(trust: Trust, trial: Trial) -> float:
    """Return what labels before the right one may have together, so that sets hold `LEVEL` of a new task's examples."""
    before = _before(probabilities(trust, trial.logits, trial.shots)).gather(1, trial.y.unsqueeze(1)).squeeze(1)
    values, weights = _by_task(before, trial.task, worst=lambda task: float(task.quantile(LEVEL)))
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
        [_score(name, logits, trust.log_temperature(Size(one.ways, one.shots))) for logits in (one.logits, one.unknown)]
        for one in trials
    ]
    sizes = [Size(one.ways, one.shots) for one in trials]
    mean = _line(sizes, [float(known.mean()) for known, _ in scores])
    deviation = _line(sizes, [math.log(max(float(known.std(correction=0)), 1e-6)) for known, _ in scores])

    def standard(place: int, values: Tensor) -> Tensor:
        return (values - mean(sizes[place])) / math.exp(deviation(sizes[place]))

    every = torch.cat([standard(place, known) for place, (known, _) in enumerate(scores)])
    known = _quantiles(every, torch.cat([one.task + place * _APART for place, one in enumerate(trials)]))
    told = sum(auroc(known, other) for known, other in scores) / len(trials)
    return Unknown(name, mean, deviation, tuple(known.tolist()), told)


def _quantiles(values: Tensor, task: Tensor) -> Tensor:
    values, weights = _by_task(values, task, worst=lambda one: -float(one.quantile(0.05)))
    order = values.argsort()
    places = torch.searchsorted(weights[order].cumsum(0), torch.tensor(_SHARES, dtype=torch.float64) - 1e-9)
    return values[order][places.clamp(max=len(values) - 1)]


def _line(sizes: Sequence[Size], values: Sequence[float]) -> Line:
    """Return the least squares line; of all that fit as well, the one that depends least on sizes."""
    rows = np.array([(1.0, math.log(size.shots), math.log(size.ways)) for size in sizes])
    middle = rows.mean(0)
    slopes = np.linalg.lstsq(rows[:, 1:] - middle[1:], np.array(values) - np.mean(values), rcond=None)[0]
    return Line(float(np.mean(values) - middle[1:] @ slopes), *slopes.tolist())


def auroc(known: Tensor, unknown: Tensor) -> float:
    """Return how often a known example has the larger score than an unknown one; half where they are the same.

    >>> auroc(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0]))
    0.875
    """
    ordered = known.sort().values
    below, upto = (torch.searchsorted(ordered, unknown, right=right).double() for right in (False, True))
    return float(1 - ((below + upto) / 2).mean() / len(known))


def more_examples_text(trust: Trust, ways: int, shots: float) -> str:
    """Return what more examples of each class would buy, in words; empty where tasks of one size were tried alone.

    >>> judged = (Judged(5, 1, 100, 0.76), Judged(5, 5, 25, 0.88), Judged(5, 10, 25, 0.89), Judged(2, 5, 25, 0.95))
    >>> more_examples_text(Trust(Line(0.0), None, None, 0.9, judged), 4, 1)
    "On the run's validation tasks of 5 classes accuracy is 76 % with 1 example of each, 88 % with 5, 89 % with 10"
    """
    near = min({one.ways for one in trust.judged}, key=lambda own: abs(math.log(own / ways)))
    found = sorted((one.shots, one.accuracy) for one in trust.judged if one.ways == near)
    if not any(count > shots for count, _ in found):
        return ""
    here = max((count for count, _ in found if count <= shots), default=found[0][0])
    first, *more = [(count, f"{100 * accuracy:.0f} %") for count, accuracy in found if count >= here]
    told = [f"{first[1]} with {first[0]} example{'s' * (first[0] > 1)} of each", *(f"{b} with {a}" for a, b in more)]
    return f"On the run's validation tasks of {near} classes accuracy is {', '.join(told)}"


class Reliability(NamedTuple):
    """How often labels are right that were given such a confidence."""

    ece: float
    """The expected calibration error: |confidence − accuracy| in the mean over examples, by `BINS` bins."""
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    share: tuple[float, ...]
    """Of each bin that has examples: the mean confidence, the share that is right, and how many of all it has."""


def reliability(probabilities: Tensor, y: Tensor) -> Reliability:
    """Hold the confidence of labels ``(n, ways)`` against the truth ``(n,)``.

    Reference: Naeini, Cooper, Hauskrecht 2015, doi:10.1609/aaai.v29i1.9602.
    """
    confidence, label = probabilities.max(-1)
    right = (label == y).double()
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    rows = [(place == number) for number in range(BINS) if bool((place == number).any())]
    found = [(float(confidence[row].mean()), float(right[row].mean()), float(row.double().mean())) for row in rows]
    return Reliability(sum(share * abs(sure - true) for sure, true, share in found), *zip(*found))


class Measured(NamedTuple):
    """How far answers on tasks of one size can be believed that had no part in any choice."""

    ways: int
    shots: int
    tasks: int
    before: Reliability
    after: Reliability
    held: float
    """Which share of label sets hold the right one; `LEVEL` is promised."""
    labels: float
    """How many labels a set has."""
    auroc: float | None
    fpr: float | None
    """Of examples of other classes, how many look more like one of the classes than 5 % of those do that are."""
    rejected: float | None
    """Of examples of the classes, how many are turned away where 5 % are to be, at most."""
    sure: float | None
    """Of examples of other classes, how many are given a label with a probability over 0.9, where those are turned away
    that `rejected` says."""
    sure_before: float | None
    """The same before calibration, where none is turned away."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return _plain(self)


def measured(trust: Trust, trial: Trial) -> Measured:
    """Return how far what was fitted holds on other tasks."""
    found = probabilities(trust, trial.logits, trial.shots)
    sets = label_sets(trust, found)
    told: dict[str, float | None] = dict.fromkeys(("auroc", "fpr", "rejected", "sure", "sure_before"))
    if trust.unknown is not None and len(trial.unknown):
        known, other = (1 - unknown_of(trust, logits, trial.shots) for logits in (trial.logits, trial.unknown))
        temperature = trust.log_temperature(trust.within(trial.ways, trial.shots))
        scores = (_score(trust.unknown.score, logits, temperature) for logits in (trial.logits, trial.unknown))
        told["auroc"] = auroc(*scores)
        told["fpr"] = float((other > known.quantile(REJECTED)).double().mean())
        told["rejected"] = float((known <= REJECTED).double().mean())
        sure = probabilities(trust, trial.unknown, trial.shots).amax(-1) > 0.9
        told["sure"] = float((sure & (other > REJECTED)).double().mean())
        told["sure_before"] = float((trial.unknown.softmax(-1).amax(-1) > 0.9).double().mean())
    return Measured(
        trial.ways,
        trial.shots,
        len(trial.task.unique()),
        reliability(trial.logits.softmax(-1), trial.y),
        reliability(found, trial.y),
        float(sets.gather(1, trial.y.unsqueeze(1)).double().mean()),
        float(sets.sum(-1).double().mean()),
        **told,
    )
