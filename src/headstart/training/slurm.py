"""Runs as jobs of a cluster's scheduler, by submitit (Slurm): a job each, which is queued again where its time is up.

The command that submits them waits. Stopped, it cancels them, and the same command submits what is left.
"""

import re
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.errors import UsageError
from headstart.training.config import Config, Tree, resolve
from headstart.training.files import make_folder
from headstart.training.progress import Plain, View
from headstart.training.run import train
from headstart.training.signals import stop_signals
from headstart.training.sweep import Launch, ended

_LOGS = "slurm"
_MINUTES = 240


class Training:
    """A run as a job: called again, it goes on."""

    def __call__(self, tree: Tree, run: str) -> None:
        """Train in the folder, or go on."""
        result = train(resolve(tree), run, view=Plain())
        if result.stopped is not None:
            print(f"stopped by {result.stopped.name} after step {result.step}", file=sys.stderr)

    def checkpoint(self, tree: Tree, run: str) -> Any:
        """Say what is queued where the job's time is up, or it has to make room: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, tree, run)


def slurm(cluster: str = "slurm", **resources: Any) -> Launch:
    """Return what trains runs as jobs, as `headstart.training.sweep.sweep` takes it.

    Args:
        cluster: the executor, by submitit's name; ``"local"`` is this machine, all runs at the same time.
        resources: what each job asks for, in submitit's words, such as ``timeout_min``, ``cpus_per_task`` and
            ``slurm_partition``; by default four hours.

    Raises:
        UsageError: submitit, or the scheduler, is not there; or what is asked for is nothing that it knows.
    """
    try:
        import submitit
    except ImportError as error:
        raise UsageError("jobs of Slurm need submitit: pip install headstart[slurm]") from error

    def launch(
        configs: Mapping[str, Config], out: Path, jobs: int, view: View, failed: dict[str, Exception]
    ) -> signal.Signals | None:
        make_folder(out / _LOGS)
        try:
            executor = submitit.AutoExecutor(folder=out / _LOGS, cluster=cluster)
            asked = {"timeout_min": _MINUTES, "name": "headstart", "slurm_array_parallelism": jobs, **resources}
            executor.update_parameters(**asked)
            runs = [str((out / name).absolute()) for name in configs]
            trees = [config.tree() for config in configs.values()]
            waiting = dict(zip(configs, executor.map_array(Training(), trees, runs)))
        except (RuntimeError, NameError, AssertionError, ValueError) as error:  # as submitit says all of them
            raise UsageError(f"{cluster} cannot take the runs: {' '.join(str(error).split())}") from error
        view.note(f"{len(waiting)} jobs submitted; logs are in {out / _LOGS}")
        with stop_signals() as stop:
            while waiting and not stop.requested:
                time.sleep(0.5)
                for name, job in [(name, job) for name, job in waiting.items() if job.done()]:
                    del waiting[name]
                    if not ended(out / name, configs[name]):
                        failed[name] = UsageError(_last_words(job.stderr()) or f"its job ended as {job.state}")
                    view.note(f"{name} {'failed' if name in failed else 'has ended'}; {len(waiting)} jobs left")
        for job in waiting.values():
            job.cancel(check=False)
        return stop.number

    return launch


def resources_of(text: str) -> dict[str, Any]:
    """Read what a job asks for off a command line.

    Raises:
        UsageError: no such words.

    >>> resources_of("timeout_min=240,slurm_partition=gpu")
    {'timeout_min': 240, 'slurm_partition': 'gpu'}
    """
    found: dict[str, Any] = {}
    for word in filter(None, text.split(",")):
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals or not name.isidentifier() or name == "cluster" or not value:
            raise UsageError(f"--resources is {text!r}, but must be such as timeout_min=240,slurm_partition=gpu")
        found[name] = int(value) if value.isdigit() else value
    return found


def _last_words(log: str | None) -> str:
    """Return the last line of a job's log: its error, or what the scheduler did to it."""
    lines = [line for line in (log or "").splitlines() if line.strip()]
    return re.sub(r"^[\w.]+Error: ", "", lines[-1]) if lines else ""
