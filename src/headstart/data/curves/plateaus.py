"""The plateaus family: tables whose targets jump at places that all tasks share, by steps that are each task's own."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headstart.data.curves.points import point_tasks
from headstart.data.random import below, bits, check_deviations, check_seed, check_sizes, normal, uniform
from headstart.errors import UsageError
from headstart.schema import NotNegative, Probability, Size, Whole, extends
from headstart.types import Tasks


class Partition(NamedTuple):
    """Trees of one depth D, complete: node k splits into 2k + 1 (low) and 2k + 2 (high)."""

    feature: Tensor
    """``(trees, 2**D - 1)`` int64, which feature a node looks at."""
    threshold: Tensor
    """``(trees, 2**D - 1)``, where it splits: x ≤ threshold goes low."""

    def cells(self, x: Tensor) -> Tensor:
        """Return the cell ``(*rows, trees)`` of each row ``(*rows, features)``, from 0 to 2**D - 1."""
        trees, splits = self.feature.shape
        node = torch.zeros(*x.shape[:-1], trees, dtype=torch.int64, device=x.device)
        tree = torch.arange(trees, device=x.device)
        while splits:
            high = x.gather(-1, self.feature[tree, node]) > self.threshold[tree, node]
            node, splits = 2 * node + 1 + high, splits // 2
        return node - self.feature.shape[1]


@extends(point_tasks)
def plateaus(
    *,
    queries: Size = 20,
    features: Size = 8,
    relevant: Size = 3,
    trees: Size = 2,
    depth: Size = 2,
    common: Probability = 0.2,
    offset: NotNegative = 1.0,
    noise: NotNegative = 0.3,
    family: Whole = 0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Tasks:
    """Regress functions that are constant on the cells of axis-aligned trees, which all tasks share.

    ``family`` draws the trees: each node splits at one of the ``relevant`` features, between 0.3 and 0.7 of its cell's
    extent; the other features tell nothing. Task i is

        y = offset bᵢ + Σ_t (√common c_{t,l} + √(1 − common) w_{i,t,l}) / √trees + noise ε

    where l is x's cell in tree t, with bᵢ, c, wᵢ and ε standard normal: c is the family's, bᵢ and wᵢ are the task's
    own. x ~ U[-1, 1] in every feature. So where the cells are can be learned across tasks, and little of their values:
    a model of all rows pooled sees the share ``common``. No learner has an expected query error below ``noise**2``.

    Args:
        queries: query rows of a task.
        features: columns of x; ``x`` is ``(B, n, features)`` and ``y`` ``(B, n, 1)``.
        relevant: how many of them count.
        trees: how many trees are added up.
        depth: of each tree, which has ``2**depth`` cells.
        common: the share of a cell value's variance that is the same in all tasks, from 0 to 1.
        offset: standard deviation of the tasks' offsets.
        noise: standard deviation of the noise, in units of y.
        family: draws what all tasks have in common; in ``[0, 2**32)``.
        dtype: of the rows.
        options: those of `point_tasks`: shots, seed, device.

    Raises:
        UsageError: a size below 1, more relevant features than features, a share outside [0, 1], a standard deviation
            that is negative or not finite, or a family outside ``[0, 2**32)``.

    >>> plateaus(shots=5, features=4).sample("train", range(25)).support.x.shape
    torch.Size([25, 5, 4])
    """
    check_sizes(relevant=relevant, trees=trees, depth=depth)
    check_deviations(offset=offset, noise=noise)
    if relevant > features:
        raise UsageError(f"relevant must be at most the number of features, {features}, got {relevant}")
    if not 0 <= common <= 1:
        raise UsageError(f"common must be a share from 0 to 1, got {common}")
    check_seed(family)
    partition, counting = _partition(family, features, relevant, trees, depth)
    leaves = 2**depth
    shared = normal(family, "train", [0], 2, trees * leaves).view(trees, leaves)

    def draw(seed: int, split: str, numbers: Sequence[int], rows: int) -> tuple[Tensor, Tensor]:
        x = 2 * uniform(seed, split, numbers, stream=0, count=rows * features).view(-1, rows, features) - 1
        # the support rows first in each stream, so that they do not depend on the number of queries
        drawn = normal(seed, split, numbers, 1, 1 + trees * leaves + rows)
        bias, own, error = drawn.split([1, trees * leaves, rows], 1)
        values = math.sqrt(common) * shared + math.sqrt(1 - common) * own.view(-1, trees, leaves)
        reached = values.transpose(1, 2).gather(1, partition.cells(x.to(dtype).double())).sum(2) / math.sqrt(trees)
        return x, offset * bias + reached + noise * error

    details = {
        "features": features,
        "relevant": relevant,
        "relevant_features": counting,
        "trees": trees,
        "depth": depth,
        "common": common,
        "offset": offset,
        "noise": noise,
        "noise_variance": noise**2,
        "family": family,
    }
    return point_tasks("plateaus", draw, details, features, queries=queries, dtype=dtype, **options)


def _partition(seed: int, features: int, relevant: int, trees: int, depth: int) -> tuple[Partition, list[int]]:
    splits = 2**depth - 1
    counting = bits(seed, "train", [0], 3, features)[0].argsort(stable=True)[:relevant].sort().values
    chosen = counting[below(bits(seed, "train", [0], 4, trees * splits)[0], relevant)].view(trees, splits)
    places = 0.3 + 0.4 * uniform(seed, "train", [0], 5, trees * splits).view(trees, splits)
    low = torch.full((trees, splits, features), -1.0, dtype=torch.float64)
    high, thresholds, tree = -low, torch.empty_like(places), torch.arange(trees)
    for node in range(splits):
        at = chosen[:, node]
        start, end = low[tree, node, at], high[tree, node, at]
        thresholds[:, node] = start + places[:, node] * (end - start)
        for child, bound in ((2 * node + 1, high), (2 * node + 2, low)):
            if child < splits:
                low[:, child], high[:, child] = low[:, node], high[:, node]
                bound[tree, child, at] = thresholds[:, node]
    return Partition(chosen, thresholds), counting.tolist()
