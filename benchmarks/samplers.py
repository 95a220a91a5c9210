"""What every contender is to deliver, out of which images, and whether an episode is sound."""

import importlib.util
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.peers.environment import source_folder
from benchmarks.peers.ours import keep_memory
from benchmarks.peers.prepared import Arrays, Prepared
from headstart.data.fewshot import ClassStore, class_store, few_shot, rotated, scaled
from headstart.data.images.builtin import read_archive
from headstart.data.images.omniglot import ZIPS, read_omniglot

Tensors: TypeAlias = tuple[Tensor, ...]
"""Support ``x`` and ``y``, query ``x`` and ``y``: of one task, or stacked along a first axis."""

FIELDS = ("support_x", "support_y", "query_x", "query_y")


class SamplerCase(NamedTuple):
    """Batches of ``tasks`` episodes as a model takes them: float32 in [0, 1], labels below ``ways``."""

    ways: int = 5
    shots: int = 1
    queries: int = 15
    tasks: int = 32
    workers: int = 0
    """Processes that load for the contender, where it can have some."""
    seed: int = 0
    omniglot: str | None = None
    """The folder of Omniglot's zips; ``None``: the icons that are part of headstart."""


class Images(NamedTuple):
    """The images as other libraries take them: ready for a model, in memory."""

    x: Tensor
    """``(N, C, H, W)`` float32 in [0, 1]."""
    classes: list[int]
    """Each image's class."""


def case_of(values: Mapping[str, Any]) -> SamplerCase:
    """Return the case of which JSON has the values."""
    return SamplerCase(**values)


def omniglot_folder(data: Path | None) -> str | None:
    """Return the folder with Omniglot's zips: ``data``, or ``omniglot`` in it, in HEADSTART_DATA or ../shared/data."""
    places = [data] if data else [Path(os.environ.get("HEADSTART_DATA", Path("..", "shared", "data")))]
    for place in (*places, *(place / "omniglot" for place in places)):
        if all((place / name).is_file() for name in ZIPS):
            return str(place.absolute())
    return None


def store_of(case: SamplerCase) -> ClassStore:
    """Return the images that all contenders draw from.

    They are the 964 characters of Omniglot's background set, or the training icons; turned by 90, 180 and 270 degrees
    they are three more classes.
    """
    return _store(case.omniglot, case.shots + case.queries)


@cache
def _store(omniglot: str | None, needed: int) -> ClassStore:
    if omniglot is None:
        archive = read_archive("icons")
        store = rotated(archive.stores["train"], archive.turns["train"])
        enough = store.sizes >= needed
        names = tuple(name for name, kept in zip(store.names, enough.tolist()) if kept)
        return ClassStore(store.examples, store.starts[enough], store.sizes[enough], names)
    drawings, names, background = read_omniglot(Path(omniglot))
    return rotated(class_store(dict(zip(names[:background], drawings))))


def images_of(case: SamplerCase) -> Images:
    """Return the same images for another library."""
    return _images(case.omniglot, case.shots + case.queries)


@cache
def _images(omniglot: str | None, needed: int) -> Images:
    store = _store(omniglot, needed)
    places = [torch.arange(start, start + size) for start, size in zip(store.starts.tolist(), store.sizes.tolist())]
    classes = torch.arange(len(places)).repeat_interleave(store.sizes)
    return Images(scaled(store.examples[torch.cat(places)]), classes.tolist())


def stacked(episodes: Sequence[Tensors]) -> Tensors:
    """Stack the episodes of several tasks."""
    return tuple(torch.stack(parts) for parts in zip(*episodes))


def prepared(batches: Iterator[Tensors], note: str = "") -> Prepared:
    """Return a contender whose step is the next batch, and whose answer is one."""

    def answer() -> Arrays:
        return {name: part.numpy() for name, part in zip(FIELDS, next(batches))}

    return Prepared(lambda: next(batches), answer, note)


def fault(found: Arrays, case: SamplerCase) -> str | None:
    """Return what is wrong with a batch of episodes, or ``None``.

    Every task must have ``ways`` different classes, one a label, and of each the asked number of different images, so
    that no query image is a support image.
    """
    store = store_of(case)
    for part, size in (("support", case.shots), ("query", case.queries)):
        x, y = found[f"{part}_x"], found[f"{part}_y"]
        shape = (case.tasks, case.ways * size)
        if x.shape != (*shape, *store.examples.shape[1:]) or y.shape != shape:
            return f"the {part} sets have shapes {x.shape} and {y.shape}; expected {shape} examples"
        if x.dtype != np.float32 or x.min() < 0 or not 0.5 < x.max() <= 1:
            return f"the {part} images are {x.dtype} from {x.min()} to {x.max()}; expected float32 in [0, 1]"
        if any((np.bincount(labels, minlength=case.ways) != size).any() for labels in y.astype(np.int64)):
            return f"a {part} set does not have {size} examples of each of {case.ways} labels"
    owners = _owners(case.omniglot, case.shots + case.queries)
    x, y = (np.concatenate([found[f"support_{part}"], found[f"query_{part}"]], axis=1) for part in "xy")
    pixels = (x * 255).round().astype(np.uint8)
    return next(filter(None, (_fault(*task, owners, case.ways) for task in zip(pixels, y))), None)


def _fault(pixels: np.ndarray, labels: np.ndarray, owners: Mapping[bytes, set[int]], ways: int) -> str | None:
    """Return what is wrong with one task's images and labels."""
    chosen: set[int] = set()
    for label in range(ways):
        images = [image.tobytes() for image in pixels[labels == label]]
        if len(set(images)) < len(images):
            return f"an image is twice under label {label} of a task"
        # a drawing that looks the same when turned is of two classes
        shared = set.intersection(*(owners.get(image, set()) for image in images))
        if not shared:
            return f"label {label} of a task is not one class of these images"
        chosen |= shared
    return None if len(chosen) >= ways else f"a task has {len(chosen)} classes for {ways} labels"


@cache
def _owners(omniglot: str | None, needed: int) -> dict[bytes, set[int]]:
    store = _store(omniglot, needed)
    owners: dict[bytes, set[int]] = {}
    for number, (start, size) in enumerate(zip(store.starts.tolist(), store.sizes.tolist())):
        for image in store.examples[start : start + size].numpy():
            owners.setdefault(image.tobytes(), set()).add(number)
    return owners


def bare(*names: str) -> None:
    """Let the modules of packages be imported without running the packages' own ``__init__``.

    Old libraries import there what today's environments no longer have, such as downloaders of data sets.

    Args:
        names: packages, each after the one that it is in.

    Raises:
        ModuleNotFoundError: a package that is not installed.
    """
    for name in names:
        if name in sys.modules:
            continue
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)
        _add(name, importlib.util.module_from_spec(spec))


def bare_at(name: str, folders: list[str]) -> ModuleType:
    """Return an empty package whose modules lie in ``folders``."""
    package = ModuleType(name)
    package.__path__ = folders
    _add(name, package)
    return package


def stand_in(name: str, **members: object) -> None:
    """Put an empty module where a library imports one whose ``members`` are all that is used here.

    Whatever else is imported from it is a class without anything.
    """
    _add(name, _StandIn(name, members))


class _StandIn(ModuleType):
    def __init__(self, name: str, members: dict[str, object]) -> None:
        super().__init__(name)
        # a path, of no folder, makes it a package
        self.__dict__.update(members, __path__=[])

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _add(name: str, module: ModuleType) -> None:
    sys.modules[name] = module
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, module)


def ours(values: Mapping[str, Any]) -> Prepared:
    """Sample one batch of tasks after the other with headstart's own sampler."""
    keep_memory()
    return prepared(_ours_batches(case_of(values)))


def _ours_batches(case: SamplerCase) -> Iterator[Tensors]:
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


def easyfsl(values: Mapping[str, Any]) -> Prepared:
    """Load by easyfsl's TaskSampler (Bennequin; github.com/sicara/easy-few-shot-learning), with the case's workers.

    Raises:
        ModuleNotFoundError: easyfsl is not installed.
    """
    case = case_of(values)
    random.seed(case.seed)
    return prepared(_easyfsl_batches(case), f"DataLoader with {case.workers} workers, images in memory as float32")


def _easyfsl_batches(case: SamplerCase) -> Iterator[Tensors]:
    loader = _easyfsl_loader(case)
    episodes = iter(loader)
    while True:
        yield stacked([next(episodes)[:4] for _ in range(case.tasks)])


def _easyfsl_loader(case: SamplerCase) -> Any:
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


def torchmeta(values: Mapping[str, Any]) -> Prepared:
    """Load by torchmeta's BatchMetaDataLoader (Deleu et al. 2019, arXiv:1909.06576), with the case's workers.

    Raises:
        ModuleNotFoundError: torchmeta is not installed.
    """
    case = case_of(values)
    random.seed(case.seed)
    return prepared(
        _torchmeta_batches(case), f"BatchMetaDataLoader with {case.workers} workers, images in memory as float32"
    )


def _torchmeta_batches(case: SamplerCase) -> Iterator[Tensors]:
    for batch in _torchmeta_loader(case):
        yield (*batch["train"], *batch["test"])


def _torchmeta_loader(case: SamplerCase) -> Any:
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


_COMPILE_SECONDS = 500


def learn2learn(values: Mapping[str, Any]) -> Prepared:
    """Sample from a taskset of learn2learn's; the first call compiles its data modules in the environment.

    Raises:
        PackageNotFoundError: learn2learn was not unpacked.
        RuntimeError: its modules cannot be compiled.
    """
    case = case_of(values)
    random.seed(case.seed)
    return prepared(
        _learn2learn_batches(case), "Taskset with FusedNWaysKShots, LoadData, RemapLabels; images in memory as float32"
    )


class _InMemory(Dataset[tuple[Tensor, int]]):
    def __init__(self, case: SamplerCase) -> None:
        self.x, self.classes = images_of(case)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], self.classes[index]

    def __len__(self) -> int:
        return len(self.classes)


def _learn2learn_batches(case: SamplerCase) -> Iterator[Tensors]:
    data = _import()
    dataset = data.MetaDataset(_InMemory(case))
    transforms = [
        data.transforms.FusedNWaysKShots(dataset, n=case.ways, k=case.shots + case.queries),
        data.transforms.LoadData(dataset),
        data.transforms.RemapLabels(dataset),
    ]
    taskset = data.Taskset(dataset, transforms)

    def episode() -> Tensors:
        support, query = data.partition_task(*taskset.sample(), shots=case.shots)
        return (*support, *query)

    while True:
        yield stacked([episode() for _ in range(case.tasks)])


def _import() -> Any:
    """Import ``learn2learn.data`` alone."""
    if "learn2learn.data" not in sys.modules:
        source = source_folder("learn2learn")
        for name in ("requests", "tqdm"):  # for downloads
            stand_in(name)
        package = bare_at("learn2learn", [str(_compiled(source)), str(source)])
        import learn2learn.data  # pyrefly: ignore[missing-import]
        import learn2learn.utils  # pyrefly: ignore[missing-import]

        assert learn2learn is package
    return sys.modules["learn2learn.data"]


def _compiled(source: Path) -> Path:
    """Return a folder with ``learn2learn.data``, compiled; the source is left as it is."""
    kept = Path(sys.prefix, "compiled", source.parent.name, "learn2learn")
    if kept.is_dir():
        return kept
    kept.parents[1].mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parents[1]) as place:
        made = Path(place, "made", "learn2learn")
        shutil.copytree(source / "data", made / "data", ignore=shutil.ignore_patterns("*.c"))
        (made / "__init__.py").touch()
        modules = sorted(str(path) for path in made.glob("data/*.pyx"))
        command = [sys.executable, "-m", "Cython.Build.Cythonize", "--inplace", "-3", *modules]
        quick = {**os.environ, "CFLAGS": "-O2 -w"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, env=quick)
        if done.returncode:
            raise RuntimeError(f"learn2learn's data modules cannot be compiled: {_last(done.stderr)}")
        os.replace(made.parent, kept.parent)
    return kept


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if "rror" in line] or text.splitlines()
    return lines[-1].strip() if lines else "the compiler said nothing"
