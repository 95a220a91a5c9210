"""The files of a suite's report: ``SUITE.json``, ``SUITE.md`` and ``SUITE.png``."""

from pathlib import Path

from headstart.bench.chart import draw
from headstart.bench.figures import Report
from headstart.bench.text import to_markdown, to_values
from headstart.training.files import to_json, write


def write_report(out: Path, report: Report) -> list[Path]:
    """Write the report in the folder ``out``, and return the files' paths.

    Raises:
        FileError: a file cannot be written.
    """
    files = {"json": to_json(to_values(report)), "md": to_markdown(report).encode(), "png": draw(report)}
    paths = {kind: out / f"{report.suite}.{kind}" for kind in files}
    for kind, data in files.items():
        write(paths[kind], data)
    return list(paths.values())
