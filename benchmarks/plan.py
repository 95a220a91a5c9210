"""What a person asks of the suites that compare headstart with other libraries."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from benchmarks.figures import Report
from benchmarks.peers.environment import Environment
from benchmarks.peers.process import available_cores
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


SUITES = ("speed", "compile", "memory", "sampler")


def plans(suites: Sequence[str], plan: Plan) -> dict[str, Plan]:
    """Return the plan of each suite that has a case which is asked for.

    Raises:
        UsageError: a pattern that no case of any of the suites answers to.
    """
    found = shared(plan.cases, {suite: import_module(f"benchmarks.{suite}").names(plan) for suite in suites})
    return {suite: plan._replace(cases=tuple(names) if plan.cases else ()) for suite, names in found.items() if names}


def run(suite: str, plan: Plan) -> Report:
    """Run a suite; it raises what the suite does."""
    report: Report = import_module(f"benchmarks.{suite}").run(plan)
    return report


def command(name: str, plan: Plan) -> str:
    """Return the command that asks for a plan, without the folders of one machine.

    >>> command("speed", Plan(cases=("sine*",), repeats=3))
    "python -m benchmarks speed --cases 'sine*' --repeats 3 --without-peers"
    """
    words = ["python", "-m", "benchmarks", name]
    words += ["--cases", "; ".join(plan.cases)] if plan.cases else []
    words += ["--repeats", str(plan.repeats)] if plan.repeats is not None else []
    words += ["--seconds", f"{plan.seconds:g}"] if plan.seconds is not None else []
    words += ["--threads", str(plan.threads)] if plan.threads else []
    return shlex.join(words + ["--without-peers"] * (plan.environment is None))


def partial(plan: Plan) -> str:
    """Return what a run of the plan lacks of a whole one, or nothing."""
    found = []
    found += ["some cases alone"] if plan.cases else []
    found += [f"{plan.repeats} rounds of every case"] if plan.repeats is not None else []
    found += [f"no more than about {plan.seconds:g} s"] if plan.seconds is not None else []
    if plan.environment is None:
        found.append("without other libraries")
    elif plan.environment.failed:
        found.append(f"without {', '.join(plan.environment.failed)}, which could not be installed")
    return "; ".join(found)
