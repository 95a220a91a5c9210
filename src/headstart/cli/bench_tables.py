"""``headstart bench tables``."""

from pathlib import Path
from typing import TYPE_CHECKING

from headstart.cli.evaluate import Json
from headstart.cli.output import print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart.bench.summary import Table


def tables(
    *,
    data: Path | None = None,
    sets: str | None = None,
    support: str = "3,5",
    splits: int = 10,
    methods: str | None = None,
    out: Path | None = None,
    threads: int = 1,
    jobs: int = 1,
    as_json: Json = False,
) -> int:
    """Compare every method for tables, and the baselines that people use today, on data sets of many small tasks.

    Tasks are left out, and their later rows are predicted from their first ones. Needs the extra "bench":
    pip install headstart[bench].

    Parameters
    ----------
    data
        The folder of the data sets' CSV files. Default: panel in the folder that HEADSTART_DATA names, or in
        ../shared/data.
    sets
        Data sets, joined by commas. Default: sleepstudy,dietox,spruce,Cigar.
    support
        Numbers of first rows given of an unseen task, joined by commas. Range: from 1 up.
    splits
        How often to leave tasks out, each time others. Range: from 1 up.
    methods
        Names of methods and baselines, joined by commas, or "baselines". Default: all.
    out
        A folder for tables.json, tables.md and tables.png; with it, the same command goes on where it was stopped.
    threads
        Threads of each process. Range: from 1 up.
    jobs
        Processes that work at the same time. Range: from 1 up.
    as_json
        Print the tables as JSON.
    """
    from headstart.bench.baselines import BASELINES
    from headstart.bench.report import versions, write_report
    from headstart.bench.table_text import to_values
    from headstart.bench.tables import Plan, bench_tables
    from headstart.training.progress import view

    plan = Plan(support=_numbers(support), splits=splits, data=data, threads=threads, jobs=jobs)
    if sets is not None:
        plan = plan._replace(sets=_words(sets))
    if methods is not None:
        plan = plan._replace(methods=tuple(BASELINES) if methods.strip() == "baselines" else _words(methods))
    found = bench_tables(plan, out, view=view())
    if found.stopped is not None:
        kept = "the same command goes on from there" if out else "with --out, the same command would go on from there"
        print(f"stopped by {found.stopped.name}; {kept}")
        return 128 + found.stopped
    made = write_report(out, found.tables, plan) if out else []
    if as_json:
        print_json({**to_values(found.tables, plan, versions()), "files": [str(path) for path in made]})
    else:
        _print(found.tables)
        for path in made:
            print(path)
    return 0


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    from headstart.errors import UsageError

    words = _words(text)
    if not all(word.isdecimal() for word in words):
        raise UsageError(f"--support is {text!r}, but must be one or more whole numbers from 1 up, such as 3,5")
    return tuple(map(int, words))


def _print(found: "Sequence[Table]") -> None:
    from headstart.bench.summary import overall
    from headstart.bench.table_text import HEADINGS, OVERALL, cells_of, overall_cells, title

    for table in found:
        print_table(title(table), HEADINGS, map(cells_of, table.rows))
    if len(found) > 1:
        print_table("over all tables", OVERALL, map(overall_cells, overall(found)))
