"""A suite's report as text: tables for people, Markdown and JSON."""

from collections.abc import Iterable, Sequence
from typing import Any

from headstart.bench.figures import Figure, Report
from headstart.bench.verdict import Verdict, at_least, disturbed, missed, sentence, verdicts

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
    lines.append(f"`{report.command or f'headstart bench {report.suite}'}`. {ABOUT.get(report.suite, '')} {used}.")
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
                "found": _finite(verdict.ratio),
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


def _finite(ratio: float | None) -> float | None:
    return None if ratio is None or ratio == float("inf") else ratio
