"""The suites that compare headstart with other libraries, by name."""

import shlex
from collections.abc import Sequence
from importlib import import_module

from headstart.bench.figures import Report
from headstart.bench.plan import Plan, shared

SUITES = ("speed", "compile", "memory", "sampler")


def plans(suites: Sequence[str], plan: Plan) -> dict[str, Plan]:
    """Return the plan of each suite that has a case which is asked for.

    Raises:
        UsageError: a pattern that no case of any of the suites answers to.
    """
    found = shared(plan.cases, {suite: import_module(f"headstart.bench.{suite}").names(plan) for suite in suites})
    return {suite: plan._replace(cases=tuple(names) if plan.cases else ()) for suite, names in found.items() if names}


def run(suite: str, plan: Plan) -> Report:
    """Run a suite; it raises what the suite does."""
    report: Report = import_module(f"headstart.bench.{suite}").run(plan)
    return report


def command(name: str, plan: Plan) -> str:
    """Return the command that asks for a plan, without the folders of one machine.

    >>> command("speed", Plan(cases=("sine*",), repeats=3))
    "headstart bench speed --cases 'sine*' --repeats 3 --without-peers"
    """
    words = ["headstart", "bench", name]
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
