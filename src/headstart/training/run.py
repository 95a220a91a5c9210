"""A training run in a folder: it can be stopped or killed at any time, and the same call goes on with it.

::

    RUN/
      config.json       every option, resolved; ``--config`` takes it back
      preparation.json  how raw data become numbers, so that a new task can be read
      metrics.jsonl     one line an outer step        results.csv   one row a look at the validation tasks
      results.json      the score on the test tasks   test.csv      the same, one row a task
      results.png  episode.png  reliability.png  README.md   pictures, and a short model card
      structure.json  structure.csv  structure.png    what was learned about the model, and how far its layers move
      likeness.safetensors                            what training examples are like (`headstart.training.likeness`)
      best.safetensors  last.safetensors              θ and M: best validation score, and last step
      checkpoints/      what the run goes on from (`headstart.training.checkpoint`)
"""

import math
import signal
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

import headstart
from headstart.core.tree import prefixed, within
from headstart.data.kind import kind_of_family
from headstart.engine.accelerate import accelerate
from headstart.errors import ConfigError, FileError, OutOfMemoryError
from headstart.registry import load
from headstart.schema import seconds
from headstart.training import checkpoint as checkpoints, likeness
from headstart.training.build import Job, build, find_device, make_learner, make_optimizer, reproducible
from headstart.training.calibration import Spread, calibrated
from headstart.training.checkpoint import Checkpoint, Keep, Saver
from headstart.training.config import Config, Outer, Tree, diff, kind_of, resolve
from headstart.training.distributed import group, processes
from headstart.training.divergence import named
from headstart.training.evaluate import Score, calibrate, evaluate
from headstart.training.files import (
    TEMPORARY,
    explained,
    from_safetensors,
    make_folder,
    read,
    read_json,
    to_json,
    to_safetensors,
    write,
)
from headstart.training.fit_best import Best, Look, first, fit_best
from headstart.training.loop import State, compiled_at_first, compiling_repays, flat, start
from headstart.training.metrics import NAME, MetricsFile, read_lines, write_csv
from headstart.training.preparation import refuse_other_data, write_preparation
from headstart.training.progress import View
from headstart.training.reliability import measured
from headstart.training.report.report import CHOICE, RESULTS, by_task, report, score_to_json, shown
from headstart.training.signals import Stop, only_writer, stop_signals
from headstart.training.track import tracking
from headstart.training.trials import trials
from headstart.training.trust import Trust
from headstart.training.trust_fitting import fitted
from headstart.types import Learner, Meta, Params

CONFIG = "config.json"
LIKENESS = "likeness.safetensors"
CANDIDATES = "candidates"
"""The folder in a run's of those that it was chosen from (`headstart.training.choose`)."""
_LOOK = 250  # steps between two looks at validation, at most, where nobody says
_NAMED = 1000  # tasks that were left out and results.json names
LEARNED = ("structure.json", "structure.csv", "structure.png")


class Result(NamedTuple):
    """How a run ended."""

    run: Path
    config: Config
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


@explained("use")
def train(config: Config | Tree | str, out: str | Path, *, view: View | None = None, tested: bool = True) -> Result:
    """Meta-train as ``config`` says, in the folder ``out``, or go on with the run that is there.

    The weights with the best validation score are kept, and judged on the test tasks at the end. A run that was
    killed and goes on ends bit for bit as one that was not, on the same kind of machine with the same PyTorch and
    number of threads, and the same C compiler where steps are compiled. Where torchrun has started several
    processes, they share the run (`headstart.training.distributed`): the first one reads and writes the folder, and
    all return the same result.

    Args:
        config: the options, as `headstart.training.config` has them; a text is the tasks alone.
        out: the run's folder; made where it does not exist.
        view: where to report progress to; by default nowhere.
        tested: whether to judge on the test tasks, too.

    Raises:
        ConfigError: options that do not go together, or that differ from those of the run in ``out``.
        DivergenceError: the loss is no longer finite.
        OutOfMemoryError: there is not enough memory for a step; it says what fits.
        DataError: tasks with numbers that are not finite, or too few of them.
        FileError: the folder cannot be written; or it was moved or deleted meanwhile, and all is saved elsewhere.
        ProcessError: another process has ended, does not answer, or has other weights.
    """
    run = Path(out)
    config = config if isinstance(config, Config) else resolve(config)
    shared = processes(device=find_device(config.run.device), hung_after=config.run.hung_after)
    with shared as everyone, reproducible(config), stop_signals() as stop:
        everyone.heed(stop)
        view = (view or View()) if everyone.first else View()
        if everyone.first:
            _refuse_other_run(run, config)
        job = build(config)
        model = config.model.name if config.model else "none"
        view.note(f"device: {job.device}   model: {model}, {job.parameters} parameters")
        for line in job.notes:
            view.note(line)
        with ExitStack() as held:
            stays: _Stays = _not_mine
            place = track = None
            if everyone.first:
                make_folder(run)
                place = held.enter_context(only_writer(run))
                _refuse_other_run(run, config)
                write(run / CONFIG, to_json(config.tree()))
                write_preparation(run, kind_of_family(config.tasks.name), job.tasks)
            held.callback(view.close)
            state, best, metrics = _begin(job, run, view)
            if place is not None and metrics is not None:
                held.enter_context(closing(metrics))
                track = held.enter_context(tracking(config, run, metrics))
                stays = partial(_stays, job, run, place, metrics)
            learns = job.learner.gradient is not None
            if config.outer is not None and learns and state.step < config.outer.steps:
                best = _meta_train(job, config.outer, run, state, best, metrics, stays, stop, view)
            view.close()
            stays(state, best)
            if everyone.first:
                with _there(partial(stays, state, best)):
                    write(run / "last.safetensors", to_safetensors(flat(state.meta)))
                    write(run / "best.safetensors", to_safetensors(flat(best.meta)))
            left = stop.requested or not tested
            score = None if left else _test(job, run, state, best, stays, stop, view)
            if score is not None and track is not None:
                track(state.step, score_to_json(score))
            return Result(run, config, state.step, best.step, score, stop.number)


def _begin(job: Job, run: Path, view: View) -> tuple[State, Best, MetricsFile | None]:
    """Return where to go on from, the newest good checkpoint or the start, with its validation score and metrics.

    The first of several processes finds it, and alone has the metrics.
    """
    everyone = group()
    begin = partial(start, job.learner, optimizer=make_optimizer(job.config), seed=job.config.run.seed)
    steps = job.config.outer.steps if job.config.outer else 0
    state = begin()
    checkpoint = _of_first(_found(run, state.meta) if everyone.first else None, state.meta)
    if checkpoint is not None:
        checkpoints.restore(state, checkpoint)
        if state.step > steps:
            raise ConfigError(f"the run in {run} has taken {state.step} steps already; --steps is {steps}")
        view.note(f"going on from step {state.step}" if state.step < steps else "trained already")
        metrics = MetricsFile(run, state.step, checkpoint.metrics) if everyone.first else None
        return state, checkpoint.best, metrics
    if job.learner.prepare is not None:
        view.note("reading the training tasks")
        state = begin(meta=state.meta, tasks=job.tasks, folder=run)
    judge, count = _Judge(job), job.config.run.evaluate_tasks
    there = min(count, (job.tasks.counts or {}).get("validation", count))
    view.note(f"judging the start on {there} validation task{'s' * (there != 1)} (--evaluate-tasks)")
    best = first(state.meta, judge)
    if not everyone.first:
        return state, best, None
    metrics = MetricsFile(run)
    metrics.add({"step": 0, "validation": judge.said})
    checkpoints.save(run, checkpoints.take(state, best, metrics.sync()))
    return state, best, metrics


def _found(run: Path, like: Meta) -> Checkpoint | None:
    """Return the newest good checkpoint of a run; damaged ones are told of and set aside."""
    checkpoints.clean(run)
    found = checkpoints.find(run, like)
    for place, reason in found.damaged:
        warnings.warn(f"checkpoint {place.name} cannot be used, going back to the one before: {reason}", stacklevel=4)
    checkpoints.set_aside(found.damaged)
    return found.checkpoint


def _of_first(own: Checkpoint | None, like: Meta) -> Checkpoint | None:
    """Return the checkpoint that the first process has found, in all of them."""
    everyone = group()
    if everyone.size == 1:
        return own
    told: Params = {}
    if own is not None:
        numbers = {"step": own.step, "best.step": own.best.step, "best.value": own.best.value}
        numbers["lost"] = own.lost
        told = {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}
        parts = {"last": flat(own.meta), "best.meta": flat(own.best.meta), "optimizer": own.optimizer}
        told |= {name: value for part, values in parts.items() for name, value in prefixed(part, values).items()}
    sent = everyone.sent(told)
    if own is not None or not sent:
        return own

    def meta(part: str) -> Meta:
        values = within(sent, part)
        return Meta(
            *({n: values[f"{p}.{n}"].to(v.device) for n, v in ours.items()} for p, ours in like._asdict().items())
        )

    best = Best(int(sent["best.step"]), float(sent["best.value"]), meta("best.meta"))
    return Checkpoint(int(sent["step"]), meta("last"), best, within(sent, "optimizer"), lost=int(sent["lost"]))


#: Raises where the run's folder is no longer where it was, with the weights saved.
_Stays: TypeAlias = Callable[[State, Best], None]


def _not_mine(state: State, best: Best) -> None:
    """Of a process that reads and writes no files."""


@contextmanager
def _there(stays: Callable[[], None]) -> Iterator[None]:
    """Say of files that cannot be written that the run's folder is gone, where that is why."""
    try:
        yield
    except FileError:
        stays()
        raise


def _stays(
    job: Job, run: Path, place: Callable[[], Path | None], metrics: MetricsFile, state: State, best: Best
) -> None:
    """Save elsewhere, and say where, if the run's folder has been moved or deleted; a half of it is never made anew."""
    now = place()
    if now == run:
        return
    what = "deleted" if now is None else f"moved to {now}"
    if now is None:
        now = run.with_name(f"{run.name}-saved-{uuid.uuid4().hex[:6]}")
        make_folder(now)
        write(now / CONFIG, to_json(job.config.tree()))
        write_preparation(now, kind_of_family(job.config.tasks.name), job.tasks)
        write(now / NAME, metrics.content())
    checkpoints.save(now, checkpoints.take(state, best, metrics.sync()))
    raise FileError(
        f"the run's folder {run} was {what} while training went on; what was learned until step {state.step} is saved"
        f" in {now}, and the same command with --out {now} goes on from there"
    )


def _meta_train(
    job: Job,
    outer: Outer,
    run: Path,
    state: State,
    best: Best,
    metrics: MetricsFile | None,
    stays: _Stays,
    stop: Stop,
    view: View,
) -> Best:
    """Take the steps that are left: step, look at validation, log, save."""
    config, steps = job.config.run, outer.steps
    # no more than there are: each of them once
    tasks_per_step = min(outer.tasks_per_step, (job.tasks.counts or {}).get("train", outer.tasks_per_step))
    for stale in (
        "results.json",
        "test.csv",
        "confusions.csv",
        "README.md",
        "reliability.png",
        LIKENESS,
        *LEARNED,
    ):  # they tell of fewer steps
        if metrics is not None:
            (run / stale).unlink(missing_ok=True)
    judge = _Judge(job)
    looked = f"validation {shown(job.tasks.kind, best.value)} at step {best.step}"
    view.begin(state.step, steps, tasks_per_step)
    looks = _looks(
        job,
        best,
        view,
        state=state,
        judge=judge,
        steps=steps,
        every=config.evaluate_every or max(1, min(_LOOK, steps // 4)),
        larger=job.tasks.kind == "classification",
        tasks_per_step=tasks_per_step,
        schedule=outer.schedule,
        seed=config.seed,
        on_nonfinite=config.on_nonfinite,
        same_bits=config.same_bits,
    )
    if metrics is None:  # another process writes
        for look in looks:
            best = look.best
            if stop.requested:
                break
        return best
    due, told = _Due(config.save_every, config.keep_every), False

    def went_well(saved: Callable[[], None]) -> None:
        try:
            saved()
        except FileError:
            stays(state, best)  # where the folder has gone, this says so
            raise

    with Saver(run, Keep(config.keep_last, config.keep_every)) as saver:
        for look in looks:
            record, value, best = look
            line: dict[str, Any] = dict(zip(("step", "loss", "gradient_norm", "rate"), record))
            if record.left_out:
                line["left_out"] = [one._asdict() for one in record.left_out]
                if not told:
                    view.note(f"step {record.step} is without task {record.left_out[0].task}: {record.left_out[0].why}")
                told = True
            if math.isnan(record.loss):
                del line["loss"], line["gradient_norm"]
            if value is not None:
                line["validation"] = judge.said
                looked = f"validation {shown(job.tasks.kind, value)} at step {record.step}"
            metrics.add(line)
            view.step(record, looked)
            went_well(saver.check)
            last = stop.requested or record.step == steps
            if last or due(record.step):
                went_well(saver.wait)
                stays(state, best)
                saver.begin(checkpoints.take(state, best, metrics.known()), metrics.sync)
            if last:
                went_well(saver.wait)
            if stop.requested:
                break
    return best


def _looks(job: Job, best: Best, view: View, **given: Any) -> Iterator[Look]:
    """`fit_best`; with ``memory`` auto it goes on with a checkpointed adjoint where one task asks for too much."""
    config, learner = job.config.run, job.learner
    while True:
        try:
            compile = _repays(job, learner) if config.compile is None else config.compile
            if compile and config.compile is None:
                view.note("compiling a step first, which the steps to come repay (--no-compile leaves it)")
            made = accelerate(learner, compile=compile, memory=config.memory)
            if compile and job.config.outer is not None:
                outer = job.config.outer
                compiled_at_first(
                    made, job.tasks, start(learner, seed=config.seed).meta, outer.tasks_per_step, config.seed
                )
            for look in fit_best(made, job.tasks, best=best, **given):
                best = look.best
                yield look
            return
        except OutOfMemoryError:
            leaner = _checkpointed(job) if config.memory == "auto" and learner is job.learner else None
            if leaner is None or group().size > 1:  # others do not know of it
                raise
        view.note("out of memory with one task at a time: from now on with --adjoint checkpointed")
        learner = leaner


def _repays(job: Job, learner: Learner) -> bool:
    """Return whether to compile; what is looked at is the same whenever the run goes on."""
    config = job.config
    # each other number of tasks would be compiled anew
    if config.outer is None or config.run.memory or config.run.same_bits or config.run.on_nonfinite == "skip":
        return False
    meta = start(learner, seed=config.run.seed).meta
    return compiling_repays(learner, job.tasks, meta, config.outer.steps, config.outer.tasks_per_step, config.run.seed)


def _checkpointed(job: Job) -> Learner | None:
    """Return the learner that remembers less of its inner steps; ``None`` where there is none."""
    method = job.config.method
    if method.options.get("adjoint", "none") not in (None, "unrolled"):
        return None
    leaner = method._replace(options={**method.options, "adjoint": "checkpointed"})
    return make_learner(job.config._replace(method=leaner), job.tasks, job.device)[0]


class _Due:
    """Whether to save after a step."""

    def __init__(self, every: int | str, kept: int | None) -> None:
        self.every, self.kept, self.last = every, kept, time.monotonic()

    def __call__(self, step: int) -> bool:
        if isinstance(self.every, int):
            due = step % self.every == 0
        else:
            due = time.monotonic() - self.last >= (seconds(self.every) or 0)
        due = due or (self.kept is not None and step % self.kept == 0)
        self.last = time.monotonic() if due else self.last
        return due


class _Judge:
    """The mean score on the validation tasks; ``said`` is what the metrics say of the last one."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, meta: Meta) -> float:
        count = self.job.config.run.evaluate_tasks
        score = evaluate(self.job.learner, meta, self.job.tasks, episodes=count, split="validation")
        self.said = {score.metric: score.mean, "ci95": score_to_json(score)["ci95"]}
        return score.mean


def _test(job: Job, run: Path, state: State, best: Best, stays: _Stays, stop: Stop, view: View) -> Score | None:
    there = min(job.config.run.test_tasks, (job.tasks.counts or {}).get("test", job.config.run.test_tasks))
    view.note(f"testing on {there} task{'s' * (there != 1)}")

    def leave_if_asked(done: int) -> None:
        if stop.requested:
            raise _Stopped

    own, baseline = job.config.method.name, None
    kind = kind_of(job.config.tree())
    spread = calibrate(job.learner, best.meta, job.tasks, episodes=job.config.run.evaluate_tasks)
    job = job._replace(learner=calibrated(job.learner, spread))
    try:
        score = test(job, best.meta, on_batch=leave_if_asked)
        if "nearest" in kind.compared and own != "nearest" and job.tasks.kind == "classification":
            # nobody should train for what raw inputs give
            raw = load("method", "nearest")()
            count = job.config.run.test_tasks
            baseline = evaluate(raw, raw.init(None), job.tasks, episodes=count, split="test", on_batch=leave_if_asked)
    except _Stopped:
        return None
    everyone = group()
    everyone.agree()
    if everyone.size > 1 and stop.requested:
        return None
    stays(state, best)
    results = score_to_json(score)
    if baseline is not None:
        told = shown(job.tasks.kind, baseline.mean, baseline.ci95)
        seen = "what the frozen network gives" if job.config.option("tasks.encoder") else "raw inputs"
        view.note(f"for comparison, nearest, the nearest class mean of {seen}, which learns nothing: {told}")
        results["nearest"] = {name: score_to_json(baseline)[name] for name in ("mean", "ci95")}
    results |= {"step": state.step, "best_step": best.step, "best_validation": best.value}
    results |= {"parameters": job.parameters, "device": str(job.device), "headstart": headstart.__version__}
    results |= {"intervals": spread and spread._asdict()}

    def told() -> None:
        # where others wait, nothing but an error ends it early
        results.update(_trusted(job, best.meta, leave_if_asked if everyone.size == 1 else lambda done: None))
        results.update(_alike(job, best.meta, run))
        if left_out := [one["task"] for line in read_lines(run) for one in line.get("left_out", ())]:
            view.note(f"left out, as their loss or meta-gradient was not finite: training tasks {named(left_out)}")
            results["left_out"] = {"count": len(left_out), "tasks": left_out[:_NAMED]}
        write_csv(run / "test.csv", by_task(job, score))
        write(run / "results.json", to_json(results))
        report(run, job, best.meta)

    try:
        with _there(partial(stays, state, best)):
            everyone.alone(told)
    except _Stopped:
        return None
    return score


def _trusted(job: Job, meta: Meta, on_batch: Callable[[int], None]) -> dict[str, Any]:
    """Return how far answers can be believed, by validation tasks, and how far that holds on test tasks, as JSON."""
    if job.tasks.kind != "classification":
        return {}
    given: dict[str, Any] = {"episodes": job.config.run.evaluate_tasks, "on_batch": on_batch}
    trust = fitted(trials(job, meta, "validation", **given))
    seen = [] if trust is None else trials(job, meta, "test", own=True, **given)
    if trust is None or not seen:
        return {}
    return {"trust": trust.to_json(), "trusted": measured(trust, seen[0]).to_json()}


def _alike(job: Job, meta: Meta, run: Path) -> dict[str, Any]:
    """Keep what training examples are like, and return how many test tasks look unlike them, as JSON."""
    episodes = job.config.run.evaluate_tasks
    embed = likeness.embedding(job.config, meta, job.tasks, job.device)
    found = None if embed is None else likeness.fitted(embed, job.tasks, episodes)
    if embed is None or found is None:
        return {}
    write(run / LIKENESS, to_safetensors(found._asdict()))
    told, count = likeness.alarms(found, embed, job.tasks, "test", episodes)
    return {"unlike": {"told": told, "of": count}}


def test(
    job: Job,
    meta: Meta,
    *,
    episodes: int | None = None,
    split: str = "test",
    on_batch: Callable[[int], None] | None = None,
) -> Score:
    """Judge ``meta`` on test tasks, also after fewer and more inner steps than the learner's own."""
    own, episodes = job.learner.steps, episodes or job.config.run.test_tasks
    steps = None if own is None else [0, 1, 2, 5, 10, own, 2 * own]
    return evaluate(job.learner, meta, job.tasks, episodes=episodes, split=split, steps=steps, on_batch=on_batch)


@explained("use")
def open_run(run: str | Path, device: str = "auto") -> tuple[Job, Checkpoint]:
    """Return what a run folder's configuration describes, and its newest good checkpoint.

    Args:
        run: the folder.
        device: where to compute, whatever the run was trained on.

    Raises:
        DataError: the run's data are others now.
        FileError: no run in that folder, or none of its checkpoints can be used.
    """
    run = Path(run)
    tree = read_config(run).tree()
    tree["run"]["device"] = device
    job = build(resolve(tree), lambda size: checkpoints.refuse_larger(run, size))
    refuse_other_data(run, kind_of_family(job.config.tasks.name), job.tasks)
    job = job._replace(learner=calibrated(job.learner, read_spread(run)))
    return job, checkpoints.newest(run, start(job.learner).meta)


def read_spread(run: Path) -> Spread | None:
    """Return how wide a run's intervals have to be; ``None`` where it has not come to say so."""
    path = run / RESULTS
    results = read_json(path) if path.exists() else {}
    return Spread.from_json(results.get("intervals") if isinstance(results, dict) else results, str(path))


def read_trust(run: Path) -> Trust | None:
    """Return how far a run's answers can be believed; ``None`` where it has not come to say so."""
    path = run / RESULTS
    results = read_json(path) if path.exists() else {}
    return Trust.from_json(results.get("trust") if isinstance(results, dict) else results, str(path))


def read_likeness(run: Path) -> likeness.Likeness | None:
    """Return what a run's training examples are like; ``None`` where it does not say."""
    path = run / LIKENESS
    if not path.exists():
        return None
    return likeness.Likeness.of_tensors(from_safetensors(read(path), str(path)), str(path))


def read_config(run: Path) -> Config:
    """Read a run folder's configuration.

    Raises:
        FileError: no run in that folder.
    """
    path = run / CONFIG
    if not path.exists():
        why = "it is a file" if run.is_file() else f"there is no {CONFIG} in it" if run.exists() else "it is not there"
        raise FileError(f"{run} holds no run: {why}; give a folder that `headstart train` made")
    values = read_json(path)
    if not isinstance(values, dict):
        raise FileError(f"{path} is not a configuration; expected a JSON object")
    if "format" in values:
        raise FileError(
            f"{run} is an adapted model; give the run that it was adapted from. One that comes from a network as it is"
            " says in its README.md how good it is"
        )
    if "model_type" in values:  # as transformers writes it
        raise FileError(f"{run} holds no run, but a pretrained network, which is called hf:{run}")
    return resolve(values, str(path))


def _refuse_other_run(run: Path, config: Config) -> None:
    """Refuse a folder that holds something else, or a run with other options."""
    if (run / CONFIG).exists():
        changed = diff(read_config(run), config)
        if changed:
            listed = "\n  ".join(changed)
            raise ConfigError(
                f"the run in {run} was made with other options (then -> now):\n  {listed}\n"
                "choose another --out, or give the same options (--steps may be raised where --schedule is constant)"
            )
    elif run.is_dir() and any(
        path.name not in (CANDIDATES, CHOICE) and not path.name.startswith((".lock", TEMPORARY))
        for path in run.iterdir()
    ):
        raise ConfigError(f"{run} is not empty and holds no run; choose an empty or a new folder for --out")
