"""What of a configuration file `headstart train` takes, where TASKS is given too."""

from pathlib import Path
from typing import Any

import pytest

from headstart.cli.train import train
from headstart.training import defaults
from headstart.training.options import Options


class StoppedError(Exception):
    """Carries the configuration that training would have started with."""


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``(tasks, file, options) -> the configuration`` that training would start with."""

    def caught(config: Any) -> None:
        raise StoppedError(config)

    monkeypatch.setattr(defaults, "resolve", caught)

    def options_of(tasks: str | None, file: Path, **options: Any) -> Any:
        with pytest.raises(StoppedError) as found:
            train(tasks, options=Options(**options), config=file)
        return found.value.args[0]

    return options_of


@pytest.mark.parametrize(
    "tasks, named, kept",
    [
        (None, "omniglot", True),
        ("omniglot", "omniglot", True),
        ("omniglot", None, True),
        ("icons", "omniglot", False),
    ],
)
def test_a_files_data_go_with_the_tasks_that_it_names(
    chosen: Any, tmp_path: Path, tasks: str | None, named: str | None, kept: bool
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"data: {tmp_path}\nseed: 5\n" + (f"tasks: {named}\n" if named else ""))
    config = chosen(tasks, file)
    assert (str(config.data) == str(tmp_path)) == kept and config.seed == 5
    assert config.tasks == (tasks or named)


def test_a_flag_for_the_data_wins(chosen: Any, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: elsewhere\ntasks: omniglot\n")
    assert str(chosen("icons", file, data=str(tmp_path)).data) == str(tmp_path)
