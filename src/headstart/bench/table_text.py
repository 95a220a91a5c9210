"""The tables as text: lines for people, Markdown and JSON."""

from collections.abc import Sequence
from typing import Any

from headstart.bench.baselines import BASELINES
from headstart.bench.panels import FRACTION, SETS
from headstart.bench.settings import SETTINGS
from headstart.bench.summary import Mean, Overall, Row, Table, overall
from headstart.bench.tables import Plan

HEADINGS = ("method", "RMSE", "to the best baseline", "NLL", "90 % coverage", "CPU s")
OVERALL = ("method", "RMSE / best baseline", "better in", "worse in", "of")

_ABOUT = """
Given all rows of the other tasks and the first rows of a held-out one, its later rows are predicted. RMSE over all of
them, in the target's own unit: mean ± 95 % interval over the splits (Student's t). The next column is the difference
to the best baseline, split by split; negative is better. NLL: negative log-likelihood of a target in nats, in its own
unit; coverage of the 90 % intervals; processor time of a split, fitting and predicting. A star marks the best baseline
and the best method of headstart, chosen on these very splits. Splits share tasks, so the intervals tell of these data
sets, not of others like them.
"""
_ABOUT_OVERALL = """
The geometric mean over the tables of a method's RMSE by that of the table's best baseline (which baseline that is
differs from table to table); in how many tables it is better, or worse, than the best baseline by more than the
interval of the difference.
"""


def cells_of(row: Row) -> tuple[str, ...]:
    """Return a row as texts, one a heading."""
    rmse = "diverged on " + str(row.diverged) if row.rmse is None else _shown(row.rmse)
    difference = "" if row.difference is None or (row.baseline and row.best) else _shown(row.difference, signed=True)
    coverage = "" if row.coverage is None else f"{100 * row.coverage.mean:.0f} %"
    name = row.method + (" (baseline)" if row.baseline else "") + (" *" if row.best else "")
    nll = "" if row.nll is None else _shown(row.nll)
    return name, rmse, difference, nll, coverage, f"{row.seconds:.2f}"


def overall_cells(row: Overall) -> tuple[str, ...]:
    """Return a row of the table over all tables as texts."""
    name = row.method + (" (baseline)" if row.baseline else "")
    return name, f"{row.ratio:.3f}", str(row.better), str(row.worse), str(row.tables)


def title(table: Table) -> str:
    """Return what a table is of."""
    columns = SETS[table.dataset]
    features = ", ".join((columns.time, *columns.others))
    return (
        f"{table.dataset}, first {table.support} rows of an unseen {columns.task} given: "
        f"{columns.target} ({columns.unit}) from {features}"
    )


def _shown(value: Mean, signed: bool = False) -> str:
    number = f"{value.mean:+.3g}" if signed else f"{value.mean:.4g}"
    return number if value.ci95 is None else f"{number} ± {value.ci95:.2g}"


def to_markdown(tables: Sequence[Table], plan: Plan, versions: dict[str, str]) -> str:
    """Return the report."""
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        "# Tables: every method against what people use today",
        "",
        f"`headstart bench tables`, {plan.splits} splits, each with {FRACTION:.0%} of the tasks held out. "
        + " ".join(_ABOUT.split()),
        "",
        f"Settings were compared on other splits than these; `tables.json` has them. {used}; {plan.threads} "
        f"thread{'s' * (plan.threads > 1)}, {plan.jobs} process{'es' * (plan.jobs > 1)}.",
        "",
    ]
    found = overall(tables)
    if len(tables) > 1 and found:
        lines += [
            "## Over all tables",
            "",
            " ".join(_ABOUT_OVERALL.split()),
            "",
            *_markdown(OVERALL, map(overall_cells, found)),
            "",
        ]
    for dataset in dict.fromkeys(table.dataset for table in tables):
        lines += [f"## {dataset}: {SETS[dataset].about}", ""]
        for table in (table for table in tables if table.dataset == dataset):
            lines += [f"### {title(table)}", "", *_markdown(HEADINGS, map(cells_of, table.rows)), ""]
            lines += _notes(table)
    return "\n".join([*lines, "## The baselines", "", *_baselines(), ""])


def _markdown(headings: Sequence[str], rows: Any) -> list[str]:
    lines = ["| " + " | ".join(headings) + " |", "| --- |" + " ---: |" * (len(headings) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _notes(table: Table) -> list[str]:
    """Say which fits fell back to something simpler."""
    name = "simpler random effects"
    fallen = {row.method: row.counts[name] for row in table.rows if row.counts.get(name)}
    told = ", ".join(f"{method} on {count} splits" for method, count in fallen.items())
    return [f"Did not converge and fell back to simpler random effects: {told}.", ""] if told else []


def _baselines() -> list[str]:
    return [f"- `{name}`: {' '.join((function.__doc__ or '').split())}" for name, function in BASELINES.items()]


def to_values(tables: Sequence[Table], plan: Plan, versions: dict[str, str]) -> dict[str, Any]:
    """Return the report as JSON values."""
    chosen = {name: SETTINGS[name] for name in plan.methods if name in SETTINGS}
    return {
        "plan": {**{name: value for name, value in plan._asdict().items() if name != "data"}, "held_out": FRACTION},
        "versions": versions,
        "overall": [row._asdict() for row in overall(tables)],
        "tables": [{**table._asdict(), "rows": [_row(row) for row in table.rows]} for table in tables],
        "settings": {name: setting._asdict() for name, setting in chosen.items()},
    }


def _row(row: Row) -> dict[str, Any]:
    return {name: value._asdict() if isinstance(value, Mean) else value for name, value in row._asdict().items()}
