"""Whether more than values and gradients go along with tensors."""

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad


def plain(*tensors: Tensor | None) -> bool:
    """Return whether tensors are of one type and go through nothing but passes forward and back.

    A tangent, an axis of ``vmap`` (or of batched slopes), autocast and devices without numbers are known to PyTorch's
    own functions only.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    if not given:
        return True
    first = given[0]
    if first.is_meta or torch.is_autocast_enabled(first.device.type):  # which knows no device "meta"
        return False
    if torch._C._are_functorch_transforms_active():  # also where none of these tensors goes through them
        return False
    tangents = forward_ad._current_level >= 0
    for tensor in given:
        if tensor.dtype != first.dtype or is_legacy_batchedtensor(tensor):
            return False
        if tangents and forward_ad.unpack_dual(tensor).tangent is not None:
            return False
    return True
