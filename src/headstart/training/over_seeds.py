r"""The mean over several runs of a method, that differ by their seed, each judged on tasks; and how sure it is.

Run s of S has the values v_st on its n_s test tasks, and the mean m_s; the mean over runs is m = Σ m_s / S. A value is
what all have in common, what its seed adds and what its task adds: v_st = μ + a_s + b_t. Half the 95 % intervals of m:

    over seeds    t(S − 1) · √(s² / S)               s²: the variance of the m_s
    over tasks    t(Σ (n_s − 1)) · √(σ² Q)           σ²: that of the values within runs, pooled
    over both     t(ν) · √(σ_a² / S + σ² Q)          σ_a²: that of the a_s; never narrower than either alone

with Q = Σ_t w_t², where w_t = Σ_s 1 / (S n_s) over the runs that were judged on task t is how much a task weighs in m:
Q = 1 / (S n) where every run has n tasks of its own, and 1 / n where all have the same. What tasks alone make the m_s
differ is taken off s² (analysis of variance, as in Searle 1971, Linear Models, chapter 10):

    σ_a² = max(0, s² − σ² · S / (S − 1) · (mean of 1 / n_s − Q))

and ν is Satterthwaite's (1946) number for a sum of variances. The interval over tasks is for these runs on other tasks.
Where every run has tasks of its own, s² is of both, and the interval over both is that over seeds, or over tasks where
that is wider, as it happens to be when a few runs come out alike.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean, variance
from typing import NamedTuple

from headstart.training.evaluate import student


class OverSeeds(NamedTuple):
    """A mean over runs, and half its 95 % intervals; NaN where one run, or one task, cannot tell."""

    mean: float
    seeds: float
    tasks: float
    both: float


def over_seeds(runs: Sequence[Mapping[Hashable, float]]) -> OverSeeds:
    """Return the mean over runs with its intervals.

    Args:
        runs: each run's values by task; the same task in two runs is called the same in both.

    >>> alike = [{(seed, task): 1.0 + task % 2 for task in range(4)} for seed in range(3)]
    >>> [round(value, 3) for value in over_seeds(alike)]
    [1.5, 0.0, 0.377, 0.377]
    """
    means, sizes, count = [fmean(run.values()) for run in runs], [len(run) for run in runs], len(runs)
    degrees = sum(sizes) - count
    if not degrees:
        return OverSeeds(fmean(means), _half(means), math.nan, math.nan)
    within = sum(variance(run.values()) * (len(run) - 1) for run in runs if len(run) > 1) / degrees
    weights: dict[Hashable, float] = {}
    for run in runs:
        for task in run:
            weights[task] = weights.get(task, 0.0) + 1 / (count * len(run))
    tasks = within * sum(weight**2 for weight in weights.values())
    over_tasks = student(degrees) * math.sqrt(tasks)
    if count == 1:
        return OverSeeds(means[0], math.nan, over_tasks, math.nan)
    # of the variance of the mean, what comes from tasks is in that of the means already, but for tasks that runs share
    seen, apart = variance(means) / count, within * fmean(1 / size for size in sizes) / count
    shared = max(0.0, (tasks - apart) * count / (count - 1))
    over_both = 0.0
    if seen + shared > tasks:  # σ_a² > 0
        freedom = (seen + shared) ** 2 / (seen**2 / (count - 1) + shared**2 / degrees)
        over_both = student(math.floor(freedom)) * math.sqrt(seen + shared)
    return OverSeeds(fmean(means), _half(means), over_tasks, max(over_both, over_tasks, _half(means)))


def _half(means: Sequence[float]) -> float:
    return student(len(means) - 1) * math.sqrt(variance(means) / len(means)) if len(means) > 1 else math.nan
