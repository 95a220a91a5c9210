"""What commands print."""

import codecs
import io
import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.training.evaluate import Score


#: How letters that a terminal may not have are spelt there.
_SPELT = {"±": "+-", "…": "...", "─": "-", "→": "->"}


def _spell(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    return "".join(_SPELT.get(one) or ascii(one)[1:-1] for one in letters), error.end


def spell_out() -> None:
    """Let standard output and error spell what their encoding has no letter for, rather than fail."""
    codecs.register_error("headstart.spell", _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="headstart.spell")


def printable(text: str) -> str:
    r"""Return a text for a terminal: what would move its cursor or change its colours is spelt out.

    Of a line that nobody can read, such as one that quotes a damaged file, the middle is left out.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    plain = (ascii(one)[1:-1] if unicodedata.category(one) == "Cc" and one not in "\n\t" else one for one in text)
    lines = "".join(plain).split("\n")
    return "\n".join(f"{line[:700]} … {line[-250:]}" if len(line) > 1000 else line for line in lines)


def print_json(value: Any) -> None:
    """Print a value as JSON; what is not finite must have become null before."""
    print(_json(value))


def print_item(value: Any, first: bool) -> None:
    """Print an item of a list as `print_json` prints the list; what ends the list is left to print."""
    print("[" if first else ",", "\n  ", _json(value).replace("\n", "\n  "), sep="", end="", flush=True)


def _json(value: Any) -> str:
    plain = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=plain)


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
    from headstart.training.report.card import calibration_text, domains_text, more_text
    from headstart.training.report.report import score_to_json, shown

    kind = "classification" if score.metric == "accuracy" else "regression"
    tasks = "tasks (mean and 95 % interval)" if score.episodes > 1 else "task (of one alone no interval can be told)"
    lines = [f"{shown(kind, score.mean, score.ci95)} on {score.episodes} {score.split} {tasks}"]
    lines.append(more_text(score_to_json(score)))
    if score.by_domain is not None:
        lines.append(f"by domain: {domains_text(score_to_json(score))}")
    if score.calibration is not None:
        lines.append(calibration_text(score.calibration._asdict()))
    for count, found in score.by_inner_step.items():
        finite = abs(found.mean) < float("inf")
        lines.append(f"  {count:3d} inner steps: {shown(kind, *found) if finite else 'diverges'}")
    return "\n".join(lines)
