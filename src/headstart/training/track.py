"""A run's numbers in TensorBoard, MLflow or Weights & Biases, too, as they come: ``--track``.

``metrics.jsonl`` is the record, and what a tracker holds is made from it. Whenever a run begins or goes on, a tracker
is given the lines that it lacks, from the first on: none is there twice, however often the run was killed, and
tracking may be asked for later, also of a run that has ended. What cannot be sent is said, kept and tried again; it
ends no run.

::

    RUN/
      tensorboard/     event files
      mlflow.db        an SQLite store, unless MLFLOW_TRACKING_URI says where
      wandb/           an offline run, unless WANDB_MODE says otherwise
      tracked.json     what the last two know this run by
"""

import logging
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from headstart.errors import FileError, HeadstartError, UsageError
from headstart.training.config import Config, called, flat
from headstart.training.files import explained, read_json, to_json, write
from headstart.training.metrics import Line, MetricsFile

SECONDS = 10.0
"""How long lines may wait to be sent, while steps are taken."""
PAUSE = 60.0
"""How much longer they wait where a tracker could not be written."""
NAME = "tracked.json"
_PER_CALL = 1000  # numbers that an MLflow server takes in one call

Point: TypeAlias = tuple[int, dict[str, float]]
"""A step, and numbers by name."""


class Tracker(NamedTuple):
    """Where numbers go."""

    send: Callable[[Sequence[Point]], None]
    """Takes points in the order of their steps, all of them from the first on in one or several calls, and keeps those
    that it lacks."""
    close: Callable[[bool], None]
    """Called at the end, with whether the run has come to its own."""


def _tensorboard(run: Path, options: dict[str, Any], ident: str, name: str) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    folder, results = run / "tensorboard", dict[str, float]()
    for old in folder.glob("events.out.tfevents.*"):  # written anew; a server that reads along is told to forget them
        old.unlink()
    writer = SummaryWriter(str(folder), purge_step=0)

    def send(points: Sequence[Point]) -> None:
        for step, values in points:
            for key, value in values.items():
                writer.add_scalar(key, value, step)
            results.update({key: value for key, value in values.items() if key.startswith("test/")})
        writer.flush()

    def close(ended: bool) -> None:
        file: Any = writer.file_writer
        for summary in hparams(options, results):
            file.add_summary(summary)
        writer.close()

    return Tracker(send, close)


def _mlflow(run: Path, options: dict[str, Any], ident: str, name: str) -> Tracker:
    # a server that is down is tried again later, not for minutes at a time
    ours = {"DISABLE_TELEMETRY": "true", "HTTP_REQUEST_MAX_RETRIES": "1", "HTTP_REQUEST_TIMEOUT": "10"}
    for variable, value in ours.items():
        os.environ.setdefault(f"MLFLOW_{variable}", value)
    mlflow, entities = import_module("mlflow"), import_module("mlflow.entities")
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.absolute() / 'mlflow.db'}")
    project = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "headstart"
    if client.get_experiment_by_name(project) is None:
        with suppress(mlflow.MlflowException):  # another run has just made it
            client.create_experiment(project)
    place = client.get_experiment_by_name(project).experiment_id
    known = client.search_runs([place], filter_string=f"tags.headstart = '{ident}'")
    own = known[0] if known else client.create_run(place, run_name=name, tags={"headstart": ident})
    key, then, held = own.info.run_id, own.data.params, dict[str, int]()
    told = {option: str(value) for option, value in options.items()}
    new = [entities.Param(option, value) for option, value in told.items() if option not in then]
    # parameters stay as they are: what has changed since, such as more steps, stands in tags
    other = [entities.RunTag(option, value) for option, value in told.items() if then.get(option, value) != value]
    client.log_batch(key, params=new, tags=other)
    client.update_run(key, status="RUNNING")

    def lacks(name: str, step: int) -> bool:
        if name not in held:
            held[name] = max((one.step for one in client.get_metric_history(key, name)), default=-1)
        return step > held[name]

    def send(points: Sequence[Point]) -> None:
        now, flat = int(1000 * time.time()), [(*one, step) for step, values in points for one in values.items()]
        lines = [entities.Metric(name, value, now, step) for name, value, step in flat if lacks(name, step)]
        for first in range(0, len(lines), _PER_CALL):
            part = lines[first : first + _PER_CALL]
            client.log_batch(key, metrics=part)
            held.update({one.key: one.step for one in part})

    return Tracker(send, lambda ended: client.set_terminated(key, "FINISHED" if ended else "KILLED"))


def _wandb(run: Path, options: dict[str, Any], ident: str, name: str) -> Tracker:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    wandb = import_module("wandb")
    mode = os.environ.get("WANDB_MODE") or "offline"
    if mode == "offline":  # written anew, from the first step on
        for old in (run / "wandb").glob(f"offline-run-*-{ident}"):
            shutil.rmtree(old)
    quiet = {"silent": True, "console": "off", "disable_git": True, "disable_code": True, "x_disable_stats": True}
    own = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or "headstart",
        id=ident,
        name=name,
        dir=str(run),
        mode=mode,
        resume=None if mode == "offline" else "allow",
        settings=wandb.Settings(**quiet),
    )
    own.config.update(options, allow_val_change=True)
    begun = own.step  # the first that the server lacks

    def send(points: Sequence[Point]) -> None:
        for step, values in points:
            if step >= begun:
                own.log(values, step=step)
            own.summary.update({key: value for key, value in values.items() if key.startswith("test/")})

    return Tracker(send, lambda ended: own.finish(exit_code=0 if ended else 1))


#: What opens a tracker, by name, of a run's folder and options, what it is known by and what people call it.
TRACKERS: Mapping[str, Callable[[Path, dict[str, Any], str, str], Tracker]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}


@contextmanager
def tracking(config: Config, run: Path, metrics: MetricsFile) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """Within it, what is added to a run's metrics goes to the trackers of its configuration, after what they lack.

    Args:
        config: says which, and what is told of the run.
        run: its folder.
        metrics: the file that is written; where several processes train, it is one's alone.

    Yields:
        What to call at the end with the last step and the score on the test tasks.

    Raises:
        UsageError: a tracker that is not installed, or cannot be opened.
    """
    opened, waiting, ended = dict[str, Tracker](), dict[str, list[Point]](), False
    sent, failing = time.monotonic(), set[str]()

    def send() -> None:
        nonlocal sent
        for name, tracker in opened.items():
            try:
                tracker.send(waiting[name])
                waiting[name] = []
                failing.discard(name)
            except Exception as error:  # a server that is down must end no training
                if name not in failing:
                    warnings.warn(f"{name} cannot be written, which is tried again: {_line(error)}", stacklevel=2)
                failing.add(name)
        sent = time.monotonic() + (PAUSE if failing else 0.0)

    def add(line: Line) -> None:
        for points in waiting.values():
            points.append(_point(line))
        if opened and time.monotonic() - sent >= SECONDS:
            send()

    def result(step: int, score: Mapping[str, Any]) -> None:
        nonlocal ended
        ended, others = True, {name: score[name] for name in ("ci95", "median", "worst")}
        add({"step": step, "test": {score["metric"]: score["mean"], **others}})

    with ExitStack() as stack:
        for name in dict.fromkeys(config.run.track or ()):
            opened[name] = _open(name, config, run)
            stack.callback(lambda name=name, close=opened[name].close: _closed(name, partial(close, ended)))
            waiting[name] = list(map(_point, metrics.lines()))
        if opened:
            send()
            stack.callback(send)
            metrics.told = add
        yield result


def _open(name: str, config: Config, run: Path) -> Tracker:
    options = {
        key: value if isinstance(value, bool | int | float) else str(value)
        for key, value in flat(config.tree()).items()
    }
    if not (run / NAME).exists():
        write(run / NAME, to_json({"id": uuid.uuid4().hex}))
    told = read_json(run / NAME)
    ident = told.get("id") if isinstance(told, dict) else None
    if not (isinstance(ident, str) and ident.isalnum()):
        raise FileError(f"{run / NAME} does not say what the run is called by; remove it to track the run as a new one")
    try:
        with warnings.catch_warnings(), explained("write"):
            warnings.simplefilter("ignore", DeprecationWarning)  # of theirs
            return TRACKERS[name](run, options, ident, f"{called(config)}-{config.method.name}-{config.run.seed}")
    except ImportError as error:
        raise UsageError(f"--track {name} needs {error.name or name}: pip install headstart[track]") from error
    except HeadstartError:
        raise
    except Exception as error:
        raise UsageError(f"--track {name} cannot be opened: {_line(error)}") from error


def _closed(name: str, close: Callable[[], None]) -> None:
    try:
        close()
    except Exception as error:
        warnings.warn(f"{name} was not closed: {_line(error)}", stacklevel=2)


def _point(line: Line) -> Point:
    """Return a line's numbers by name: of what has parts, as in ``validation/accuracy``.

    >>> _point({"step": 5, "loss": 1.5, "validation": {"accuracy": 0.5, "ci95": None}})
    (5, {'loss': 1.5, 'validation/accuracy': 0.5})
    """
    parts = {name: value if isinstance(value, dict) else {"": value} for name, value in line.items() if name != "step"}
    named = {f"{name}/{own}".rstrip("/"): value for name, part in parts.items() for own, value in part.items()}
    return line["step"], {name: value for name, value in named.items() if type(value) in (int, float)}


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
