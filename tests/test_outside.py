"""Another package adds a method, a model, a family and a kind of data, each by a file and a row: docs/building.md."""

import json
import math
import os
import re
import subprocess
import sys
import wave
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from headstart import registry
from headstart.cli import app
from headstart.errors import ConfigError
from headstart.training import config

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "building.md").read_text()
SMALL = "--steps 3 --tasks-per-step 2 --evaluate-tasks 2 --test-tasks 4".split()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the page's files as a package of their own, with its entry points, outside headstart."""
    site = tmp_path_factory.mktemp("site")
    (site / "toys").mkdir()
    for name, program in re.findall(r"```python\n# toys/(\w+)\.py\n(.*?)```", TEXT, re.S):
        (site / "toys" / f"{name}.py").write_text(program)
    points = re.search(r"```toml\n(.*?)```", TEXT, re.S)
    assert points is not None
    (site / "toys-1.dist-info").mkdir()
    (site / "toys-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1\n")
    entries = points[1].replace('[project.entry-points."', "[").replace('"]', "]").replace('"', "")
    (site / "toys-1.dist-info" / "entry_points.txt").write_text(entries)
    return site


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Say a few words as many speakers would: each word a tone, each speaker in another pitch."""
    folder, random = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for speaker in range(8):
        for place, word in enumerate(("yes", "no", "stop")):
            for take in range(4):
                path = folder / ("new" if speaker == 7 else "old") / f"speaker {speaker}" / word / f"{take}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                tone = np.sin(2 * math.pi * np.arange(300) * (place + 1) * (1 + speaker / 20) / 60 + take)
                data = (12000 * tone + random.normal(0, 300, 300)).astype("<i2").tobytes()
                with wave.open(str(path), "wb") as file:
                    file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
                    file.writeframes(data)
    return folder


@pytest.fixture
def headstart(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command of headstart where that package is installed."""
    monkeypatch.syspath_prepend(package)
    monkeypatch.chdir(tmp_path)
    registry.rows.cache_clear()

    def run(*words: str) -> str:
        code, (out, error) = app.run(words), capsys.readouterr()
        assert code == 0, error
        return out

    yield run
    registry.rows.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "toys"]:
        del sys.modules[name]


def test_they_are_listed_with_their_options(headstart):
    for what, names in (("methods", "sign_maml matching"), ("models", "wide"), ("tasks", "ramps"), ("data", "sounds")):
        listed = [line.split()[0] for line in headstart("list", what).splitlines()]
        assert set(names.split()) <= set(listed)
    shown = " ".join(headstart("train", "ramps", "--method", "sign_maml", "--model", "wide", "--help").split())
    for word in ("--sharpness", "--inner-steps", "--width", "--shots", "how soon a gradient counts as large"):
        assert word.lower() in shown.lower()


def test_a_run_of_theirs_is_trained_evaluated_and_adapted(headstart, tmp_path):
    headstart("train", "ramps", "--method", "sign_maml", "--model", "wide", "--sharpness", "2", *SMALL, "--out", "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"]["sharpness"] == 2
    assert "mse" in headstart("evaluate", "run", "--episodes", "3")
    (tmp_path / "points.csv").write_text("x,y\n0,1\n0.5,2\n1,3\n")
    headstart("adapt", "run", "points.csv", "--out", "adapted")
    (tmp_path / "more.csv").write_text("x\n0.25\n")
    assert "prediction" in headstart("predict", "adapted", "more.csv")


def test_their_kind_of_data_goes_all_the_way(headstart, recordings, tmp_path):
    old, new = str(recordings / "old"), recordings / "new" / "speaker 7"
    table = headstart("compare", old, "--methods", "matching,prototypes", "--samples", "128", *SMALL, "--out", "both")
    assert "matching" in table and "accuracy" in table
    headstart("adapt", "both/matching", str(new), "--out", "adapted")
    found = headstart("predict", "adapted", str(new / "yes" / "0.wav"), str(new / "stop"), "--json")
    rows = json.loads(found)
    assert len(rows) == 5 and set(rows[0]["probabilities"]) == {"yes", "no", "stop"}
    assert rows[0]["prediction"] == "yes"  # it was learned from
    headstart("adapt", "both/matching", str(recordings / "old"), "--out", "everybody")
    asked = str(recordings / "old" / "speaker 1" / "no" / "1.wav")
    assert json.loads(headstart("predict", "everybody", asked, "--json"))[0]["prediction"] == "no"
    assert "recordings" in (tmp_path / "adapted" / "README.md").read_text()


def test_the_contract_kit_and_scikit_learn_take_them(package):
    program = """
import numpy as np
from headstart.integrations.sklearn import FewShotClassifier
from headstart.registry import load
from headstart.testing import check_method, check_tasks

check_method("sign_maml")
check_method("matching")
check_tasks(load("task", "ramps")(shots=3, queries=2))
x = np.random.default_rng(0).normal(size=(80, 2))
y = np.where(x[:, 0] > 0, "right", "left")
known = FewShotClassifier("matching", steps=5, random_state=0).fit(x, y, groups=np.arange(80) % 4)
assert known.adapt(x[:6], ["a", "b", "c", "a", "b", "c"]).predict(x).shape == (80,)
print("sound")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout == "sound\n", done.stderr


def test_what_an_entry_point_must_name(monkeypatch):
    class Point:
        name = "odd"

        def __init__(self, row):
            self.load = lambda: row

    known = registry.find("method", "maml")
    for row, words in (
        ("maml", "gives str; expected a"),
        (known._replace(summary="mine"), "takes the name 'maml' again"),
    ):
        monkeypatch.setattr(registry, "entry_points", lambda group, row=row: [Point(row)])
        with pytest.raises(ConfigError, match=words):
            registry.rows.__wrapped__("method")


def named(module, *, name: str = "x"):
    pass


def untyped(module, *, depth: "Undefined" = 3):  # noqa: F821
    pass


def clashing(module, *, out: int = 1, help: int = 2, json: int = 3, gate: bool | Literal["auto"] = False):
    """A method whose options are called as the command's own.

    Args:
        gate: whether to.
    """


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("math", "cannot be loaded from 'math'"),
        ("no_such_module:x", "cannot be loaded from 'no_such_module:x'"),
        ("math:zzz", "cannot be loaded from 'math:zzz'"),
        (f"{__name__}:untyped", "the types of untyped's options cannot be read: name 'Undefined'"),
        (f"{__name__}:named", "an option of named is called name"),
    ],
)
def test_a_row_that_cannot_be_read_says_so_and_breaks_no_other(monkeypatch, target, words):
    row = registry.find("method", "maml")._replace(name="strange", target=target)
    monkeypatch.setattr(registry, "rows", lambda what, rows=registry.rows: (*rows(what), *[row] * (what == "method")))
    monkeypatch.setattr(config, "rows", registry.rows)
    with pytest.raises(ConfigError, match=words):
        config.resolve({"tasks": "sinusoid", "method": "strange"})
    with pytest.raises(ConfigError, match="unknown option --outer.nonsense"):
        config.resolve({"tasks": "sinusoid", "outer": {"nonsense": 3}})


def test_options_called_as_the_commands_own_have_their_full_names(monkeypatch, capsys):
    row = registry.find("method", "maml")._replace(name="clashing", target=f"{__name__}:clashing")
    monkeypatch.setattr(registry, "rows", lambda what, rows=registry.rows: (*rows(what), *[row] * (what == "method")))
    for name in ("out", "help", "json"):
        assert config.flags(f"method.{name}", [f"method.{name}"]) == (f"--method.{name}",)
    assert app.run(["train", "sinusoid", "--method", "clashing", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--method.out" in shown and "--gate" in shown and "--no-gate" not in shown
