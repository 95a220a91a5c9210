"""``python -m benchmarks``: the suites, from the repository's root."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plan as plans
from benchmarks.figures import Report, verdicts
from benchmarks.peers import environment
from benchmarks.plan import SUITES, Plan
from benchmarks.report import FIGURES, TARGETS, figure_rows, notes, shortfalls, target_rows, to_values, write_report
from headstart.cli.output import print_json, print_table
from headstart.errors import HeadstartError
from headstart.training.files import make_folder
from headstart.training.progress import view

ABOUT = {
    "speed": "time an outer step of MAML beside other libraries and plain loops",
    "compile": "time compiled steps beside jitted JAX, and what compiling costs",
    "memory": "measure the memory of long inner loops, by each way of going back",
    "sampler": "count episodes a second beside other libraries' samplers",
    "keras": "time an outer step on Keras models beside PyTorch, in an environment with TensorFlow",
    "all": "run speed, compile, memory and sampler, and hold them against the targets",
    "roofline": "measure what this machine can do at the best, and how near a meta-gradient comes to it",
    "tables": "compare every method for tables, and what people use today, on data sets of many small tasks",
}
OTHERS = "Others, each with a --help of its own: python -m benchmarks.NAME, with NAME all_classes, architecture, \
cost, equal_time, exports, features, forest, fuzz, graphs, pictures, precision, processes, saving, scaling, search, \
texts, trust or workers."


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure headstart beside others.", epilog=OTHERS
    )
    commands = made.add_subparsers(dest="suite", required=True)
    for suite, about in ABOUT.items():
        own = commands.add_parser(suite, help=about, description=f"{about[0].upper()}{about[1:]}.")
        own.add_argument("--out", type=Path, help="a folder for the results: SUITE.json, SUITE.md and a picture")
        own.add_argument("--json", action="store_true", help="print the results as JSON")
        if suite == "tables":
            own.add_argument("--data", type=Path, help="the folder of the data sets' CSV files")
            own.add_argument("--sets", type=_words, help="data sets, joined by commas; default: all")
            own.add_argument("--support", type=_numbers, help="numbers of first rows given of an unseen task: 3,5")
            own.add_argument("--splits", type=int, help="how often to leave tasks out, each time others; default: 10")
            own.add_argument("--methods", type=_words, help="joined by commas, or baselines; default: all")
            own.add_argument("--jobs", type=int, help="processes that work at the same time; default: 1")
            continue
        own.add_argument("--cases", type=_patterns, default=(), help="names, parts or patterns, joined by semicolons")
        own.add_argument("--repeats", type=int, help="rounds of every case; default: more for quick cases")
        own.add_argument("--threads", type=int, default=0, help="threads of each contender; 0: one a core")
        if suite == "roofline":
            continue
        own.add_argument("--seconds", type=float, help="about how long a suite may take; what does not fit is left out")
        own.add_argument("--data", type=Path, help="the folder of Omniglot's files, for the sampler")
        own.add_argument("--peers", type=Path, help="the folder of the other libraries' environment, which is built")
        own.add_argument(
            "--rebuild-peers", action="store_true", help="try again to install what could not be installed"
        )
        own.add_argument("--without-peers", action="store_true", help="leave the other libraries out")
    return made


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, _words(text)))


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";") if part.strip())


def run(words: Sequence[str]) -> int:
    """Run a suite and return the exit code; an error is a line on standard error."""
    asked = parser().parse_args(words)
    try:
        if asked.out:
            make_folder(asked.out)  # now, not when everything is measured
        return {"tables": _tables, "roofline": _roofline}.get(asked.suite, _suites)(asked)
    except HeadstartError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _suites(asked: argparse.Namespace) -> int:
    plan = Plan(None, asked.cases, asked.repeats, asked.seconds, asked.threads, view().note, asked.data)
    plans.check(plan)
    # before an environment is built for what is not there
    wanted = plans.plans(SUITES if asked.suite == "all" else [asked.suite], plan)
    if not asked.without_peers:
        plan = plan._replace(environment=environment.build(asked.peers, plan.note, asked.rebuild_peers))
    command, partial = plans.command(asked.suite, plan), plans.partial(plan)
    reports: list[Report] = []
    files: list[Path] = []

    def keep(report: Report) -> None:
        if asked.out:
            write_report(asked.out, report._replace(command=command, partial="not finished"), picture=False)

    for suite, own in wanted.items():
        try:
            found = plans.run(suite, own._replace(environment=plan.environment, keep=keep))
        except (HeadstartError, OSError) as error:
            if asked.suite != "all":
                raise
            print(f"error: {suite}: {error}", file=sys.stderr)  # the other suites need not suffer
            continue
        reports.append(found._replace(command=command, partial=partial))
        files += write_report(asked.out, reports[-1]) if asked.out else []
        if not asked.json:
            print_table(f"{suite}: medians", FIGURES, figure_rows(reports[-1]), left=2)
            print(*notes(reports[-1]), sep="\n")
    if asked.json:
        values = [to_values(report) for report in reports]
        print_json(values if asked.suite == "all" else values[0])
        return 0 if len(reports) == len(wanted) else 1
    rows = [row for report in reports for row in target_rows(verdicts(report))]
    if rows:
        print_table("targets", TARGETS, rows)
    print(*(line for report in reports for line in shortfalls(report)), *files, sep="\n")
    return 0 if len(reports) == len(wanted) else 1


def _roofline(asked: argparse.Namespace) -> int:
    from benchmarks import roofline

    found = roofline.run(Plan(cases=asked.cases, repeats=asked.repeats, threads=asked.threads, note=view().note))
    files = roofline.write_roofline(asked.out, found) if asked.out else []
    if asked.json:
        print_json(roofline.to_values(found))
        return 0
    for title, headings, rows in roofline.tables_of(found):
        print_table(title, headings, rows)
    print(*files, sep="\n")
    return 0


def _tables(asked: argparse.Namespace) -> int:
    from benchmarks import settings, tables, tables_report

    given = {name: getattr(asked, name) for name in settings.Plan._fields}
    plan = settings.Plan(**{name: value for name, value in given.items() if value is not None})
    if plan.methods == ("baselines",):
        plan = plan._replace(methods=tuple(name for name, each in settings.SETTINGS.items() if each.baseline))
    found = tables.bench_tables(plan, asked.out, view().note)
    files = tables_report.write_report(asked.out, found, plan) if asked.out else []
    if asked.json:
        print_json(tables_report.to_values(found, plan, tables_report.versions()))
        return 0
    for title, headings, rows in tables_report.tables_of(found):
        print_table(title, headings, rows)
    print(*files, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
