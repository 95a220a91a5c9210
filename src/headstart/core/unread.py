"""Gradients that are differentiated and not read: the products that would give their numbers are left out.

Going back over an inner step takes the derivative of the support loss's gradient, which is linear in what it is made
of: where the update rule does not ask how large the gradient was, its numbers matter to nobody.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import torch
from torch import Tensor

_UNREAD = contextvars.ContextVar("unread", default=False)


@contextlib.contextmanager
def unread(wanted: bool = True) -> Iterator[None]:
    """Let layers that know how leave out the numbers of the gradients that are computed meanwhile, where ``wanted``.

    Only in this thread: where PyTorch goes back in threads of its own, as on a GPU, they are computed.
    """
    token = _UNREAD.set(wanted)
    try:
        yield
    finally:
        _UNREAD.reset(token)


def is_unread() -> bool:
    """Return whether gradients that are computed now are differentiated only."""
    return _UNREAD.get()


def without_numbers(like: Tensor) -> Tensor:
    """Return what stands for a tensor's gradient: not a number, so that a result that reads it is none either."""
    return torch.full((), torch.nan, dtype=like.dtype, device=like.device).expand(like.shape)
