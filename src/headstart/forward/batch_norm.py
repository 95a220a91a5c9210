"""Batch normalisation by statistics that are given, and whose running statistics belong to the task.

``nn.BatchNorm`` updates its own in place and without gradients. A query set that is normalised by what the support set
left behind depends on θ through them, so leaving that path out would make the meta-gradient wrong.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from headstart.core.process import watched
from headstart.errors import DifferentiationError
from headstart.forward.derivatives import plain


def normalised(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int], eps: float
) -> Tensor:
    """Return x normalised by statistics that are given, in one pass; in ``shape``, each tensor faces ``x``.

    Where derivatives are asked for, or operations are written down, they are those of the definition, with its bits in
    a record, too, in which a weight is to be found.
    """
    scale, mean = (var + eps).rsqrt().view(shape), mean.view(shape)
    weight, bias = (None if part is None else part.view(shape) for part in (weight, bias))
    if torch.is_grad_enabled() or watched():
        found = (x - mean) * scale
        found = found if weight is None else found * weight
        return found if bias is None else found + bias
    slope = scale if weight is None else scale * weight
    return torch.addcmul(-mean * slope if bias is None else bias - mean * slope, x, slope)


class TaskStatistics(nn.Module):
    """Stands in for a batch normalisation layer whose statistics every task has a copy of.

    In training mode (the support set) it normalises by the batch, and leaves
    ``running ← (1 − momentum) · running + momentum · batch``; otherwise (the query set) it normalises by ``running``.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        if layer.momentum is None:
            raise DifferentiationError(
                "buffers='task' needs a momentum; use momentum=1.0 for the support set's own statistics"
            )
        self.momentum = float(layer.momentum)
        self.eps = layer.eps
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("running_mean", layer.running_mean)
        self.register_buffer("running_var", layer.running_var)
        #: The statistics after the last pass, for the caller to take.
        self.updated: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` ``(n, channels, *space)``."""
        alone = not (torch.is_grad_enabled() or watched()) and plain(x, self.weight, self.running_mean)
        if self.training and alone and x.numel() > x.shape[1]:
            # one pass, which notes the statistics; the biased variance is what it normalises by
            mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
            out, *_ = torch.native_batch_norm(x, self.weight, self.bias, mean, var, True, 1.0, self.eps)
            self._update("running_mean", mean)
            self._update("running_var", var)
            return out
        if self.training:
            axes = [axis for axis in range(x.ndim) if axis != 1]
            count = x.numel() // x.shape[1]
            var, mean = torch.var_mean(x, axes, correction=0)
            self._update("running_mean", mean)
            # as nn.BatchNorm: normalise by the biased variance, remember the unbiased one
            self._update("running_var", var * count / max(count - 1, 1))
        else:
            mean, var = self.running_mean, self.running_var
        return normalised(x, mean, var, self.weight, self.bias, (-1, *(1,) * (x.ndim - 2)), self.eps)

    def _update(self, name: str, value: Tensor) -> None:
        # a layer that is used twice in a pass updates twice
        before = self.updated.get(name, getattr(self, name))
        self.updated[name] = (1 - self.momentum) * before + self.momentum * value
