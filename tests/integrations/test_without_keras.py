"""What the part for Keras models says where it cannot run."""

import os
import subprocess
import sys

import pytest

HIDDEN = "import sys; sys.modules |= {'keras': None, 'tensorflow': None}; import headstart.integrations.keras"


def last_line(program: str, **variables: str) -> str:
    environment = {**{k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}, **variables}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_without_tensorflow_it_says_what_to_install():
    told = last_line(HIDDEN)
    assert "UsageError: this needs Keras 3.15 and TensorFlow 2.21" in told and "pip install headstart[keras]" in told


@pytest.mark.parametrize(("backend", "way"), [("jax", "KERAS_BACKEND=tensorflow"), ("torch", "headstart.maml")])
def test_another_backend_is_refused_by_name(backend, way):
    told = last_line(HIDDEN, KERAS_BACKEND=backend)
    assert f"UsageError: Keras is set to run on '{backend}'" in told and way in told
