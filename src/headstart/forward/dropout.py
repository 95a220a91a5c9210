"""Dropout whose mask is a function of the task's seed, the pass, the layer and the element.

So a task's mask does not depend on which tasks share its batch or on how tasks are mapped, and the same adaptation
can be computed again, bit for bit.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from headstart.core.philox import WORD, philox
from headstart.errors import UsageError

#: The layers that `replace_dropout` replaces, with the number of trailing axes that share one draw.
KINDS: dict[type[nn.Module], int] = {nn.Dropout: 0, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}


class TaskDropout(nn.Module):
    """Stands in for a dropout layer: zero with probability p, scale the rest by 1 / (1 − p)."""

    seed: Tensor

    def __init__(self, p: float, shared_axes: int, index: int, inplace: bool = False) -> None:
        super().__init__()
        self.p, self.shared_axes, self.index, self.inplace = p, shared_axes, index, inplace
        self.draw, self.calls = 0, 0
        # a buffer, so that every task's own seed is handed in with its parameters
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of ``x``, or whole channels where the layer it stands in for does."""
        if not self.training or self.p == 0:
            return x
        if self.p >= 1:
            return x.mul_(0) if self.inplace else x * 0
        shape = x.shape[: x.ndim - self.shared_axes] + (1,) * self.shared_axes
        words = self._words(shape.numel(), x.device).view(shape)
        self.calls += 1
        keep = words >= int(self.p * 2**32)
        out = x * keep.to(x.dtype) / (1 - self.p)
        return x.copy_(out) if self.inplace else out

    def _words(self, count: int, device: torch.device) -> Tensor:
        lane = torch.arange(-(-count // 4), device=device)
        call = torch.full_like(lane, self.calls)
        low, high = (lane * 0 + half for half in (self.seed & WORD, (self.seed >> 32) & WORD))
        return torch.stack(philox((lane, call, low, high), (self.index, self.draw))).flatten()[:count]


def replace_dropout(body: nn.Module) -> None:
    """Replace the dropout layers of a private copy of a module; one that is used in two places stays one."""
    replaced: dict[nn.Module, TaskDropout] = {}
    for name, layer in list(body.named_modules(remove_duplicate=False)):
        if name and type(layer) in KINDS:
            if isinstance(layer, _DropoutNd) and layer not in replaced:
                replaced[layer] = TaskDropout(layer.p, KINDS[type(layer)], len(replaced), layer.inplace)
            body.set_submodule(name, replaced[layer])


def refuse_unseeded(body: nn.Module) -> None:
    """Raise `UsageError` for a layer that would draw from the global generator, which all tasks share."""
    for path, layer in body.named_modules():
        if fix := _fix(layer):
            raise UsageError(
                f"{type(layer).__name__} at {path or 'the top'!r} draws random numbers that Batch.seed cannot "
                f"determine, so nothing could be repeated; {fix}, or leave Batch.seed out (then nothing is drawn)"
            )


def _fix(layer: nn.Module) -> str:
    if isinstance(layer, (nn.MultiheadAttention, nn.RNNBase)) and layer.dropout > 0:
        return "set its own dropout to 0 (nn.Dropout layers beside it may stay)"
    if isinstance(layer, nn.RReLU):
        return "use nn.LeakyReLU"
    if isinstance(layer, _DropoutNd) and layer.p > 0:
        return "use nn.Dropout, or nn.Dropout1d to nn.Dropout3d, inside another module"
    return ""
