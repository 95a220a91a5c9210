"""The schema: what it takes, what it refuses, and in which words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.errors import ConfigError
from headstart.training.config import TrainConfig, diff, make_config
from headstart.training.options import Options, frequency_range


@pytest.mark.parametrize(
    ("value", "kept"), [(5, 5), ("5", 5), ("1-5", "1-5"), ((1, 5), "1-5"), ([2, 2], 2), ("3-3", 3)]
)
def test_shots_are_a_number_or_a_range(value: object, kept: object) -> None:
    assert make_config({"tasks": "icons", "shots": value}).shots == kept


@pytest.mark.parametrize(
    ("value", "kept", "ends"),
    [
        (1, 1.0, (1, 1)),
        ("1", 1.0, (1, 1)),
        (2.5, 2.5, (2.5, 2.5)),
        ("0.8-1.2", "0.8-1.2", (0.8, 1.2)),
        (" .8 - 1.2 ", "0.8-1.2", (0.8, 1.2)),
        ((0.8, 1.2), "0.8-1.2", (0.8, 1.2)),
        ([1, 2], "1.0-2.0", (1, 2)),
        ("3-3", 3.0, (3, 3)),
        ("1e-5-2e-5", "1e-05-2e-05", (1e-5, 2e-5)),
    ],
)
def test_frequencies_are_a_number_or_a_range(value: object, kept: object, ends: tuple[float, float]) -> None:
    found = make_config({"tasks": "sinusoid", "frequency": value}).frequency
    assert found == kept and type(found) is type(kept)
    assert make_config({"tasks": "sinusoid", "frequency": found}).frequency == kept
    assert found is not None and frequency_range(found) == ends


@given(st.lists(st.floats(min_value=1e-300, max_value=1e300), min_size=1, max_size=2).map(sorted))
def test_a_frequency_is_kept_to_the_last_bit(ends: list[float]) -> None:
    found = make_config({"tasks": "sinusoid", "frequency": ends}).frequency
    assert found is not None and frequency_range(found) == (ends[0], ends[-1])
    assert make_config({"tasks": "sinusoid", "frequency": str(found)}).frequency == found


@pytest.mark.parametrize("value", [(64, 32), [64, 32], "64, 32", "64,32"])
def test_hidden_widths_come_in_any_form(value: object) -> None:
    assert make_config({"tasks": "icons", "hidden": value}).hidden == "64,32"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("inner_rate", -1, "--inner-rate is -1, but must be a number above 0 up to 100"),
        ("inner_rate", "fast", "--inner-rate is 'fast', but must be a number above 0"),
        ("inner_rate", float("nan"), "--inner-rate is nan"),
        ("inner_rate", float("inf"), "--inner-rate is inf"),
        ("ways", 1, "--ways is 1, but must be a whole number from 2 to 1000"),
        ("seed", 2**32, "from 0 to 4294967295"),
        ("seed", -1, "--seed is -1"),
        ("steps", 1.5, "--steps is 1.5, but must be a whole number"),
        ("shots", "5-1", "--shots is '5-1', but must be a number of at least 1, or a range"),
        ("shots", 0, "--shots is 0"),
        ("frequency", 0, "--frequency is 0, but must be a number above 0, or a range low-high such as 0.8-1.2"),
        ("frequency", "1.2-0.8", "--frequency is '1.2-0.8', but must be a number above 0, or a range"),
        ("frequency", "-1", "--frequency is '-1'"),
        ("frequency", "fast", "--frequency is 'fast'"),
        ("frequency", "1-2-3", "--frequency is '1-2-3'"),
        ("frequency", "1e999", "--frequency is '1e999'"),
        ("frequency", True, "--frequency is True"),
        ("frequency", float("nan"), "--frequency is nan"),
        ("noise", -0.1, "--noise is -0.1, but must be a number from 0 up"),
        ("noise", float("inf"), "--noise is inf"),
        ("hidden", "40,x", "--hidden is '40,x'"),
        ("norm", "bach", "--norm is 'bach', but must be one of batch, instance, layer, group, none"),
        ("channels", 2, "--channels is 2, but must be one of 1, 3"),
        ("stpes", 3, "unknown option --stpes; did you mean --steps?"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(option: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({"tasks": "sinusoid", option: value})
    assert words in str(caught.value)
    assert "pydantic" not in str(caught.value) and "\n" not in str(caught.value)


def test_every_bad_option_gets_a_line_with_its_file() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({"tasks": "sinusoid", "ways": 1, "seed": -1}, "my.yaml")
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["--ways", "--seed"]
    assert str(caught.value).count("(in my.yaml)") == 2


def test_missing_tasks_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="TASKS is missing"):
        make_config({})


def test_every_option_is_described_with_its_range() -> None:
    for name, field in Options.model_fields.items():
        assert field.description, name
        if any(hasattr(limit, "ge") or hasattr(limit, "gt") for limit in field.metadata):
            assert "Range: " in field.description, name


def test_diff_lists_what_changed_but_for_more_steps_and_what_is_free() -> None:
    old = TrainConfig(tasks="icons", steps=10, ways=5, device="cpu", save_every=1)
    assert diff(old, old) == []
    assert diff(old, old.model_copy(update={"steps": 20, "device": "cuda", "save_every": 9, "threads": 2})) == []
    assert diff(old, old.model_copy(update={"steps": 5})) == ["--steps: 10 -> 5"]
    changed = old.model_copy(update={"ways": 20, "inner_rate": 0.5, "tasks": "omniglot"})
    assert diff(old, changed) == ["--ways: 5 -> 20", "--inner-rate: not set -> 0.5", "TASKS: icons -> omniglot"]
