"""Tables in memory and in files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.data.tables.read import Table, strings


def _in_memory(columns: Mapping[str, Sequence[str]]) -> Table:
    size = len(next(iter(columns.values())))
    texts = {name: strings(list(values)) for name, values in columns.items()}
    return Table("some.csv", tuple(columns), texts, np.arange(2, size + 2))


@pytest.fixture
def in_memory() -> Callable[[Mapping[str, Sequence[str]]], Table]:
    return _in_memory


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a CSV file of columns."""

    def made(columns: Mapping[str, Sequence[Any]], name: str = "some.csv") -> Path:
        rows = [",".join(columns), *(",".join(str(value) for value in row) for row in zip(*columns.values()))]
        path = tmp_path / name
        path.write_text("\n".join(rows) + "\n")
        return path

    return made


@pytest.fixture
def pigs() -> dict[str, list[Any]]:
    """Ten tasks of eight rows, with columns of every kind."""
    rows = range(80)
    return {
        "pig": [f"p{row // 8}" for row in rows],
        "week": [row % 8 + row // 8 * 0.01 for row in rows],
        "food": [("corn", "oats", "rye")[row * 7 // 5 % 3] for row in rows],
        "ill": [("yes", "no", "No")[(row + row // 7) % 3] for row in rows],
        "born": [f"2020-03-{1 + (row * 5) % 28:02d}" for row in rows],
        "weight": [20 + 6 * (row % 8) + row // 8 for row in rows],
    }
