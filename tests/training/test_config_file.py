"""Configuration files."""

from pathlib import Path

import pytest

from headstart.errors import ConfigError, FileError
from headstart.training.config_file import merged, read_config_file


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"tasks": "sinusoid", "inner_rate": 1e-3, "ways": null}'),
        ("a.yaml", "tasks: sinusoid\ninner_rate: 1e-3\nways:\n"),
        ("a.yml", "tasks: sinusoid\ninner_rate: 0.001\n"),
        ("a.toml", 'tasks = "sinusoid"\ninner_rate = 1e-3\n'),
    ],
)
def test_flags_win_over_a_file_and_a_file_over_defaults(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    file = read_config_file(tmp_path / name)
    config = merged(file, {"steps": 9})
    assert (config.tasks, config.inner_rate, config.steps, config.ways) == ("sinusoid", 0.001, 9, None)
    assert merged(file, {"inner_rate": 0.5}).inner_rate == 0.5


@pytest.mark.parametrize(
    ("name", "text", "error", "words"),
    [
        ("a.yaml", "inner_rte: 1", ConfigError, "unknown option --inner-rte; did you mean --inner-rate? (in "),
        ("a.json", '{"ways": 1}', ConfigError, "--ways is 1"),
        ("a.json", '{"ways": 5, "ways": 6}', FileError, "a key is there twice"),
        ("a.json", "[1]", FileError, "does not hold options by name"),
        ("a.yaml", "a: [", FileError, "not valid YAML"),
        ("a.yaml", "!!python/object/apply:os.system [exit]", FileError, "not valid YAML"),
        ("a.toml", "a = ", FileError, "not valid TOML"),
        ("a.txt", "", ConfigError, "expected a .json, .yaml, .yml or .toml file"),
    ],
)
def test_a_bad_file_is_explained(tmp_path: Path, name: str, text: str, error: type[Exception], words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(error) as caught:
        read_config_file(tmp_path / name)
    assert words in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        read_config_file(tmp_path / "none.yaml")
