"""Every example runs as its docstring says, and prints what it promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NUMBER = r"(-?\d+(?:\.\d+)?)"


def run(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / name],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in {text!r}"
    return [float(figure) for figure in found.groups()]


def test_every_example_is_tested():
    files = Path(__file__), ROOT / "tests" / "integrations" / "keras" / "test_examples.py"
    tested = {name for file in files for name in re.findall(r'run\("(\d\d_\w+\.py)"', file.read_text())}
    assert tested == {path.name for path in (ROOT / "examples").glob("*.py")}


def test_sine_adapts_below_what_no_fixed_model_reaches():
    text = run("01_sine.py")
    (before,) = figures(rf"after 0 inner steps: mse {NUMBER}", text)
    (after,) = figures(rf"after 1 inner steps: mse {NUMBER}", text)
    assert before > 3 and after < 1.8


def test_your_own_tasks_beat_the_pooled_model():
    text = run("02_your_own_tasks.py")
    (trained,) = figures(rf"meta-trained: {NUMBER}", text)
    (pooled,) = figures(rf"pooled: +{NUMBER}", text)
    assert trained < 2 and pooled > 2.5


def test_your_own_rule_is_sound():
    text = run("03_your_own_rule.py")
    assert "the rule is sound" in text
    assert figures(rf"meta-gradient of length {NUMBER}", text)[0] > 0


@pytest.mark.timeout(290)
def test_the_embedding_learns_to_tell_unseen_icons_apart():
    text = run("04_images.py")
    (untrained,) = figures(rf"untrained: {NUMBER}%", text)
    (trained,) = figures(rf"trained: +{NUMBER}% ± [\d.]+%\n$", text)
    assert trained >= untrained + 10


def test_what_is_learned_about_the_model_pays():
    text = run("05_model_aware.py")
    assert "rates: one learned for each weight" in text and "geometry: curvature" in text
    (plain,) = figures(rf"maml: mse {NUMBER}", text)
    (aware,) = figures(rf"aware: mse {NUMBER}", text)
    assert plain > 1.8 and aware < 1.5
    low, high = figures(rf"rate.hidden2.weight: {NUMBER} to {NUMBER}", text)
    assert low < 0 < 0.02 < high


def test_an_estimator_learns_a_new_machine_from_four_readings():
    pytest.importorskip("sklearn")
    text = run("06_sklearn.py")
    (pooled,) = figures(rf"pooled: +{NUMBER}", text)
    (adapted,) = figures(rf"adapted: +{NUMBER}", text)
    (search,) = figures(rf"search: +{NUMBER}", text)
    assert pooled < 0.5 and adapted > 0.7 and search > 0.6


@pytest.mark.timeout(290)
def test_adapters_find_out_which_question_is_asked():
    text = run("07_adapters.py")
    (head,) = figures(rf"head, after meta-training: {NUMBER}%", text)
    before, after = (figures(rf"adapters, {when} meta-training: {NUMBER}%", text)[0] for when in ("before", "after"))
    assert head < 55 and before < 75 and after > 85
    moved, there = figures(rf"moves {NUMBER} numbers\n  of {NUMBER} in all", text)
    assert moved < there / 20
