"""Learn new tasks from a user's own data, and write what was learned (`headstart.training.adapted`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headstart.core.inference import out_of_inference_mode
from headstart.data.encoder import pad_of
from headstart.data.kind import DataKind, NewTask
from headstart.errors import ConfigError, DataError
from headstart.training.adapted import (
    WEIGHTS,
    AdaptedModel,
    check_sizes,
    odd_name,
    open_adapted,
    supports_of,
    weights_of,
    write_adapted,
)
from headstart.training.build import find_device
from headstart.training.config import Tree
from headstart.training.examples import Support, joined, merged, without, write_examples
from headstart.training.files import explained
from headstart.training.head_start import (
    AdaptedTask,
    HeadStart,
    learned,
    of_network,
    of_run,
    refuse_ways,
    told_by_others,
    warnings_of,
)
from headstart.training.loop import flat
from headstart.training.report.adapted_card import adapted_card
from headstart.training.without_run import begin, is_network
from headstart.types import Batch


@explained("use")
@out_of_inference_mode
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
    check_sizes(kind, prepared, given, shown)
    names = before.names if before is not None and names is None else names
    meta, every = learned(by, supports)
    words = _names(kind, prepared, given) if names or names is None and untrained and kind.names else []
    named = bool(words) and (names or _tell(every, words, where))
    if named:
        meta, every = learned(by, joined(supports, words, pad))
        every = tuple(one._replace(counts=task.counts) for one, task in zip(every, given))
    bare = AdaptedModel(by, every, untrained, names, named)
    weights = weights_of(bare)
    judged = cross_validate and all(labels and sum(counts) for _, labels, counts in given)
    scores = [
        told_by_others(by, support, words[place : place + 1] if named else ())
        for place, support in enumerate(supports if judged else ())
    ]
    model = bare._replace(told=tuple(scores), warnings=tuple(warnings_of(by, supports)))
    write_adapted(out, model, weights, adapted_card(model))
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
