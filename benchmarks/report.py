"""A suite's report as text: tables for people, Markdown and JSON."""

import contextlib
import math
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import headstart
from benchmarks.figures import Figure, Report, Verdict, at_least, disturbed, missed, sentence, verdicts
from benchmarks.peers.environment import PACKAGES
from benchmarks.plan import Plan
from headstart.training.files import to_json, write
from headstart.training.report.figures import BLUE, GREY, dress, new_figure, png

FIGURES = ("case", "contender", "median", "quartiles", "runs", "to ours")
TARGETS = ("target", "ours", "theirs", "ratio", "quartiles", "wanted", "")

_OURS = "headstart"

ABOUT = {
    "speed": "One outer step of second-order MAML, the step of Adam included. Every contender has the same tensors, "
    "the same initial weights and the same Adam, its meta-gradient was first found equal to the plain loop's (relative "
    "1e-8 in float64), and it runs in a process of its own. Rounds are interleaved; a ratio is the median over "
    "rounds. headstart's processes keep the memory that they free, as `fit` does; the others do as they do by default.",
    "compile": "As for speed, with the learner compiled; and the seconds until the first step is done, in a new "
    "process and with nothing cached, imports of the contender's libraries included.",
    "memory": "The most resident memory of a fresh process while it computes one meta-gradient, above what it held "
    "before, and the time of one. The processes whose memory is measured, every contender's alike, give back at once "
    "what they free (glibc's MALLOC_ARENA_MAX, MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_), and the targets are "
    "held against that; what it is with the allocator's defaults stands beside it. Those that are timed run as they do "
    "by default.",
    "sampler": "Episodes made ready for the model, out of the same images. headstart's process keeps the memory that "
    "it frees, as `fit` does; the others do as they do by default.",
}
READING = (
    "Medians and quartiles, of the medians of rounds. The last column is how many times headstart's time or memory it "
    "is, and of rates how many times headstart's rate is that: above 1, headstart is ahead."
)


def number(value: float) -> str:
    """Return a figure with three digits that count.

    >>> number(0.8196), number(43.21), number(9734.8)
    ('0.82', '43.2', '9735')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def figure_rows(report: Report) -> list[tuple[str, ...]]:
    """Return the figures as texts, one a heading of `FIGURES`; a case's contenders one below the other, best first."""
    rows: list[tuple[str, ...]] = []
    for case in dict.fromkeys(figure.case for figure in report.figures):
        same = [figure for figure in report.figures if figure.case == case]
        ours = next((figure for figure in same if figure.contender == _OURS), None)
        rows += [_row(figure, ours) for figure in sorted(same, key=_cost)]
    return rows


def _cost(figure: Figure) -> float:
    """Return what is less the better a figure is."""
    return -figure.value if figure.unit == "episodes/s" else figure.value


def _row(figure: Figure, ours: Figure | None) -> tuple[str, ...]:
    beside = ""
    if ours is not None and ours is not figure and ours.value and figure.value:
        above, below = (ours, figure) if figure.unit == "episodes/s" else (figure, ours)
        beside = f"{above.value / below.value:.2f}"
    quartiles = f"{number(figure.low)} to {number(figure.high)}" if figure.runs > 1 else ""
    return figure.case, figure.contender, f"{number(figure.value)} {figure.unit}", quartiles, str(figure.runs), beside


def target_rows(found: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """Return the targets as texts, one a heading of `TARGETS`."""
    rows: list[tuple[str, ...]] = []
    for verdict in found:
        target = verdict.target
        wanted = f"{'>=' if at_least(target) else '<='} {target.ratio:g}"
        ratio = "" if verdict.ratio is None else f"{verdict.ratio:.2f}"
        spread = "" if verdict.low is None or verdict.high is None else f"{verdict.low:.2f} to {verdict.high:.2f}"
        said = "not measured" if verdict.reached is None else "reached" if verdict.reached else "missed"
        said += ", disturbed" * verdict.disturbed
        rows.append((target.name, _value(verdict.ours), _value(verdict.theirs), ratio, spread, wanted, said))
    return rows


def _value(figure: Figure | None) -> str:
    return "" if figure is None else f"{number(figure.value)} {figure.unit}"


def notes(report: Report) -> list[str]:
    """Return what a reader must know of single figures, and of what has none."""
    told: dict[str, None] = {}
    for each in report.figures:
        notes = [each.note] * bool(each.note)
        notes += ["disturbed: the quartiles span more than half of the median"] * disturbed(each)
        told |= {f"{each.contender}, {each.case}: {'; '.join(notes)}": None} if notes else {}
    return [*told, *(f"{what}: left out: {why}" for what, why in report.failed.items())]


def shortfalls(report: Report) -> list[str]:
    """Return a line for each target that is not reached."""
    return [sentence(verdict) for verdict in missed(verdicts(report))]


def to_markdown(report: Report) -> str:
    """Return the report as a page."""
    used = "; ".join(f"{name} {value}" for name, value in report.machine.items())
    lines = [f"# {report.suite.capitalize()}: headstart beside others", ""]
    lines.append(f"`{report.command or f'python -m benchmarks {report.suite}'}`. {ABOUT.get(report.suite, '')} {used}.")
    lines += ["", f"Not the whole suite: {report.partial}."] if report.partial else []
    if report.targets:
        lines += ["", "## Targets", "", *table(TARGETS, target_rows(verdicts(report)))]
        lines += ["", *(f"- {line}" for line in shortfalls(report))] if shortfalls(report) else []
    lines += ["", "## Figures", "", READING, ""]
    lines += table(FIGURES, figure_rows(report))
    if notes(report):
        lines += ["", "## Notes", "", *(f"- {line}" for line in notes(report))]
    return "\n".join([*lines, ""])


def table(headings: Sequence[str], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    return lines + ["| " + " | ".join(row).replace("\n", " ") + " |" for row in rows]


def to_values(report: Report) -> dict[str, Any]:
    """Return the report as JSON values."""
    return {
        "suite": report.suite,
        "command": report.command,
        "partial": report.partial,
        "machine": report.machine,
        "figures": [figure._asdict() for figure in report.figures],
        "targets": [
            {
                **verdict.target._asdict(),
                "found": finite(verdict.ratio),
                "low": verdict.low,
                "high": verdict.high,
                "reached": verdict.reached,
                "disturbed": verdict.disturbed,
                "sentence": sentence(verdict),
            }
            for verdict in verdicts(report)
        ],
        "failed": report.failed,
    }


def finite(value: float | None) -> float | None:
    """Return a number as JSON can have it: ``None`` where it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def machine(plan: Plan) -> dict[str, str]:
    """Return the processor, threads, and versions of Python, torch and every peer."""
    found = {
        "processor": processor(),
        "cores": str(os.cpu_count() or 1),
        "threads of each contender": str(plan.threads),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "headstart": headstart.__version__,
        "torch": version("torch"),
        "numpy": version("numpy"),
    }
    there = plan.environment.versions if plan.environment else {}
    return found | {each.name: there[each.name] for each in PACKAGES if each.compared and each.name in there}


def processor() -> str:
    """Return the processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


#: Of other cases in a picture there is none: it would be too tall to read.
MOST = 24


def draw(report: Report) -> bytes:
    """Return a picture of the report's first cases as PNG: a case a panel, a contender a bar, the best at the top."""
    rows = figure_rows(report)
    cases = list(dict.fromkeys(row[0] for row in rows))[:MOST]
    known = {(each.case, each.contender): each for each in report.figures}
    counts = [sum(row[0] == case for row in rows) for case in cases]
    tall = [max(counts[at : at + 2]) for at in range(0, len(cases), 2)] or [1]
    figure = new_figure(width=13.0, height=0.6 + sum(0.9 + 0.2 * each for each in tall))
    figure.suptitle(
        f"{report.suite.capitalize()}: headstart (blue) beside others", x=0.01, ha="left", fontweight="bold"
    )
    grid = figure.subplots(len(tall), 2, squeeze=False, height_ratios=[1 + 0.4 * each for each in tall]).flatten()
    for axis in grid[len(cases) :]:
        axis.set_axis_off()
    for at, (axis, case) in enumerate(zip(grid, cases)):
        same = [row for row in rows if row[0] == case]
        for place, (_, contender, value, _, _, beside) in enumerate(same):
            each, ours = known[case, contender], contender.startswith(_OURS)
            axis.barh(place, each.value, color=BLUE if ours else GREY, alpha=0.9 if contender == _OURS else 0.6)
            axis.hlines(place, each.low, each.high, color="black", linewidth=1)
            axis.annotate(f"{value}  {beside}", (1, place), xycoords=("axes fraction", "data"), va="center", fontsize=7)
        axis.set_yticks(range(len(same)), [contender for _, contender, *_ in same])
        axis.set_ylim(tall[at // 2] - 0.5, -0.5)
        dress(axis, case, known[case, same[0][1]].unit, "")
    return png(figure)


def write_report(out: Path, report: Report, picture: bool = True) -> list[Path]:
    """Write the report in the folder ``out``, and return the files' paths.

    A whole report replaces what there is of a partial one.

    Raises:
        FileError: a file cannot be written.
    """
    files = {"json": to_json(to_values(report)), "md": to_markdown(report).encode()}
    files |= {"png": draw(report)} if picture else {}
    name = f"{report.suite}.partial" if report.partial else report.suite
    paths = {kind: out / f"{name}.{kind}" for kind in files}
    for kind, data in files.items():
        write(paths[kind], data)
    if not report.partial:
        for kind in files:
            with contextlib.suppress(OSError):
                (out / f"{report.suite}.partial.{kind}").unlink()
    return list(paths.values())
