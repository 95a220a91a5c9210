"""A training run in a folder: it can be stopped or killed at any time, and the same call goes on with it.

::

    RUN/
      config.json       every option, resolved; ``--config`` takes it back
      table.json        of a table: its columns, and how they are turned into numbers
      metrics.jsonl     one line an outer step        results.csv   one row a look at the validation tasks
      results.json      the score on the test tasks   test.csv      the same, one row a task
      results.png  episode.png  README.md             pictures, and a short model card
      structure.json  structure.csv  structure.png    what was learned about the model, and how far its layers move
      best.safetensors  last.safetensors              θ and M: best validation score, and last step
      checkpoints/      what the run goes on from (`headstart.training.checkpoint`)
"""

import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import headstart
from headstart.engine.accelerate import accelerate
from headstart.errors import ConfigError, FileError
from headstart.training import checkpoint as checkpoints
from headstart.training.build import Job, build, make_optimizer, reproducible
from headstart.training.checkpoint import Best, Checkpoint
from headstart.training.config import TrainConfig, diff, make_config
from headstart.training.defaults import resolve
from headstart.training.evaluate import Score, better, evaluate
from headstart.training.files import TEMPORARY, make_folder, read_json, to_json, to_safetensors, write
from headstart.training.loop import State, copied, fit, flat, start
from headstart.training.metrics import MetricsFile, write_csv
from headstart.training.progress import Silent, View
from headstart.training.report.report import by_task, report, score_to_json, shown
from headstart.training.signals import Stop, only_writer, stop_signals
from headstart.training.table_schema import refuse_other_table, write_schema
from headstart.types import Meta

CONFIG = "config.json"
LEARNED = ("structure.json", "structure.csv", "structure.png")


class Result(NamedTuple):
    """How a run ended."""

    run: Path
    config: TrainConfig
    step: int
    """Outer steps taken."""
    best_step: int
    """After which step the best weights were."""
    score: Score | None
    """The score of the best weights on the test tasks; ``None`` where the run was stopped before."""
    stopped: signal.Signals | None
    """The signal that stopped it; ``None`` where it ended by itself."""


class _Stopped(Exception):  # noqa: N818 - not an error
    """Leaves the final evaluation."""


def train(config: TrainConfig, out: str | Path, *, view: View | None = None) -> Result:
    """Meta-train as ``config`` says, in the folder ``out``, or go on with the run that is there.

    The weights with the best validation score are kept, and judged on the test tasks at the end. A run that was
    killed and goes on ends with the weights, bit for bit, and the metrics of one that was not, on the same kind of
    machine with the same PyTorch and number of threads; with ``compile``, to rounding.

    Args:
        config: the options; those that are ``None`` are filled in (`headstart.training.defaults.resolve`).
        out: the run's folder; made where it does not exist.
        view: where to report progress to; by default nowhere.

    Raises:
        ConfigError: options that do not go together, or that differ from those of the run in ``out``.
        DivergenceError: the loss is no longer finite.
        DataError: tasks with numbers that are not finite, or too few of them.
        FileError: the folder cannot be written.
    """
    run, view, config = Path(out), view or Silent(), resolve(config)
    _refuse_other_run(run, config)
    with reproducible(config), stop_signals() as stop:
        job = build(config)
        view.note(f"device: {job.device}   model: {config.model or 'none'}, {job.parameters} parameters")
        for line in job.notes:
            view.note(line)
        make_folder(run)
        with only_writer(run):
            _refuse_other_run(run, config)
            write(run / CONFIG, to_json(config.model_dump()))
            if "schema" in job.tasks.details:  # how a new task's rows are to be read
                write_schema(run, job.tasks.details["schema"])
            try:
                return _train(job, run, stop, view)
            finally:
                view.close()


def _train(job: Job, run: Path, stop: Stop, view: View) -> Result:
    state, best = _begin(job, run, view)
    steps = job.config.steps or 0
    if state.step < steps:
        best = _meta_train(job, run, state, best, stop, view)
    view.close()
    write(run / "last.safetensors", to_safetensors(flat(state.meta)))
    write(run / "best.safetensors", to_safetensors(flat(best.meta)))
    score = None
    if not stop.requested:
        score = _test(job, run, state, best, stop, view)
    return Result(run, job.config, state.step, best.step, score, stop.number)


def _begin(job: Job, run: Path, view: View) -> tuple[State, Best]:
    """Return where to go on from: the newest good checkpoint, or the start with its validation score."""
    config = job.config
    state = start(job.learner, optimizer=make_optimizer(config), seed=config.seed)
    checkpoints.clean(run)
    found = checkpoints.find(run, state.meta)
    for place, reason in found.damaged:
        warnings.warn(f"checkpoint {place.name} cannot be used, going back to the one before: {reason}", stacklevel=4)
    checkpoints.set_aside(found.damaged)
    if found.checkpoint is not None:
        checkpoints.restore(state, found.checkpoint)
        if state.step > (config.steps or 0):
            raise ConfigError(f"the run in {run} has taken {state.step} steps already; --steps is {config.steps}")
        view.note(f"going on from step {state.step}")
        return state, found.checkpoint.best
    if job.learner.prepare is not None:
        view.note("reading the training tasks")
        state = start(
            job.learner,
            optimizer=make_optimizer(config),
            seed=config.seed,
            meta=state.meta,
            tasks=job.tasks,
            folder=run,
        )
    score = _validate(job, state.meta)
    best = Best(0, score.mean, copied(state.meta))
    metrics = MetricsFile(run, -1)
    try:
        metrics.add({"step": 0, "validation": _brief(score)})
        metrics.sync()
    finally:
        metrics.close()
    checkpoints.save(run, checkpoints.take(state, best))
    return state, best


def _meta_train(job: Job, run: Path, state: State, best: Best, stop: Stop, view: View) -> Best:
    """Take the steps that are left: step, look at validation, log, save."""
    config, steps = job.config, job.config.steps or 0
    # no more than there are: each of them once
    tasks_per_step = min(config.tasks_per_step or 1, (job.tasks.counts or {}).get("train", config.tasks_per_step or 1))
    for stale in ("results.json", "test.csv", "README.md", *LEARNED):  # they tell of fewer steps
        (run / stale).unlink(missing_ok=True)
    metrics = MetricsFile(run, state.step)
    validation = shown(job.tasks.kind, best.value)
    view.begin(state.step, steps, tasks_per_step)
    try:
        for record in fit(
            accelerate(job.learner, compile=job.config.compile, memory=job.config.memory),
            job.tasks,
            steps=steps,
            tasks_per_step=tasks_per_step,
            state=state,
            schedule=config.schedule or "constant",
            seed=config.seed,
        ):
            line: dict[str, Any] = dict(zip(("step", "loss", "gradient_norm", "rate"), record))
            if record.step % config.evaluate_every == 0 or record.step == steps:
                score = _validate(job, state.meta)
                line["validation"], validation = _brief(score), shown(job.tasks.kind, score.mean)
                if better(score.metric, score.mean, best.value):
                    best = Best(record.step, score.mean, copied(state.meta))
            metrics.add(line)
            view.step(record, f"validation {validation}")
            if stop.requested or record.step % config.save_every == 0 or record.step == steps:
                metrics.sync()
                checkpoints.save(run, checkpoints.take(state, best))
            if stop.requested:
                break
    finally:
        metrics.close()
    return best


def _validate(job: Job, meta: Meta) -> Score:
    return evaluate(job.learner, meta, job.tasks, episodes=job.config.evaluate_tasks, split="validation")


def _test(job: Job, run: Path, state: State, best: Best, stop: Stop, view: View) -> Score | None:
    """Judge the best weights on the test tasks, and write what the run has come to."""
    there = min(job.config.test_tasks, (job.tasks.counts or {}).get("test", job.config.test_tasks))
    view.note(f"testing on {there} task{'s' * (there != 1)}")

    def leave_if_asked(done: int) -> None:
        if stop.requested:
            raise _Stopped

    try:
        score = test(job, best.meta, on_batch=leave_if_asked)
    except _Stopped:
        return None
    results = {
        **score_to_json(score),
        "step": state.step,
        "best_step": best.step,
        "best_validation": best.value,
        "parameters": job.parameters,
        "device": str(job.device),
        "headstart": headstart.__version__,
    }
    write_csv(run / "test.csv", by_task(job, score))
    write(run / "results.json", to_json(results))
    report(run, job, best.meta)
    return score


def test(
    job: Job,
    meta: Meta,
    *,
    episodes: int | None = None,
    split: str = "test",
    on_batch: Callable[[int], None] | None = None,
) -> Score:
    """Judge ``meta`` on test tasks, also after fewer and more inner steps than the learner's own."""
    own = job.learner.steps
    counts = None if own is None else sorted({0, 1, 2, 5, 10, own, 2 * own})
    return evaluate(
        job.learner,
        meta,
        job.tasks,
        episodes=episodes or job.config.test_tasks,
        split=split,
        steps=counts,
        on_batch=on_batch,
    )


def open_run(run: str | Path, device: str = "auto") -> tuple[Job, Checkpoint]:
    """Return what a run folder's configuration describes, and its newest good checkpoint.

    Args:
        run: the folder.
        device: where to compute, whatever the run was trained on.

    Raises:
        DataError: the run is of a table that has other rows now.
        FileError: no run in that folder, or none of its checkpoints can be used.
    """
    run = Path(run)
    job = build(read_config(run).model_copy(update={"device": device}))
    if "schema" in job.tasks.details:
        refuse_other_table(run, job.tasks.details["schema"])
    found = checkpoints.find(run, start(job.learner).meta)
    for place, reason in found.damaged:
        warnings.warn(f"checkpoint {place.name} cannot be used, taking the one before: {reason}", stacklevel=2)
    if found.checkpoint is None:
        raise FileError(f"the run in {run} has no checkpoint yet")
    return job, found.checkpoint


def read_config(run: Path) -> TrainConfig:
    """Read a run folder's configuration.

    Raises:
        FileError: no run in that folder.
    """
    if not (run / CONFIG).exists():
        raise FileError(f"{run} holds no run: there is no {CONFIG} in it; give a folder that `headstart train` made")
    values = read_json(run / CONFIG)
    if not isinstance(values, dict):
        raise FileError(f"{run / CONFIG} is not a configuration; expected a JSON object")
    return resolve(make_config(values, str(run / CONFIG)))


def _refuse_other_run(run: Path, config: TrainConfig) -> None:
    """Refuse a folder that holds something else, or a run with other options."""
    if (run / CONFIG).exists():
        changed = diff(read_config(run), config)
        if changed:
            listed = "\n  ".join(changed)
            raise ConfigError(
                f"the run in {run} was made with other options (then -> now):\n  {listed}\n"
                "choose another --out, or give the same options (--steps may be raised where --schedule is constant)"
            )
    elif run.is_dir() and any(not path.name.startswith((".lock", TEMPORARY)) for path in run.iterdir()):
        raise ConfigError(f"{run} is not empty and holds no run; choose an empty or a new folder for --out")


def _brief(score: Score) -> dict[str, Any]:
    return {score.metric: score.mean, "ci95": score_to_json(score)["ci95"]}
