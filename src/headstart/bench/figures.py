"""What a suite of measurements finds: figures, and the targets that they are held against."""

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
