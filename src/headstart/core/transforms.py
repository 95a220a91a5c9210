"""Whether more than values and gradients go along with tensors."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def plain(*tensors: Tensor | None) -> bool:
    """Return whether tensors are of one type and go through nothing but passes forward and back.

    A tangent, an axis of ``vmap`` or autocast is known to PyTorch's own functions only.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    first = given[0]
    if torch.is_autocast_enabled(first.device.type):
        return False
    tangents = forward_ad._current_level >= 0
    for tensor in given:
        if tensor.dtype != first.dtype or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return False
        if tangents and forward_ad.unpack_dual(tensor).tangent is not None:
            return False
    return True
