"""A network cut in two before one of its blocks, so that what is below it need only be computed once.

A transformer is no plain sequence: its forward makes masks and positions of what it is given, and hands them to every
block. So both parts run the network's own forward, the first with nothing in place of the later blocks, the second with
what the first has found in place of the earlier ones.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from headstart.forward.surgery import replaced


def blocks_of(module: nn.Module) -> tuple[str, ...]:
    """Return the paths of a network's blocks: of the longest list or sequence of layers of one type.

    >>> blocks_of(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))))
    ('1.0', '1.1')
    """
    found: tuple[str, ...] = ()
    for path, holder in module.named_modules():
        children = [(name, child) for name, child in holder.named_children() if any(True for _ in child.parameters())]
        listed = isinstance(holder, (nn.ModuleList, nn.Sequential)) and len({type(child) for _, child in children}) == 1
        if listed and len(children) > len(found):
            found = tuple(f"{path}.{name}".lstrip(".") for name, _ in children)
    return found


def cut(module: nn.Module, x: Tensor) -> nn.Module:
    """Return a network as ``nn.Sequential(below, above)``, with all that it has to learn in the second part.

    It is cut before its first block with something to learn, and returned as it is where there is nothing to gain (that
    is its first block, or something outside of its blocks is learned) or where the two parts do not give what the whole
    does (blocks that hand on more than one tensor, say).

    Args:
        module: it is not changed; in evaluation mode.
        x: inputs ``(n, …)`` to compare by.
    """
    blocks = blocks_of(module)
    learned = [name for name, value in module.named_parameters() if value.requires_grad]
    of = [next((n for n, path in enumerate(blocks) if name.startswith(f"{path}.")), 0) for name in learned]
    first = min(of, default=0)
    if not first:
        return module
    parts = nn.Sequential()
    parts.add_module("below", _Below(module, blocks[first:]).requires_grad_(False))
    parts.add_module("above", _Above(module, blocks[:first]))
    return parts if _alike(parts, module, x) else module


@torch.no_grad()
def _alike(parts: nn.Module, module: nn.Module, x: Tensor) -> bool:
    expected = module(x)
    try:
        return torch.allclose(parts(x), expected)
    except Exception:  # whatever a network of anybody's does with layers that it does not expect
        return False


class _Below(nn.Module):
    """x ↦ (x, what the first of the blocks that are left out is given)."""

    def __init__(self, module: nn.Module, left_out: Sequence[str]) -> None:
        super().__init__()
        self.first = left_out[0]
        self.network = replaced(module, lambda path, layer: _Passing() if path in left_out else None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.network(x)
        return x, _passing(self.network, self.first).given


class _Above(nn.Module):
    """(x, what the last of the blocks that are left out gives) ↦ what the network gives."""

    def __init__(self, module: nn.Module, left_out: Sequence[str]) -> None:
        super().__init__()
        self.last = left_out[-1]
        self.network = replaced(module, lambda path, layer: _Passing() if path in left_out else None)

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        x, value = given
        _passing(self.network, self.last).instead = value
        found: Tensor = self.network(x)
        return found


class _Passing(nn.Module):
    """In place of a block: gives what it is given, or something ``instead``."""

    given: Tensor
    instead: Tensor | None = None

    def forward(self, *args: Any, **options: Any) -> Tensor:
        self.given = next(iter((*args, *options.values())))
        return self.given if self.instead is None else self.instead


def _passing(network: nn.Module, path: str) -> _Passing:
    return cast(_Passing, network.get_submodule(path))
