"""Small runs, and what they have adapted, that exports are made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headstart.data.images.icons import load_icons
from headstart.training.adapt import adapt
from headstart.training.run import train
from tests.short import tree

BASE: dict[str, Any] = {"steps": 2, "tasks_per_step": 2, "threads": 1, "evaluate_tasks": 2, "test_tasks": 2}
IMAGES = {"tasks": "icons", "ways": 3, "filters": 4, "rotations": False}
TABLE = {"task_column": "pig", "columns": "week,food,born", "target": "weight", "shots": 3}


def pigs(path: Path, count: int, first: int = 0, name: str = "p{}") -> Path:
    """Write rows of weights as a table; without a ``name``, they do not say of which pig they are."""
    lines = ["pig,week,food,born,weight,ill"]
    for row in range(8 * first, 8 * count):
        week = "" if row % 11 == 5 else f"{row % 8 + row / 100}"
        born, food = f"2020-01-{1 + row % 28:02d}", ("corn", "oats", "rye")[row * 7 // 5 % 3]
        pig = name.format(row // 8)
        lines.append(f"{pig},{week},{food},{born},{20 + 6 * (row % 8) + row // 8},{'yes' if row % 3 else 'no'}")
    path.write_text("\n".join(lines) + "\n")
    return path


def draw(folder: Path, shots: int = 3) -> Path:
    """Write icons of three classes as files of images."""
    from PIL import Image

    store = load_icons()["test"]
    for place in range(3):
        (folder / store.names[place]).mkdir(parents=True, exist_ok=True)
        for shot in range(shots):
            pixels = 255 - store.examples[int(store.starts[place]) + shot, 0].numpy()
            Image.fromarray(pixels).resize((40, 40)).save(folder / store.names[place] / f"{shot}.png")
    return folder


@pytest.fixture(scope="session")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``a_run(method, kind) ->`` the folder of a run of two steps, made once."""
    folder = tmp_path_factory.mktemp("runs")
    table = pigs(folder / "pigs.csv", 9)
    kinds = {
        "images": IMAGES,
        "numbers": {**TABLE, "tasks": str(table)},
        "classes": {**TABLE, "tasks": str(table), "target": "ill", "shots": 2},
    }

    def made(method: str, kind: str, **options: Any) -> Path:
        run = folder / f"{kind}-{method}-{len(options)}"
        if not run.exists():
            steps = {"inner_steps": 2} if method in ("maml", "anil", "meta_sgd") else {}
            train(tree({**BASE, **kinds[kind], "method": method, **steps, **options}), run)
        return run

    return made


@pytest.fixture(scope="session")
def an_adapted(a_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``an_adapted(method, kind) ->`` the folder of what such a run has adapted, made once."""
    folder = tmp_path_factory.mktemp("adapted")

    def made(method: str, kind: str, **options: Any) -> Path:
        out = folder / f"{kind}-{method}-{len(options)}"
        if not out.exists():
            source = draw(folder / "icons") if kind == "images" else pigs(folder / "more.csv", 11, 9)
            adapt(a_run(method, kind, **options), source, out, device="cpu")
        return out

    return made
