"""``headstart train``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.cli.output import Json, Raw, print_json, score_text

if TYPE_CHECKING:
    from headstart.training.run import Result

_MORE = "Tasks, method and model have options of their own: `headstart train icons --method svm --help` shows them."


def train(*words: Raw) -> int:
    """Meta-train on a family of tasks, or go on with a run."""
    from headstart.cli.options import call, choices, first_look
    from headstart.training.config import default_folder, merged, read_config_file, resolve

    look = first_look(words)
    file = read_config_file(Path(look.names["config"])) if "config" in look.names else {}
    named = {"tasks": look.source, "method": look.names.get("method"), "model": look.names.get("model")}
    base = merged(file, {owner: {"name": name} for owner, name in named.items() if name})
    called = call(_train, words, [choices(base)] if "tasks" in base else [], "" if "tasks" in base else _MORE)
    if called is None:
        return 0
    from headstart.training.progress import view
    from headstart.training.run import train

    config = resolve(merged(base, called.tree), look.names.get("config", ""))
    out = called.own.get("out")
    result = train(config, default_folder(config) if out is None else out, view=view())
    if called.own.get("as_json"):
        print_json(_as_json(result))
    else:
        print(_as_text(result))
    return 0 if result.stopped is None else 128 + result.stopped


def _train(
    tasks: str | None = None,
    /,
    *,
    method: str | None = None,
    model: str | None = None,
    out: Path | None = None,
    config: Path | None = None,
    as_json: Json = False,
) -> None:
    """Meta-train on a family of tasks, or go on with a run.

    The same command again goes on where the run was stopped, at the same weights bit for bit. Options that are not
    given have defaults that suit the tasks and the method; config.json in the run's folder holds them all.

    Parameters
    ----------
    tasks
        A task family's name (headstart list tasks), or a folder or file of your own: a folder of class folders of
        images, a CSV or Parquet file. Default: from --config.
    method
        How to meta-learn (headstart list methods). Default: maml; for tables gaussian_process.
    model
        The network (headstart list models). Default: conv4 for images, else mlp.
    out
        The run's folder. Default: runs/TASKS-METHOD.
    config
        A .json, .yaml or .toml file with such options, nested as in a run's config.json; flags win over it.
    as_json
        Print the result as JSON.
    """


_train.__name__ = "train"


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
    if result.stopped is not None:
        return f"stopped by {result.stopped.name} after step {result.step}; the same command goes on from there"
    scored = f"{score_text(result.score)}\n" if result.score is not None else ""
    return f"{scored}run: {result.run}"
