"""What is learned on a pretrained network's features of pictures, beside the nearest class mean of the same features.

A run is trained as `headstart train emoji --model NETWORK` (or ``flags``, ``icons``) does, with no option but the seed
and those of ``--set``, and judged on classes that it never saw, of 5 and 20 ways and 1 and 5 shots, other tasks for
each seed. Beside it stands, on the same tasks, the class whose mean of the frozen features is nearest, by cosine.
Differences are paired, task by task; ± is 1.96 · standard deviation / √tasks.

Settings are chosen with ``--split validation``, whose tasks no reported figure is of.

    python -m benchmarks.pictures --tasks emoji --model lite0.py:lite0          # docs/pretrained.md has lite0.py
    python -m benchmarks.pictures --tasks flags --model lite0.py:lite0 --split validation --set outer.rate=0.001
"""

import argparse
from collections.abc import Sequence

from benchmarks.class_means import Size, asked, compared, settings, table

#: Query images a class of 1-shot and of 5-shot tasks: as many as are left. In 5-shot tasks the 70 flags that five
#: designs have have none left, and are no part of them.
QUERIES = {"icons": (11, 7), "emoji": (5, 1), "flags": (4, 1)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description="Pictures beside class means.")
    parser.add_argument("--tasks", choices=QUERIES, default="emoji")
    parser.add_argument("--model", required=True, help="a pretrained network, such as hf:FOLDER or FILE.py:factory")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    asked(parser, "seed")
    given = parser.parse_args(arguments)
    one, five = QUERIES[given.tasks]
    sizes = [Size(ways, shots, queries) for ways in (5, 20) for shots, queries in ((1, one), (5, five))]
    chosen = {"tasks.name": given.tasks, "tasks.on_short": "skip", **settings(given)}
    runs = [compared({**chosen, "run.seed": seed}, sizes, given.split, given.count) for seed in range(given.seeds)]
    print(*table(sizes, runs), sep="\n")


if __name__ == "__main__":
    main()
