"""Examples that are not there."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from headstart.types import Batch


def present(batch: Batch) -> Batch:
    """Return the batch with zeros in place of the inputs and targets that its mask leaves out.

    Leaving them out of the loss is not enough: a derivative of zero times an input of NaN is NaN.
    """
    mask = batch.mask
    if mask is None:
        return batch

    def filled(leaf: Tensor) -> Tensor:
        return torch.where(mask.view(*mask.shape, *(1,) * (leaf.ndim - 2)), leaf, leaf.new_zeros(()))

    x, y = tree_map(filled, (batch.x, batch.y))
    return batch._replace(x=x, y=y)
