"""The files of a suite's report: ``SUITE.json``, ``SUITE.md`` and ``SUITE.png``.

Where it is not whole they are called ``SUITE.partial.json`` and so on, so that a whole one stays.
"""

import contextlib
from pathlib import Path

from headstart.bench.chart import draw
from headstart.bench.figures import Report
from headstart.bench.text import to_markdown, to_values
from headstart.training.files import to_json, write


def write_report(out: Path, report: Report, picture: bool = True) -> list[Path]:
    """Write the report in the folder ``out``, and return the files' paths.

    A whole report replaces what there is of a partial one.

    Raises:
        FileError: a file cannot be written.
    """
    files = {"json": to_json(to_values(report)), "md": to_markdown(report).encode()}
    files |= {"png": draw(report)} if picture else {}
    name = f"{report.suite}.partial" if report.partial else report.suite
    paths = {kind: out / f"{name}.{kind}" for kind in files}
    for kind, data in files.items():
        write(paths[kind], data)
    if not report.partial:
        for kind in files:
            with contextlib.suppress(OSError):
                (out / f"{report.suite}.partial.{kind}").unlink()
    return list(paths.values())
