"""The files of a finished bench of tables: ``tables.json``, ``tables.md`` and ``tables.png``."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import headstart
from headstart.bench.summary import Table
from headstart.bench.table_plot import draw_tables
from headstart.bench.table_text import to_markdown, to_values
from headstart.bench.tables import Plan
from headstart.training.files import to_json, write


def write_report(out: Path, tables: Sequence[Table], plan: Plan) -> list[Path]:
    """Write the report in the folder ``out``, and return the files' paths.

    Raises:
        FileError: a file cannot be written.
    """
    found = versions()
    files = {
        "tables.json": to_json(to_values(tables, plan, found)),
        "tables.md": to_markdown(tables, plan, found).encode(),
        "tables.png": draw_tables(tables),
    }
    for name, data in files.items():
        write(out / name, data)
    return [out / name for name in files]


def versions() -> dict[str, str]:
    """Return the versions of what was compared."""
    found = {"headstart": headstart.__version__}
    for name in ("torch", "scikit-learn", "statsmodels"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
