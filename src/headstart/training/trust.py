"""How far what is answered of a new task's examples can be believed: pure functions over logits.

What is said of an example x is P(label | x) = P(known | x) · P(label | known, x): how surely it is of one of the
classes at all, and of which, if so. All that is fitted comes from validation tasks
(`headstart.training.trust_fitting`).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from headstart.errors import FileError, UsageError

#: Which share of what is asked is taken for being of other classes, where nobody says: as much as is of the task's own.
UNKNOWN_SHARE = 0.5
#: Shares of known examples at which their scores are kept: finer where few are turned away.
SHARES = (*(place / 1000 for place in range(100)), *(place / 100 for place in range(10, 101)))
#: How many standard deviations from its mean the largest logit counts, at most.
_FAR = 4.0
#: |log T| at most: beyond, few examples that are all right, or all wrong, tell nothing more.
_HOTTEST = 7.0


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
    odds: Line
    """log P(known) / P(unknown) of an example of mean score, where as many are of other classes as of these."""
    log_rise: Line
    """log of what is added to that for each standard deviation by which the score is larger."""
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
        return plain(self)

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
                found.unknown.score not in SCORES or len(found.unknown.known) != len(SHARES)
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


def plain(value: Any) -> Any:
    """Return a tuple with names as an object of JSON, and what is in it likewise."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(part) for name, part in value._asdict().items()}
    return [plain(part) for part in value] if isinstance(value, tuple) else value


class Believed(NamedTuple):
    """What is said of n examples."""

    probabilities: Tensor
    """``(n, ways)``: how likely each is of each class."""
    unknown: Tensor | None
    """``(n,)``: how likely it is of none; with the others 1. ``None`` where all are taken for being of the classes."""


def believed(trust: Trust, logits: Tensor, shots: float, unknown_share: float = UNKNOWN_SHARE) -> Believed:
    """Return how likely examples are of each class of a task, and of none of them.

    Args:
        trust: what is known of that.
        logits: ``(n, ways)``.
        shots: examples of a class that were learned from.
        unknown_share: which share of what is asked is of none of the classes; with 0, all is of the classes.
    """
    among = among_classes(trust, logits, shots)
    if trust.unknown is None:
        return Believed(among, None)
    found, size = trust.unknown, trust.within(logits.shape[-1], shots)
    prior = math.log(unknown_share) - math.log1p(-unknown_share) if unknown_share else -math.inf
    odds = found.odds(size) + math.exp(found.log_rise(size)) * standard_score(trust, found, logits, size) - prior
    return Believed(odds.sigmoid().unsqueeze(-1) * among, (-odds).sigmoid())


def among_classes(trust: Trust, logits: Tensor, shots: float) -> Tensor:
    """Return how likely examples that are of one of the classes are of each, ``(n, ways)``.

    p = (1 − ε) softmax(logits / T) + ε / ways. log T depends on the numbers of ways and shots, and ε besides on how
    large the largest logit is: the nearest class may be far. Which label is the most probable, no T and ε change. A
    class that logits call impossible stays so.

    References: Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599 (one T); the rest is our own.
    """
    size = trust.within(logits.shape[-1], shots)
    return mixed(
        logits, trust.log_temperature(size), None if trust.doubt is None else _doubt(trust.doubt, size, logits)
    )


def _doubt(doubt: Doubt, size: Size, logits: Tensor) -> Tensor:
    return doubt.line(size) + doubt.nearness * nearness_of(logits, doubt.mean, doubt.deviation)


def nearness_of(logits: Tensor, mean: float, deviation: float) -> Tensor:
    """Return by how many standard deviations the largest logit is larger than usual, ``(n, 1)``."""
    return ((logits.amax(-1, keepdim=True) - mean) / deviation).clamp(-_FAR, _FAR)


def mixed(logits: Tensor, log_temperature: Tensor | float, doubt: Tensor | None) -> Tensor:
    """Return (1 − ε) softmax(logits / T) + ε / ways of ``log_temperature`` log T and ``doubt`` log ε / (1 − ε)."""
    scale = torch.as_tensor(log_temperature, dtype=logits.dtype).clamp(-_HOTTEST, _HOTTEST).exp()
    possible = logits > -torch.inf
    # infinity over T has no derivative
    found = (torch.where(possible, logits, 0) / scale).masked_fill(~possible, -torch.inf).softmax(-1)
    if doubt is None:
        return found
    share = doubt.sigmoid()
    return (1 - share) * found + share * possible / possible.sum(-1, keepdim=True)


def likeness_of(trust: Trust, logits: Tensor, shots: float) -> Tensor:
    """Return which share of examples that are of the classes look no more like them than each does, ``(n,)``.

    A conformal p-value: of examples of the classes, no more than a share r has r or less, over tasks such as the
    validation tasks.

    Raises:
        UsageError: nothing is known of unknown classes.
    """
    if trust.unknown is None:
        raise UsageError("what examples of other classes look like was not seen")
    size = trust.within(logits.shape[-1], shots)
    return _between(standard_score(trust, trust.unknown, logits, size), trust.unknown.known, SHARES)


def standard_score(trust: Trust, unknown: Unknown, logits: Tensor, size: Size) -> Tensor:
    """Return how much more like the classes examples look than those of the classes usually do, ``(n,)``."""
    score = score_of(unknown.score, logits, trust.log_temperature(size))
    return (score - unknown.mean(size)) / math.exp(unknown.log_deviation(size))


def _between(x: Tensor, places: Sequence[float], values: Sequence[float]) -> Tensor:
    """Return ``values`` that stand at ascending ``places``, and between them what lies between: as `numpy.interp`."""
    at, value = (torch.tensor(part, dtype=torch.float64, device=x.device) for part in (places, values))
    width, rise = at.diff(), value.diff()
    # of how many steps x is past, and by how much of the one that it is in
    past = (x.double().unsqueeze(-1) - at[:-1]) / torch.where(width > 0, width, 1)
    return value[0] + (torch.where(width > 0, past.clamp(0, 1), (past >= 0).double()) * rise).sum(-1)


def label_sets(trust: Trust, among: Tensor) -> Tensor:
    """Return which labels are in the set of each example, ``(n, ways)`` bool; the most probable one always is.

    The sets hold the right label of `LEVEL` of the examples at least that are of one of the classes, in tasks of each
    size that was tried (conformal by task, adaptive sets: Romano, Sesia, Candès 2020, arXiv:2006.02544, without their
    random part).

    Args:
        trust: what is known of that.
        among: of `among_classes`.
    """
    return before(among) <= trust.mass


def before(probabilities: Tensor) -> Tensor:
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


def score_of(name: str, logits: Tensor, log_temperature: float) -> Tensor:
    """Return one of `SCORES`, ``(n,)``; finite."""
    scale = math.exp(min(max(log_temperature, -_HOTTEST), _HOTTEST))
    return SCORES[name](logits / scale).nan_to_num(posinf=1e30, neginf=-1e30)


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
