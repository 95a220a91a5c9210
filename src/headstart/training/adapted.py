"""Learners that have learned new tasks from a user's own data: a small folder, which predicts.

::

    ADAPTED/
      config.json            the run's options, how data are read, and the tasks: names, labels, numbers of examples
      adapted.safetensors    what adaptation changed for each task, and once what prediction needs besides
      manifest.json          size and SHA-256 of these two; a folder whose files are others is refused
      examples/              what was learned from (`headstart.training.examples`), unless asked not to keep it
      README.md              what this is, and how to use it

The run keeps how its data became numbers (``preparation.json``), so that adapting does not need them again.
"""

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from pydantic import TypeAdapter

from headstart.data.encoder import pad_of
from headstart.data.kind import (
    DataKind,
    Failed,
    Inputs,
    NewTask,
    Row,
    find_kind,
    raised,
    unsound,
)
from headstart.errors import (
    ConfigError,
    DataError,
    DivergenceError,
    FileError,
    HeadstartError,
    UsageError,
    unknown_name,
)
from headstart.registry import find
from headstart.training.build import find_device
from headstart.training.calibration import LEVEL, Spread
from headstart.training.checkpoint import alike
from headstart.training.config import Config, Tree, called, resolve
from headstart.training.cross_validation import Told, told_text
from headstart.training.examples import Support, joined, merged, read_examples, without, write_examples
from headstart.training.files import (
    explained,
    from_json,
    from_safetensors,
    make_folder,
    read_json,
    read_together,
    to_json,
    to_safetensors,
    write,
    write_together,
)
from headstart.training.head_start import (
    AdaptedTask,
    HeadStart,
    alone,
    answered,
    learned,
    learners,
    of_network,
    of_one_size,
    of_run,
    refuse_unknown,
    refuse_ways,
    told_by_others,
    warnings_of,
)
from headstart.training.loop import flat, start
from headstart.training.prediction_lines import flattened
from headstart.training.report.card import TOGETHER, spread_text
from headstart.training.trust import UNKNOWN_SHARE, Trust, more_examples_text
from headstart.training.without_run import HEAD, begin, is_network
from headstart.types import Adapted, Batch, Meta, Params, not_sent

FORMAT = "headstart-adapted-1"
WEIGHTS, CONFIG = "adapted.safetensors", "config.json"

#: Examples that are predicted at a time.
_CHUNK = 8192
#: What there may be of a task: examples, and numbers in them.
_MOST_EXAMPLES, _MOST_NUMBERS = 10_000_000, 2**29
_SMALLER = "train with a lower --inner-rate, or fewer --inner-steps"


class AdaptedModel(NamedTuple):
    """What an adapted folder holds."""

    by: HeadStart
    """What the tasks were learned by; its ``meta`` is what adapting started from, where that is at hand."""
    tasks: tuple[AdaptedTask, ...]
    untrained: bool = False
    """Whether there was no run, but a network as it is."""
    names: bool | None = None
    """Whether names were asked to count as examples; ``None``: where they tell, without a run."""
    named: bool = False
    """Whether they did."""
    read: bool = False
    """Whether it comes from a file."""
    told: tuple[Told, ...] = ()
    """How well each task's examples are told by the others; not of a model from a file."""
    warnings: tuple[str, ...] = ()
    """What there is to warn of, such as a task that looks unlike those that were trained on; likewise."""

    def __getstate__(self) -> Any:
        raise not_sent("an adapted model")

    def __deepcopy__(self, memo: Any) -> "AdaptedModel":
        return self


@explained("use")
def adapt(
    run: str | Path | Tree,
    source: str | Path | None,
    out: str | Path,
    *,
    device: str = "auto",
    strict: bool = False,
    keep_examples: bool = True,
    names: bool | None = None,
    cross_validate: bool = True,
    remove: Sequence[str] = (),
) -> AdaptedModel:
    """Learn the new tasks that a file or folder holds, and write the result.

    Given what was adapted before instead of a run, learn from its examples and those of the source together: a class
    or a task that is new is added, one of the same name gets more examples. The result is what learning from all of
    them at once is. What is to ``remove`` goes first. The source may be another adapted model of the same run: both are
    merged, and an example that both have counts once.

    Given a network that knows something before it is trained, a pretrained one such as ``hf:FOLDER``, or ``ngrams``,
    learn by it as it is, with the method ``frozen``: for who has one small set of examples, and no tasks to train on.

    How good the result is with classes, `headstart.training.cross_validation` tells.

    Where the run normalised by batches (``--buffers batch``), normalisation now goes by the support set, so that a
    prediction does not depend on which others are asked for.

    Args:
        run: a run folder; or the folder of an adapted model to add to, which stays as it is; or a network, as it is or
            as ``model`` beside options of ``tasks`` (``fit``, …) and ``method`` (``head``).
        source: images: a folder that holds one folder of images for each class, or a folder of such folders, one a
            task. Tables: a CSV or Parquet file with the features and the target that the run was trained with; each
            value of its task column is a task, and without such a column all rows are one task. Curves: a CSV or
            Parquet file of columns x and y, and maybe task. ``None``: nothing is known of the new task, which is
            predicted as the training tasks say (tables and curves).
        out: the folder to write; it must be new or empty.
        device: where to compute.
        strict: refuse an image that cannot be read, and a class without any, which else are left out with a warning.
        keep_examples: keep the examples in ``out``, as the model takes them, so that more can be added.
        names: of texts, whether the name of each class is an example more of it. By default as before, where something
            is added; else where there is no run, and what was learned without them puts at least half of the names, and
            four, in their own class.
        cross_validate: of classes, learn again without some of the examples, and say how many of these are told right.
        remove: of an adapted model, names of tasks, of classes, or ``TASK/CLASS``, that it is to be without.

    Raises:
        ConfigError: the method cannot do that many classes, new tasks of the run's kind cannot be read from files,
            ``out`` is not empty, names of what has none, something to remove from a run, or another run's model.
        DataError: data that do not fit the run's, or that cannot be read; an adapted model that keeps no examples.
        DivergenceError: adapting gives numbers that are not finite.
        FileError: no run, or a file or folder that cannot be read or written.
    """
    network = run if isinstance(run, Mapping) else {"model": str(run)} if is_network(run) else None
    if network is not None and source is None:
        raise ConfigError(f"{network['model']} is a network and no run: name the examples to learn from, behind it")
    begun = None if network is None else begin(network, source)
    run, out, where = Path(str(run)), Path(out), find_device(device)
    before = open_adapted(run, device=device) if begun is None and (run / WEIGHTS).exists() else None
    known = list[Support]()
    if begun is not None:
        by = of_network(begun, where)
    elif before is not None:
        by, known = supports_of(run, before)
    else:
        by = of_run(run, where)
    untrained = before.untrained if before is not None else begun is not None
    kind, prepared, like = by.kind, by.prepared, by.like(0)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not empty; choose a new folder")
    pad = pad_of(like)
    if remove:
        if before is None:
            raise ConfigError(f"{run} is no adapted model, so there is nothing to remove from; leave --remove out")
        known = without(known, remove, like.shared_classes)
    if source is not None and (Path(source) / WEIGHTS).is_file():
        supports = merged(known, _of_the_same(run, before, by, Path(source)), pad)
    elif source is None and remove:
        supports = known
    else:
        supports = joined(known, kind.support(prepared, None if source is None else Path(source), strict), pad)
    given, shown = [task for task, _ in supports], str(run if source is None else source)
    if (odd := odd_name(given)) is not None:
        raise DataError(f"{shown} has a task or class {odd!r}, whose name is none to print in a line; rename it there")
    refuse_ways(by.config, like, shown, given)
    _check_sizes(kind, prepared, given, shown)
    names = before.names if before is not None and names is None else names
    meta, every = learned(by, supports)
    words = _names(kind, prepared, given) if names or names is None and untrained and kind.names else []
    named = bool(words) and (names or _tell(every, words, where))
    if named:
        meta, every = learned(by, joined(supports, words, pad))
        every = tuple(one._replace(counts=task.counts) for one, task in zip(every, given))
    bare = AdaptedModel(by, every, untrained, names, named)
    weights = _weights(bare)
    judged = cross_validate and all(labels and sum(counts) for _, labels, counts in given)
    scores = [
        told_by_others(by, support, words[place : place + 1] if named else ())
        for place, support in enumerate(supports if judged else ())
    ]
    model = bare._replace(told=tuple(scores), warnings=tuple(warnings_of(by, supports)))
    _save(out, model, weights)
    if keep_examples:
        write_examples(out, meta, supports)
    return model


def _of_the_same(run: Path, before: AdaptedModel | None, by: HeadStart, source: Path) -> list[Support]:
    """Return what another adapted model was learned from, which starts from the same."""
    if before is None:
        raise ConfigError(f"{source} is an adapted model, which is merged with another one; {run} is none")
    other = open_adapted(source, device=str(by.device))
    theirs, supports = supports_of(source, other)
    same = (by.preparation, before.untrained) == (theirs.preparation, other.untrained)
    if before.untrained:
        same = same and (by.config.method, by.config.model) == (theirs.config.method, theirs.config.model)
    elif same:
        own, others = (flat(one.meta) if one.meta is not None else {} for one in (by, theirs))
        same = own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)
        same = same and by.config.method == theirs.config.method
    if not same:
        raise ConfigError(f"{source} was not adapted from what {run} was, so they cannot be merged; adapt its examples")
    return supports


def supports_of(folder: Path, model: AdaptedModel) -> tuple[HeadStart, list[Support]]:
    """Return what an adapted model was learned by, and from, as its folder keeps it.

    A network as it is, is given what is new anew.

    Raises:
        DataError: no examples were kept.
        FileError: a file that is damaged, or does not fit what was learned.
    """
    tasks = [NewTask(*task[:3]) for task in model.tasks]
    meta, supports = read_examples(folder, tasks, start(model.by.learner_of(0)).meta, model.by.like)
    return model.by._replace(meta=None if model.untrained else meta), supports


def _names(kind: DataKind, prepared: Any, tasks: Sequence[NewTask]) -> list[Support]:
    """Return the names of each task's classes as an example of each."""
    if kind.names is None or not all(task.labels for task in tasks):
        raise ConfigError("only of classes of texts can names count as examples; leave --names out")
    found = []
    for task in tasks:
        x, one_each = kind.names(prepared, task.labels), (1,) * len(task.labels)
        found.append((task._replace(counts=one_each), Batch(x.unsqueeze(0), torch.arange(len(x)).unsqueeze(0))))
    return found


def _tell(tasks: Sequence[AdaptedTask], names: Sequence[Support], where: torch.device) -> bool:
    """Return whether names say what their classes are, by what was learned without them: by chance one a task does."""
    right, count = 0, sum(len(task.labels) for task in tasks)
    for task, (_, batch) in zip(tasks, names):
        with torch.no_grad():
            found = task.learner.predict(task.adapted, batch.x.to(where)).argmax(-1).cpu()
        right += int((found == batch.y).sum())
    return right >= max(4 * len(tasks), count / 2)


def _parts(tasks: Sequence[Adapted], group: int) -> dict[str, Params]:
    """Return the tensors that prediction needs: what all share, and what each task of a group changed."""
    one = tasks[0]

    def joined(part: Literal["params", "buffers"]) -> Params:
        return {name: torch.cat([getattr(task, part)[name] for task in tasks]) for name in getattr(one, part)}

    return {
        "params": {name: value for name, value in one.meta.params.items() if name not in one.params},
        "structure": one.meta.structure,
        f"adapted.{group}": joined("params"),
        f"buffers.{group}": joined("buffers"),
    }


def _weights(model: AdaptedModel) -> Params:
    """Return what is kept, by name; `DivergenceError` where that is not finite."""
    weights: Params = {}
    for number, (_, group) in enumerate(of_one_size(model.tasks)):
        for part, values in _parts([model.tasks[place].adapted for place in group], number).items():
            weights |= {f"{part}.{name}": value for name, value in values.items()}
    bad = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise DivergenceError(f"adapting gives numbers that are not finite ({bad[0]}); {_SMALLER}")
    return weights


def _save(out: Path, model: AdaptedModel, weights: Params) -> None:
    described = {
        "format": FORMAT,
        "kind": model.by.kind.name,
        "config": model.by.config.tree(),
        "preparation": model.by.preparation,
        "intervals": model.by.spread and model.by.spread._asdict(),
        "trust": model.by.trust and model.by.trust.to_json(),
        "untrained": model.untrained,
        "names": model.names,
        "named": model.named,
        "tasks": [NewTask(*task[:3])._asdict() for task in model.tasks],
    }
    make_folder(out)
    write(out / "README.md", _card(model).encode())
    write_together(out, {WEIGHTS: to_safetensors(weights), CONFIG: to_json(described)})


@explained("use")
def open_adapted(folder: str | Path, *, device: str = "auto") -> AdaptedModel:
    """Read what `adapt` has written.

    Raises:
        FileError: no such folder, or its files are not what they should be.
    """
    folder, where = Path(folder), find_device(device)
    path = folder / CONFIG
    if not path.exists():
        raise FileError(f"{folder} holds no adapted model; make one with `headstart adapt RUN SOURCE --out {folder}`")
    looked: Any = read_json(path)
    if not isinstance(looked, dict) or looked.get("format") != FORMAT:
        if isinstance(looked, dict) and "method" in looked:
            raise FileError(f"{folder} is a run; adapt it to your task first: `headstart adapt {folder} SOURCE`")
        raise FileError(f"{path} does not describe an adapted model of format {FORMAT}")
    contents = read_together(folder, (WEIGHTS, CONFIG))
    try:
        described: Any = from_json(contents[CONFIG], str(path))
        kind, options = find_kind(str(described["kind"])), dict(described["config"])
        prepared = kind.read(described["preparation"], str(path))
        tasks = TypeAdapter(list[NewTask]).validate_json(json.dumps(described["tasks"]), strict=True)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} does not describe an adapted model: {error}") from error
    _check_sizes(kind, prepared, tasks, str(path))
    config, spread = resolve(options, str(path)), Spread.from_json(described.get("intervals"), str(path))
    trust = Trust.from_json(described.get("trust"), str(path))
    found = from_safetensors(contents[WEIGHTS], str(folder / WEIGHTS))
    adapted = _tasks_in(found, str(folder / WEIGHTS), tasks, _shapes(config, kind, prepared, tasks), where)
    learner_of = learners(config, kind, prepared, where, spread)
    adapted = [one._replace(step=learner_of(len(task.labels)).steps or 0) for task, one in zip(tasks, adapted)]
    found = (AdaptedTask(*task, learner_of(len(task.labels)), own) for task, own in zip(tasks, adapted))
    untrained, named = (described.get(name) is True for name in ("untrained", "named"))
    names = described.get("names")
    if not isinstance(names, bool | None):
        raise FileError(f"{path} does not describe an adapted model: names is {names!r}")
    every, preparation = tuple(found), described["preparation"]
    by = HeadStart(kind, preparation, prepared, config, where, spread, learner_of, None, trust)
    return AdaptedModel(by, every, untrained, names, named, read=True)


def _check_sizes(kind: DataKind, prepared: Any, tasks: Sequence[NewTask], where: str) -> None:
    """Refuse what is not whole, or would take more memory than anybody has, before anything is made of it."""
    if not tasks or len({task.name for task in tasks}) < len(tasks):
        raise FileError(f"{where} has {len(tasks)} tasks; expected at least one, and none of them twice")
    if (odd := odd_name(tasks)) is not None:
        raise FileError(f"{where} has a task or class {odd!r}, whose name is none to print")
    for task in tasks:
        like, total = kind.like(prepared, len(task.labels)), sum(task.counts)
        labels = like.output_size if like.kind == "classification" else 0
        if not len(task.labels) == len(set(task.labels)) == labels != 1 or len(task.counts) != (labels or 1):
            raise FileError(f"{where} has a task of {len(task.labels)} classes, and {len(task.counts)} counts of them")
        # classes that are a task's own are not known without an example
        least, most = labels and not like.shared_classes, min(_MOST_EXAMPLES, _MOST_NUMBERS / prod(like.input_shape))
        if min(task.counts) < 0 or not least <= total <= most:
            raise FileError(f"{where} has a task of {total} examples of shape {like.input_shape}")


def odd_name(tasks: Sequence[NewTask]) -> str | None:
    """Return the first name of a task or class that is none to print in a line, or ``None``."""
    names = (text for task in tasks for text in (task.name or "", *task.labels))
    odd = (one for one in names for letter in map(ord, one) if letter < 32 or 127 <= letter < 160 or letter >> 11 == 27)
    return next(odd, None)


def _shapes(config: Config, kind: DataKind, prepared: Any, tasks: Sequence[NewTask]) -> list[Meta]:
    """Return θ and M of each task as they would be at the start, without memory for their numbers."""
    blank = torch.device("meta")
    with blank:
        learner_of = learners(config, kind, prepared, blank, None)
        start_of = cache(lambda classes: learner_of(classes).init(None))
        return [start_of(len(task.labels)) for task in tasks]


def _tasks_in(
    found: Params, where: str, tasks: Sequence[NewTask], like: Sequence[Meta], device: torch.device
) -> list[Adapted]:
    """Return what was learned of each task, of tensors whose names and shapes are those of the models ``like`` it."""
    parts: dict[str, Params] = {}
    for key, value in found.items():
        split = re.fullmatch(r"(params|structure|(?:adapted|buffers)\.\d+)\.(.*)", key, re.DOTALL)
        part, name = split.groups() if split else (key, "")
        parts.setdefault(part, {})[name] = value.to(device)
    params, structure = parts.pop("params", {}), parts.pop("structure", {})
    adapted: dict[int, Adapted] = {}

    def check(fits: bool, name: str) -> None:
        if not fits:
            raise FileError(f"{where} does not hold the tensors of its model ({name}); adapt again")

    for number, (_, group) in enumerate(of_one_size(tasks)):
        wanted, changed, buffers = (
            like[group[0]],
            parts.pop(f"adapted.{number}", {}),
            parts.pop(f"buffers.{number}", {}),
        )
        for name, value in {**changed, **buffers}.items():
            check(value.ndim > 0 and len(value) == len(group), name)
        for name, value in wanted.params.items():
            check((name in params) != (name in changed), name)
            own = params[name] if name in params else changed[name][0]
            check(alike(own, value), name)
        for name in params.keys() - wanted.params.keys() | structure.keys() ^ wanted.structure.keys():
            check(False, name)
        for name, value in wanted.structure.items():
            check(alike(structure[name], value), name)
        meta = Meta({name: params[name] if name in params else changed[name][0] for name in wanted.params}, structure)
        every = Adapted(meta, changed, buffers, None)
        adapted |= {place: alone(every, row) for row, place in enumerate(group)}
    for name in parts:
        check(False, name)
    return [adapted[place] for place in range(len(tasks))]


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
        tasks.

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
        raise DivergenceError(f"{where}: the prediction is not finite; {_SMALLER}")
    return answered(model.by, task, outputs, deviations, reject, unknown_share)


def more_text(model: AdaptedModel) -> str:
    """Return what more examples would buy, by the run's validation tasks; empty where they do not tell."""
    one = model.tasks[0]
    if model.by.trust is None or len(model.tasks) > 1 or not one.labels:
        return ""
    return more_examples_text(model.by.trust, len(one.labels), sum(one.counts) / len(one.labels))


def _own_chances(model: AdaptedModel) -> str:
    """Return whether probabilities are calibrated that no run has, in words."""
    if model.untrained and model.by.config.option("method.head") == HEAD:
        if all(max(task.counts) > 1 for task in model.tasks):
            return "calibrated by these\nexamples themselves, each told by others"
    return "the model's own and not\ncalibrated"


def _card(model: AdaptedModel) -> str:
    config, kind, tasks = model.by.config, model.by.kind, model.tasks
    total = sum(sum(task.counts) for task in tasks)
    inner = config.option("method.steps")
    steps = "" if inner is None else f" ({inner} inner step{'s' * (inner != 1)})"
    if len(tasks) > 1:
        head, rows = "task", [(str(task.name), sum(task.counts)) for task in tasks[:100]]
        rows += [(f"and {len(tasks) - 100} more", total - sum(count for _, count in rows))] * (len(tasks) > 100)
    else:
        head = "class" if tasks[0].labels else ""
        rows = list(zip(tasks[0].labels or (kind.examples,), tasks[0].counts))
    heads, lines = [head, kind.examples], [[str(name), str(count)] for name, count in rows]
    warned = "".join(f"\n\nWarning: {text}." for text in model.warnings)
    score = f"\n\n{told_text(model.told, kind.examples)}." if model.told else ""
    score += f" {more}." if (more := more_text(model)) else ""
    if model.told and len(tasks) == 1:
        heads.append("told right by the others")
        lines = [
            [*words, f"{right} of {of}"] for words, of, right in zip(lines, model.told[0].judged, model.told[0].right)
        ]
    table = "\n".join(f"| {' | '.join(words)} |" for words in [heads, ["---"] * len(heads), *lines])
    what = f"{len(tasks)} tasks" if len(tasks) > 1 else "a task" if tasks[0].name is None else f"`{tasks[0].name}`"
    together = f"\n\n{TOGETHER}" if find("method", config.method.name).transductive else ""
    source = config.option("tasks.encoder") or config.option("model.name")
    before = f"on {source} as it is" if model.untrained else f"from weights meta-learned on {called(config)}"
    before += ", the name of each class an example more" if model.named else ""
    told = "the model's own, not calibrated" if model.by.spread is None else spread_text(model.by.spread)
    gives = f"""{_own_chances(model)}; of numbers
also `low` and `high`, between which 90 % of observations are to lie: {told}."""
    if model.by.trust is not None:
        gives = f"""calibrated by the run's
validation tasks, and the `set` of labels that is to hold the right one for {100 * LEVEL:.0f} % of examples."""
    if model.by.trust is not None and model.by.trust.unknown is not None:
        gives += f""" `unknown` is the
probability of none of these classes, where {100 * UNKNOWN_SHARE:.0f} % of what is asked is of none; say how many are by
`--unknown-share`. With `--reject 0.05` those are called `none` that look less like the classes than 95 % of their own
examples do."""
    return f"""# {what} learned from {total} {kind.examples}

Predicts {kind.predicts(model.by.prepared)}. Learned by {config.method.name}{steps},
{before}; made with headstart.{together}{score}{warned}

{table}

    headstart predict FOLDER {kind.usage[1]}

It gives the `prediction`, and in classification the probability of each label, {gives}
"""
