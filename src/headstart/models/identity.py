"""No network at all."""

from collections.abc import Sequence

from torch import nn

from headstart.errors import UsageError


def identity(inputs: int | Sequence[int], outputs: int | None = None) -> nn.Flatten:
    """Return the inputs themselves, flattened: the embedding of a head on raw features.

    Args:
        inputs: the shape of an input; not used, but accepted so that all models are made alike.
        outputs: must be ``None``, for there are no weights to make a number of outputs with.

    >>> import torch
    >>> identity((2, 3))(torch.zeros(5, 2, 3)).shape
    torch.Size([5, 6])
    """
    if outputs is not None:
        raise UsageError(
            "the model 'identity' is no network, only an embedding; take it with a method that brings a head "
            "(prototypes, ridge, logistic, svm, dkt, alpaca), or take another model"
        )
    return nn.Flatten()
