"""Pictures and texts beside class means, and what kept features take, by tiny networks."""

import re
from pathlib import Path

import pytest

from benchmarks import features, pictures
from benchmarks.class_means import Size, table
from headstart.training.config import nested, resolve

NETWORKS = """
import headstart, torch
from torch import nn

def colours():
    body = nn.AvgPool2d(4)
    return headstart.of_images(body, size=8, mean=(0.5,) * 3, std=(0.5,) * 3)

def letters():
    torch.manual_seed(0)
    def ids(texts):
        return torch.tensor([list(text.encode()[:20].ljust(20, b"\\0")) for text in texts])
    return headstart.of_texts(nn.EmbeddingBag(256, 8, padding_idx=0), ids, pad=0)
"""


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    (tmp_path / "net.py").write_text(NETWORKS)
    return str(tmp_path / "net.py")


def test_differences_are_paired() -> None:
    runs = [[((0.5, 0.75), (0.25, 0.5))], [((1.0, 0.5), (0.75, 0.25))]]
    _, line = table([Size(5, 1, 4)], runs)
    assert line == "| 5, 1 | 43.8 ± 23.5 | 68.8 ± 23.5 | 25.0 ± 0.0 |"


def test_pictures_are_compared_with_the_networks_own_class_means(
    networks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--tasks", "flags", "--model", f"{networks}:colours", "--seeds", "2", "--count", "8"]
    quick = ["outer.steps=20", "outer.rate=0.01", "run.evaluate_tasks=4"]
    pictures.main([*given, *(word for one in quick for word in ("--set", one))])
    told = capsys.readouterr().out
    assert told.count("trained in") == 2
    rows = re.findall(r"^\| (\d+, \d) \| ([\d.]+) ± [\d.]+ \| ([\d.]+) ± [\d.]+ \| (-?[\d.]+) ±", told, re.M)
    assert [row[0] for row in rows] == ["5, 1", "5, 5", "20, 1", "20, 5"]
    for _, theirs, ours, difference in rows:
        assert float(ours) - float(theirs) == pytest.approx(float(difference), abs=0.11)
    assert 20 < float(rows[0][1]) < float(rows[1][1])  # better than chance, and better with more to learn from


def test_a_run_is_left_before_its_first_step_and_episodes_are_counted(networks: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    rows = [f"number {n} of class {name},{name}" for name in "abcdefghijkl" for n in range(4)]
    path.write_text("\n".join(["text,label", *rows]))
    tree = {"tasks.name": str(path), "tasks.ways": 2, "tasks.queries": 2, "model.name": f"{networks}:letters"}
    found = features.start({**tree, "run.evaluate_tasks": 2}, ["json", "no_such_module"])
    assert found.imports >= 0 and min(found.seconds, found.processor) > 0 and "headstart.data.encoder" in found.modules
    rates = features.episodes_a_second(resolve(nested(tree)), rounds=2, seconds=0.01)
    assert len(rates) == 2 and min(rates) > 0
