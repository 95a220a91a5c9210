"""Configuration files: JSON, YAML or TOML, options by name."""

import tomllib
from pathlib import Path
from typing import Any

import yaml

from headstart.errors import ConfigError, FileError
from headstart.training.config import TrainConfig, make_config
from headstart.training.files import explained, read_json

_BYTES = 1 << 20


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the options that a file sets; their names and values are checked.

    A value of ``null`` leaves an option to its default, so a run's ``config.json`` can be read back.

    Raises:
        FileError: a file that cannot be read, or is not such a file.
        ConfigError: an unknown option, or a value out of its range.
    """
    values = _parsed(path)
    if not isinstance(values, dict):
        raise FileError(f"{path} does not hold options by name, such as steps: 1000")
    values = {str(name): value for name, value in values.items() if value is not None}
    make_config({"tasks": "sinusoid", **values}, str(path))
    return values


def _parsed(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return read_json(path.resolve())
    if suffix not in (".yaml", ".yml", ".toml"):
        raise ConfigError(f"--config {path}: expected a .json, .yaml, .yml or .toml file")
    with explained("read", path):
        data = path.read_bytes()
    if len(data) > _BYTES:
        raise FileError(f"{path} has {len(data)} bytes; expected a configuration")
    try:
        return tomllib.loads(data.decode()) if suffix == ".toml" else yaml.safe_load(data)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{path} is not valid {suffix[1:].upper()}: {reason}") from error


def merged(file: dict[str, Any], flags: dict[str, Any]) -> TrainConfig:
    """Return the configuration of a file and flags; flags win."""
    return make_config({**file, **flags})
