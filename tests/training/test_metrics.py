"""The file of a run's numbers."""

import pytest

from headstart.errors import FileError
from headstart.training.metrics import MetricsFile, read_lines, validations, write_csv


def _write(run, after, steps):
    metrics = MetricsFile(run, after)
    for step in steps:
        metrics.add({"step": step, "loss": 1 / (step + 3)})
    metrics.sync()
    metrics.close()


def test_going_on_gives_the_file_of_one_run(tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    _write(tmp_path / "whole", -1, range(9))
    _write(tmp_path / "parts", -1, range(6))
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # cut short by a crash
    _write(tmp_path / "parts", 3, range(4, 9))
    texts = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert texts[0] == texts[1]


def test_rows_hold_the_mean_loss_since_the_row_before(tmp_path):
    lines = [
        {"step": 0, "validation": {"mse": 4.0, "ci95": 1.0}},
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 4.0, "validation": {"mse": 3.0, "ci95": 1.0}},
        {"step": 3, "loss": 9.0},
    ]
    rows = validations(lines)
    assert [(row["step"], row["train_loss"], row["mse"]) for row in rows] == [(0, None, 4.0), (2, 3.0, 3.0)]
    write_csv(tmp_path / "r.csv", rows)
    assert (tmp_path / "r.csv").read_text() == "step,train_loss,mse,ci95\n0,,4.0,1.0\n2,3.0,3.0,1.0\n"


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "other").write_text("precious")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(FileError, match="is a link"):
        MetricsFile(tmp_path, 0)
    assert (tmp_path / "other").read_text() == "precious"
    assert pytest.raises(FileError, read_lines, tmp_path)
