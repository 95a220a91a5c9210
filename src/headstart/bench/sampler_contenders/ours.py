"""headstart's own sampler."""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from headstart.bench.peers.keeping import keep_memory
from headstart.bench.peers.prepared import Prepared
from headstart.bench.sampler_contenders.episodes import SamplerCase, Tensors, case_of, prepared, store_of
from headstart.data.images.fewshot import few_shot


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Sample one batch of tasks after the other."""
    keep_memory()
    return prepared(_batches(case_of(values)))


def _batches(case: SamplerCase) -> Iterator[Tensors]:
    tasks = few_shot(
        "images",
        {"train": store_of(case)},
        ways=case.ways,
        shots=case.shots,
        queries=case.queries,
        seed=case.seed,
    )
    for first in count(step=case.tasks):
        support, query = tasks.sample("train", range(first, first + case.tasks))
        yield support.x, support.y, query.x, query.y
