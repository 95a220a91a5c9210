"""What new tasks are learned by, in memory: what a run has learned across tasks, or a network as it is."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headstart.core.losses import there
from headstart.data.encoder import beside, pad_of
from headstart.data.kind import DataKind, NewTask, Row, kind_of_family
from headstart.errors import ConfigError, DataError, FileError
from headstart.registry import find, rows
from headstart.training.build import for_new_tasks, make_learner, size_of
from headstart.training.calibration import Spread, calibrated, near
from headstart.training.checkpoint import newest, refuse_larger
from headstart.training.config import Config, called
from headstart.training.cross_validation import Told, cross_validated, left_out
from headstart.training.examples import Support, joined
from headstart.training.likeness import embedding, unlike, unlike_text
from headstart.training.loop import start
from headstart.training.preparation import PREPARATION, read_preparation
from headstart.training.report.report import RESULTS
from headstart.training.run import CONFIG, read_config, read_likeness, read_spread, read_trust
from headstart.training.trust import UNKNOWN_SHARE, Trust, among_classes, believed, label_sets, likeness_of
from headstart.training.without_run import Begun, first_meta
from headstart.types import Adapted, Batch, Learner, Meta, Params, Tasks


class AdaptedTask(NamedTuple):
    """A task that was learned."""

    name: str | None
    labels: tuple[str, ...]
    counts: tuple[int, ...]
    """As in `headstart.data.kind.NewTask`."""
    learner: Learner
    adapted: Adapted
    """Of this task alone."""


class HeadStart(NamedTuple):
    """A learner of new tasks, with how their data are read."""

    kind: DataKind
    preparation: Any
    """How data are read, as JSON."""
    prepared: Any
    """The same, as its kind has it."""
    config: Config
    """Of the run."""
    device: torch.device
    spread: Spread | None
    """How wide intervals have to be, by the run's validation tasks."""
    learner_of: Callable[[int], Learner]
    """The learner of tasks of so many classes; 0: as those trained on."""
    meta: Meta | None
    """θ and M; ``None`` where they are read off the inputs of new tasks."""
    trust: Trust | None = None
    """How far answers can be believed, by the run's validation tasks; ``None`` where it has none of classes."""
    unlike: Callable[[Tensor], bool] | None = None
    """Whether a task of these support examples ``(n, *features)`` looks unlike the training tasks; ``None``: it is not
    known."""

    def like(self, classes: int) -> Tasks:
        """Return tasks of so many classes, which nobody can sample; with 0, as those trained on."""
        return self.kind.like(self.prepared, classes)


def of_run(run: Path, device: torch.device) -> HeadStart:
    """Return what a run has learned.

    Raises:
        FileError: no run, or one whose files are not what they should be.
    """
    if not (run / CONFIG).exists():
        raise FileError(
            f"{run} is neither a run nor a network; give a folder that `headstart train` made, or a network by"
            " where it comes from, such as hf:FOLDER, timm:NAME or FILE.py:FUNCTION (`headstart list networks`)"
        )
    config = read_config(run)
    kind = kind_of_family(config.tasks.name)
    preparation, spread, trust = read_preparation(run, kind), read_spread(run), read_trust(run)
    prepared = kind.read(preparation, str(run / PREPARATION))
    like = kind.like(prepared, 0)
    if not (run / RESULTS).exists():
        told = f"{run} has no {RESULTS} (it was not tested yet, or that was deleted)"
        what = "intervals are not calibrated, and may hold far less than they say"
        if like.kind == "classification":
            what = "probabilities are not calibrated, and nothing tells examples of other classes"
        warnings.warn(f"{told}: {what}", stacklevel=2)
    # the run's own tasks are not made: their data may be elsewhere
    refuse_larger(run, size_of(config, like))
    learner_of = learners(config, kind, prepared, device, spread)
    meta = newest(run, start(learner_of(0)).meta).best.meta
    known = read_likeness(run)
    embed = None if known is None else embedding(config, meta, like, device)

    def is_unlike(x: Tensor) -> bool:
        assert known is not None and embed is not None
        return unlike(known, embed, x)

    odd = None if embed is None else is_unlike
    return HeadStart(kind, preparation, prepared, config, device, spread, learner_of, meta, trust, odd)


def of_network(begun: Begun, device: torch.device) -> HeadStart:
    """Return what a network knows before it is trained."""
    config, kind, preparation = begun
    prepared = kind.read(preparation, str(config.option("model.name")))
    learner_of = learners(config, kind, prepared, device, None)
    return HeadStart(kind, preparation, prepared, config, device, None, learner_of, None)


def learners(
    config: Config, kind: DataKind, prepared: Any, device: torch.device, spread: Spread | None
) -> Callable[[int], Learner]:
    """Return what makes the learner of new tasks of so many classes, each once."""
    config = for_new_tasks(config)

    def made(classes: int) -> Learner:
        like = kind.like(prepared, classes)
        return near(calibrated(make_learner(config, like, device)[0], spread), like)

    return cache(made)


def refuse_ways(config: Config, like: Tasks, source: str, tasks: Sequence[NewTask]) -> None:
    """Refuse tasks of one class, and of another number than was trained, where the method cannot do that."""
    if like.kind != "classification":
        return
    others = [row.name for row in rows("method") if row.classes == "any" and like.kind in row.targets]
    for task in tasks:
        classes, trained = len(task.labels), like.output_size
        whose = source if task.name is None else f"task {task.name!r} of {source}"
        if classes == 1:
            raise DataError(f"{whose} has one class only, {task.labels[0]!r}; there is nothing to tell it from")
        if classes != trained and config.method.name not in others:
            raise ConfigError(
                f"the run was trained with {config.method.name} for {trained} classes, but {whose} has {classes}; give"
                f" {trained}, or train with --ways {classes}, or with a method that takes any number:"
                f" {', '.join(others)}"
            )


def learned(by: HeadStart, supports: Sequence[Support]) -> tuple[Meta, tuple[AdaptedTask, ...]]:
    """Return θ and M, and the tasks that were learned from support sets, those of the same size together."""
    meta = by.meta or first_meta(by.config, by.learner_of(0), by.like(0), supports)
    # as many at once as in training, whose derivatives took more memory
    together = by.config.outer.tasks_per_step if by.config.outer else 16
    given, pad = [task for task, _ in supports], pad_of(by.like(0))
    tasks: dict[int, AdaptedTask] = {}
    for (classes, _), group in of_one_size(given):
        for first in range(0, len(group), together):
            places = group[first : first + together]
            x, *more = zip(*([part for part in supports[place][1] if part is not None] for place in places))
            batch = Batch(beside(x, 0, pad).to(by.device), *(torch.cat(parts).to(by.device) for parts in more))
            learner = by.learner_of(classes)
            with torch.no_grad():
                adapted, _ = learner.adapt(meta, batch)
            tasks |= {
                place: AdaptedTask(*given[place], learner, alone(adapted, row)) for row, place in enumerate(places)
            }
    return meta, tuple(tasks[place] for place in range(len(given)))


def told_by_others(by: HeadStart, support: Support, words: Sequence[Support] = ()) -> Told:
    """Return how well the examples of a task of classes are told by the others, learned as the task itself is.

    By leaving out each once where a method fits a head to features and there are 100 at most, else by parts.

    Args:
        by: what the task is learned by.
        support: the task.
        words: examples more, none of which is judged.
    """
    task, batch = support
    classes, pad = len(task.labels), pad_of(by.like(0))
    learner, row = by.learner_of(classes), find("method", by.config.method.name)
    count, numbers = batch.y.shape[1], batch.x[0].numel()
    meta, heads = by.meta, row.model == "embedding" and learner.steps is None and not row.transductive
    if meta is not None and heads and not words and batch.mask is None and count <= _LEFT_OUT:

        def answer(others: Batch, x: Tensor) -> Tensor:
            adapted, _ = learner.adapt(meta, Batch(others.x.to(by.device), others.y.to(by.device)))
            return learner.predict(adapted, x.to(by.device))

        found = left_out(answer, batch, classes, max(1, _NUMBERS // max(numbers, 1)))
        if found is not None:
            return found

    def learn(parts: Sequence[Batch]) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        supports = [joined([(_counted(task, others), others)], words, pad)[0] for others in parts]
        # what is read off the inputs of tasks is each part's own
        sets = [supports] if meta is not None else [[support] for support in supports]
        tasks = [one for some in sets for one in learned(by, some)[1]]
        return lambda x: _predicted(by, tasks, x)

    return cross_validated(learn, batch, classes)


def _counted(task: NewTask, batch: Batch) -> NewTask:
    return task._replace(counts=tuple(batch.y[0].bincount(minlength=len(task.labels)).tolist()))


def _predicted(by: HeadStart, tasks: Sequence[AdaptedTask], x: Sequence[Tensor]) -> list[Tensor]:
    """Return what tasks predict of inputs ``(1, m, *features)`` each: together where they are few and of one shape."""
    learner, most = tasks[0].learner, max(part.shape[1] for part in x)
    alike = len({_sizes(one.adapted) for one in tasks}) == 1 and not learner.transductive
    if by.meta is not None and alike and most * len(x) <= _LEFT_OUT:
        # what is too short is filled up with its own first input
        filled = [torch.cat([part, part[:, :1].expand(-1, most - part.shape[1], *part.shape[2:])], 1) for part in x]
        outputs = learner.predict(stacked([one.adapted for one in tasks]), torch.cat(filled).to(by.device)).cpu()
        return [own[: part.shape[1]] for own, part in zip(outputs, x)]
    return [one.learner.predict(one.adapted, part.to(by.device))[0].cpu() for one, part in zip(tasks, x)]


def _sizes(adapted: Adapted) -> tuple[Any, ...]:
    own = tuple((name, value.shape) for part in (adapted.params, adapted.buffers) for name, value in part.items())
    return adapted.step, adapted.seed is None, own


def stacked(tasks: Sequence[Adapted]) -> Adapted:
    """Return tasks of one shape that were learned apart as what learning them together gives."""

    def beside_each_other(parts: Sequence[Params]) -> Params:
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    params, buffers = ([getattr(task, part) for task in tasks] for part in ("params", "buffers"))
    return tasks[0]._replace(params=beside_each_other(params), buffers=beside_each_other(buffers))


#: Examples that are left out one by one, at most; and numbers in the inputs of support sets that are learned at once.
_LEFT_OUT, _NUMBERS = 100, 2**24


class Predicted(NamedTuple):
    """What a learner predicts of examples of a task."""

    task: AdaptedTask
    outputs: Tensor
    deviations: Tensor | None = None
    """As `Learner.predict` and `Learner.distribution` have them, of this task, on the CPU: ``(n, outputs)``."""
    reject: float | None = None
    """Which share of examples of the classes may be turned away, at most: of what is less like them, the
    ``prediction`` is ``None``."""
    unknown_share: float | None = None
    """Which share of what is asked is of none of the classes; by default `UNKNOWN_SHARE`."""


def answered(
    by: HeadStart,
    task: AdaptedTask,
    outputs: Tensor,
    deviations: Tensor | None,
    reject: float | None = None,
    unknown_share: float | None = None,
) -> list[Row]:
    """Return the answers of one task, as `answered_together` does."""
    return answered_together(by, [Predicted(task, outputs, deviations, reject, unknown_share)])[0]


def answered_together(by: HeadStart, found: Sequence[Predicted]) -> list[list[Row]]:
    """Return the answers that outputs of tasks say, of each task its own.

    Where the run's validation tasks say how far they can be believed (`headstart.training.trust`), probabilities are
    calibrated, ``unknown`` is that of none of the classes, which with those of all labels is 1, and ``set`` has the
    labels that hold the right one of 90 % of the examples that are of the classes.

    Raises:
        ConfigError: a share where nothing is known of other classes, or that is none.
    """
    rows: list[list[Row]] = [[] for _ in found]
    alike: dict[tuple[int, float, float], list[int]] = {}
    for place, (task, outputs, deviations, reject, share) in enumerate(found):
        refuse_unknown(by, reject, share)
        if trust_of(by, task) is None:
            rows[place] = by.kind.answers(by.prepared, task.labels, outputs, deviations)
        else:
            size = len(task.labels), shots_of(task), UNKNOWN_SHARE if share is None else share
            alike.setdefault(size, []).append(place)
    for (_, shots, share), places in alike.items():
        for place, own in zip(places, _answered(by, [found[place] for place in places], shots, share)):
            rows[place] = own
    return rows


def _answered(by: HeadStart, some: Sequence[Predicted], shots: float, unknown_share: float) -> list[list[Row]]:
    """Return the answers of tasks of one size, as far as they can be believed."""
    assert by.trust is not None
    outputs, sizes = torch.cat([one.outputs for one in some]), [len(one.outputs) for one in some]
    among = among_classes(by.trust, outputs, shots)
    # which makes them sum to 1 again
    parts = among.log().split(sizes)
    told = [by.kind.answers(by.prepared, one.task.labels, part, one.deviations) for one, part in zip(some, parts)]
    every = [(row, one) for rows, one in zip(told, some) for row in rows]
    for (row, one), kept in zip(every, label_sets(by.trust, among).tolist()):
        row["set"] = [label for label, there in zip(one.task.labels, kept) if there]
    found = believed(by.trust, outputs, shots, unknown_share)
    if found.unknown is not None:
        likeness = likeness_of(by.trust, outputs, shots).tolist()
        numbers = zip(every, found.probabilities.tolist(), found.unknown.tolist(), likeness)
        for (row, one), chances, unknown, like in numbers:
            row["probabilities"] = dict(zip(one.task.labels, chances))
            row["probability"] = row["probabilities"][row["prediction"]]
            row["unknown"] = unknown
            if one.reject is not None and like <= one.reject:
                row["prediction"] = None
    return told


def trust_of(by: HeadStart, task: AdaptedTask) -> Trust | None:
    """Return how far answers of a task can be believed; ``None`` where nothing is known of that."""
    # of a class without an example the method itself says how likely it is
    return by.trust if task.labels and all(task.counts) else None


def shots_of(task: AdaptedTask) -> float:
    """Return how many examples of a class a task was learned from, on average."""
    return sum(task.counts) / len(task.labels)


def refuse_unknown(by: HeadStart, reject: float | None, unknown_share: float | None) -> None:
    """Refuse shares that are none, and any where nothing tells examples of other classes.

    Raises:
        ConfigError: so it is.
    """
    if reject is not None and not 0 < reject < 1:
        raise ConfigError(f"--reject is a share between 0 and 1, such as 0.05, got {reject:g}")
    if unknown_share is not None and not 0 <= unknown_share < 1:
        raise ConfigError(f"--unknown-share is a share from 0 to below 1, such as 0.1, got {unknown_share:g}")
    if (reject is not None or unknown_share) and (by.trust is None or by.trust.unknown is None):
        raise ConfigError(
            "nothing tells examples of other classes here, so none can be turned away (--reject) or counted with"
            " (--unknown-share): that is learned from validation tasks of classes with names, more of them than a task"
            " has, when a run ends and is tested"
        )


def warnings_of(by: HeadStart, supports: Sequence[Support]) -> list[str]:
    """Return what there is to warn of new tasks before they are believed: those that look unlike the training tasks."""
    if by.unlike is None:
        return []
    return [
        unlike_text(task.name, called(by.config))
        for task, batch in supports
        if by.unlike(batch.x[0][there(batch)[0]].to(by.device))
    ]


def of_one_size(tasks: Sequence[NewTask | AdaptedTask]) -> list[tuple[tuple[int, int], list[int]]]:
    """Return the places of the tasks that have as many classes and as many examples, with these numbers."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, task in enumerate(tasks):
        groups.setdefault((len(task.labels), sum(task.counts)), []).append(place)
    return list(groups.items())


def alone(adapted: Adapted, row: int) -> Adapted:
    """Return one task of several that were learned together."""

    def own(values: Params) -> Params:
        return {name: value[row : row + 1] for name, value in values.items()}

    return adapted._replace(params=own(adapted.params), buffers=own(adapted.buffers))
