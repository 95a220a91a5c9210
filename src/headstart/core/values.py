"""When the values of a tensor may be looked at."""

from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def readable(tensor: Tensor) -> bool:
    """Return whether a tensor has values that can be read at no cost.

    Reading them back from an accelerator would stall it, and while operations are recorded (see `core.compiled`)
    they must not decide anything.
    """
    return tensor.device.type == "cpu" and tensor.numel() > 0 and get_proxy_mode() is None
