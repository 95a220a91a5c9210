"""``python -m benchmarks``."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import memory, roofline, speed
from benchmarks.__main__ import ABOUT, run
from benchmarks.figures import Figure, Report, Target
from benchmarks.peers import environment
from benchmarks.peers.case import Case
from benchmarks.peers.environment import Environment
from benchmarks.peers.process import PeerError
from benchmarks.plan import SUITES, Plan
from benchmarks.roofline import Floors

FIGURES = (Figure("sine", "headstart", 2.0, 1.9, 2.1, 9, "ms"), Figure("sine", "higher", 15.0, 14.0, 16.0, 9, "ms"))
TARGET = Target("sine, against higher", "sine", "headstart", "higher", 10, "times faster")
REPORT = Report("speed", FIGURES, (TARGET,), {"torch": "2"}, {"JAX": "not installed"})


@pytest.mark.parametrize("suite", ABOUT)
def test_every_suite_has_help(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run([suite, "--help"])
    text = capsys.readouterr().out
    assert "--out" in text and "--json" in text and ("--without-peers" in text) == (suite not in ("tables", "roofline"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["speed", "--cases", "cosine", "--without-peers"], "no case answers to 'cosine'; there are: sine T=1"),
        (["all", "--cases", "sine*;cosine"], "no case answers to 'cosine'"),
        (["speed", "--repeats", "0", "--without-peers"], "at least 1"),
        (["speed", "--threads", "-1", "--without-peers"], "at least 0"),
        (["speed", "--seconds", "0", "--without-peers"], "more than 0"),
        (["roofline", "--cases", "large"], "no case answers to 'large'"),
        (["tables", "--methods", "mammal"], "unknown method for tables 'mammal'; did you mean 'maml'"),
        (["tables", "--data", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_mistakes_are_told(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "build", lambda *given: pytest.fail("built for nothing"))
    assert run(words) == 2
    assert told in capsys.readouterr().err


def test_a_folder_that_is_not_for_peers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert run(["speed", "--peers", str(tmp_path)]) == 2
    assert "holds files, but no environment of peers" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "run", lambda plan: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    assert run(["speed", "--without-peers", "--out", str(tmp_path / "file" / "out")]) == 1
    assert "cannot make the folder" in capsys.readouterr().err


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Environment:
    """An environment with all peers, which nothing is installed in."""
    found = Environment(tmp_path / "python", {"higher": "1"}, {})
    monkeypatch.setattr(environment, "build", lambda folder, note, again: found)
    return found


def test_only_whole_results_replace_whole_ones(
    peers: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "run", lambda plan: REPORT)
    words = ["speed", "--out", str(tmp_path)]
    assert run(words) == 0
    text = capsys.readouterr().out
    assert "sine, against higher: 7.50 times faster, at least 10 wanted: short by 25 %" in text
    assert "JAX: left out: not installed" in text and "15.0 ms" in text and str(tmp_path / "speed.png") in text
    whole = {path.name: path.read_bytes() for path in tmp_path.glob("speed.*")}
    assert set(whole) == {"speed.json", "speed.md", "speed.png"}
    offline = peers._replace(failed={"jax": "no network"})
    for more in (["--cases", "sine T=1"], ["--without-peers"], ["--repeats", "2"], ["--seconds", "5"], []):
        if not more:
            monkeypatch.setattr(environment, "build", lambda folder, note, again: offline)
        assert run([*words, *more]) == 0
        assert all((tmp_path / name).read_bytes() == data for name, data in whole.items())
        values = json.loads((tmp_path / "speed.partial.json").read_text())
        assert values["partial"] and all(word in values["command"] for word in more[:1])
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
    assert run(["speed", "--out", str(tmp_path)]) == 130
    values = json.loads((tmp_path / "speed.partial.json").read_text())
    assert values["partial"] == "not finished" and len(values["figures"]) == 2
    assert (tmp_path / "speed.json").read_text() == "whole"


def test_all_runs_the_suites_that_have_the_cases_and_goes_on_after_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, tuple[str, ...]] = {}

    def fails(plan: Plan) -> Report:
        raise PeerError("its processes cannot be started")

    for name in SUITES:

        def kept(plan: Plan, name: str = name) -> Report:
            asked[name] = plan.cases
            return REPORT._replace(suite=name, targets=(TARGET._replace(name=name),))

        monkeypatch.setattr(import_module(f"benchmarks.{name}"), "run", kept)
    assert run(["all", "--without-peers", "--cases", "sine T=1;*T=5", "--json"]) == 0
    assert set(asked) == {"speed", "compile"} and asked["compile"] == ("sine T=1", "sine T=5")
    assert [each["suite"] for each in json.loads(capsys.readouterr().out)] == ["speed", "compile"]
    monkeypatch.setattr(memory, "run", fails)
    assert run(["all", "--without-peers", "--out", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "error: memory: its processes cannot be started" in told.err
    assert all(f"{name}: 7.50 times faster" in told.out for name in ("speed", "compile", "sampler"))
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {"speed", "compile", "sampler"}
    assert run(["memory", "--without-peers"]) == 1


def test_the_roofline_is_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Case("small", "mlp", 2, 6, 6, 1, 0.1, ways=3, size=4, hidden=(5, 7))
    monkeypatch.setattr(roofline, "CASES", (small,))
    monkeypatch.setattr(roofline, "floors", lambda threads: Floors(threads, 1e9, 1e8, 1e8, 1e10, 2e10, 1e-6))
    words = ["roofline", "--cases", "small", "--repeats", "1", "--threads", "1", "--out", str(tmp_path)]
    assert run(words) == 0
    text = capsys.readouterr().out
    assert "The machine" in text and "small" in text and str(tmp_path / "roofline.md") in text
    assert run([*words, "--json"]) == 0
    assert [each["case"] for each in json.loads(capsys.readouterr().out)["cases"]] == ["small"]


def test_tables_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{t},{d},{250 + 7 * t + 10 * d + (t * d) % 5}" for t in range(8) for d in range(6)]
    (tmp_path / "sleepstudy.csv").write_text("\n".join(["Subject,Days,Reaction", *rows]))
    words = ["tables", "--data", str(tmp_path), "--sets", "sleepstudy", "--support", "2,3", "--splits", "2"]
    words += ["--methods", "pooled: linear,scratch", "--out", str(tmp_path / "out")]
    assert run(words) == 0
    said = capsys.readouterr()
    assert "pooled: linear (baseline) *" in said.out and "scratch *" in said.out and "over all tables" in said.out
    assert "scratch on sleepstudy, 3 support rows: RMSE" in said.err and "tables.png" in said.out
    assert run([*words, "--json"]) == 0
    said = capsys.readouterr()
    assert "8 cells are done already" in said.err and len(json.loads(said.out)["tables"]) == 2
