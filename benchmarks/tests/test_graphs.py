"""The benchmark of graphs: what it says of a step on a CPU, where there are none."""

import json

import pytest
import torch

from benchmarks import graphs
from benchmarks.graphs import CASES, rows


def test_a_row_tells_both_times_and_why_there_are_no_graphs() -> None:
    (found,) = rows(["sine T=1"], torch.device("cpu"), 2)
    assert found["as it is, ms"] > 0 and found["graphs, ms"] > 0
    assert found["times as fast"] == pytest.approx(found["as it is, ms"] / found["graphs, ms"])
    assert "not graphed" in found["why not"] and "its tensors are on the cpu" in found["why not"]


def test_without_a_gpu_it_says_so_and_on_a_cpu_it_is_asked_for(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["graphs"])
    assert graphs.main() == 1 and capsys.readouterr().err == "error: there is no GPU here, which graphs are for\n"
    monkeypatch.setattr(graphs, "row", lambda case, device, repeats: {"case": case.name, "as it is, ms": 2.0})
    monkeypatch.setattr(
        "sys.argv", ["graphs", "--device", "cpu", "--cases", next(iter(CASES)), "--out", str(tmp_path), "--json"]
    )
    assert graphs.main() == 0
    told = json.loads((tmp_path / "graphs.json").read_text())
    assert told == json.loads(capsys.readouterr().out)
    assert told["device"] == "cpu" and told["rows"] == [{"case": "sine T=1", "as it is, ms": 2.0}]
