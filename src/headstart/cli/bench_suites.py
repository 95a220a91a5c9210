"""``headstart bench speed``, ``compile``, ``memory``, ``sampler`` and ``all``."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from headstart.cli.evaluate import Json
from headstart.cli.output import print_json, print_table

if TYPE_CHECKING:
    from headstart.bench.figures import Report
    from headstart.bench.plan import Plan

SUITES = ("speed", "compile", "memory", "sampler")


@Parameter(name="*")
@dataclass
class Asked:
    """What is asked of a suite.

    Parameters
    ----------
    peers
        The folder of the environment that holds the other libraries; it is built first if it is not there. Default:
        the one that HEADSTART_PEERS names, or headstart/peers in your cache folder.
    without_peers
        Leave the other libraries out: headstart beside plain loops alone, with nothing to install.
    out
        A folder for the results: SUITE.json, SUITE.md and SUITE.png.
    cases
        Names of cases, parts of them or patterns such as "sine*"; separate several by semicolons. Default: all.
    repeats
        Rounds of every case. Range: from 1 up. Default: more for quick cases than for slow ones.
    seconds
        About how long a suite may take: rounds that do not fit are left out, cases never are.
    threads
        Threads of each contender; 0: one a core. Range: from 0 up.
    data
        The folder of Omniglot's files, for the sampler. Default: omniglot in the folder that HEADSTART_DATA names, or
        in ../shared/data.
    as_json
        Print the results as JSON.
    """

    peers: Path | None = None
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
    return _run(["speed"], asked)


def compile_(*, asked: Asked = Asked()) -> int:
    """Time compiled steps beside jitted JAX, and what compiling costs."""
    return _run(["compile"], asked)


def memory(*, asked: Asked = Asked()) -> int:
    """Measure the memory of long inner loops, by each way of going back."""
    return _run(["memory"], asked)


def sampler(*, asked: Asked = Asked()) -> int:
    """Count episodes a second beside other libraries' samplers."""
    return _run(["sampler"], asked)


def all_(*, asked: Asked = Asked()) -> int:
    """Run speed, compile, memory and sampler, and hold them against the targets."""
    return _run(SUITES, asked)


def _run(suites: Sequence[str], asked: Asked) -> int:
    from headstart.bench.files import write_report
    from headstart.bench.text import to_values
    from headstart.training.files import make_folder

    if asked.out:
        make_folder(asked.out)  # now, not when everything is measured
    plan = _plan(asked)
    reports: list[Report] = []
    files: list[Path] = []
    for suite in suites:
        report = _report(suite, plan)
        reports.append(report)
        # at once, so that a suite that fails takes no other's results with it
        files += write_report(asked.out, report) if asked.out else []
        if not asked.as_json:
            _print(report)
    if asked.as_json:
        values = [{**to_values(report), "files": [str(file) for file in files]} for report in reports]
        print_json(values[0] if len(values) == 1 else values)
        return 0
    _print_targets(reports)
    for file in files:
        print(file)
    return 0


def _report(suite: str, plan: "Plan") -> "Report":
    report: Report = import_module(f"headstart.bench.{suite}").run(plan)
    return report


def _plan(asked: Asked) -> "Plan":
    from headstart.bench.peers.environment import build
    from headstart.bench.plan import Plan, check
    from headstart.training.progress import view

    cases = tuple(part.strip() for part in (asked.cases or "").split(";") if part.strip())
    note = view().note
    plan = check(Plan(None, cases, asked.repeats, asked.seconds, asked.threads, note, asked.data))
    return plan if asked.without_peers else plan._replace(environment=build(asked.peers, note))


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
