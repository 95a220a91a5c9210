"""What new tasks are learned from where there is no run: a network that knows something before it is trained.

That is a pretrained one, or one that starts from what inputs say, as `headstart.models.ngrams.ngrams`. Nothing is
learned across tasks, for there are none: a new task is learned by the method ``frozen``, so any number of classes will
do, and as few examples as there are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from headstart.data.encoder import encoder_of
from headstart.data.kind import DataKind, Untrained, find_kind
from headstart.errors import ConfigError, FileError
from headstart.models.trunks.source import absolute, is_source
from headstart.models.trunks.trunk import open_trunk
from headstart.registry import Kind, rows
from headstart.training.config import Config, Schema, Tree, normal, resolve, schema_of
from headstart.training.examples import Support
from headstart.training.loop import start
from headstart.types import Batch, Episodes, Learner, Meta, Tasks

METHOD, HEAD = "frozen", "logistic"


class Begun(NamedTuple):
    """What a run would keep, without one."""

    config: Config
    kind: DataKind
    preparation: Any


def is_network(name: str | Path) -> bool:
    """Return whether a name is that of a network, and of no folder.

    >>> [is_network(name) for name in ("hf:some/folder", "ngrams", "runs/icons")]
    [True, True, False]
    """
    name = str(name)
    return not Path(name).exists() and (is_source(name) or any(row.name == name for row in rows("model")))


def choices(network: str, source: str | Path) -> Schema:
    """Return what there is to choose where new tasks of a source are learned by a network as it is."""
    kind, untrained = _kind(network)
    schema = schema_of(normal(_tree({"model": network}, kind, source)))
    names = [*(f"tasks.{name}" for name in untrained.options), "method.head"]
    options = {name: schema.options[name] for name in names}
    return schema._replace(options=options | {"method.head": options["method.head"]._replace(default=HEAD)})


def begin(tree: Tree, source: str | Path | None) -> Begun:
    """Return what new tasks of a source are read and learned by, on the features of a network as it is.

    Args:
        tree: the network as ``model``, and what of `choices` is chosen, as ``tasks`` and ``method``.
        source: where the tasks are; ``None`` where they come as values.

    Raises:
        ConfigError: a network that knows nothing before it is trained.
        FileError: no such source, or no such network.
    """
    network = str(tree["model"])
    if source is not None and not Path(source).exists():
        raise FileError(f"there is no {source}; give a file or a folder of examples")
    kind, untrained = _kind(network)
    config = resolve(_tree(tree, kind, source))
    encoder = config.option("tasks.encoder")
    known = None if encoder is None else encoder_of(open_trunk(encoder))._asdict()
    given = {name: config.tasks.options[name] for name in untrained.options}
    return Begun(
        config, find_kind(kind.name), untrained.preparation(None if source is None else Path(source), given, known)
    )


def _kind(network: str) -> tuple[Kind, Untrained]:
    """Return the kind of data that a network is for: what it takes, or for which it is the one that runs start from."""
    takes = open_trunk(absolute(network)).takes if is_source(network) else None
    for row in rows("data"):
        untrained = find_kind(row.name).untrained
        if untrained is not None and (row.name == takes or takes is None and row.model == network):
            return row, untrained
    raise _knows_nothing(network)


def _tree(tree: Tree, kind: Kind, source: str | Path | None) -> dict[str, Any]:
    own: dict[str, dict[str, Any]] = {owner: dict(tree.get(owner, {})) for owner in ("tasks", "method")}
    tasks = own["tasks"] | {"name": kind.family, "data": str(source or ".")}
    return {"tasks": tasks, "method": {"head": HEAD} | own["method"] | {"name": METHOD}, "model": tree["model"]}


def _knows_nothing(network: str) -> ConfigError:
    return ConfigError(
        f"the network {network!r} knows nothing before it is trained; give the folder of a run, a pretrained network,"
        " such as hf:FOLDER, or, for texts, ngrams"
    )


def first_meta(config: Config, learner: Learner, like: Tasks, supports: Sequence[Support]) -> Meta:
    """Return θ and M of a learner that has seen nothing but the inputs of these tasks.

    Raises:
        ConfigError: a network that starts from random numbers, whatever the inputs.
    """
    if learner.prepare is None:
        raise _knows_nothing(str(config.option("model.name")))
    x = torch.cat([batch.x.flatten(0, 1) for _, batch in supports]).unsqueeze(0)
    one = Batch(x, torch.zeros(x.shape[:2], dtype=torch.int64))
    tasks = like._replace(sample=lambda split, numbers: Episodes(one, one), counts={"train": 1})
    return start(learner, seed=config.run.seed, tasks=tasks).meta
