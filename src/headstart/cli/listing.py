"""``headstart list``."""

from typing import Literal

from headstart.cli.output import Json, print_json
from headstart.registry import What, rows

_KINDS: dict[str, What] = {"methods": "method", "tasks": "task", "models": "model", "data": "data"}


def listing(kind: Literal["methods", "tasks", "models", "data"], /, *, as_json: Json = False) -> None:
    """List methods, families of tasks, models or kinds of data, with where they come from.

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
