"""``headstart compare``."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from headstart.training.options import Options


def compare(
    tasks: str,
    /,
    *,
    methods: str | None = None,
    options: Annotated[Options, Parameter(name="*")] = Options(),
    out: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Train several methods on the same tasks and print one table of their scores on the same unseen test tasks.

    An option is given to the methods that take it; what is not given is each method's own default. The same command
    again goes on where it was stopped.

    Parameters
    ----------
    tasks
        A task family's name (headstart list tasks), a folder of class folders, or a CSV or Parquet file.
    methods
        Names of methods (headstart list methods), joined by commas. Default: maml and joint, scratch for curves and
        tables, to which images add prototypes and nearest, and tables gaussian_process (prototypes, where the target is
        classes) and forest.
    out
        The folder of the table, with one run's folder a method in it. Default: runs/TASKS-comparison.
    as_json
        Print the table as JSON.
    """
    from headstart.cli.output import print_json
    from headstart.training.compare import compare, default_methods, pictures, rows
    from headstart.training.config import make_config
    from headstart.training.progress import view

    config = make_config({**options.model_dump(exclude_unset=True), "tasks": tasks})
    names = (
        list(default_methods(config))
        if methods is None
        else [name.strip() for name in methods.split(",") if name.strip()]
    )
    name = Path(tasks).stem if Path(tasks).is_file() else Path(tasks).name
    folder = Path("runs", f"{name}-comparison") if out is None else out
    entries = compare(config, names, folder, view=view())
    stopped = entries[-1].result.stopped
    if stopped is not None:
        print(f"stopped by {stopped.name} in {entries[-1].method}; the same command goes on from there")
        return 128 + stopped
    table = rows(entries)
    if as_json:
        print_json({"table": table, "pictures": [str(path) for path in pictures(entries, folder)]})
    else:
        _print_table(table)
        for path in pictures(entries, folder):
            print(path)
    return 0


def _print_table(table: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    episodes = table[0]["episodes"] if table else 0
    shown = Table(title=f"{episodes} unseen test tasks, mean ± 95 % interval", title_justify="left")
    for heading in ("method", "score", "outer steps", "seconds"):
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    for row in table:
        shown.add_row(row["method"], row["score"], str(row["steps"]), str(row["seconds"]))
    Console().print(shown)
