"""What a person asks of the suites that compare headstart with other libraries."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from headstart.bench.figures import Report
from headstart.bench.peers.environment import Environment
from headstart.bench.peers.process import available_cores
from headstart.errors import UsageError


def _say_nothing(text: str) -> None:
    return None


def _keep_nothing(report: Report) -> None:
    return None


class Plan(NamedTuple):
    """The same for every suite; what a suite has no use for, it leaves."""

    environment: Environment | None = None
    """Where the other libraries are; ``None``: without them."""
    cases: tuple[str, ...] = ()
    """Patterns, as of file names, of the cases to run; empty: all."""
    repeats: int | None = None
    """Rounds of every case; by default each case's own."""
    seconds: float | None = None
    """About how long the suite may take: rounds that do not fit any more are left out, and cases that only show how
    something grows."""
    threads: int = 0
    """Threads of every contender; 0: one a core."""
    note: Callable[[str], None] = _say_nothing
    """Is told what goes on, a line at a time."""
    data: Path | None = None
    """The folder of the data sets, where a suite needs one."""
    keep: Callable[[Report], None] = _keep_nothing
    """Is given what there is so far, after every case."""

    @property
    def python(self) -> Path | None:
        """The interpreter that contenders run in; ``None``: the one that runs this."""
        return self.environment.python if self.environment else None


def check(plan: Plan) -> Plan:
    """Return the plan with the number of threads filled in, or raise `UsageError` for what cannot be."""
    if plan.threads < 0 or (plan.repeats is not None and plan.repeats < 1):
        raise UsageError(f"threads must be at least 0, and repeats at least 1; got {plan.threads} and {plan.repeats}")
    if plan.seconds is not None and not plan.seconds > 0:
        raise UsageError(f"seconds must be more than 0, got {plan.seconds}")
    return plan._replace(threads=plan.threads or max(1, len(available_cores())))


def chosen(plan: Plan, names: Sequence[str]) -> list[str]:
    """Return the names of the cases that the plan asks for, in their order.

    A pattern is a case's whole name, one as of file names, or a part of the name.

    Raises:
        UsageError: a pattern that no case answers to.
    """
    return shared(plan.cases, {"": names})[""]


def shared(patterns: Sequence[str], names: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return for every suite the names of its cases that are asked for; without patterns, all.

    >>> shared(("sine*",), {"speed": ["sine T=1", "conv4"], "memory": ["MLP"]})
    {'speed': ['sine T=1'], 'memory': []}

    Raises:
        UsageError: a pattern that no case of any suite answers to.
    """
    every = list(dict.fromkeys(name for own in names.values() for name in own))
    wanted: set[str] = set() if patterns else set(every)
    for pattern in patterns:
        found = {pattern} & set(every) or {name for name in every if fnmatchcase(name, pattern) or pattern in name}
        if not found:
            raise UsageError(f"no case answers to {pattern!r}; there are: {'; '.join(every)}")
        wanted |= found
    return {suite: [name for name in own if name in wanted] for suite, own in names.items()}
