"""``headstart evaluate`` and ``headstart report``."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.types import UInt32
from cyclopts.validators import Number

from headstart.cli.output import Device, Json, print_json, score_text


def evaluate(
    run: Path,
    /,
    *,
    episodes: Annotated[int, Parameter(validator=Number(gte=2))] = 600,
    split: Literal["test", "validation", "train"] = "test",
    seed: UInt32 | None = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Judge a run's best weights on fixed tasks: the mean over tasks and its 95 % interval.

    Parameters
    ----------
    run
        A run's folder.
    episodes
        Number of tasks. Range: from 2 up.
    split
        Which tasks.
    seed
        Seed of the tasks. Range: from 0 to 4294967295. Default: the run's.
    device
        Where to compute; auto takes cuda, then mps, then cpu.
    as_json
        Print the result as JSON.
    """
    from headstart.training.build import make_tasks
    from headstart.training.report.report import score_to_json
    from headstart.training.run import open_run, test

    job, checkpoint = open_run(run, device)
    if seed is not None:
        job = job._replace(tasks=make_tasks(job.config, job.device, seed))
    score = test(job, checkpoint.best.meta, episodes=episodes, split=split)
    if as_json:
        drawn = job.config.run.seed if seed is None else seed
        print_json({**score_to_json(score), "seed": drawn, "step": checkpoint.best.step})
    else:
        print(score_text(score))


def report(run: Path, /, *, device: Device = "auto", as_json: Json = False) -> None:
    """Draw a finished run's pictures and write its tables and model card again.

    structure.png, .csv and .json hold what was learned about the model: rates, movement (how far tasks move each
    tensor in the inner loop), masks, gates, and whatever else the method learns.

    Parameters
    ----------
    run
        A run's folder.
    device
        Where to compute; auto takes cuda, then mps, then cpu.
    as_json
        Print the files' paths as JSON.
    """
    from headstart.training.report.report import report
    from headstart.training.run import open_run

    job, checkpoint = open_run(run, device)
    paths = [str(path) for path in report(Path(run), job, checkpoint.best.meta)]
    if as_json:
        print_json(paths)
    else:
        print("\n".join(paths))
