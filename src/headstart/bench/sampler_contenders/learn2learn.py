"""learn2learn's tasksets (Arnold et al. 2020, arXiv:2008.12284), compiled from its source."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from headstart.bench.peers.environment import source_folder
from headstart.bench.peers.prepared import Prepared
from headstart.bench.sampler_contenders.episodes import SamplerCase, Tensors, case_of, images_of, prepared, stacked
from headstart.bench.sampler_contenders.imports import bare_at, stand_in

_COMPILE_SECONDS = 500


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Sample from a taskset; the first call compiles learn2learn's data modules in the environment.

    Raises:
        PackageNotFoundError: learn2learn was not unpacked.
        RuntimeError: its modules cannot be compiled.
    """
    case = case_of(values)
    random.seed(case.seed)
    return prepared(_batches(case), "Taskset with FusedNWaysKShots, LoadData, RemapLabels; images in memory as float32")


class _InMemory(Dataset[tuple[Tensor, int]]):
    def __init__(self, case: SamplerCase) -> None:
        self.x, self.classes = images_of(case)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], self.classes[index]

    def __len__(self) -> int:
        return len(self.classes)


def _batches(case: SamplerCase) -> Iterator[Tensors]:
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
