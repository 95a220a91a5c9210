"""The file of a run's numbers."""

import pytest

from headstart.errors import FileError
from headstart.training.metrics import MetricsFile, read_lines, validations, write_csv


def _write(run, after, steps, known=None):
    metrics = MetricsFile(run, after, known)
    for step in steps:
        metrics.add({"step": step, "loss": 1 / (step + 3)})
    told = metrics.sync()
    metrics.close()
    return told


def test_going_on_gives_the_file_of_one_run(tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    _write(tmp_path / "whole", -1, range(9))
    known = _write(tmp_path / "parts", -1, range(4))
    _write(tmp_path / "parts", 3, range(4, 6), known)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # cut short by a crash
    _write(tmp_path / "parts", 3, range(4, 9), known)
    texts = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert texts[0] == texts[1]


LINES = [f'{{"step": {step}, "loss": {1 / (step + 3)}}}' for step in range(9)]


@pytest.mark.parametrize(
    "line",
    [
        "\xff", "", "3", "null", "[" * 100_000, '{"loss": 1}', '{"step": "1"}', '{"step": 1.5}', '{"step": true}',
        '{"step": 4, "loss": "low"}', '{"step": 4, "loss": NaN}', '{"step": 4, "loss": 1e999}',
        f'{{"step": 4, "loss": {10**400}}}', '{"step": 4, "validation": 1}', '{"step": 4, "validation": {"mse": 1}}',
        '{"step": 4, "validation": {"mse": [1], "ci95": 1}}', '{"step": 4, "left_out": 3}',
        '{"step": 4, "left_out": [3]}', '{"step": 4, "left_out": [{"task": "a"}]}',
    ],
)  # fmt: skip
def test_a_damaged_line_costs_itself_alone_and_is_told(tmp_path, line):
    known = _write(tmp_path, -1, range(9))
    damaged = "\n".join([*LINES[:4], line, *LINES[5:], ""]).encode("latin-1")
    (tmp_path / "metrics.jsonl").write_bytes(damaged)
    with pytest.warns(UserWarning, match="is damaged: line 5 cannot be read"):
        lines = read_lines(tmp_path)
    assert [one["step"] for one in lines] == [0, 1, 2, 3, 5, 6, 7, 8]
    with pytest.warns(
        UserWarning, match=r"not what it was after step 8 \(1 of its lines cannot be read\); it is kept as"
    ):
        _write(tmp_path, 8, [9], known)
    assert [one["step"] for one in read_lines(tmp_path)] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    (kept,) = tmp_path.glob("damaged-*")
    assert kept.read_bytes() == damaged


@pytest.mark.parametrize(("data", "left"), [(None, 0), (b"", 0), ("\n".join(LINES[:3]).encode(), 2)])
def test_lost_history_is_told(tmp_path, data, left):
    known = _write(tmp_path, -1, range(9))
    (tmp_path / "metrics.jsonl").unlink()
    if data is not None:
        (tmp_path / "metrics.jsonl").write_bytes(data)
    with pytest.warns(UserWarning, match=f"not what it was after step 8.*; going on with the {left} lines"):
        _write(tmp_path, 8, [], known)


def test_a_digit_that_changed_is_seen(tmp_path):
    known = _write(tmp_path, -1, range(9))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.75"))
    with pytest.warns(UserWarning, match=r"\(0 of its lines cannot be read\); it is kept"):
        _write(tmp_path, 8, [], known)


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
        MetricsFile(tmp_path, 0, {"bytes": 8})
    assert (tmp_path / "other").read_text() == "precious"
    assert pytest.raises(FileError, read_lines, tmp_path)
