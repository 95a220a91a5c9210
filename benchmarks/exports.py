"""``python -m benchmarks.exports``: what of each method can be exported, tried.

Every registered method is given points of sine curves, or three classes of icons, as a run that has just begun. What it
adapts, and the learner itself, are exported as in `headstart.exporting`; ONNX files are run in onnxruntime. The table
that comes of it is the one in docs/export.md.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from headstart.cli.output import print_json
from headstart.data.kind import NewTask, kind_of_family
from headstart.errors import HeadstartError
from headstart.exporting.adapted import of_learner, of_task, raw_of, support_like
from headstart.exporting.graph import Graph
from headstart.exporting.onnx import answered, to_onnx
from headstart.registry import METHODS, Method
from headstart.training.build import build
from headstart.training.config import resolve, schema_of
from headstart.training.files import from_json, read, to_json, write
from headstart.training.head_start import HeadStart, learned, learners
from headstart.training.loop import start
from headstart.types import Batch

Results: TypeAlias = dict[str, dict[str, str]]

YES, FIXED, NO, UNTRIED = "yes", "yes, of a fixed number", "no", "not tried"
#: Methods whose learners are tried as ONNX files, too: that takes minutes for each where there are inner steps.
LEARNERS = ("maml", "anil", "meta_sgd", "prototypes", "simple_shot", "ridge", "matching_networks", "cnp")
WAYS, SHOTS = 3, 3
COLUMNS = ("adapted: torch, module", "adapted: onnx", "learner: torch, module", "learner: onnx")
_APART = 1e-4


def begun(row: Method) -> HeadStart:
    """Return what a method knows before its first outer step: of sine curves, or of icons where it has classes only."""
    classes = "regression" not in row.targets
    tasks = {"name": "icons", "ways": WAYS, "shots": SHOTS, "rotations": False} if classes else {"name": "sinusoid"}
    tree: dict[str, Any] = {"tasks": tasks, "method": {"name": row.name}}
    options = schema_of({"tasks": tasks, "method": {"name": row.name}, "outer": {}, "run": {}}).options
    if "method.steps" in options:
        tree["method"] |= {"steps": 2}
    if "model.hidden" in options:
        tree["model"] = {"hidden": [8]}
    if "model.filters" in options:
        tree["model"] = {"filters": 4}
    job = build(resolve(tree))
    kind = kind_of_family(job.config.tasks.name)
    preparation = kind.preparation(job.tasks)
    prepared = kind.read(preparation, "here")
    device = torch.device("cpu")
    meta = start(job.learner, seed=0, tasks=job.tasks).meta
    of = learners(job.config, kind, prepared, device, None)
    return HeadStart(kind, preparation, prepared, job.config, device, None, of, meta)


def tried(row: Method) -> dict[str, str]:
    """Return what of a method can be exported, by column."""
    by = begun(row)
    raw, classes = raw_of(by), by.like(0).kind == "classification"
    x, y = support_like(by, raw, WAYS * SHOTS, WAYS)
    targets = y if classes else ((y - raw.mean) / raw.scale).float().unsqueeze(-1)
    labels, counts = (tuple("abc"), (SHOTS,) * WAYS) if classes else ((), (len(y),))
    batch = Batch(raw.inputs(x).unsqueeze(0), targets.unsqueeze(0))

    def adapted() -> Graph:
        _, (task,) = learned(by, [(NewTask(None, labels, counts), batch)])
        return of_task(by, task, raw)

    found = dict.fromkeys(COLUMNS, NO)
    makers: tuple[Callable[[], Graph], ...] = (adapted, lambda: of_learner(by, raw, WAYS if classes else 1, len(y)))
    for make, (plain, onnx_too) in zip(makers, (COLUMNS[:2], COLUMNS[2:])):
        try:
            graph = make()
            found[plain] = YES if graph.inputs[0].free else FIXED
            given = {one.name: one.some for one in graph.inputs}
            if onnx_too == COLUMNS[3] and row.name not in LEARNERS:
                found[onnx_too] = UNTRIED
            else:
                expected, got = graph(*given.values()), answered(to_onnx(graph)["model.onnx"], given)
                apart = max(float((expected[name] - got[name]).abs().max()) for name in expected)
                found[onnx_too] = found[plain] if apart <= _APART else f"no (differs by {apart:.1g})"
        except HeadstartError:
            continue
    return found


def table(results: Mapping[str, Mapping[str, str]]) -> str:
    """Return results as a table of Markdown, methods that do alike in one row."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, found in results.items():
        alike.setdefault(tuple(found[column] for column in COLUMNS), []).append(name)
    rows = [["methods", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    rows += [[", ".join(f"`{name}`" for name in names), *found] for found, names in alike.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Try every method, or those that are named, and print or write what comes of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exports", description="Try what can be exported.")
    parser.add_argument("--methods", type=lambda text: text.split(","), help="joined by commas; default: all")
    parser.add_argument("--out", type=Path, help="exports.json, whose other methods stay as they are")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    there = given.out is not None and given.out.exists()
    results: Results = from_json(read(given.out), str(given.out)) if there else {}
    for row in METHODS:
        if given.methods is None or row.name in given.methods:
            begin = time.perf_counter()
            try:
                results[row.name] = tried(row)
            except HeadstartError as error:
                results[row.name] = dict.fromkeys(COLUMNS, NO)
                print(f"{row.name}: {error}")
            print(row.name, results[row.name], f"{time.perf_counter() - begin:.0f} s", flush=True)
            if given.out is not None:
                order = [one.name for one in METHODS]
                write(given.out, to_json({name: results[name] for name in order if name in results}))
    if given.out is None:
        print_json(results)


if __name__ == "__main__":
    main()
