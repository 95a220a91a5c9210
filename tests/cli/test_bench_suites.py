"""``headstart bench speed`` and its siblings."""

import json
from pathlib import Path

import pytest

from headstart.bench import speed
from headstart.bench.figures import Figure, Report, Target
from headstart.cli.app import run

FIGURES = (Figure("sine", "headstart", 2.0, 1.9, 2.1, 9, "ms"), Figure("sine", "higher", 15.0, 14.0, 16.0, 9, "ms"))
TARGET = Target("sine, against higher", "sine", "headstart", "higher", 10, "times faster")
REPORT = Report("speed", FIGURES, (TARGET,), {"torch": "2"}, {"JAX": "not installed"})


@pytest.mark.parametrize("suite", ["tables", "speed", "compile", "memory", "sampler", "all"])
def test_every_suite_has_help(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", suite, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--out" in text and "--json" in text
    assert ("--without-peers" in text) == (suite != "tables")


def test_all_suites_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(suite in text for suite in ("tables", "speed", "compile", "memory", "sampler", "all"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--cases", "cosine", "--without-peers"], "no case answers to 'cosine'; there are: sine T=1"),
        (["--repeats", "0", "--without-peers"], "at least 1"),
        (["--threads", "-1", "--without-peers"], "at least 0"),
        (["--seconds", "0", "--without-peers"], "more than 0"),
        (["--colour", "blue"], "--colour"),
    ],
)
def test_mistakes_are_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "speed", *words]) == 2
    assert told in capsys.readouterr().err


def test_a_folder_that_is_not_for_peers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert run(["bench", "speed", "--peers", str(tmp_path)]) == 2
    assert "holds files, but no environment of peers" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "run", lambda plan: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    assert run(["bench", "speed", "--without-peers", "--out", str(tmp_path / "file" / "out")]) == 1
    assert "cannot make the folder" in capsys.readouterr().err


def test_figures_targets_and_files_come_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "run", lambda plan: REPORT)
    out = tmp_path / "not" / "there yet"
    assert run(["bench", "speed", "--without-peers", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "sine, against higher: 7.50 times faster, at least 10 wanted: short by 25 %" in text
    assert "JAX: left out: not installed" in text and "15.0 ms" in text and str(out / "speed.png") in text
    assert json.loads((out / "speed.json").read_text())["figures"][1]["contender"] == "higher"
    assert "short by 25 %" in (out / "speed.md").read_text()
    assert run(["bench", "speed", "--without-peers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["targets"][0]["found"] == 7.5
