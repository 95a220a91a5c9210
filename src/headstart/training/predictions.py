"""Answers of an adapted model (`headstart.training.adapted`) to what files hold, or values in memory."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from headstart.core.inference import out_of_inference_mode
from headstart.data.kind import Failed, Inputs, Row, raised, unsound
from headstart.errors import DataError, DivergenceError, FileError, HeadstartError, UsageError, unknown_name
from headstart.registry import find
from headstart.training.adapted import SMALLER, AdaptedModel
from headstart.training.files import explained
from headstart.training.head_start import AdaptedTask, answered, refuse_unknown
from headstart.training.prediction_lines import flattened

#: Examples that are predicted at a time.
_CHUNK = 8192


@out_of_inference_mode
def predict(
    model: AdaptedModel,
    sources: str | Path | Iterable[str | Path] | Any,
    *,
    task: str | None = None,
    reject: float | None = None,
    unknown_share: float | None = None,
) -> list[dict[str, Any]]:
    """Predict what files, folders of files and globs hold: all of `predictions` at once."""
    return list(predictions(model, sources, task=task, reject=reject, unknown_share=unknown_share))


@out_of_inference_mode
def predictions(
    model: AdaptedModel,
    sources: str | Path | Iterable[str | Path] | Any,
    *,
    task: str | None = None,
    reject: float | None = None,
    unknown_share: float | None = None,
    failed: Failed = raised,
) -> Iterator[dict[str, Any]]:
    """Predict what files, folders of files and globs hold, as it is read: however many images, memory does not grow.

    Args:
        model: what was learned.
        sources: images, or CSV or Parquet files of rows with the run's features; or images as PIL, NumPy or PyTorch
            have them (a list of them, or one array or tensor), see `headstart.data.images.folder.pictures`; or texts,
            which are those strings that no file is called, and that do not end as files of texts do.
        task: by which of the model's tasks to predict. By default each example's own: a row's is in the task column,
            an image's is the folder around it that is called as a task.
        reject: which share of examples of the classes may be turned away, at most, so that of those that are of no
            class many are: their ``prediction`` is ``None``. By default none is.
        unknown_share: which share of what is asked is of none of the classes, as far as you know: what is said counts
            with it. By default half of all; with 0, everything is of the classes.
        failed: told of what cannot be read, or is of a task that was not learned, so that all else is predicted; by
            default it is raised.

    Yields:
        A dict for each example, in order: the file's own columns (numbers where all of a column are; as text they are
        as they were written), or the ``image``; the ``prediction``; in classification its ``probability``, and the
        ``probabilities`` of all labels, the ``set`` of labels that is to hold the right one for 90 % of examples, and
        ``unknown`` in [0, 1], how surely it is of none of the classes (the last two where the run's validation tasks
        tell); of numbers ``low`` and ``high``, between which 90 % of observations are to lie, by the run's validation
        tasks; of rows of a table ``unseen``, the columns whose value is like none of training tasks: nothing was
        learned of such rows, however sure the answer sounds.

    Raises:
        ConfigError: ``reject`` or ``unknown_share`` where nothing is known of other classes.
        DataError: data that do not fit the run's, that cannot be read, or that are of a task that was not learned.
        DivergenceError: predictions that are not finite.
        FileError: no such file.
        UnknownNameError: a ``task`` that was not learned.
    """
    refuse_unknown(model.by, reject, unknown_share)
    learned = {one.name: one for one in model.tasks}
    names = [name for name in learned if name is not None]
    if task is not None and task not in names:
        raise unknown_name("task", task, names)
    alone = learned[task] if task is not None else model.tasks[0] if len(learned) == 1 else None
    kind, prepared = model.by.kind, model.by.prepared
    one = isinstance(sources, str | Path) or hasattr(sources, "ndim") or not isinstance(sources, Iterable)
    given: list[Any] = [sources] if one else list(cast(Iterable[Any], sources))
    named = [str(one) for one in given if isinstance(one, Path) or isinstance(one, str) and not kind.is_value(one)]
    if 0 < len(named) < len(given):
        raise UsageError("expected files, folders or globs, or else examples as values; got some of both")
    if given and not named and kind.values is None:
        raise UsageError(f"expected files, folders or globs of {kind.examples}; got a {type(given[-1]).__name__}")
    labels = {} if alone else {one.name: one.labels for one in model.tasks if one.name is not None}
    of_values = kind.values if given and not named else None
    found = of_values(prepared, given) if of_values else kind.inputs(prepared, named, labels, failed)
    with explained("use"):
        for inputs in found:
            answers: dict[int, Row] = {}
            for one, places in _by_task(inputs, learned, alone, failed):
                method = model.by.config.method.name
                if find("method", method).transductive and len(places) < len(one.labels):
                    warnings.warn(
                        f"{method} reads what is asked together, and here come {len(places)} examples"
                        f" for {len(one.labels)} classes, too few to tell how they lie; ask for many at once",
                        stacklevel=2,
                    )
                for first in range(0, len(places), _CHUNK):
                    some = places[first : first + _CHUNK]
                    answers |= zip(some, _answers(model, one, inputs, some, reject, unknown_share))
            for place, row in enumerate(inputs.rows):
                if place not in answers:
                    continue
                if inputs.unseen is not None:
                    answers[place]["unseen"] = list(inputs.unseen[place])
                taken = [name for name in ("probabilities", *flattened(answers[place])) if name in row]
                if taken:
                    where = inputs.where(place)
                    raise DataError(
                        f"{where}: there is a column {taken[0]!r}, as the predictions are called; rename it"
                    )
                yield row | answers[place]


def _by_task(
    inputs: Inputs, learned: Mapping[str | None, AdaptedTask], alone: AdaptedTask | None, failed: Failed
) -> list[tuple[AdaptedTask, list[int]]]:
    """Return the places of the examples that are predicted by each task: by ``alone``, or by the examples' own.

    ``failed`` is told of examples of other tasks, which are left out.
    """
    places: dict[str | None, list[int]] = {}
    for place, own in enumerate(inputs.tasks):
        places.setdefault(own, []).append(place)
    wheres = {own: inputs.where(found[0]) for own, found in places.items()}
    if alone is not None:
        if not any(alone.counts):  # nothing was learned of any task
            return [(alone, list(range(len(inputs.tasks))))]
        # one task without a name may be any one task
        known = "{!r} before it" if alone.name is None else "{!r}, from which was learned"
        first, *others = [name for name in (alone.name, *places) if name is not None] or [None]
        for own in others:
            if own != first:
                failed(
                    DataError(
                        f"{wheres[own]}: {own!r} is another task than {known.format(first)}; adapt to that task, or do"
                        " not name it"
                    )
                )
        return [(alone, [place for place, own in enumerate(inputs.tasks) if own in (None, first)])]
    listed = ", ".join(repr(name) for name in list(learned)[:20])
    for own in [own for own in places if own is None or own not in learned]:
        if own is None:
            why = f"it does not say of which task it is, and several were learned; take --task: {listed}"
        else:
            why = f"{own!r} is none of the tasks that were learned: {listed}; adapt to that task, too"
        more = f" (and {len(places[own]) - 1} more)" if len(places[own]) > 1 else ""
        failed(DataError(f"{wheres[own]}: {why}{more}"))
        del places[own]
    return [(learned[own], found) for own, found in places.items()]


def _answers(
    model: AdaptedModel,
    task: AdaptedTask,
    inputs: Inputs,
    places: Sequence[int],
    reject: float | None,
    unknown_share: float | None,
) -> list[Row]:
    x, deviations = inputs.x[list(places)].unsqueeze(0).to(model.by.device), None
    try:
        with torch.no_grad():
            outputs = task.learner.predict(task.adapted, x)[0].cpu().double()
            if task.learner.distribution is not None:
                deviations = task.learner.distribution(task.adapted, x).variance[0].cpu().double().sqrt()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, HeadstartError) or not model.read:
            raise
        # what adapting has computed is known by its names alone, and only here put to the test
        raise FileError(f"what was read of the adapted model does not fit its model ({error}); adapt again") from error
    bad = unsound(outputs, bool(task.labels))
    if deviations is not None:
        bad = bad | unsound(deviations, False)
    if bad.any():
        where = inputs.where(places[int(bad.int().argmax())])
        raise DivergenceError(f"{where}: the prediction is not finite; {SMALLER}")
    return answered(model.by, task, outputs, deviations, reject, unknown_share)
