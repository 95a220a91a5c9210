"""``headstart bench speed`` and its siblings."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from headstart.bench import memory, roofline, speed
from headstart.bench.figures import Figure, Report, Target
from headstart.bench.peers import environment
from headstart.bench.peers.case import Case
from headstart.bench.peers.environment import Environment
from headstart.bench.peers.process import PeerError
from headstart.bench.plan import Plan
from headstart.bench.roofline_floors import Floors
from headstart.bench.suites import SUITES
from headstart.cli.app import run

FIGURES = (Figure("sine", "headstart", 2.0, 1.9, 2.1, 9, "ms"), Figure("sine", "higher", 15.0, 14.0, 16.0, 9, "ms"))
TARGET = Target("sine, against higher", "sine", "headstart", "higher", 10, "times faster")
REPORT = Report("speed", FIGURES, (TARGET,), {"torch": "2"}, {"JAX": "not installed"})


@pytest.mark.parametrize("suite", ["tables", "speed", "compile", "memory", "sampler", "roofline", "all"])
def test_every_suite_has_help(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", suite, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--out" in text and "--json" in text
    for flag in ("--without-peers", "--rebuild-peers"):
        assert (flag in text) == (suite not in ("tables", "roofline"))


def test_all_suites_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(suite in text for suite in ("tables", "speed", "compile", "memory", "sampler", "roofline", "all"))


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


def test_a_file_for_peers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(["bench", "speed", "--peers", str(tmp_path / "file")]) == 2
    assert "is a file; name another folder with --peers" in capsys.readouterr().err


def test_figures_targets_and_files_come_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "run", lambda plan: REPORT)
    out = tmp_path / "not" / "there yet"
    assert run(["bench", "speed", "--without-peers", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "sine, against higher: 7.50 times faster, at least 10 wanted: short by 25 %" in text
    assert "JAX: left out: not installed" in text and "15.0 ms" in text and str(out / "speed.partial.png") in text
    values = json.loads((out / "speed.partial.json").read_text())
    assert values["figures"][1]["contender"] == "higher" and values["partial"] == "without other libraries"
    assert values["command"] == "headstart bench speed --without-peers"
    assert "short by 25 %" in (out / "speed.partial.md").read_text()
    assert run(["bench", "speed", "--without-peers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["targets"][0]["found"] == 7.5


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Environment:
    """An environment with all peers, which nothing is installed in."""
    found = Environment(tmp_path / "python", {"higher": "1"}, {})
    monkeypatch.setattr(environment, "build", lambda folder, note, again: found)
    return found


def test_only_whole_results_replace_whole_ones(
    peers: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "run", lambda plan: REPORT)
    words = ["bench", "speed", "--out", str(tmp_path)]
    assert run(words) == 0
    whole = {path.name: path.read_bytes() for path in tmp_path.glob("speed.*")}
    assert set(whole) == {"speed.json", "speed.md", "speed.png"}
    less = [["--cases", "sine T=1"], ["--without-peers"], ["--repeats", "2"], ["--seconds", "5"]]
    for more in less:
        assert run([*words, *more]) == 0
        assert all((tmp_path / name).read_bytes() == data for name, data in whole.items())
        assert json.loads((tmp_path / "speed.partial.json").read_text())["partial"]
    offline = peers._replace(failed={"jax": "no network"})
    monkeypatch.setattr(environment, "build", lambda folder, note, again: offline)
    assert run(words) == 0
    assert all((tmp_path / name).read_bytes() == data for name, data in whole.items())
    assert "without jax" in (tmp_path / "speed.partial.md").read_text()
    monkeypatch.setattr(environment, "build", lambda folder, note, again: peers)
    assert run(words) == 0
    assert set(whole) == {path.name for path in tmp_path.glob("speed.*")}, "what is whole replaces what is partial"


@pytest.mark.usefixtures("peers")
def test_an_interrupted_suite_leaves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(plan: Plan) -> Report:
        plan.keep(REPORT)
        raise KeyboardInterrupt

    monkeypatch.setattr(speed, "run", interrupted)
    (tmp_path / "speed.json").write_text("whole")
    with pytest.raises(SystemExit, match="130"):
        run(["bench", "speed", "--out", str(tmp_path)])
    values = json.loads((tmp_path / "speed.partial.json").read_text())
    assert values["partial"] == "not finished" and len(values["figures"]) == 2
    assert (tmp_path / "speed.json").read_text() == "whole"


def stand_in(name: str) -> Callable[[Plan], Report]:
    return lambda plan: REPORT._replace(suite=name, targets=(TARGET._replace(name=name),))


def test_all_goes_on_after_a_suite_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(plan: Plan) -> Report:
        raise PeerError("its processes cannot be started")

    for name in ("speed", "compile", "sampler"):
        monkeypatch.setattr(import_module(f"headstart.bench.{name}"), "run", stand_in(name))
    monkeypatch.setattr(memory, "run", fails)
    words = ["bench", "all", "--without-peers", "--out", str(tmp_path)]
    assert run(words) == 1
    told = capsys.readouterr()
    assert "error: memory: its processes cannot be started" in told.err
    assert all(f"{name}: 7.50 times faster" in told.out for name in ("speed", "compile", "sampler"))
    assert run([*words, "--json"]) == 1
    values = json.loads(capsys.readouterr().out)
    assert [each["suite"] for each in values] == ["speed", "compile", "sampler"]
    for each in values:
        assert [Path(file).name.split(".")[0] for file in each["files"]] == [each["suite"]] * 3
    assert run(["bench", "memory", "--without-peers"]) != 0
    assert "its processes cannot be started" in capsys.readouterr().err


def test_all_runs_the_suites_that_have_the_cases(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, tuple[str, ...]] = {}
    for name in SUITES:

        def kept(plan: Plan, name: str = name) -> Report:
            asked[name] = plan.cases
            return REPORT._replace(suite=name)

        monkeypatch.setattr(import_module(f"headstart.bench.{name}"), "run", kept)
    assert run(["bench", "all", "--without-peers", "--cases", "sine T=1;*T=5", "--json"]) == 0
    assert set(asked) == {"speed", "compile"} and asked["compile"] == ("sine T=1", "sine T=5")
    assert [each["suite"] for each in json.loads(capsys.readouterr().out)] == ["speed", "compile"]
    monkeypatch.setattr(environment, "build", lambda *given: pytest.fail("built for nothing"))
    assert run(["bench", "all", "--cases", "sine*;cosine"]) == 2
    assert "no case answers to 'cosine'" in capsys.readouterr().err


def test_the_roofline_is_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Case("small", "mlp", 2, 6, 6, 1, 0.1, ways=3, size=4, hidden=(5, 7))
    monkeypatch.setattr(roofline, "CASES", (small,))
    monkeypatch.setattr(roofline, "floors", lambda threads: Floors(threads, 1e9, 1e8, 1e8, 1e10, 2e10, 1e-6))
    words = ["bench", "roofline", "--cases", "small", "--repeats", "1", "--threads", "1", "--out", str(tmp_path)]
    assert run(words) == 0
    text = capsys.readouterr().out
    assert "the machine" in text and "small" in text and str(tmp_path / "roofline.md") in text
    assert run([*words, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [each["case"] for each in values["cases"]] == ["small"] and len(values["files"]) == 2
    assert run(["bench", "roofline", "--cases", "large"]) == 2
    assert "no case answers to 'large'" in capsys.readouterr().err
