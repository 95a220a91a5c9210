"""How far a run's answers can be believed on classes that had no part in training or in any choice.

A run is trained as `headstart train icons` (or ``banking77``, ``clinc150``, …) does, with no option but ``--method``,
``--model``, ``--data`` and those of ``--set``; what is said of its answers is fitted on its validation tasks, and held
here against test tasks of the run's own size and others. Of CLINC150 the 1,200 questions that are of no intent stand
beside: nothing was fitted to any of them.

    python -m benchmarks.trust --tasks icons                                             # some minutes
    python -m benchmarks.trust --tasks banking77 --data FOLDER --model hf:MINILM         # and one to encode
    python -m benchmarks.trust --tasks clinc150 --data FOLDER --model hf:MINILM --set tasks.shots=5
"""

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from headstart.data.text.clinc150 import read_clinc150
from headstart.training import likeness
from headstart.training.config import nested
from headstart.training.head_start import of_run
from headstart.training.reliability import Measured, measured
from headstart.training.run import open_run, train
from headstart.training.trials import trials
from headstart.training.trust_fitting import fitted

HEAD = (
    "ways, shots", "accuracy", "ECE before", "ECE after", "with others", "sets hold", "labels", "AUROC", "FPR at 95 %",
    "own turned away", "others over 0.9 before", "after",
)  # fmt: skip


def row(found: Measured, accuracy: float, name: str = "") -> tuple[str, ...]:
    """Return a line of the table, in percent."""

    def told(value: float) -> str:
        return f"{100 * value:.1f}"

    size, others = f"{found.ways}, {found.shots}{name}", found.others
    known = (size, told(accuracy), f"{found.before.ece:.3f}", f"{found.after.ece:.3f}")
    sets = (told(found.held), f"{found.labels:.2f}")
    if others is None:
        return *known, "", *sets, *([""] * 5)
    rest = map(told, (others.fpr, others.rejected, others.sure_before, others.sure))
    return *known, f"{others.told.ece:.3f}", *sets, f"{others.auroc:.3f}", *rest


def table(rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """Return the lines of a table."""
    yield f"| {' | '.join(HEAD)} |"
    yield "|---" * len(HEAD) + "|"
    yield from (f"| {' | '.join(one)} |" for one in rows)


def out_of_scope(run: Path, data: Path, count: int) -> Tensor:
    """Return so many of CLINC150's questions that are of no intent, as the run's models see them."""
    by = of_run(run, torch.device("cpu"))
    assert by.kind.values is not None
    texts = read_clinc150(data).out_of_scope
    return torch.cat([part.x for part in by.kind.values(by.prepared, texts[:: len(texts) // count][:count])])


def judged(run: Path, count: int, data: Path | None) -> list[tuple[str, ...]]:
    """Return the lines of a finished run."""
    job, checkpoint = open_run(run, "cpu")
    meta, rows = checkpoint.best.meta, list[tuple[str, ...]]()
    trust = fitted(trials(job, meta, "validation", episodes=job.config.run.evaluate_tasks))
    if trust is None:
        raise SystemExit("nothing to fit to: the run's tasks are no classes, or there are no validation tasks")
    print(f"kept: T{', doubt' if trust.doubt else ''};", end=" ")
    print(f"other classes by the {trust.unknown.score if trust.unknown else '(nothing)'}")
    asked = [("", None)]
    if data is not None and job.config.tasks.name == "clinc150":
        asked.append((", of no intent", out_of_scope(run, data, 300)))
    for name, others in asked:
        for one in trials(job, meta, "test", episodes=count, others=others):
            right = float((one.logits.argmax(-1) == one.y).double().mean())
            rows.append(row(measured(trust, one), right, name))
    embed = likeness.embedding(job.config, meta, job.tasks, job.device)
    found = None if embed is None else likeness.fitted(embed, job.tasks, job.config.run.evaluate_tasks)
    if embed is not None and found is not None:
        told, of = likeness.alarms(found, embed, job.tasks, "test", count)
        print(f"look unlike: {told} of {of} test tasks; {100 * likeness.FALSE_ALARMS:.0f} % are to")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust", description="How far answers can be believed.")
    parser.add_argument("--tasks", default="icons", help="a family of classes")
    parser.add_argument("--data", type=Path, help="the folder of their files")
    parser.add_argument("--method", help="how to meta-learn; default: prototypes")
    parser.add_argument("--model", help="a pretrained network, such as hf:FOLDER")
    parser.add_argument("--run", type=Path, help="a finished run of these tasks, in place of training one")
    parser.add_argument("--count", type=int, default=200, help="test tasks of the run's own size; of others a quarter")
    parser.add_argument("--set", action="append", default=[], help="an option, such as outer.rate=0.01")
    given = parser.parse_args(arguments)
    named = {"tasks.name": given.tasks, "tasks.data": given.data and str(given.data), "model.name": given.model}
    named |= {"method.name": given.method or "prototypes", "run.threads": 1}
    options = {name: value for name, value in named.items() if value is not None}
    options |= dict(one.split("=", 1) for one in given.set)
    with tempfile.TemporaryDirectory() as folder:
        run = given.run or train(nested(options), Path(folder) / "run").run
        print(*table(judged(run, given.count, given.data)), sep="\n")


if __name__ == "__main__":
    main()
