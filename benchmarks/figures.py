"""What a suite of measurements finds: figures, and the targets that they are held against."""

from collections.abc import Iterable, Sequence
from statistics import quantiles
from typing import Literal, NamedTuple, TypeAlias

Unit: TypeAlias = Literal["ms", "s", "MB", "episodes/s"]
"""Milliseconds and seconds of one step, megabytes (10⁶ bytes) of peak memory, and a rate."""


class Figure(NamedTuple):
    """What one contender needs for one case."""

    case: str
    """What was computed, in the words of a table: ``"sine T=5"``."""
    contender: str
    """Who computed it: ``"headstart"``, ``"headstart compiled"``, ``"learn2learn"``, …"""
    value: float
    """The median of the rounds' medians."""
    low: float
    """Their first quartile."""
    high: float
    """Their third quartile."""
    runs: int
    """The number of runs in all rounds."""
    unit: Unit
    note: str = ""
    """What a reader must know of this figure, such as the seconds of compilation; mostly empty."""
    rounds: tuple[float, ...] = ()
    """The median of every round; those of one case have the same rounds, in which all contenders ran one after the
    other. Empty where it was measured once."""


class Target(NamedTuple):
    """What a ratio of two figures is to be."""

    name: str
    """In the words of a table: ``"sine T=5, eager, against learn2learn"``."""
    case: str
    """The case of our figure."""
    ours: str
    """The contender that is ours."""
    theirs: str
    """The contender that it is held against."""
    ratio: float
    """What the ratio is to be; which ratio, ``better`` says."""
    better: Literal["times faster", "times the time", "times the memory", "times the rate"]
    """``"times faster"``: theirs / ours, at least; ``"times the time"`` and ``"times the memory"``: ours / theirs, at
    most; ``"times the rate"``: ours / theirs, at least."""
    against: str = ""
    """The case of their figure, where it is another one."""


class Report(NamedTuple):
    """What a suite found."""

    suite: str
    figures: tuple[Figure, ...]
    targets: tuple[Target, ...]
    machine: dict[str, str]
    """What it ran on: processor, threads, versions of Python, torch and every peer."""
    failed: dict[str, str] = {}
    """``{contender, case or "contender: case": why it has no figure}``."""
    command: str = ""
    """What it was asked for with."""
    partial: str = ""
    """What is not in it that the whole suite has; empty where it is whole."""


class Verdict(NamedTuple):
    """What became of a target."""

    target: Target
    ours: Figure | None
    theirs: Figure | None
    ratio: float | None
    """As the target counts it, the median over rounds where both ran in turn; ``None`` where a figure is missing."""
    reached: bool | None
    reason: str = ""
    """Why there is no ratio."""
    low: float | None = None
    """The ratio's first quartile over the rounds; ``None`` where there are none."""
    high: float | None = None
    """Its third quartile."""

    @property
    def disturbed(self) -> bool:
        """Whether one of the figures is."""
        return any(figure is not None and disturbed(figure) for figure in (self.ours, self.theirs))


def disturbed(figure: Figure) -> bool:
    """Return whether the runs differ so much that something else must have run: the quartiles span half the median.

    >>> disturbed(Figure("sine", "headstart", 2.0, 1.9, 3.0, 9, "ms"))
    True
    """
    return figure.high - figure.low > figure.value / 2


def verdicts(report: Report) -> list[Verdict]:
    """Return what became of the report's targets, in their order."""
    return [_verdict(target, report) for target in report.targets]


def _verdict(target: Target, report: Report) -> Verdict:
    ours = _find(report.figures, target.case, target.ours)
    theirs = _find(report.figures, target.against or target.case, target.theirs)
    if ours is None or theirs is None:
        return Verdict(target, ours, theirs, None, None, _reason(target, report, ours is None))
    above, below = (theirs, ours) if target.better == "times faster" else (ours, theirs)
    ratio, spread = above.value / below.value if below.value else float("inf"), (None, None)
    if ours.case == theirs.case and len(ours.rounds) == len(theirs.rounds) > 1 and all(below.rounds):
        # what disturbs a round disturbs both
        low, ratio, high = quantiles([a / b for a, b in zip(above.rounds, below.rounds)], n=4, method="inclusive")
        spread = (low, high)
    reached = ratio >= target.ratio if at_least(target) else ratio <= target.ratio
    return Verdict(target, ours, theirs, ratio, reached, "", *spread)


def at_least(target: Target) -> bool:
    """Return whether more is better."""
    return target.better in ("times faster", "times the rate")


def _find(figures: Iterable[Figure], case: str, contender: str) -> Figure | None:
    return next((each for each in figures if (each.case, each.contender) == (case, contender)), None)


def _reason(target: Target, report: Report, ours: bool) -> str:
    name, case = (target.ours, target.case) if ours else (target.theirs, target.against or target.case)
    return report.failed.get(f"{name}: {case}") or report.failed.get(name) or f"no figure of {name}"


def sentence(verdict: Verdict) -> str:
    """Return a target's outcome in a sentence.

    >>> ours, theirs = Figure("sine", "headstart", 2, 2, 2, 9, "ms"), Figure("sine", "higher", 15, 15, 15, 9, "ms")
    >>> target = Target("sine, against higher", "sine", "headstart", "higher", 10, "times faster")
    >>> sentence(verdicts(Report("speed", (ours, theirs), (target,), {}))[0])
    'sine, against higher: 7.50 times faster, at least 10 wanted: short by 25 %'
    """
    target = verdict.target
    if verdict.ratio is None:
        return f"{target.name}: not measured ({verdict.reason})"
    bound = f"{'at least' if at_least(target) else 'at most'} {target.ratio:g} wanted"
    said = f"{target.name}: {verdict.ratio:.2f} {target.better}, {bound}"
    if verdict.reached:
        return f"{said}: reached"
    if at_least(target):
        said += f": short by {1 - verdict.ratio / target.ratio:.0%}".replace("%", " %")
    else:
        said += f": over by {verdict.ratio / target.ratio - 1:.0%}".replace("%", " %")
    return f"{said}; disturbed, measure again" if verdict.disturbed else said


def missed(found: Sequence[Verdict]) -> list[Verdict]:
    """Return the targets that are not reached, or not measured."""
    return [verdict for verdict in found if not verdict.reached]
