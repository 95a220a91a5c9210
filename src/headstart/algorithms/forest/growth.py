"""Growing trees on the rows of many tasks, so that they split where tasks differ and not only where their mean does."""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.algorithms.forest.boxes import boxes_of
from headstart.core.masks import present
from headstart.errors import UsageError
from headstart.types import Batch, Tasks

Kind = Literal["random_forest", "extra_trees"]
#: How many tasks are read of a family that has no end of them.
READ = 256


class Options(NamedTuple):
    """How trees are grown."""

    kind: Kind
    trees: int
    leaves: int
    min_rows: int
    max_features: float
    signs: int
    """Columns of the sketch; 0 grows on the pooled targets alone."""


class Grown(NamedTuple):
    """A forest as tensors, nodes in the order of `boxes_of`."""

    lower: Tensor
    """``(trees, nodes, features)``"""
    upper: Tensor
    leaves: Tensor
    """``(trees, leaves, outputs)``, scikit-learn's own: the mean target of the pooled rows; 0 in empty boxes."""
    depth: Tensor
    """``(trees, nodes)`` int64"""


def read(tasks: Tasks, count: int, first: int = 0) -> Batch:
    """Return all rows, support and query, of ``count`` training tasks as one batch with a mask; on the CPU."""
    episodes = tasks.sample("train", range(first, first + count))
    there = [torch.ones(b.y.shape[:2], dtype=torch.bool) if b.mask is None else b.mask.cpu() for b in episodes]
    x, y = (torch.cat([part.cpu() for part in parts], 1) for parts in zip(*((b.x, b.y) for b in episodes)))
    return present(Batch(x.flatten(2) if x.ndim > 2 else x.unsqueeze(2), y, torch.cat(there, 1)))


def number(tasks: Tasks, count: int | None) -> int:
    """Return how many training tasks to read: ``count`` as far as there are so many; by default all, or ``READ``."""
    counted = READ if tasks.counts is None else tasks.counts["train"]
    return counted if count is None else count if tasks.counts is None else min(count, counted)


def grow(rows: Batch, options: Options, seed: int) -> Grown:
    """Grow scikit-learn's forest on the rows ``(B, n, features)`` of B tasks with targets ``(B, n, outputs)``.

    A split that parts the rows of each task well is worth finding even where its effect has another sign in every
    task, but the pooled targets do not show it. So trees are grown on several targets at once: beside the pooled ones
    on ``signs`` columns in which every task's targets, centred by task, are multiplied by a random sign of the task. In
    expectation over the signs, a split's gain in such a column has no terms between tasks: where the tasks have equal
    shares of the rows on its two sides, it is in proportion to the sum of the tasks' own gains. Many columns make it
    sure.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    mask = torch.ones(rows.y.shape[:2], dtype=torch.bool) if rows.mask is None else rows.mask
    y = present(rows).y.double()
    centred = y - (y.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)).unsqueeze(1)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (len(y), options.signs))
    sketch = torch.einsum("bno,bk->bnok", centred, torch.from_numpy(signs)).flatten(2)
    targets = torch.cat([y, sketch], 2)[mask].numpy()
    targets = targets[:, 0] if targets.shape[1] == 1 else targets  # scikit-learn warns of a single column
    forest = _forest(options, seed).fit(rows.x[mask].float().numpy(), targets)
    outputs = y.shape[2]
    found = [_as_boxes(one.tree_, options.leaves, outputs) for one in forest.estimators_]
    return Grown(*(torch.from_numpy(np.stack(part)) for part in zip(*found)))


def _as_boxes(tree: Any, leaves: int, outputs: int) -> tuple[NDArray[Any], ...]:
    """Return what `Grown` holds of one tree."""
    nodes = boxes_of(tree, leaves)
    values = np.zeros((2 * leaves - 1, outputs))
    values[nodes.places] = tree.value[:, :outputs, 0]
    return nodes.lower, nodes.upper, values[:leaves], nodes.depth


def _forest(options: Options, seed: int) -> Any:
    try:
        from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
    except ImportError as error:
        raise UsageError(
            "the method 'forest' grows its trees by scikit-learn, which is not installed; "
            "pip install headstart[sklearn]"
        ) from error
    make = RandomForestRegressor if options.kind == "random_forest" else ExtraTreesRegressor
    return make(
        options.trees,
        max_leaf_nodes=options.leaves,
        min_samples_leaf=options.min_rows,
        max_features=options.max_features,
        n_jobs=1,
        random_state=seed,
    )
