"""A suite's report as text: tables for people, Markdown and JSON."""

from collections.abc import Iterable, Sequence
from typing import Any

from headstart.bench.figures import Figure, Report
from headstart.bench.verdict import Verdict, at_least, missed, sentence, verdicts

FIGURES = ("case", "contender", "median", "quartiles", "runs", "to ours")
TARGETS = ("target", "ours", "theirs", "ratio", "wanted", "")

_OURS = "headstart"

ABOUT = {
    "speed": "One outer step of second-order MAML, the step of Adam included. Every contender has the same tensors and "
    "the same initial weights, its meta-gradient was first found equal to the first contender's, and it runs in a "
    "process of its own; rounds are interleaved.",
    "compile": "As for speed, with the learner compiled; and the seconds until the first step is done, with nothing "
    "cached, imports of the contender's libraries included.",
    "memory": "The most resident memory of a fresh process, and the time of a step.",
    "sampler": "Episodes made ready for the model, out of the same images.",
}


def number(value: float) -> str:
    """Return a figure with three digits that count.

    >>> number(0.8196), number(43.21), number(9734.8)
    ('0.82', '43.2', '9735')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def figure_rows(report: Report) -> list[tuple[str, ...]]:
    """Return the figures as texts, one a heading of `FIGURES`; a case's contenders one below the other."""
    rows: list[tuple[str, ...]] = []
    for case in dict.fromkeys(figure.case for figure in report.figures):
        same = [figure for figure in report.figures if figure.case == case]
        ours = next((figure for figure in same if figure.contender == _OURS), None)
        rows += [_row(figure, ours) for figure in sorted(same, key=lambda each: each.value)]
    return rows


def _row(figure: Figure, ours: Figure | None) -> tuple[str, ...]:
    beside = "" if ours is None or ours is figure or not ours.value else f"{figure.value / ours.value:.2f}"
    quartiles = f"{number(figure.low)} to {number(figure.high)}" if figure.runs > 1 else ""
    return figure.case, figure.contender, f"{number(figure.value)} {figure.unit}", quartiles, str(figure.runs), beside


def target_rows(found: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """Return the targets as texts, one a heading of `TARGETS`."""
    rows: list[tuple[str, ...]] = []
    for verdict in found:
        target = verdict.target
        wanted = f"{'>=' if at_least(target) else '<='} {target.ratio:g}"
        ratio = "" if verdict.ratio is None else f"{verdict.ratio:.2f}"
        said = "not measured" if verdict.reached is None else "reached" if verdict.reached else "missed"
        rows.append((target.name, _value(verdict.ours), _value(verdict.theirs), ratio, wanted, said))
    return rows


def _value(figure: Figure | None) -> str:
    return "" if figure is None else f"{number(figure.value)} {figure.unit}"


def notes(report: Report) -> list[str]:
    """Return what a reader must know of single figures, and of what has none."""
    told = {f"{each.contender}, {each.case}: {each.note}": None for each in report.figures if each.note}
    return [*told, *(f"{what}: left out: {why}" for what, why in report.failed.items())]


def shortfalls(report: Report) -> list[str]:
    """Return a line for each target that is not reached."""
    return [sentence(verdict) for verdict in missed(verdicts(report))]


def to_markdown(report: Report) -> str:
    """Return the report as a page."""
    used = "; ".join(f"{name} {value}" for name, value in report.machine.items())
    lines = [f"# {report.suite.capitalize()}: headstart beside others", "", f"`headstart bench {report.suite}`. "]
    lines[-1] += f"{ABOUT.get(report.suite, '')} {used}.".strip()
    if report.targets:
        lines += ["", "## Targets", "", *_table(TARGETS, target_rows(verdicts(report)))]
        lines += ["", *(f"- {line}" for line in shortfalls(report))] if shortfalls(report) else []
    lines += ["", "## Figures", "", "Medians and quartiles; the last column is the figure by headstart's.", ""]
    lines += _table(FIGURES, figure_rows(report))
    if notes(report):
        lines += ["", "## Notes", "", *(f"- {line}" for line in notes(report))]
    return "\n".join([*lines, ""])


def _table(headings: Sequence[str], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    return lines + ["| " + " | ".join(row).replace("\n", " ") + " |" for row in rows]


def to_values(report: Report) -> dict[str, Any]:
    """Return the report as JSON values."""
    return {
        "suite": report.suite,
        "machine": report.machine,
        "figures": [figure._asdict() for figure in report.figures],
        "targets": [
            {
                **verdict.target._asdict(),
                "found": _finite(verdict.ratio),
                "reached": verdict.reached,
                "sentence": sentence(verdict),
            }
            for verdict in verdicts(report)
        ],
        "failed": report.failed,
    }


def _finite(ratio: float | None) -> float | None:
    return None if ratio is None or ratio == float("inf") else ratio
