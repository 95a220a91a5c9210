"""``headstart list``."""

from typing import Literal

from headstart.cli.evaluate import Json
from headstart.cli.output import print_json
from headstart.registry import Kind, rows

_KINDS: dict[str, Kind] = {"methods": "method", "tasks": "task", "models": "model"}


def listing(kind: Literal["methods", "tasks", "models"], /, *, as_json: Json = False) -> None:
    """List methods, tasks or models, with where they come from.

    Parameters
    ----------
    kind
        What to list.
    as_json
        Print the list as JSON.
    """
    found = rows(_KINDS[kind])
    if as_json:
        print_json([{"name": row.name, "summary": row.summary, "reference": row.reference} for row in found])
        return
    width = max(len(row.name) for row in found)
    for row in found:
        print(f"{row.name:{width}}  {row.summary}" + (f" [{row.reference}]" if row.reference else ""))
