"""Batch normalisation whose running statistics belong to the task and can be differentiated.

``nn.BatchNorm`` updates its statistics in place and without gradients. A query set that is normalised by what the
support set left behind depends on θ through them, so leaving that path out would make the meta-gradient wrong.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from headstart.errors import DifferentiationError


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
        if self.training:
            axes = [axis for axis in range(x.ndim) if axis != 1]
            count = x.numel() // x.shape[1]
            var, mean = torch.var_mean(x, axes, correction=0)
            self._update("running_mean", mean)
            # as nn.BatchNorm: normalise by the biased variance, remember the unbiased one
            self._update("running_var", var * count / max(count - 1, 1))
        else:
            mean, var = self.running_mean, self.running_var
        shape = (1, -1, *(1,) * (x.ndim - 2))
        normal = (x - mean.view(shape)) * (var.view(shape) + self.eps).rsqrt()
        if self.weight is None:
            return normal
        return normal * self.weight.view(shape) + self.bias.view(shape)

    def _update(self, name: str, value: Tensor) -> None:
        # a layer that is used twice in a pass updates twice
        before = self.updated.get(name, getattr(self, name))
        self.updated[name] = (1 - self.momentum) * before + self.momentum * value
