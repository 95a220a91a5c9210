"""All classes at once: 77 intents, a few sentences of each, and every test sentence of BANKING77 to classify.

So many sentences of each class are drawn from ``train.csv``, and all of ``test.csv`` is classified by what is learned
from them. On the features of one frozen network stand class means (cosine) and scikit-learn's logistic regression,
whose C is chosen by cross-validation among the drawn sentences, with and without the names of the classes as a sentence
more of each; beside them `headstart.adapt`, given the network as it is, or a run that was trained on CLINC150 with no
option but ``--model``. Differences are paired, sentence by sentence; ± is 1.96 standard errors over all sentences and
draws.

``--setfit`` adds SetFit for that many draws, ``--episodes`` compares with it on 20-way 1-shot tasks of the test classes
of `benchmarks.texts`' first split. Its environment is that of the other peers (`benchmarks.peers`).

Settings are chosen with ``--held``, where what is left of ``train.csv`` takes the place of ``test.csv``.

    python -m benchmarks.all_classes --data BANKING77 --model hf:MINILM                     # some minutes
    python -m benchmarks.all_classes --data BANKING77 --model hf:MINILM --clinc CLINC150    # and from a run
    python -m benchmarks.all_classes --data BANKING77 --model hf:MINILM --seeds 1 --setfit 1          # half an hour
    python -m benchmarks.all_classes --data BANKING77 --model hf:MINILM --episodes 20                 # the same
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV

import headstart
from benchmarks.class_means import interval
from benchmarks.peers.environment import build
from benchmarks.peers.process import Worker
from benchmarks.texts import texts_of
from headstart.data.text.banking77 import banking77
from headstart.data.text.read import read_texts
from headstart.models.trunks.source import absolute
from headstart.models.trunks.trunk import features_of, open_trunk
from headstart.training.config import nested
from headstart.training.predictions import predictions
from headstart.training.run import train
from headstart.types import Tasks

#: The values of C that logistic regression has to choose from.
COSTS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_RUN = "headstart"


class Problem(NamedTuple):
    """Texts to learn from, and texts to classify."""

    names: tuple[str, ...]
    """Of the classes."""
    texts: tuple[str, ...]
    labels: NDArray[Any]
    queries: tuple[str, ...]
    answers: NDArray[Any]


class Said(NamedTuple):
    """What a contender answers."""

    right: NDArray[Any]
    """Of each query, whether it is."""
    learned: float
    """Seconds of processor time to learn, without what is imported."""
    answered: float
    """And to classify all queries."""


def drawn(data: Path, shots: int, seed: int, held: bool) -> Problem:
    """Return so many sentences of each class, drawn from ``train.csv``, and what is to be classified."""
    parts = [read_texts(data / name, "text", "category") for name in ("train.csv", "test.csv")]
    names, generator = tuple(sorted(set(parts[0].labels))), np.random.default_rng(seed)
    ids = [np.array([names.index(label) for label in part.labels]) for part in parts]
    rows = [int(row) for k in range(len(names)) for row in generator.choice(np.flatnonzero(ids[0] == k), shots, False)]
    left = sorted({*range(len(ids[0]))} - {*rows}) if held else [*range(len(ids[1]))]
    return Problem(
        names,
        tuple(parts[0].texts[row] for row in rows),
        ids[0][rows],
        tuple(parts[1 - held].texts[row] for row in left),
        ids[1 - held][left],
    )


@cache
def seen(network: str, texts: tuple[str, ...]) -> tuple[NDArray[Any], float]:
    """Return the features of texts, and what processor time they took."""
    trunk, began = open_trunk(absolute(network)), time.process_time()
    return features_of(trunk, texts).numpy(), time.process_time() - began


def frozen(network: str, problem: Problem, named: bool) -> dict[str, Said]:
    """Return what class means and logistic regression say on the network's features."""
    words = tuple(name.replace("_", " ") for name in problem.names) if named else ()
    x, learned = seen(network, (*problem.texts, *words))
    queries, answered = seen(network, problem.queries)
    y = np.concatenate([problem.labels, np.arange(len(words), dtype=int)])
    means = np.stack([x[y == k].mean(0) for k in range(len(problem.names))])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    more, began = " + names" if named else "", time.process_time()
    machine = LogisticRegressionCV(Cs=COSTS, cv=min(5, np.bincount(y).min()), scoring="neg_log_loss", max_iter=1000)
    machine.fit(x, y)
    fitted = time.process_time() - began
    return {
        f"class means{more}": Said((queries @ means.T).argmax(1) == problem.answers, learned, answered),
        f"logistic regression{more}": Said(machine.predict(queries) == problem.answers, learned + fitted, answered),
    }


def adapted(run: str | dict[str, Any], problem: Problem, names: bool | None) -> Said:
    """Return what headstart says, as its user has it: a file of sentences and labels, `adapt` and `predict`."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "few.csv"
        with file.open("w", newline="", encoding="utf-8") as out:
            rows = csv.writer(out)
            rows.writerow(("text", "label"))
            rows.writerows(zip(problem.texts, (problem.names[label] for label in problem.labels)))
        began = time.process_time()
        model = headstart.adapt(run, file, Path(place) / "adapted", names=names)
        learned = time.process_time() - began
        found = [row["prediction"] for row in predictions(model, list(problem.queries))]
        answered = time.process_time() - began - learned
    right = np.array([name == problem.names[answer] for name, answer in zip(found, problem.answers, strict=True)])
    return Said(right, learned, answered)


def setfit(worker: Worker, network: str, problem: Problem, pairs: int, seed: int) -> Said:
    """Return what SetFit says, in its own process and of one thread."""
    case = {
        "network": network.removeprefix("hf:"),
        "texts": problem.texts,
        "labels": problem.labels.tolist(),
        "queries": problem.queries,
        "pairs": pairs,
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "answer.npz"
        worker.ask({"do": "prepare", "case": case, "answer": str(path)}, seconds=36_000)
        with np.load(path) as found:
            seconds = found["seconds"]
            return Said(found["predictions"] == problem.answers, float(seconds[0]), float(seconds[1]))


def trained(tasks: str, data: Path, network: str, place: str) -> str:
    """Train a run with no option but the network, and return its folder."""
    began = time.process_time()
    tree = {"tasks.name": tasks, "tasks.data": data, "model.name": network, "run.threads": 1}
    train(nested(tree), Path(place) / "run", tested=False)
    print(f"trained on {tasks} in {time.process_time() - began:.0f} s of processor time", flush=True)
    return str(Path(place) / "run")


def episode(tasks: Tasks, number: int) -> Problem:
    """Return a task of `benchmarks.texts` as texts, whose classes have no names."""
    support, query = tasks.sample("test", [number])
    ways = int(support.y.max()) + 1
    texts, queries = (tuple(texts_of(part.x[0])) for part in (support, query))
    names = tuple(f"class {k:02}" for k in range(ways))
    return Problem(names, texts, support.y[0].numpy(), queries, query.y[0].numpy())


def table(found: Mapping[str, Sequence[Said]], last: str, by_task: bool) -> str:
    """Return accuracies, how far one contender is ahead of each, by task or by sentence, and seconds, as a table."""
    lines = [f"| | accuracy | {last} is ahead by | s to learn | s to classify |\n|---|---|---|---|---|"]
    for name, said in found.items():
        ours = found[last][: len(said)]
        pairs = [one.right.astype(float) - other.right for one, other in zip(ours, said)]
        apart = [float(pair.mean()) for pair in pairs] if by_task else np.concatenate(pairs).tolist()
        each = [float(one.right.mean()) for one in said]
        ahead = "" if name == last else interval(apart)
        spread = f" ({100 * min(each):.1f} to {100 * max(each):.1f})" if len(each) > 1 else ""
        times = (statistics.mean(getattr(one, part) for one in said) for part in ("learned", "answered"))
        told = " | ".join(f"{time:.1f}" for time in times)
        lines.append(f"| {name} | {100 * statistics.mean(each):.1f}{spread} | {ahead} | {told} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.all_classes", description="All classes at once.")
    parser.add_argument("--data", type=Path, required=True, help="the folder of BANKING77's two files")
    parser.add_argument("--model", required=True, help="a pretrained network, such as hf:FOLDER")
    parser.add_argument("--clinc", type=Path, help="the folder of CLINC150's file, to train a run on")
    parser.add_argument("--shots", type=int, default=5, help="sentences of each class")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="of the draws")
    parser.add_argument("--held", action="store_true", help="classify what is left of train.csv, not test.csv")
    parser.add_argument("--setfit", type=int, default=0, help="of how many draws SetFit learns, too")
    parser.add_argument("--pairs", type=int, default=20, help="its pairs for each sentence, twice; its authors take 20")
    parser.add_argument("--episodes", type=int, default=0, help="tasks of 20 ways and 1 shot instead")
    parser.add_argument("--peers", type=Path, help="the folder of the other libraries' environment, which is built")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    python = build(given.peers).python if given.setfit or given.episodes else None
    found: dict[str, list[Said]] = {}

    def tell(name: str, said: Said) -> None:
        found.setdefault(name, []).append(said)
        told = f"{100 * said.right.mean():.2f} after {said.learned:.1f} + {said.answered:.1f} s"
        print(f"{len(found[name])} {name}: {told}", flush=True)

    def beside(problem: Problem, seed: int) -> None:
        with Worker("benchmarks.peers.setfit:setfit", python=python, variables={"HF_HUB_OFFLINE": "1"}) as worker:
            tell("SetFit", setfit(worker, given.model, problem, given.pairs, seed))

    as_it_is = {"model": given.model}
    if given.episodes:
        tasks = banking77(given.data, ways=20, shots=1, queries=15, length=512)
        with tempfile.TemporaryDirectory() as place:
            run = trained("banking77", given.data, given.model, place)
            for number in range(given.episodes):
                problem = episode(tasks, number)
                tell("headstart, without a run", adapted(as_it_is, problem, False))
                tell(_RUN, adapted(run, problem, False))
                beside(problem, number)
        print(table(found, _RUN, True))
        return
    with tempfile.TemporaryDirectory() as place:
        run = None if given.clinc is None else trained("clinc150", given.clinc, given.model, place)
        for number, seed in enumerate(map(int, given.seeds.split(","))):
            problem = drawn(given.data, given.shots, seed, given.held)
            for named in (False, True):
                for name, said in frozen(given.model, problem, named).items():
                    tell(name, said)
            if run is not None:
                for names in (False, True):
                    tell(f"headstart, a run on CLINC150{' + names' * names}", adapted(run, problem, names))
            tell("headstart, without names", adapted(as_it_is, problem, False))
            tell("headstart", adapted(as_it_is, problem, None))
            if number < given.setfit:
                beside(problem, seed)
    print(table(found, "headstart", False))


if __name__ == "__main__":
    main()
