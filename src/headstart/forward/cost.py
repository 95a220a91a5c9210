"""What a module costs: its multiply-adds, counted on a run without numbers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from headstart.errors import ShapeError, UsageError
from headstart.forward.mixture import GATES, mixtures
from headstart.forward.skeleton import without_weights
from headstart.types import Meta


def multiply_adds(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the multiply-adds of a forward pass of one example.

    Counted are matrix products, convolutions and attention, by what runs, in whatever layer. Additions of biases,
    normalisation, activations and pooling count 0. A `Mixture` counts all of its candidates, since it runs them all.

    Args:
        module: it is not run itself: a copy without weights is, on PyTorch's ``meta`` device.
        input_shape: of one example, as ``(channels, height, width)``.

    Raises:
        ShapeError: the module cannot take such an input.

    >>> multiply_adds(nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5)), (10,))
    300
    """
    return _counted(module, input_shape, ())[0]


def expected_cost(module: nn.Module, input_shape: Sequence[int]) -> Callable[[Meta], Tensor]:
    """Return ``meta -> E[multiply-adds]`` of one example, where each `Mixture` takes one candidate with its gates'
    probabilities, as a fraction of the multiply-adds of the dearest choice.

    Where the gates are extreme, it is `multiply_adds` of the derived module over that of the dearest one. What counts
    is said there. It is differentiable in M, and a penalty for `pressed`.

    Args:
        module: the module that the learner was made from.
        input_shape: of one example.

    Raises:
        UsageError: the module holds no mixture, or all choices cost nothing; when used, M lacks a mixture's gates.
        ShapeError: the module cannot take such an input.

    >>> from headstart.forward.mixture import Mixture, Skip
    >>> layer = Mixture({"linear": nn.Linear(4, 4), "skip": Skip()})
    >>> expected_cost(layer, (4,))(Meta({}, {"gates.logits": torch.zeros(2)}))
    tensor(0.5000)
    """
    tree = _priced(module, input_shape)
    dearest = _total(tree, lambda _, costs: max(costs))
    if not dearest:
        raise UsageError(
            f"all choices in {type(module).__name__} cost 0 multiply-adds (activations, pooling and normalisation are "
            f"not counted), so their cost says nothing; press something else"
        )

    def cost(meta: Meta) -> Tensor:
        def mean(path: str, costs: list[Cost]) -> Tensor:
            name = f"{path}.{GATES}" if path else GATES
            if name not in meta.structure:
                there = ", ".join(meta.structure) or "nothing"
                raise UsageError(f"M holds no {name!r}, so it is not of this module; it holds: {there}")
            shares = meta.structure[name].softmax(-1)
            return sum((p * c for p, c in zip(shares, costs)), shares.new_zeros(()))

        return _total(tree, mean) / dearest

    return cost


#: A number, or one that can be differentiated in M.
Cost: TypeAlias = Any


class _Priced(NamedTuple):
    """The multiply-adds of a part of a module without those of the mixtures inside it, and these mixtures."""

    own: int
    inside: dict[str, list["_Priced"]]
    """The candidates of each mixture by its path."""


def _total(tree: _Priced, combine: Callable[[str, list[Cost]], Cost]) -> Cost:
    """Return the multiply-adds of a part where ``combine(path, costs of the candidates)`` is the cost of a mixture."""
    return tree.own + sum(
        combine(path, [_total(one, combine) for one in candidates]) for path, candidates in tree.inside.items()
    )


def _priced(module: nn.Module, input_shape: Sequence[int]) -> _Priced:
    found = mixtures(module)
    candidates = {m: [f"{m}.candidates.{name}".lstrip(".") for name in found[m].gates.names] for m in found}
    watched = [one for paths in candidates.values() for one in paths]
    total, by_path = _counted(module, input_shape, watched)

    def part(path: str, count: int) -> _Priced:
        """Return the part at ``path``: a candidate, or all (the empty path)."""
        below = [m for m in found if _nearest(m, watched) == path]
        inside = {m: [part(one, by_path[one]) for one in candidates[m]] for m in below}
        return _Priced(count - sum(by_path[one] for m in below for one in candidates[m]), inside)

    return part("", total)


def _nearest(path: str, candidates: Sequence[str]) -> str:
    """Return the innermost of ``candidates`` that the module at ``path`` is or lies in; empty where there is none."""
    around = [one for one in candidates if path == one or path.startswith(f"{one}.")]
    return max(around, key=len, default="")


def _counted(module: nn.Module, input_shape: Sequence[int], watched: Sequence[str]) -> tuple[int, dict[str, int]]:
    """Return the multiply-adds of one example, in all and of each of the submodules ``watched``."""
    body = without_weights(module).eval()
    counter = FlopCounterMode(display=False)
    before, counts = dict.fromkeys(watched, 0), dict.fromkeys(watched, 0)

    def enter(path: str) -> None:
        before[path] = counter.get_total_flops()

    def leave(path: str) -> None:
        counts[path] += counter.get_total_flops() - before[path]

    for path in watched:
        layer = body.get_submodule(path)
        layer.register_forward_pre_hook(lambda *_, path=path: enter(path))
        layer.register_forward_hook(lambda *_, path=path: leave(path))
    dtype = next((p.dtype for p in body.parameters() if p.is_floating_point()), torch.float32)
    try:
        with counter, torch.no_grad():
            body(torch.zeros(1, *input_shape, dtype=dtype, device="meta"))
    except RuntimeError as error:
        raise ShapeError(
            f"{type(module).__name__} cannot take one example of shape {tuple(input_shape)}; "
            f"PyTorch says: {str(error).splitlines()[0]}"
        ) from error
    # a multiply-add is two operations
    return counter.get_total_flops() // 2, {path: count // 2 for path, count in counts.items()}
