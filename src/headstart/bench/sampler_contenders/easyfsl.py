"""easyfsl's TaskSampler in a DataLoader (Bennequin; github.com/sicara/easy-few-shot-learning)."""

import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from headstart.bench.peers.prepared import Prepared
from headstart.bench.sampler_contenders.episodes import SamplerCase, Tensors, case_of, images_of, prepared, stacked
from headstart.bench.sampler_contenders.imports import bare


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Load with as many workers as the case says.

    Raises:
        ModuleNotFoundError: easyfsl is not installed.
    """
    case = case_of(values)
    random.seed(case.seed)
    return prepared(_batches(case), f"DataLoader with {case.workers} workers, images in memory as float32")


def _batches(case: SamplerCase) -> Iterator[Tensors]:
    loader = _loader(case)
    episodes = iter(loader)
    while True:
        yield stacked([next(episodes)[:4] for _ in range(case.tasks)])


def _loader(case: SamplerCase) -> Any:
    bare("easyfsl", "easyfsl.datasets", "easyfsl.samplers")
    from easyfsl.datasets.few_shot_dataset import FewShotDataset  # pyrefly: ignore[missing-import]

    sys.modules["easyfsl.datasets"].__dict__["FewShotDataset"] = FewShotDataset
    from easyfsl.samplers.task_sampler import TaskSampler  # pyrefly: ignore[missing-import]

    x, classes = images_of(case)

    class InMemory(FewShotDataset):  # type: ignore[misc]
        def __getitem__(self, item: int) -> tuple[Tensor, int]:
            return x[item], classes[item]

        def __len__(self) -> int:
            return len(classes)

        def get_labels(self) -> list[int]:
            return classes

    # it hands torch's Sampler an argument that newer versions of torch no longer take
    Sampler.__init__ = lambda self, data_source=None: None  # type: ignore[method-assign]
    dataset = InMemory()
    sampler = TaskSampler(dataset, case.ways, case.shots, case.queries, n_tasks=sys.maxsize)
    collate = sampler.episodic_collate_fn
    return DataLoader(dataset, batch_sampler=sampler, num_workers=case.workers, collate_fn=collate)
