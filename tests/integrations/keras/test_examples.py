"""The examples for Keras run as their docstrings say, and print what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed here; `make test-keras` has it")

EXAMPLES = Path(__file__).parents[3] / "examples"
#: What TensorFlow's tensors say when Keras reads them.
WARNINGS = ["-W", "error", "-W", "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"]


def run(name: str, *words: object) -> str:
    command = [sys.executable, *WARNINGS, EXAMPLES / name, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env={**os.environ})
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(text: str) -> tuple[float, float]:
    """Return the untrained and the trained figure."""
    before, after = (re.search(rf"^{word}: +([\d.]+)", text, re.M) for word in ("untrained", "trained"))
    assert before and after, text
    return float(before[1]), float(after[1])


def test_sine_curves_are_learned_below_what_no_fixed_model_reaches():
    untrained, trained = figures(run("08_keras_sine.py"))
    assert untrained > 3 and trained < 1.8


def test_unseen_characters_are_told_apart(shared_data):
    untrained, trained = figures(run("09_keras_omniglot.py", shared_data / "omniglot"))
    assert trained >= untrained + 10


def test_an_adapter_and_a_head_learn_on_a_frozen_network():
    text = run("10_keras_adapters.py")
    untrained, trained = figures(text)
    assert trained < untrained / 2
    learn, there = map(int, re.search(r"(\d+) numbers of (\d+) learn", text).groups())
    assert learn < there / 5
