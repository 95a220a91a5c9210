"""``headstart bench``."""

import json
from pathlib import Path

import pytest

from headstart.cli.app import run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [f"{t},{d},{250 + 7 * t + 10 * d + (t * d) % 5}" for t in range(8) for d in range(6)]
    (tmp_path / "sleepstudy.csv").write_text("\n".join(["Subject,Days,Reaction", *rows]))
    return tmp_path


def words(data: Path, *more: str) -> list[str]:
    chosen = [
        "--sets",
        "sleepstudy",
        "--support",
        "3",
        "--splits",
        "2",
        "--methods",
        "support_mean,task_linear,scratch",
    ]
    return ["bench", "tables", "--data", str(data), *chosen, *more]


def test_tables_are_printed_written_and_not_computed_twice(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = data / "out"
    assert run(words(data, "--out", str(out))) == 0
    first = capsys.readouterr()
    assert "task_linear (baseline) *" in first.out and "scratch *" in first.out and str(out / "tables.png") in first.out
    assert "sleepstudy, first 3 rows of an unseen Subject given: Reaction (ms) from Days" in first.out
    assert "support_mean on sleepstudy, 3 support rows: RMSE" in first.err
    assert run(words(data, "--out", str(out), "--json")) == 0
    second = capsys.readouterr()
    assert "6 cells are done already" in second.err
    (table,) = json.loads(second.out)["tables"]
    assert {row["method"] for row in table["rows"]} == {"support_mean", "task_linear", "scratch"}


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (["--support", "three"], 2, "--support is 'three', but must be one or more whole numbers"),
        (["--support", "6"], 3, "task '0' with its 6 rows has none to predict"),
        (["--sets", "dietox"], 1, "there is no file"),
        (["--methods", "mammal"], 2, "unknown method or baseline for tables 'mammal'; did you mean 'maml'"),
        (["--data", "nowhere"], 2, "there is no folder nowhere"),
        (["--splits", "0"], 2, "at least 1"),
    ],
)
def test_mistakes_have_their_exit_code_and_a_line(
    data: Path, more: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = words(data)
    for flag, value in zip(more[::2], more[1::2]):
        if flag in chosen:
            chosen[chosen.index(flag) + 1] = value
        else:
            chosen += [flag, value]
    assert run(chosen) == code
    assert told in capsys.readouterr().err


def test_another_suite_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "chairs"]) == 2
    assert "tables" in capsys.readouterr().err
