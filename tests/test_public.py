"""The public names, and what importing them costs."""

import inspect
import subprocess
import sys
from dataclasses import is_dataclass
from importlib import import_module

import pytest

import headstart
from headstart import registry, rules, tasks, testing

#: What comes first and is what it says: a module, its sizes, the rate of a rule of rates.
PLAIN = {"module", "layer", "inputs", "outputs", "rate", "solver", "estimator"}


@pytest.mark.parametrize("name", headstart.__all__)
def test_every_public_name_resolves(name):
    assert getattr(headstart, name) is not None
    assert name in dir(headstart)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'headstart' has no attribute 'mmal'"):
        _ = headstart.mmal


def test_every_registered_method_and_model_is_public():
    names = {row.name for what in ("method", "model") for row in registry._ROWS[what]}
    assert names <= set(headstart.__all__), f"add to src/headstart/__init__.pyi: {names - set(headstart.__all__)}"


def test_numbers_and_words_that_may_be_left_out_go_by_their_names():
    """``rules.adam(0.01)`` would be a decay, ``adapt(run, source, out, True)`` a device."""
    found = (getattr(space, name) for space in (headstart, rules, tasks, testing) for name in dir(space))
    # fields of values come in their order
    public = {one for one in found if is_dataclass(one) or inspect.isfunction(one)}
    mistaken = [
        f"{function.__name__}({parameter.name}={parameter.default!r})"
        for function in sorted(public, key=lambda one: one.__name__)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.default is not parameter.empty
        and parameter.name not in PLAIN
    ]
    assert not mistaken


@pytest.mark.parametrize("wrong", [lambda: rules.adam(0.01), lambda: rules.momentum(0.1)], ids=["adam", "momentum"])
def test_a_rate_is_not_taken_for_a_decay(wrong):
    with pytest.raises(TypeError, match="takes 0 positional arguments but 1 was given"):
        wrong()


def loaded_after(statement):
    code = f"import sys; {statement}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_importing_headstart_imports_nothing_else():
    assert not loaded_after("import headstart") & {
        "torch",
        "numpy",
        "pydantic",
        "cyclopts",
        "rich",
        "matplotlib",
        "yaml",
    }


def test_making_a_learner_imports_nothing_optional():
    loaded = loaded_after("import headstart; headstart.maml; headstart.testing; headstart.rules")
    assert "torch" in loaded
    assert not loaded & {"pydantic", "cyclopts", "matplotlib", "PIL"}


@pytest.mark.parametrize("row", [row for kind in ("method", "task", "model") for row in registry.rows(kind)])
def test_every_registered_thing_is_there(row):
    module, attribute = row.target.split(":")
    assert callable(getattr(import_module(module), attribute))


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(headstart.errors.UnknownNameError, match="unknown method 'mamal'; did you mean 'maml'"):
        registry.find("method", "mamal")
