"""Gradients that are differentiated and not read: the products that would give their numbers are left out.

Going back over an inner step takes the derivative of the support loss's gradient, which is linear in what it is made
of: where the update rule does not ask how large the gradient was, its numbers matter to nobody.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import torch
from torch import Tensor

_EXPECTED = contextvars.ContextVar("expected", default=False)
_UNREAD = contextvars.ContextVar("unread", default=False)


@contextlib.contextmanager
def _set(flag: contextvars.ContextVar[bool], wanted: bool) -> Iterator[None]:
    token = flag.set(wanted)
    try:
        yield
    finally:
        flag.reset(token)


def unread_later(wanted: bool) -> contextlib.AbstractContextManager[None]:
    """Let layers be computed by functions that can leave out numbers, where ``wanted``; none is left out yet."""
    return _set(_EXPECTED, wanted)


def unread(wanted: bool) -> contextlib.AbstractContextManager[None]:
    """Leave out, where ``wanted``, the numbers of weights' gradients that are computed meanwhile.

    Only in this thread: where PyTorch goes back in threads of its own, as on a GPU, they are computed.
    """
    return _set(_UNREAD, wanted)


def is_unread_later() -> bool:
    """Return whether gradients of what is computed now are going to be differentiated only."""
    return _EXPECTED.get()


def is_unread() -> bool:
    """Return whether gradients that are computed now are differentiated only."""
    return _UNREAD.get()


def without_numbers(like: Tensor) -> Tensor:
    """Return what stands for a tensor's gradient: not a number, so that a result that reads it is none either."""
    return torch.full((), torch.nan, dtype=like.dtype, device=like.device).expand(like.shape)
