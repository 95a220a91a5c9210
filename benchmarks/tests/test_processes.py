"""The benchmark of processes: what it measures, and what it writes."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import processes


def test_methods_stand_beside_the_true_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--methods", "cnp,gaussian_process", "--steps", "2", "--episodes", "100", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["processes.py", *words])
    tables = []
    for _ in range(2):  # the second time weights are read, not trained
        processes.main()
        tables.append(json.loads((tmp_path / "processes.json").read_text())["rows"])
    assert tables[0] == tables[1] and capsys.readouterr().out.count("cnp step 2") == 1
    truth, cnp, gp = tables[0]
    assert [row["method"] for row in tables[0]] == ["truth", "cnp", "gaussian_process"]
    assert truth["log_likelihood"] > max(cnp["log_likelihood"], gp["log_likelihood"])
    assert abs(truth["coverage"] - 0.9) < 0.03 and truth["seconds"] is None
    assert cnp["steps"] == 2 and cnp["mse"] > truth["mse"] > 0.01
