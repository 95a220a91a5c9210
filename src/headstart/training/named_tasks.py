"""What TASKS names: a family, or a folder or file of the user's own."""

import os
from pathlib import Path

from headstart.errors import ConfigError
from headstart.registry import rows
from headstart.training.config import TrainConfig

#: Tasks that are made of what the user has.
_OWN_DATA = {"folder": "folder", "table": "file"}


def with_data(config: TrainConfig) -> TrainConfig:
    """Make data paths absolute, and a folder or a file given as tasks the tasks ``folder`` or ``table``.

    The method of a table is `gaussian_process` where none was given.
    """
    config = _with_path(config)
    if config.tasks == "table" and "method" not in config.model_fields_set:
        return config.model_copy(update={"method": "gaussian_process"})
    return config


def _with_path(config: TrainConfig) -> TrainConfig:
    if config.data is not None:
        config = config.model_copy(update={"data": os.path.abspath(os.path.expanduser(config.data))})
    if config.tasks in _OWN_DATA and config.data is None:
        what = _OWN_DATA[config.tasks]
        raise ConfigError(
            f"the tasks {config.tasks!r} need --data {what.upper()}, or the {what} itself in place of TASKS"
        )
    if config.tasks in {row.name for row in rows("task")}:
        return config
    path = os.path.expanduser(config.tasks)
    kind = "folder" if os.path.isdir(path) else "table" if os.path.isfile(path) else None
    if kind is not None:
        if config.data is not None:
            raise ConfigError(f"TASKS is the {_OWN_DATA[kind]} {config.tasks!r}, so leave out --data")
        return config.model_copy(update={"tasks": kind, "data": os.path.abspath(path)})
    if os.sep in config.tasks or config.tasks.endswith((".csv", ".tsv", ".parquet")):
        names = ", ".join(row.name for row in rows("task"))
        raise ConfigError(
            f"TASKS is {config.tasks!r}, but there is no such folder or file; give one, or one of {names}"
        )
    return config


def default_folder(config: TrainConfig) -> Path:
    """Return where a resolved configuration's run goes by default: ``runs/TASKS-METHOD``."""
    data = Path(config.data or "")
    tasks = {"folder": data.name, "table": data.stem}.get(config.tasks, config.tasks)
    return Path("runs") / f"{tasks}-{config.method}"
