"""Trees as boxes: every node of a tree is the part of space that its splits leave, so that no tree is walked."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Stands for infinity where a box has no bound: it can be saved, averaged and sent to any format of numbers.
FAR = float(np.finfo(np.float32).max)


class Boxes(NamedTuple):
    """Nodes of trees. A row x is in a box where lower < x ≤ upper in every feature; an empty box holds no row."""

    lower: Tensor
    """``(trees, nodes, features)``"""
    upper: Tensor


def unbounded(trees: int, nodes: int, features: int, dtype: torch.dtype) -> Boxes:
    """Return trees whose first box is all of space and whose others are empty."""
    lower = torch.full((trees, nodes, features), FAR, dtype=dtype)
    lower[:, 0] = -FAR
    return Boxes(lower, -lower)


def memberships(boxes: Boxes, x: Tensor) -> Tensor:
    """Return h(x) / √trees ``(B, n, trees * nodes)`` for rows ``(B, n, features)``, h being 1 in the boxes of a row."""
    return inside(boxes, x).flatten(2).to(boxes.lower.dtype) / math.sqrt(len(boxes.lower))


def shared(leaves: Tensor, held: Tensor) -> Tensor:
    """Return the mean over trees of each row's leaf value ``(B, n, outputs)``.

    Args:
        leaves: values ``(trees, leaves, outputs)``.
        held: `memberships`, of trees whose leaves are the first of their nodes.
    """
    ends = held.unflatten(2, (len(leaves), -1))[..., : leaves.shape[1]].flatten(2)
    return ends @ leaves.flatten(0, 1) / math.sqrt(len(leaves))


def inside(boxes: Boxes, x: Tensor) -> Tensor:
    """Return which boxes hold which rows, ``(*rows, trees, nodes)`` bool, for ``x`` ``(*rows, features)``.

    As in scikit-learn, x is compared in single precision.
    """
    # what a bound of float64 holds is a number of float32, and so are the rows that it was grown on
    x = x.to(torch.float32)[..., None, None, :]
    lower, upper = (bound.detach().to(torch.float32) for bound in boxes)
    held = torch.ones((), dtype=torch.bool, device=x.device)
    for feature in range(x.shape[-1]):  # all at once would take `features` times the memory
        column = x[..., feature]
        held = held & (column > lower[..., feature]) & (column <= upper[..., feature])
    return held


class Nodes(NamedTuple):
    """The nodes of one scikit-learn tree as boxes."""

    lower: NDArray[np.float32]
    """``(nodes, features)``"""
    upper: NDArray[np.float32]
    depth: NDArray[np.intp]
    """``(nodes,)``, 0 for the root and for empty boxes."""
    places: NDArray[np.intp]
    """Where scikit-learn's nodes are among the boxes."""


def boxes_of(tree: Any, leaves: int) -> Nodes:
    """Return the boxes of a fitted scikit-learn ``Tree``, 2 * leaves - 1 of them.

    Leaves come first, in the order of their numbers in scikit-learn, padded with empty boxes to ``leaves``; then the
    nodes that split, padded to ``leaves`` - 1.
    """
    ends = tree.children_left < 0
    places = np.where(ends, ends.cumsum() - 1, leaves + (~ends).cumsum() - 1)
    lower = np.full((2 * leaves - 1, tree.n_features), FAR, dtype=np.float32)
    upper, depth = -lower, np.zeros(2 * leaves - 1, dtype=np.intp)
    lower[places[0]], upper[places[0]] = -FAR, FAR
    for node in np.flatnonzero(~ends):  # a node's number is above its parent's
        own, low, high = (places[which] for which in (node, tree.children_left[node], tree.children_right[node]))
        lower[[low, high]], upper[[low, high]], depth[[low, high]] = lower[own], upper[own], depth[own] + 1
        upper[low, tree.feature[node]] = lower[high, tree.feature[node]] = _rounded_down(tree.threshold[node])
    return Nodes(lower, upper, depth, places)


def _rounded_down(threshold: float) -> np.float32:
    """Return the largest number of float32 up to ``threshold``: the same rows of float32 are up to both."""
    bound = np.float32(threshold)
    return bound if bound <= threshold else np.nextafter(bound, np.float32(-np.inf))
