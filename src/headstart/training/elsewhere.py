"""How a run does on tasks of another source than it was trained on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from headstart.data.fewshot import original
from headstart.data.kind import Elsewhere, kind_of_family
from headstart.errors import ConfigError, LeakageError
from headstart.registry import find, rows
from headstart.training.build import Job, make_learner, make_tasks
from headstart.training.config import Config, Tree, called, normal, resolve, schema_of
from headstart.training.evaluate import Score
from headstart.training.files import explained
from headstart.training.run import open_run, test
from headstart.types import Tasks


class Judged(NamedTuple):
    """A run's score on the tasks of another source."""

    score: Score
    trained_on: str
    """What people call the tasks that were trained on."""
    on: str
    """What they call those that it was judged on."""
    seed: int
    """Of the tasks."""
    step: int
    """The outer step of the weights."""
    notes: tuple[str, ...]
    """What there is to say of the score."""


@explained("use")
def evaluate_on(
    run: str | Path,
    source: str | Mapping[str, Any],
    *,
    episodes: int = 600,
    split: str = "test",
    seed: int | None = None,
    device: str = "auto",
    on_batch: Callable[[int], None] | None = None,
) -> Judged:
    """Judge a run on tasks of another source of the same kind of data, their inputs made such as it was trained on.

    Images get the shape, the colours and the polarity of the run's, and texts are read as the run's. Ways, shots and
    queries are the run's where the source does not say others.

    Args:
        run: a run folder.
        source: a family's name, a path, or a mapping of ``name`` and options.
        episodes, split: which tasks.
        seed: of the tasks; by default the run's.
        device: where to compute.
        on_batch: called with the number of tasks done after each batch.

    Raises:
        ConfigError: another kind of data, one that means nothing elsewhere (tables), or other ways than the method can.
        LeakageError: tasks of classes that were trained on.
    """
    job, checkpoint = open_run(run, device)
    config = target_config(job, source)
    seed = config.run.seed if seed is None else seed
    tasks = make_tasks(config, job.device, seed)
    notes = refuse_trained_on(job, config, tasks, split)
    score = test(elsewhere(job, tasks), checkpoint.best.meta, episodes=episodes, split=split, on_batch=on_batch)
    return Judged(score, called(job.config), called(config), seed, checkpoint.best.step, notes)


def target_config(job: Job, source: str | Mapping[str, Any]) -> Config:
    """Return a configuration of the tasks that a run is to be judged on; only its tasks and seed are of use.

    Raises:
        ConfigError: tasks of another kind of data, or of one that means nothing elsewhere.
    """
    parts = normal({"tasks": source})
    own, other = (find("data", find("task", name).kind) for name in (job.config.tasks.name, parts["tasks"]["name"]))
    seam = kind_of_family(job.config.tasks.name).elsewhere
    if own != other or seam is None:
        why = f"the run is of {own.name}, and {parts['tasks']['name']!r} is {other.name}"
        raise ConfigError(why if own != other else f"what is learned of {own.name} is of their own columns alone")
    known = schema_of(parts).options
    given = {**sizes_of(job.tasks, seam), **seam.options(job.tasks)}
    given = {name: value for name, value in given.items() if f"tasks.{name}" in known and value is not None}
    tree: Tree = {"tasks": {**given, **parts["tasks"]}, "run": {"seed": job.config.run.seed}}
    return resolve(tree)


def sizes_of(tasks: Tasks, seam: Elsewhere) -> dict[str, Any]:
    """Return the options that tell how large a task is, as the tasks have them."""
    found = {name: tasks.details[name] for name in seam.sizes if name in tasks.details}
    if isinstance(found.get("ways"), tuple):
        found["ways"] = found["ways"][1]
    return found


def elsewhere(job: Job, tasks: Tasks) -> Job:
    """Return a job that judges the run's learner on other tasks, made such as it takes.

    Raises:
        ConfigError: inputs that cannot be made so, other targets, or other ways than the method can do.
    """
    seam, method = kind_of_family(job.config.tasks.name).elsewhere, find("method", job.config.method.name)
    assert seam is not None
    own, other = job.tasks, tasks
    classes = own.kind == other.kind == "classification"
    if method.classes == "trained" and classes and other.output_size != own.output_size:
        raise ConfigError(
            f"the run was trained with {method.name} for {own.output_size} classes, but tasks of {other.name} have"
            f" {other.output_size}; give --ways {own.output_size}"
        )
    tasks = seam.fitted(own, other)
    sizes_differ = classes and tasks.output_size != own.output_size
    learner = make_learner(job.config, tasks, job.device)[0] if sizes_differ else job.learner
    return job._replace(tasks=tasks, learner=learner)


def refuse_trained_on(job: Job, config: Config, tasks: Tasks, split: str) -> tuple[str, ...]:
    """Refuse tasks of classes of the run's own source that were trained on, and tell of others that are called alike.

    Raises:
        LeakageError: such tasks.
    """
    trained = {original(name) for name in job.tasks.details.get("class_names", {}).get("train", ())}
    names = {original(name) for name in tasks.details.get("class_names", {}).get(split, ())}
    same = sorted(trained & names)
    if not same or split == "train":
        return ()
    told = f"{len(same)} of the {len(names)} {split} classes of {called(config)}, such as {same[0]!r},"
    if _sources(config.tasks.options, config.tasks.name) & _sources(job.config.tasks.options, job.config.tasks.name):
        raise LeakageError(f"{told} were trained on; judge on the run's own split of them, or on another source")
    return (f"{told} are called as classes that were trained on; where they show the same, the score is flattered",)


def _sources(options: Mapping[str, Any], name: str) -> set[tuple[str, str]]:
    """Return which families tasks are of, and of a user's own which data."""
    own, every = {row.family for row in rows("data")}, options.get("sources") or [{**options, "name": name}]
    return {(one["name"], str(one["data"]) if one["name"] in own else "") for one in every}
