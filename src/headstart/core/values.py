"""When the values of a tensor may be looked at."""

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def readable(tensor: Tensor) -> bool:
    """Return whether a tensor has values that can be read at no cost.

    Reading them back from an accelerator would stall it, and while operations are recorded (see `core.compiled`)
    they must not decide anything.
    """
    return tensor.device.type == "cpu" and tensor.numel() > 0 and get_proxy_mode() is None


def one_hot(labels: Tensor, ways: int, like: Tensor) -> Tensor:
    """Return ``(…, ways)``, 1 at each label and 0 elsewhere, of the type and on the device of ``like``.

    PyTorch's own looks at the values of the labels, which stalls an accelerator and cannot be recorded.
    """
    return (labels.to(like.device).unsqueeze(-1) == torch.arange(ways, device=like.device)).to(like)
