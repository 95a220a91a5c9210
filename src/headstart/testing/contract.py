"""What the checks have in common: the error they raise, comparisons of trees of tensors, and central differences."""

import random
from collections.abc import Callable

import torch
from torch import Generator, nn

from headstart.core.tree import mapped, tensors_of
from headstart.types import Params, Tree

#: Lengths of the step along a direction of length 1. The best of float64 is near 1e-5; shorter ones are for
#: directions with a kink (of a ReLU, of a maximum) nearby.
STEPS = (1e-5, 3e-6, 1e-6, 1e-4)


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


def copied(tree: Tree) -> Tree:
    """Return the tree with its tensors copied, to compare with later."""
    return mapped(lambda leaf: leaf.detach().clone(), tree)


def same_bits(left: Tree, right: Tree) -> bool:
    """Whether two trees hold the same values exactly; NaN equals NaN."""
    ours, theirs = ([(leaf.shape, leaf.dtype) for leaf in tensors_of(tree)] for tree in (left, right))
    pairs = zip(tensors_of(left), tensors_of(right))
    return ours == theirs and all(bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in pairs)


def error(left: Tree, right: Tree) -> float:
    """Return the largest difference of two trees, relative to the largest value of ``right`` where that exceeds 0.

    Infinity where a shape differs or a value is not finite on one side alone.
    """
    ours, theirs = tensors_of(left), tensors_of(right)
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
    return all(bool(leaf.isfinite().all()) for leaf in tensors_of(tree) if leaf.is_floating_point())


def take(tree: Tree, tasks: list[int]) -> Tree:
    """Return the tree of these tasks alone, in this order."""
    return mapped(lambda leaf: leaf[tasks], tree)


def generator_state() -> tuple[list[bytes], object]:
    """Return the state of the global random number generators of torch and Python, to compare with later."""
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]
    return [state.numpy().tobytes() for state in states], random.getstate()


def module_state(module: nn.Module | None) -> tuple[Tree, object]:
    """Return all that a learner must leave as it is in a module: (copies of its tensors, everything else)."""
    if module is None:
        return {}, None
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    layers = [(name, type(layer), layer.training, set(vars(layer))) for name, layer in module.named_modules()]
    flags = [(name, p.requires_grad) for name, p in module.named_parameters()]
    hooks = [(len(layer._forward_hooks), len(layer._forward_pre_hooks)) for layer in module.modules()]
    return copied([module.state_dict(), grads]), (layers, flags, hooks)


def check_derivative(
    function: Callable[[Params], float],
    point: Params,
    gradient: Params,
    *,
    contract: str,
    directions: int = 3,
    tolerance: float = 1e-6,
) -> None:
    """Hold ``gradient`` against central differences of ``function`` at ``point`` along random directions.

    A difference is trusted where two step lengths agree on it. Where they never do, the function has a kink close by
    and another direction is drawn: a kink fails no right gradient, and nothing passes a wrong one.

    Args:
        function: from tensors named and shaped as ``point`` to a number, in float64.
        point: where to differentiate.
        gradient: what is claimed to be the derivative there.
        contract: what the message calls the claim.
        directions: how many directions must agree.
        tolerance: relative to the gradient's root mean square, which is what a slope is on average.

    Raises:
        ContractError: the gradient is wrong, or no differences can be trusted here.
    """
    count = sum(value.numel() for value in point.values())
    size = sum(g.square().sum().item() for g in gradient.values()) ** 0.5 / max(count, 1) ** 0.5
    # the second term is what rounding of the function's own value leaves undecided
    allowed = tolerance * (size + 1e-3 * abs(function(point)))
    generator = torch.Generator().manual_seed(0)
    trusted = 0
    for _ in range(3 * directions):
        direction = _direction(point, generator)
        slope = sum((gradient[name] * d).sum().item() for name, d in direction.items())
        difference = _difference(function, point, direction, allowed / 4)
        if difference is None:
            continue
        claim = f"along a random direction the gradient says {slope:.10g}, central differences say {difference:.10g}"
        gap = abs(slope - difference)
        off = f"they differ by {gap:.2g}, {allowed:.2g} is allowed"
        require(gap <= allowed, contract, f"{claim} ({off}); it is not the derivative")
        trusted += 1
        if trusted == directions:
            return
    claim = f"central differences settled along {trusted} of {3 * directions} directions only, {directions} are needed"
    why = "the function is not smooth around these values, or its value is not computed in float64"
    require(False, contract, f"{claim}; {why}")


def _direction(point: Params, generator: Generator) -> Params:
    drawn = {k: torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v) for k, v in point.items()}
    length = sum(d.square().sum().item() for d in drawn.values()) ** 0.5
    return {name: d / length for name, d in drawn.items()}


def _difference(function: Callable[[Params], float], point: Params, direction: Params, allowed: float) -> float | None:
    """Return the slope on which two step lengths agree, or ``None``."""
    known: list[float] = []
    for h in STEPS:
        ahead, behind = (function({k: v + step * direction[k] for k, v in point.items()}) for step in (h, -h))
        slope = (ahead - behind) / (2 * h)
        if any(abs(slope - other) <= allowed for other in known):
            return slope
        known.append(slope)
    return None
