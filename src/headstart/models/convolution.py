"""A small convolutional network for texts as token ids."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from headstart.errors import ShapeError, UsageError
from headstart.models.transformer import parted, require_known
from headstart.schema import Count, Size, Whole


def convolution(
    inputs: int | Sequence[int],
    ways: int | None,
    *,
    vocabulary: Count = 256,
    width: Size = 64,
    depth: Count = 3,
    window: Annotated[int, Ge(1), Le(31)] = 5,
    padding: Whole = 0,
) -> nn.Sequential:
    """Return embeddings, residual blocks of convolutions over tokens, the maximum over them, and a ``head``.

    It takes token ids ``(n, tokens)`` (int64) and gives ``(n, ways)``. Block i reads every 2^(i−1)-th token, so that
    ``depth`` blocks see (window − 1)(2^depth − 1) + 1 tokens together. Padding is 0 in every layer: how much of it
    stands behind a text changes nothing.

    Args:
        inputs: the most tokens that a text may have, or the shape of an input, ``(length,)``.
        ways: number of classes, or of target values; ``None`` leaves the head out, for an embedding.
        vocabulary: number of token ids; by default those of bytes.
        width: values of each token between the blocks.
        depth: number of blocks.
        window: tokens that a convolution reads; odd.
        padding: the token id that stands for no token; it counts nowhere.

    References: after Zhang, Zhao, LeCun 2015, arXiv:1509.01626, smaller, and with residual blocks whose steps double as
    in Yu, Koltun 2015, arXiv:1511.07122.

    >>> convolution(12, ways=5, width=16)(torch.randint(256, (3, 12))).shape
    torch.Size([3, 5])
    """
    shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    if len(shape) != 1:
        raise ShapeError(f"convolution takes texts as token ids (length,); got inputs of shape {shape}")
    if min(*shape, vocabulary, width, depth, 1 if ways is None else ways) < 1 or window % 2 == 0:
        raise UsageError(
            f"convolution needs positive sizes and an odd window, got length {shape[0]}, ways {ways}, vocabulary"
            f" {vocabulary}, width {width}, depth {depth}, window {window}"
        )
    if not 0 <= padding < vocabulary:
        raise UsageError(f"the padding id must be one of the {vocabulary} token ids from 0, got {padding}")
    layers = OrderedDict[str, nn.Module](embedding=Tokens(vocabulary, width, padding))
    for index in range(depth):
        layers[f"block{index + 1}"] = Block(width, window, 2**index)
    layers["pool"] = Largest(width)
    if ways is not None:
        layers["head"] = nn.Linear(width, ways)
    return nn.Sequential(layers)


class Tokens(nn.Module):
    """A vector for each token, ``(n, tokens) -> (n, tokens, width + 1)``; its last value says whether it is there."""

    def __init__(self, vocabulary: int, width: int, padding: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.padding = padding

    def forward(self, ids: Tensor) -> Tensor:
        if ids.is_floating_point() or ids.ndim < 1:
            raise ShapeError(
                f"convolution takes token ids (n, tokens) of an integer type; got {tuple(ids.shape)} of {ids.dtype}"
            )
        require_known(ids, self.token.num_embeddings)
        x = self.token(ids)
        if ids.device.type != "cpu":  # where ids are not read, one out of range must not pass for a token
            x = torch.where(((ids >= 0) & (ids < self.token.num_embeddings))[..., None], x, torch.nan)
        there = (ids != self.padding).to(x)[..., None]
        return torch.cat([x * there, there], -1)


class Block(nn.Module):
    """A convolution of the normalised tokens, added to them: ``(n, tokens, width + 1)`` in and out."""

    def __init__(self, width: int, window: int, step: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.read = nn.Conv1d(width, width, window, padding=step * (window // 2), dilation=step)
        self.activation = nn.GELU()

    def forward(self, states: Tensor) -> Tensor:
        x, there = parted(states)
        read = self.read((there * self.norm(x)).mT).mT
        return torch.cat([x + there * self.activation(read), there], -1)


class Largest(nn.Module):
    """The largest of each normalised value over the tokens, ``(n, tokens, width + 1) -> (n, width)``; 0 for none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, states: Tensor) -> Tensor:
        x, there = parted(states)
        largest = self.norm(x).masked_fill(there == 0, -torch.inf).amax(-2)
        return torch.where(there.any(-2), largest, 0)
