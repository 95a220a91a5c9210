"""Networks that start from what the inputs of the training tasks say, such as how rare their n-grams are."""

from collections.abc import Sequence
from os import PathLike
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from headstart.errors import UsageError
from headstart.types import Learner, Meta, Params, Tasks

#: Training tasks that are read, at most, and so many at a time.
_MOST, _TOGETHER = 128, 8


@runtime_checkable
class ByInputs(Protocol):
    """A module whose parameters, or some of them, start from what training inputs say."""

    def start_by_inputs(self, inputs: Sequence[Tensor]) -> Params:
        """Return parameters by name, for inputs ``(n, *features)`` of each shape that there is, each of them once."""
        ...


def started_by_inputs(learner: Learner, module: ByInputs) -> Learner:
    """Return a learner whose ``prepare`` also lets the module say what its parameters start from.

    It reads the support and query inputs of up to 128 training tasks, and no label.

    Raises:
        UsageError: in ``prepare``, a parameter that is not in the learner's θ.
    """

    def prepare(meta: Meta, tasks: Tasks, seed: int, folder: PathLike[str] | None = None, /) -> Meta:
        if learner.prepare is not None:
            meta = learner.prepare(meta, tasks, seed, folder)
        params = dict(meta.params)
        for name, value in module.start_by_inputs(_inputs(tasks)).items():
            own = [key for key in params if key == name or key.endswith(f".{name}")]
            if len(own) != 1:
                raise UsageError(f"the network's {name} is not learned here, but starts from the training inputs")
            params[own[0]] = value.to(params[own[0]])
        return Meta(params, meta.structure)

    return learner._replace(prepare=prepare)


def _inputs(tasks: Tasks) -> list[Tensor]:
    """Return the different inputs of training tasks, by their shapes; one that is 0 throughout is none."""
    count, found = min(_MOST, (tasks.counts or {}).get("train", _MOST)), dict[torch.Size, list[Tensor]]()
    for first in range(0, count, _TOGETHER):
        episodes = tasks.sample("train", range(first, min(first + _TOGETHER, count)))
        for batch in episodes:
            rows = batch.x.flatten(0, 1)
            found.setdefault(rows.shape[1:], []).append(rows[rows.flatten(1).any(1)].unique(dim=0))
    return [torch.cat(rows).unique(dim=0) for rows in found.values()]
