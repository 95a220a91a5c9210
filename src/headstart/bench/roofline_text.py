"""The roofline as text: a page in Markdown, and JSON; and its files."""

from pathlib import Path
from typing import Any

from headstart.bench.roofline import Roofline, Row
from headstart.bench.roofline_floors import Floors
from headstart.bench.text import number, table
from headstart.training.files import to_json, write

FLOORS = ("threads", "large product, GFLOP/s", "25 x (10x40)(40x40), GFLOP/s", "3x3 convolution, GFLOP/s",
          "memory, GB/s", "cache, GB/s", "empty operation, µs")  # fmt: skip
CASES = ("case", "GFLOP", "GB moved", "operations", "arithmetic, ms", "at its own sizes, ms", "memory, ms",
         "dispatch, ms", "measured, ms", "floor reached")  # fmt: skip


def floor_cells(found: Floors) -> tuple[str, ...]:
    """Return the machine's floors as texts, one a heading of `FLOORS`."""
    rates = (found.product, found.small_product, found.convolution, found.memory, found.cache)
    return str(found.threads), *(number(rate / 1e9) for rate in rates), number(found.operation * 1e6)


def case_cells(row: Row) -> tuple[str, ...]:
    """Return a case's figures as texts, one a heading of `CASES`."""
    times = (row.arithmetic, row.at_own_size, row.memory, row.dispatch, row.measured)
    work = (f"{row.flops / 1e9:.3g}", f"{row.moved.bytes / 1e9:.3g}", f"{row.moved.operations:,}")
    return row.case, *work, *map(number, times), f"{row.reached:.0%}"


def share_rows(found: Roofline) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the headings and the rows of where the time goes."""
    kinds = list(dict.fromkeys(kind for row in found.rows for kind in row.shares))
    rows = [tuple([row.case, *(f"{row.shares.get(kind, 0.0):.0%}" for kind in kinds)]) for row in found.rows]
    return tuple(["case", *kinds]), rows


def to_markdown(found: Roofline) -> str:
    """Return the roofline as a page."""
    used = "; ".join(f"{name} {value}" for name, value in found.machine.items())
    headings, shared = share_rows(found)
    lines = ["# Roofline: how near to what the machine can do", ""]
    lines += [f"`headstart bench roofline`: one meta-gradient of second-order MAML, eager. {used}.", ""]
    lines += ["How to read it: docs/roofline.md.", "", "## The machine", ""]
    lines += [*table(FLOORS, [floor_cells(each) for each in found.floors]), "", "## The cases", ""]
    lines += [*table(CASES, [case_cells(each) for each in found.rows]), "", "## Where the time goes", ""]
    return "\n".join([*lines, *table(headings, shared), ""])


def to_values(found: Roofline) -> dict[str, Any]:
    """Return the roofline as JSON values."""
    return {
        "machine": found.machine,
        "floors": [each._asdict() for each in found.floors],
        "cases": [
            {**each._asdict(), "moved": each.moved._asdict(), "floor": each.floor, "reached": each.reached}
            for each in found.rows
        ],
    }


def write_roofline(out: Path, found: Roofline) -> list[Path]:
    """Write ``roofline.json`` and ``roofline.md`` in the folder ``out``, and return their paths.

    Raises:
        FileError: a file cannot be written.
    """
    files = {"json": to_json(to_values(found)), "md": to_markdown(found).encode()}
    paths = {kind: out / f"roofline.{kind}" for kind in files}
    for kind, data in files.items():
        write(paths[kind], data)
    return list(paths.values())
