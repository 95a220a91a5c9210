"""Leaving ``torch.inference_mode()`` for what takes derivatives of its own.

Adaptation takes them also where nobody asks for derivatives of it, and PyTorch refuses to do so in that mode, and with
tensors that were made in it. What is decorated here computes as under ``torch.no_grad()`` then, with the same bits, and
gives ordinary tensors.
"""

import functools
import inspect
from collections.abc import Callable, Generator, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from headstart.core.tree import mapped

Given = ParamSpec("Given")
Found = TypeVar("Found")
Value = TypeVar("Value")


def out_of_inference_mode(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """Let a function, or a generator whenever it goes on, run outside of that mode, with ordinary tensors.

    >>> with torch.inference_mode():
    ...     double = out_of_inference_mode(lambda x: 2 * x)(torch.ones(2))
    >>> double.is_inference()
    False
    """

    @functools.wraps(function)
    def once(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        return _outside(function, *args, **kwargs)

    @functools.wraps(function)
    def again(*args: Given.args, **kwargs: Given.kwargs) -> Iterator[Any]:
        steps, end = cast(Generator[Any], _outside(function, *args, **kwargs)), object()
        try:
            while (found := _outside(next, steps, end)) is not end:
                yield found
        finally:
            steps.close()

    return cast(Callable[Given, Found], again) if inspect.isgeneratorfunction(function) else once


def _outside(function: Callable[..., Value], *args: Any, **kwargs: Any) -> Value:
    if not torch.is_inference_mode_enabled():
        return function(*args, **kwargs)
    with torch.inference_mode(False), torch.no_grad():
        return function(*map(ordinary, args), **{name: ordinary(value) for name, value in kwargs.items()})


def ordinary(tree: Value) -> Value:
    """Return a tree with copies, made outside of inference mode, of the tensors that were made in it."""
    return tree if not _has_inference(tree) else cast(Value, mapped(_copied, tree))


def _copied(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def _has_inference(tree: Any) -> bool:
    if isinstance(tree, Tensor):
        return tree.is_inference()
    if isinstance(tree, dict):
        return any(map(_has_inference, tree.values()))
    return isinstance(tree, (tuple, list)) and any(map(_has_inference, tree))
