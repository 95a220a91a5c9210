"""``headstart bench roofline``."""

from pathlib import Path

from headstart.cli.evaluate import Json
from headstart.cli.output import print_json, print_table


def roofline(
    *,
    out: Path | None = None,
    cases: str | None = None,
    repeats: int | None = None,
    threads: int = 0,
    as_json: Json = False,
) -> int:
    """Measure what this machine can do at the best, and how near a meta-gradient comes to it.

    Parameters
    ----------
    out
        A folder for the results: roofline.json and roofline.md.
    cases
        Names of cases, parts of them or patterns such as "sine*"; separate several by semicolons. Default: all.
    repeats
        Runs of every case. Range: from 1 up. Default: more for quick cases than for slow ones.
    threads
        Threads; 0: one a core. Range: from 0 up.
    as_json
        Print the results as JSON.
    """
    from headstart.bench.plan import Plan
    from headstart.bench.roofline import run
    from headstart.bench.roofline_text import (
        CASES,
        FLOORS,
        case_cells,
        floor_cells,
        share_rows,
        to_values,
        write_roofline,
    )  # fmt: skip
    from headstart.training.files import make_folder
    from headstart.training.progress import view

    if out:
        make_folder(out)  # now, not when everything is measured
    wanted = tuple(part.strip() for part in (cases or "").split(";") if part.strip())
    found = run(Plan(cases=wanted, repeats=repeats, threads=threads, note=view().note))
    files = write_roofline(out, found) if out else []
    if as_json:
        print_json({**to_values(found), "files": [str(file) for file in files]})
        return 0
    print_table("the machine", FLOORS, map(floor_cells, found.floors))
    print_table("the cases", CASES, map(case_cells, found.rows))
    print_table("where the time goes", *share_rows(found))
    for file in files:
        print(file)
    return 0
