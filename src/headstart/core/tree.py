"""Arithmetic on `Params`: dictionaries of tensors with the same names."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from headstart.types import Params

Value = TypeVar("Value")


def subtract(left: Params, right: Params) -> Params:
    """Return ``left − right``; names that ``right`` lacks are kept."""
    return {name: value - right[name] if name in right else value for name, value in left.items()}


def zeros_like(params: Params) -> Params:
    """Return zeros of the same shapes."""
    return {name: torch.zeros_like(value) for name, value in params.items()}


def detached(params: Params) -> Params:
    """Return copies without history that require gradients."""
    return {name: value.detach().clone().requires_grad_() for name, value in params.items()}


def per_task_norm(params: Params) -> Tensor:
    """Return the Euclidean norm ``(B,)`` of each task's tensors taken together; its gradient at zero is zero."""
    square = torch.stack([value.reshape(len(value), -1).square().sum(1) for value in params.values()]).sum(0)
    return safe_sqrt(square)


def safe_sqrt(square: Tensor) -> Tensor:
    """Return the square root with derivative 0, not infinity, at 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


def over_tasks(per_task: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(B,)`` so that it multiplies ``like`` ``(B, *shape)`` task by task."""
    return per_task.view(-1, *(1,) * (like.ndim - 1))


def within(params: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """Return the values named ``prefix.…``, by the rest of their names.

    >>> sorted(within({"rate.a.b": 1, "rate": 2, "rates.c": 3}, "rate"))
    ['a.b']
    """
    return {name[len(prefix) + 1 :]: value for name, value in params.items() if name.startswith(f"{prefix}.")}


def prefixed(prefix: str, params: Params) -> Params:
    """Return the tensors under the names ``prefix.…``; `within` undoes it."""
    return {f"{prefix}.{name}": value for name, value in params.items()}
