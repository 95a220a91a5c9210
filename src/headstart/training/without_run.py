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
from headstart.data.kind import DataKind, Untrained, find_kind, kind_of_family
from headstart.errors import ConfigError, FileError
from headstart.models.trunks.source import absolute, is_source
from headstart.models.trunks.trunk import open_trunk
from headstart.registry import find, rows
from headstart.training.config import Config, Schema, Tree, normal, resolve, schema_of
from headstart.training.examples import Support
from headstart.training.loop import start
from headstart.types import Batch, Episodes, Learner, Meta, Tasks

METHOD = "frozen"


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
    parts = normal(_tree({"model": network}, source))
    schema, untrained = schema_of(parts), _untrained(source, kind_of_family(parts["tasks"]["name"]))
    names = [*(f"tasks.{name}" for name in untrained.options), "method.head"]
    return schema._replace(options={name: schema.options[name] for name in names})


def begin(tree: Tree, source: str | Path | None) -> Begun:
    """Return what new tasks of a source are read and learned by, on the features of a network as it is.

    Args:
        tree: the network as ``model``, and what of `choices` is chosen, as ``tasks`` and ``method``.
        source: where the tasks are.

    Raises:
        ConfigError: no source, a network for something else, or data that have to be trained on first.
        FileError: no such source, or no such network.
    """
    network = str(tree["model"])
    if source is None:
        raise ConfigError(f"{network} is a network and no run: name the examples to learn from, behind it")
    whole = _tree(tree, source)
    kind = kind_of_family(whole["tasks"]["name"])
    untrained, config = _untrained(source, kind), resolve(whole)
    encoder = config.option("tasks.encoder")
    known = None if encoder is None else encoder_of(open_trunk(encoder))._asdict()
    given = {name: config.tasks.options[name] for name in untrained.options}
    return Begun(config, kind, untrained.preparation(given, known))


def _tree(tree: Tree, source: str | Path) -> dict[str, Any]:
    if not Path(source).exists():
        raise FileError(f"there is no {source}; give a file or a folder of examples")
    network, data = str(tree["model"]), str(Path(source).resolve())
    if is_source(network):  # what it takes says how the source is to be read
        found = {"name": find("data", open_trunk(absolute(network)).takes).family, "data": data}
    else:
        found = normal(data)["tasks"]
    own = {owner: dict(tree.get(owner, {})) for owner in ("tasks", "method")}
    return {"tasks": own["tasks"] | found, "method": own["method"] | {"name": METHOD}, "model": network}


def _untrained(source: str | Path, kind: DataKind) -> Untrained:
    if kind.untrained is None:
        able = " and ".join(row.name for row in rows("data") if find_kind(row.name).untrained is not None)
        raise ConfigError(
            f"{source} holds {kind.name}, which are learned from a run (`headstart train`); {able} are learned from a"
            " network as it is, too"
        )
    return kind.untrained


def first_meta(config: Config, learner: Learner, like: Tasks, supports: Sequence[Support]) -> Meta:
    """Return θ and M of a learner that has seen nothing but the inputs of these tasks.

    Raises:
        ConfigError: a network that starts from random numbers, whatever the inputs.
    """
    if learner.prepare is None:
        raise ConfigError(
            f"the network {config.option('model.name')!r} knows nothing before it is trained; give the folder of a"
            " run, a pretrained network, such as hf:FOLDER, or, for texts, ngrams"
        )
    x = torch.cat([batch.x.flatten(0, 1) for _, batch in supports]).unsqueeze(0)
    one = Batch(x, torch.zeros(x.shape[:2], dtype=torch.int64))
    tasks = like._replace(sample=lambda split, numbers: Episodes(one, one), counts={"train": 1})
    return start(learner, seed=config.run.seed, tasks=tasks).meta
