"""What commands print."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.training.evaluate import Score


def print_json(value: Any) -> None:
    """Print a value as JSON; what is not finite must have become null before."""
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))


def print_item(value: Any, first: bool) -> None:
    """Print an item of a list as `print_json` prints the list; what ends the list is left to print."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False).replace("\n", "\n  ")
    print(f"{'[' if first else ','}\n  {text}", end="", flush=True)


def print_table(title: str, headings: Sequence[str], rows: Iterable[tuple[str, ...]], left: int = 1) -> None:
    """Print a table; the first ``left`` columns hold words, the others numbers."""
    from rich.console import Console
    from rich.table import Table

    shown: Any = Table(title=title, title_justify="left")
    for place, heading in enumerate(headings):
        shown.add_column(heading, justify="left" if place < left else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    # where nobody sees a window, nothing need be cut to its width
    Console(width=None if sys.stdout.isatty() else 160).print(shown)


def score_text(score: "Score") -> str:
    """Return a score as people read it: the mean and interval, then by number of inner steps."""
    from headstart.training.report.card import calibration_text
    from headstart.training.report.report import shown

    kind = "classification" if score.metric == "accuracy" else "regression"
    tasks = "tasks (mean and 95 % interval)" if score.episodes > 1 else "task (of one alone no interval can be told)"
    lines = [f"{shown(kind, score.mean, score.ci95)} on {score.episodes} {score.split} {tasks}"]
    if score.calibration is not None:
        lines.append(calibration_text(score.calibration._asdict()))
    for count, found in score.by_inner_step.items():
        finite = abs(found.mean) < float("inf")
        lines.append(f"  {count:3d} inner steps: {shown(kind, *found) if finite else 'diverges'}")
    return "\n".join(lines)
