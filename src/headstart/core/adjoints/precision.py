"""The precision around inner steps, so that steps are taken again in the precision of the first time."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Autocast(NamedTuple):
    """Whether PyTorch's autocast is on, and to which type it casts, for each kind of device."""

    kinds: tuple[tuple[str, bool, torch.dtype], ...]

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Compute in this precision inside, whatever is on around it."""
        with contextlib.ExitStack() as stack:
            for kind, on, dtype in self.kinds:
                # without its cache, which would hand the weights of one step to the next
                stack.enter_context(torch.autocast(kind, dtype, on, cache_enabled=False))
            yield


def autocast(tensors: Iterable[Tensor]) -> Autocast:
    """Return what autocast does now on the devices of these tensors."""
    kinds = sorted({tensor.device.type for tensor in tensors})
    kinds = [kind for kind in kinds if torch.amp.is_autocast_available(kind)]
    return Autocast(tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds))
