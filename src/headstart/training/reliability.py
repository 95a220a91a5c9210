"""How often answers are right that are given such a probability, and how far what else is said of them holds."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from headstart.training.trials import Trial
from headstart.training.trust import (
    UNKNOWN_SHARE,
    Trust,
    Unknown,
    among_classes,
    believed,
    label_sets,
    likeness_of,
    plain,
    standard_score,
)

#: Bins of confidence in which it is held against accuracy.
BINS = 15
#: Share of known examples that are turned away where figures are given.
REJECTED = 0.05
#: From where on a label is given as good as surely, where figures are given.
SURE = 0.9


def auroc(known: Tensor, unknown: Tensor) -> float:
    """Return how often a known example has the larger score than an unknown one; half where they are the same.

    >>> auroc(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0]))
    0.875
    """
    ordered = known.sort().values
    below, upto = (torch.searchsorted(ordered, unknown, right=right).double() for right in (False, True))
    return float(1 - ((below + upto) / 2).mean() / len(known))


class Reliability(NamedTuple):
    """How often labels are right that were given such a confidence."""

    ece: float
    """The expected calibration error: |confidence − accuracy| in the mean over examples, by `BINS` bins."""
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    share: tuple[float, ...]
    """Of each bin that has examples: the mean confidence, the share that is right, and how many of all it has."""


def reliability(confidence: Tensor, right: Tensor, weights: Tensor | None = None) -> Reliability:
    """Hold the probability of labels that were given ``(n,)`` against whether they are right ``(n,)``.

    Args:
        confidence: the probabilities.
        right: bool.
        weights: how much each counts; by default as much as each other.

    Reference: Naeini, Cooper, Hauskrecht 2015, doi:10.1609/aaai.v29i1.9602.
    """
    weights = torch.ones_like(confidence) if weights is None else weights
    weights = weights / weights.sum()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    share, sure, true = (
        torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, part * weights)
        for part in (torch.ones_like(confidence), confidence, right.double())
    )
    there = share > 0
    share, sure, true = share[there], sure[there] / share[there], true[there] / share[there]
    ece = float((share * (sure - true).abs()).sum())
    return Reliability(ece, *(tuple(part.tolist()) for part in (sure, true, share)))


class Others(NamedTuple):
    """The same where examples of other classes are among those that are asked."""

    told: Reliability
    """Of what answers say, where `UNKNOWN_SHARE` of all examples are of other classes, for which no label is right."""
    auroc: float
    """How often an example of the classes looks more like them than one of others."""
    fpr: float
    """Of examples of other classes, how many look more like one of the classes than 5 % of those do that are."""
    rejected: float
    """Of examples of the classes, how many are turned away where 5 % are to be, at most."""
    sure_before: float
    """Of examples of other classes, how many are given a label with a probability over `SURE` before calibration."""
    sure: float
    """The same of what answers say."""


class Measured(NamedTuple):
    """How far answers on tasks of one size can be believed that had no part in any choice."""

    ways: int
    shots: int
    tasks: int
    before: Reliability
    """Of the model's own probabilities, on examples of the classes."""
    after: Reliability
    """Of calibrated ones, given that an example is of the classes."""
    held: float
    """Which share of label sets hold the right one; `LEVEL` is promised."""
    labels: float
    """How many labels a set has."""
    others: Others | None
    """``None`` where nothing is known of other classes."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return plain(self)


def measured(trust: Trust, trial: Trial) -> Measured:
    """Return how far what was fitted holds on other tasks."""
    among, (own, label) = among_classes(trust, trial.logits, trial.shots), trial.logits.softmax(-1).max(-1)
    sets, right = label_sets(trust, among), label == trial.y
    return Measured(
        trial.ways,
        trial.shots,
        len(trial.task.unique()),
        reliability(own, right),
        reliability(among.amax(-1), right),
        float(sets.gather(1, trial.y.unsqueeze(1)).double().mean()),
        float(sets.sum(-1).double().mean()),
        None if trust.unknown is None or not len(trial.unknown) else _others(trust, trust.unknown, trial, right),
    )


def _others(trust: Trust, unknown: Unknown, trial: Trial, right: Tensor) -> Others:
    both, size = (trial.logits, trial.unknown), trust.within(trial.ways, trial.shots)
    like, like_others = (likeness_of(trust, logits, trial.shots) for logits in both)
    sure, sure_others = (believed(trust, logits, trial.shots).probabilities.amax(-1) for logits in both)
    shares = torch.tensor([1 - UNKNOWN_SHARE, UNKNOWN_SHARE], dtype=torch.float64)
    counts = torch.tensor([len(sure), len(sure_others)])
    every = torch.cat([right, torch.zeros_like(sure_others, dtype=torch.bool)])
    return Others(
        reliability(torch.cat([sure, sure_others]), every, (shares / counts).repeat_interleave(counts)),
        auroc(*(standard_score(trust, unknown, logits, size) for logits in both)),
        float((like_others > like.quantile(REJECTED)).double().mean()),
        float((like <= REJECTED).double().mean()),
        float((trial.unknown.softmax(-1).amax(-1) > SURE).double().mean()),
        float((sure_others > SURE).double().mean()),
    )
