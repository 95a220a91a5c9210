"""``headstart bench speed``, ``compile``, ``memory``, ``sampler`` and ``all``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from headstart.cli.evaluate import Json
from headstart.cli.output import print_json, print_table
from headstart.errors import HeadstartError

if TYPE_CHECKING:
    from headstart.bench.figures import Report
    from headstart.bench.plan import Plan


@Parameter(name="*")
@dataclass
class Asked:
    """What is asked of a suite.

    Parameters
    ----------
    peers
        The folder of the environment that holds the other libraries; it is built first if it is not there. Default:
        the one that HEADSTART_PEERS names, or one in headstart in your cache folder.
    rebuild_peers
        Try again to install what could not be installed there; without it, that is tried once a day.
    without_peers
        Leave the other libraries out: headstart beside plain loops alone, with nothing to install.
    out
        A folder for the results: SUITE.json, SUITE.md and SUITE.png; SUITE.partial.json and so on where not everything
        is asked for, or can be run, so that whole results stay.
    cases
        Names of cases, parts of them or patterns such as "sine*"; separate several by semicolons. Default: all.
    repeats
        Rounds of every case. Range: from 1 up. Default: more for quick cases than for slow ones.
    seconds
        About how long a suite may take: rounds that do not fit are left out, and cases that only show growth.
    threads
        Threads of each contender; 0: one a core. Range: from 0 up.
    data
        The folder of Omniglot's files, for the sampler. Default: omniglot in the folder that HEADSTART_DATA names, or
        in ../shared/data.
    as_json
        Print the results as JSON.
    """

    peers: Path | None = None
    rebuild_peers: Annotated[bool, Parameter(negative=())] = False
    without_peers: Annotated[bool, Parameter(negative=())] = False
    out: Path | None = None
    cases: str | None = None
    repeats: int | None = None
    seconds: float | None = None
    threads: int = 0
    data: Path | None = None
    as_json: Json = False


def speed(*, asked: Asked = Asked()) -> int:
    """Time an outer step of MAML beside other libraries and plain loops."""
    return _run("speed", ["speed"], asked)


def compile_(*, asked: Asked = Asked()) -> int:
    """Time compiled steps beside jitted JAX, and what compiling costs."""
    return _run("compile", ["compile"], asked)


def memory(*, asked: Asked = Asked()) -> int:
    """Measure the memory of long inner loops, by each way of going back."""
    return _run("memory", ["memory"], asked)


def sampler(*, asked: Asked = Asked()) -> int:
    """Count episodes a second beside other libraries' samplers."""
    return _run("sampler", ["sampler"], asked)


def all_(*, asked: Asked = Asked()) -> int:
    """Run speed, compile, memory and sampler, and hold them against the targets."""
    from headstart.bench.suites import SUITES

    return _run("all", SUITES, asked)


def _run(name: str, suites: Sequence[str], asked: Asked) -> int:
    from headstart.bench.suites import command, partial, plans
    from headstart.bench.text import to_values
    from headstart.training.files import make_folder

    if asked.out:
        make_folder(asked.out)  # now, not when everything is measured
    plan = _plan(asked)
    wanted = plans(suites, plan)  # before an environment is built for what is not there
    plan = _with_peers(plan, asked)
    said = command(name, plan), partial(plan)
    reports: dict[str, Report] = {}
    files: dict[str, list[Path]] = {}
    for suite, own in wanted.items():
        try:
            own = own._replace(environment=plan.environment)
            reports[suite], files[suite] = _report(suite, own, asked.out, said)
        except (HeadstartError, OSError) as error:
            if len(suites) == 1:
                raise
            print(f"error: {suite}: {error}", file=sys.stderr)  # the other suites need not suffer
            continue
        if not asked.as_json:
            _print(reports[suite])
    if asked.as_json:
        values = [{**to_values(reports[suite]), "files": list(map(str, files[suite]))} for suite in reports]
        print_json(values[0] if len(suites) == 1 else values)
    else:
        _print_targets(list(reports.values()))
        for file in (file for own in files.values() for file in own):
            print(file)
    return 0 if len(reports) == len(wanted) else 1


def _report(suite: str, plan: "Plan", out: Path | None, said: tuple[str, str]) -> "tuple[Report, list[Path]]":
    """Run a suite and write what it finds: after every case what there is so far, and at the end all of it.

    ``said`` is the command, and what a whole run has besides.
    """
    from headstart.bench.files import write_report
    from headstart.bench.suites import run

    def keep(report: "Report") -> None:
        if out:
            write_report(out, report._replace(command=said[0], partial="not finished"), picture=False)

    report = run(suite, plan._replace(keep=keep))._replace(command=said[0], partial=said[1])
    return report, write_report(out, report) if out else []


def _plan(asked: Asked) -> "Plan":
    from headstart.bench.plan import Plan, check
    from headstart.training.progress import view

    cases = tuple(part.strip() for part in (asked.cases or "").split(";") if part.strip())
    plan = Plan(None, cases, asked.repeats, asked.seconds, asked.threads, view().note, asked.data)
    check(plan)
    return plan


def _with_peers(plan: "Plan", asked: Asked) -> "Plan":
    from headstart.bench.peers.environment import build

    if asked.without_peers:
        return plan
    return plan._replace(environment=build(asked.peers, plan.note, asked.rebuild_peers))


def _print(report: "Report") -> None:
    from headstart.bench.text import FIGURES, figure_rows, notes

    print_table(f"{report.suite}: medians", FIGURES, figure_rows(report), left=2)
    for line in notes(report):
        print(line)


def _print_targets(reports: "Sequence[Report]") -> None:
    from headstart.bench.text import TARGETS, shortfalls, target_rows
    from headstart.bench.verdict import verdicts

    rows = [row for report in reports for row in target_rows(verdicts(report))]
    if rows:
        print_table("targets", TARGETS, rows)
    for line in [line for report in reports for line in shortfalls(report)]:
        print(line)
