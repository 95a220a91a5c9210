"""``headstart train``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from headstart.cli.output import print_json
from headstart.training.options import Options

if TYPE_CHECKING:
    from headstart.training.run import Result


def train(
    tasks: str | None = None,
    /,
    *,
    options: Annotated[Options, Parameter(name="*")] = Options(),
    out: Path | None = None,
    config: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False,
) -> int:
    """Meta-train on a family of tasks, or go on with a run.

    The same command again goes on where the run was stopped, at the same weights bit for bit. Options that are not
    given have defaults that suit the tasks and the method; config.json in the run's folder holds them all.

    Parameters
    ----------
    tasks
        A task family's name (headstart list tasks), a folder of class folders, or a CSV or Parquet file.
        Default: from --config.
    out
        The run's folder. Default: runs/TASKS-METHOD.
    config
        A .json, .yaml or .toml file of options by name, such as a run's config.json; flags win over it.
    as_json
        Print the result as JSON.
    """
    from headstart.training.config_file import merged, read_config_file
    from headstart.training.defaults import resolve
    from headstart.training.named_tasks import default_folder
    from headstart.training.progress import view
    from headstart.training.run import train

    flags = options.model_dump(exclude_unset=True) | ({} if tasks is None else {"tasks": tasks})
    file = {} if config is None else read_config_file(config)
    if tasks is not None and file.get("tasks", tasks) != tasks and "data" not in flags:
        file.pop("data", None)  # it is of the file's own tasks
    chosen = resolve(merged(file, flags))
    result = train(chosen, default_folder(chosen) if out is None else out, view=view())
    if as_json:
        print_json(_as_json(result))
    else:
        print(_as_text(result))
    return 0 if result.stopped is None else 128 + result.stopped


def _as_json(result: "Result") -> dict[str, Any]:
    from headstart.training.report.report import score_to_json

    return {
        "run": str(result.run),
        "step": result.step,
        "best_step": result.best_step,
        "stopped": None if result.stopped is None else result.stopped.name,
        "test": None if result.score is None else score_to_json(result.score),
    }


def _as_text(result: "Result") -> str:
    from headstart.cli.output import score_text

    if result.stopped is not None:
        return f"stopped by {result.stopped.name} after step {result.step}; the same command goes on from there"
    scored = f"{score_text(result.score)}\n" if result.score is not None else ""
    return f"{scored}run: {result.run}"
