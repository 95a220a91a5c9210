"""torchmeta's BatchMetaDataLoader (Deleu et al. 2019, arXiv:1909.06576)."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from headstart.bench.peers.prepared import Prepared
from headstart.bench.sampler_contenders.episodes import SamplerCase, Tensors, case_of, images_of, prepared, store_of
from headstart.bench.sampler_contenders.imports import bare, stand_in


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Load with as many workers as the case says.

    Raises:
        ModuleNotFoundError: torchmeta is not installed.
    """
    case = case_of(values)
    random.seed(case.seed)
    return prepared(_batches(case), f"BatchMetaDataLoader with {case.workers} workers, images in memory as float32")


def _batches(case: SamplerCase) -> Iterator[Tensors]:
    for batch in _loader(case):
        yield (*batch["train"], *batch["test"])


def _loader(case: SamplerCase) -> Any:
    bare("torchmeta", "torchmeta.utils")
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        stand_in(name, Compose=_Compose)
    stand_in("ordered_set")
    # in this order: its packages import each other
    from torchmeta.utils.data import (  # pyrefly: ignore[missing-import]
        BatchMetaDataLoader,
        ClassDataset,
        CombinationMetaDataset,
        Dataset,
        SubsetTask,
    )

    from torchmeta.transforms import Categorical, ClassSplitter  # pyrefly: ignore[missing-import]  # isort: skip

    # newer versions of torch ask every subset for it
    SubsetTask.__getitems__ = lambda self, indices: [self[index] for index in indices]
    x = images_of(case).x
    sizes = store_of(case).sizes.tolist()
    parts = x.split(sizes)

    class OneClass(Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return sizes[self.index]

        def __getitem__(self, item: int) -> tuple[Tensor, int]:
            return parts[self.index][item], self.target_transform(self.index)

    class Classes(ClassDataset):  # type: ignore[misc]
        num_classes = len(parts)

        def __getitem__(self, index: int) -> OneClass:
            return OneClass(index)

    splitter = ClassSplitter(
        num_train_per_class=case.shots, num_test_per_class=case.queries, random_state_seed=case.seed
    )
    tasks = CombinationMetaDataset(
        Classes(meta_train=True),
        num_classes_per_task=case.ways,
        target_transform=Categorical(case.ways),
        dataset_transform=splitter,
    )
    return BatchMetaDataLoader(tasks, batch_size=case.tasks, num_workers=case.workers)


class _Compose:
    """torchvision's, which is all that torchmeta's loader takes from it."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, value: Any) -> Any:
        for transform in self.transforms:
            value = transform(value)
        return value
