"""What the checks have in common: the error they raise, and comparisons of trees of tensors."""

import random

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from headstart.types import Batch, Tree


class ContractError(AssertionError):
    """A value breaks its contract; the message says which one, by how much, and what that means."""


def require(holds: bool, contract: str, otherwise: str) -> None:
    """Raise `ContractError` unless ``holds``."""
    if not holds:
        raise ContractError(f"{contract}: {otherwise}")


def require_close(left: Tree, right: Tree, contract: str, otherwise: str, within: float = 1e-10) -> None:
    """Raise `ContractError` unless two trees' `error` is that of rounding."""
    gap = error(left, right)
    require(gap <= within, contract, f"{otherwise} (off by {gap:.2g}, relative)")


def tensors(tree: Tree) -> list[Tensor]:
    """Return the tensors of a tree."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def mapped(function: object, tree: Tree) -> Tree:
    """Return the tree with ``function`` applied to its tensors; what is no tensor stays."""
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)  # type: ignore[operator]


def copied(tree: Tree) -> Tree:
    """Return the tree with its tensors copied, to compare with later."""
    return mapped(lambda leaf: leaf.detach().clone(), tree)


def same_bits(left: Tree, right: Tree) -> bool:
    """Whether two trees hold the same values exactly; NaN equals NaN."""
    ours, theirs = ([(leaf.shape, leaf.dtype) for leaf in tensors(tree)] for tree in (left, right))
    pairs = zip(tensors(left), tensors(right))
    return ours == theirs and all(bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in pairs)


def error(left: Tree, right: Tree) -> float:
    """Return the largest difference of two trees, relative to the largest value of ``right`` where that exceeds 0.

    Infinity where a shape differs or a value is not finite on one side alone.
    """
    ours, theirs = tensors(left), tensors(right)
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        return float("inf")
    gaps, sizes = [0.0], [0.0]
    for a, b in zip(ours, theirs):
        if a.numel():
            a, b = a.detach().double(), b.detach().double()
            gaps.append(torch.where((a == b) | ((a != a) & (b != b)), 0, (a - b).abs()).max().item())
            sizes.append(b.abs().nan_to_num(0, 0).max().item())
    gap = max(float("inf") if value != value else value for value in gaps)
    return gap / (max(sizes) or 1.0)


def finite(tree: Tree) -> bool:
    """Whether all floating values of a tree are finite numbers."""
    return all(bool(leaf.isfinite().all()) for leaf in tensors(tree) if leaf.is_floating_point())


def take(tree: Tree, tasks: list[int]) -> Tree:
    """Return the tree of these tasks alone, in this order."""
    return mapped(lambda leaf: leaf[tasks], tree)


def there(batch: Batch) -> Tensor:
    """Return which examples of a batch are there, ``(B, n)``, on the CPU."""
    return torch.ones(batch.y.shape[:2], dtype=torch.bool) if batch.mask is None else batch.mask.cpu()


def generator_state() -> tuple[bytes, object]:
    """Return the state of the global random number generators of torch and Python, to compare with later."""
    return torch.get_rng_state().numpy().tobytes(), random.getstate()


def module_state(module: nn.Module | None) -> tuple[Tree, object]:
    """Return all that a learner must leave as it is in a module: (copies of its tensors, everything else)."""
    if module is None:
        return {}, None
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    layers = [(name, type(layer), layer.training, set(vars(layer))) for name, layer in module.named_modules()]
    flags = [(name, p.requires_grad) for name, p in module.named_parameters()]
    hooks = [(len(layer._forward_hooks), len(layer._forward_pre_hooks)) for layer in module.modules()]
    return copied([module.state_dict(), grads]), (layers, flags, hooks)
