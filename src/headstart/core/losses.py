"""Losses of B tasks at once: ``(outputs, batch) -> (B,)``, the mean over a task's examples that are there.

They are written from operations that can be differentiated any number of times, forwards and backwards.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from headstart.core.tree import mapped
from headstart.core.values import all_true, in_range, one_hot
from headstart.errors import ShapeError, UsageError, pick
from headstart.types import Batch

TaskLoss: TypeAlias = Callable[[Tensor, Batch], Tensor]


def cross_entropy(outputs: Tensor, batch: Batch) -> Tensor:
    """Return −log softmax(outputs)[y], averaged over each task's examples.

    Args:
        outputs: logits ``(B, n, ways)``.
        batch: ``y`` ``(B, n)`` int64 in ``[0, ways)``.
    """
    y, known = checked_labels("cross_entropy", outputs, batch), outputs.log_softmax(-1)
    if get_proxy_mode() is None:
        picked = known.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    else:  # recorded and then compiled, the derivative of gather comes out wrong (PyTorch 2.13)
        picked = torch.where(y.unsqueeze(-1) == torch.arange(outputs.shape[-1], device=y.device), known, 0).sum(-1)
    return masked_mean(-picked, batch.mask)


def squared_hinge(outputs: Tensor, batch: Batch) -> Tensor:
    """Return Σ_k max(0, 1 − t_k outputs_k)², averaged over each task's examples: t_k is 1 for k = y and −1 else.

    The loss of K linear support vector machines, one class against the rest; it has a derivative everywhere.

    Args:
        outputs: scores ``(B, n, ways)``.
        batch: ``y`` ``(B, n)`` int64 in ``[0, ways)``.
    """
    y = checked_labels("squared_hinge", outputs, batch)
    signs = 2 * one_hot(y, outputs.shape[-1], outputs) - 1
    return masked_mean((1 - signs * outputs).clamp(min=0).square().sum(-1), batch.mask)


def checked_labels(loss: str, outputs: Tensor, batch: Batch) -> Tensor:
    """Return the labels ``(B, n)`` of a loss of classes, checked; 0 where there is no example."""
    y = batch.y
    if y.is_floating_point() or y.dtype == torch.bool or outputs.shape[:-1] != y.shape:
        raise ShapeError(
            f"{loss} needs logits (tasks, examples, ways) and integer labels (tasks, examples); "
            f"got outputs {tuple(outputs.shape)} and y {tuple(y.shape)} of {y.dtype}"
        )
    return in_range(y, outputs.shape[-1], f"the model has {outputs.shape[-1]} outputs", batch.mask)


def mse(outputs: Tensor, batch: Batch) -> Tensor:
    """Return (outputs − y)², averaged over each task's examples and target values.

    Args:
        outputs: ``(B, n, *targets)``.
        batch: ``y`` of the same shape, floating.
    """
    y = present(batch).y
    if not y.is_floating_point() or outputs.shape != y.shape:
        raise ShapeError(
            f"mse needs outputs and floating targets of one shape; "
            f"got outputs {tuple(outputs.shape)} and y {tuple(y.shape)} of {y.dtype}"
        )
    squares = (outputs - y).square()
    return masked_mean(squares.flatten(2).mean(2) if y.ndim > 2 else squares, batch.mask)


def per_task(loss: Callable[[Tensor, Tensor], Tensor]) -> TaskLoss:
    """Lift an ordinary loss of one task, ``(outputs, y) -> scalar``, such as ``torch.nn.functional.l1_loss``.

    It knows no masks, so tasks must have the same number of examples.
    """

    def lifted(outputs: Tensor, batch: Batch) -> Tensor:
        if batch.mask is not None:
            raise UsageError(
                "a loss lifted by per_task cannot leave out masked examples; write (outputs, batch) -> (B,)"
            )
        return torch.stack([loss(out, y) for out, y in zip(outputs.unbind(), batch.y.unbind())])

    return lifted


def without_padding(loss: TaskLoss, batch_normalised: str) -> TaskLoss:
    """Return ``loss``, refusing padding where the model has a layer ``batch_normalised`` (see `refuse_padding`)."""

    def checked(outputs: Tensor, batch: Batch) -> Tensor:
        refuse_padding(batch, batch_normalised)
        return loss(outputs, batch)

    return checked if batch_normalised else loss


def refuse_padding(batch: Batch, batch_normalised: str) -> None:
    """Raise `UsageError` for masked examples where the layer at ``batch_normalised`` takes them into its statistics."""
    if batch_normalised and batch.mask is not None and not all_true(batch.mask):
        raise UsageError(
            f"tasks have different numbers of examples, and the layer at {batch_normalised!r} normalises by all of "
            f"them, padding included; use another normalisation (--norm group, layer or instance; nn.GroupNorm), "
            f"buffers='frozen', or as many examples in every task"
        )


def present(batch: Batch) -> Batch:
    """Return the batch with zeros in place of the inputs and targets that its mask leaves out."""
    mask = batch.mask  # leaving them out of the loss is not enough: a derivative of zero times an input of NaN is NaN
    if mask is None:
        return batch

    def filled(leaf: Tensor) -> Tensor:
        return torch.where(mask.view(*mask.shape, *(1,) * (leaf.ndim - 2)), leaf, leaf.new_zeros(()))

    x, y = mapped(filled, (batch.x, batch.y))
    return batch._replace(x=x, y=y)


def there(batch: Batch) -> Tensor:
    """Return which examples are there, ``(B, n)`` bool."""
    return batch.y.new_ones(batch.y.shape[:2], dtype=torch.bool) if batch.mask is None else batch.mask


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of ``values`` ``(B, n)`` over the examples that are there, ``(B,)``."""
    if mask is None:
        return values.mean(1)
    # where, not a product: a masked example may be NaN or infinite
    return torch.where(mask, values, 0).sum(1) / mask.sum(1).clamp(min=1)


LOSSES: dict[str, TaskLoss] = {"cross_entropy": cross_entropy, "mse": mse, "squared_hinge": squared_hinge}


def resolve(loss: str | TaskLoss) -> TaskLoss:
    """Return the loss called ``loss``, or ``loss`` itself."""
    return pick("loss", loss, LOSSES) if isinstance(loss, str) else loss
