"""How a run's raw data became numbers: ``RUN/preparation.json``, by which a new task is read and the data are known."""

from pathlib import Path
from typing import Any

from headstart.data.kind import DataKind
from headstart.errors import ConfigError, DataError
from headstart.training.files import read_json, to_json, write
from headstart.types import Tasks

PREPARATION = "preparation.json"


def write_preparation(run: Path, kind: DataKind, tasks: Tasks) -> None:
    """Write the preparation of a run's tasks, where a new task of their kind can be read from files.

    Raises:
        DataError: the run is there already, and was made of other data.
        FileError: the folder cannot be written.
    """
    refuse_other_data(run, kind, tasks)
    found = kind.preparation(tasks)
    if found is not None:
        write(run / PREPARATION, to_json(found))


def read_preparation(run: Path, kind: DataKind) -> Any:
    """Return what `write_preparation` has written.

    Raises:
        ConfigError: a run whose kind of tasks is not read from files.
        FileError: a file that is not JSON.
    """
    if not (run / PREPARATION).exists():
        raise ConfigError(
            f"the run in {run} is of {kind.name} that no file can hold a new task of: there is no {PREPARATION} in it;"
            " adapt in Python, with the learner's own adapt"
        )
    return read_json(run / PREPARATION)


def refuse_other_data(run: Path, kind: DataKind, tasks: Tasks) -> None:
    """Refuse tasks whose training data are others than those that a run was made of, as far as it has kept any.

    With other data the tasks may be split otherwise, so that tasks that were trained on would be judged on.

    Raises:
        DataError: what is learned from the training data is not what the run has kept.
    """
    if not (run / PREPARATION).exists():
        return
    kept = kind.read(read_preparation(run, kind), str(run / PREPARATION))
    changed = kind.difference(kept, kind.read(kind.preparation(tasks), "the tasks"))
    if changed:
        raise DataError(
            f"the {kind.name} are not what they were when the run in {run} was made ({changed} differs in the training"
            " tasks), so tasks that were trained on could be judged on; bring the data back as they were, or train in"
            " another --out"
        )
