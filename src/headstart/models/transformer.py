"""A small transformer for texts as token ids."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headstart.core.values import demand, readable
from headstart.errors import ShapeError, UsageError
from headstart.schema import Count, Probability, Size, Whole


def transformer(
    inputs: int | Sequence[int],
    ways: int | None,
    *,
    vocabulary: Count = 256,
    width: Size = 64,
    depth: Count = 2,
    heads: Count = 4,
    padding: Whole = 0,
    dropout: Probability = 0.0,
) -> nn.Sequential:
    """Return embeddings, pre-norm transformer blocks, the mean over the tokens that are there, and a ``head``.

    It takes token ids ``(n, tokens)`` (int64) and gives ``(n, ways)``. The attention is of ``nn.Linear`` layers, which
    `headstart.low_rank` can adapt like the others: ``what="block*"``, or ``what="block*.attention.query"``.

    Args:
        inputs: the most tokens that a text may have, or the shape of an input, ``(length,)``.
        ways: number of classes, or of target values; ``None`` leaves the head out, for an embedding.
        vocabulary: number of token ids; by default those of bytes.
        width: values of each token between the blocks.
        depth: number of blocks.
        heads: heads of the attention, which share the width.
        padding: the token id that stands for no token; it counts nowhere.
        dropout: probability behind the attention and the feed-forward part of each block.

    References: Vaswani et al. 2017, arXiv:1706.03762; normalisation before each part, and behind the last, as in Xiong
    et al. 2020, arXiv:2002.04745; positions are learned.

    >>> import torch
    >>> transformer(12, ways=5, width=16)(torch.randint(256, (3, 12))).shape
    torch.Size([3, 5])
    """
    shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    if len(shape) != 1:
        raise ShapeError(f"transformer takes texts as token ids (length,); got inputs of shape {shape}")
    if min(*shape, vocabulary, width, depth, heads, 1 if ways is None else ways) < 1 or width % heads:
        raise UsageError(
            f"transformer needs positive sizes and a width that the heads divide, got length {shape[0]}, ways {ways}, "
            f"vocabulary {vocabulary}, width {width}, depth {depth}, heads {heads}"
        )
    if not 0 <= padding < vocabulary:
        raise UsageError(f"the padding id must be one of the {vocabulary} token ids from 0, got {padding}")
    layers = OrderedDict[str, nn.Module](embedding=Embedded(vocabulary, shape[0], width, padding))
    for index in range(1, depth + 1):
        layers[f"block{index}"] = Block(width, heads, dropout)
    layers["pool"] = Pooled(width)
    if ways is not None:
        layers["head"] = nn.Linear(width, ways)
    return nn.Sequential(layers)


class Embedded(nn.Module):
    """The sum of a vector for the token and one for its place: ``(n, tokens) -> (n, tokens, width + 1)``.

    The last value of each token says whether it is there (1) or padding (0).
    """

    def __init__(self, vocabulary: int, length: int, width: int, padding: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        self.padding = padding

    def forward(self, ids: Tensor) -> Tensor:
        length = self.position.num_embeddings
        if ids.is_floating_point() or ids.ndim < 1 or ids.shape[-1] > length:
            raise ShapeError(
                f"transformer takes token ids (n, tokens) of an integer type, with at most {length} tokens a text; "
                f"got {tuple(ids.shape)} of {ids.dtype}"
            )
        require_known(ids, self.token.num_embeddings)
        places = torch.arange(ids.shape[-1], device=ids.device)
        x = self.token(ids) + self.position(places)
        if ids.device.type != "cpu":  # where ids are not read, one out of range must not pass for a token
            x = torch.where(((ids >= 0) & (ids < self.token.num_embeddings))[..., None], x, torch.nan)
        return torch.cat([x, (ids != self.padding).to(x)[..., None]], -1)


def require_known(ids: Tensor, vocabulary: int) -> None:
    """Refuse ids out of range: mapped over tasks, an embedding would take them for tokens of the next task."""
    while torch._C._functorch.is_functorch_wrapped_tensor(ids):  # those of all tasks
        ids = torch._C._functorch.get_unwrapped(ids)
    if not readable(ids):
        demand(ids, vocabulary)
        return
    low, high = (int(bound) for bound in torch.aminmax(ids))
    if low < 0 or high >= vocabulary:
        raise ShapeError(
            f"token ids go from {low} to {high}, but the vocabulary has {vocabulary}: they must be 0 to "
            f"{vocabulary - 1}; encode the texts as the model was made for, or make it with a larger vocabulary"
        )


class Block(nn.Module):
    """Attention and a feed-forward part, each normalised first and added: ``(n, tokens, width + 1)`` in and out."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        x, there = parted(states)
        x = x + self.dropout(self.attention(self.attention_norm(x), there))
        x = x + self.dropout(self.narrow(self.activation(self.widen(self.feed_norm(x)))))
        return torch.cat([x, there], -1)


class Attention(nn.Module):
    """Each token reads from all tokens that are there: ``(n, tokens, width) -> (n, tokens, width)``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        seen = there.mT > 0
        # a text without tokens reads its padding: its outputs count nowhere, but must be numbers
        seen = (seen | ~seen.any(-1, keepdim=True))[..., None, :, :]
        parts = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.query, self.key, self.value))
        query, key, value = (part.transpose(-3, -2) for part in parts)
        read = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.out(read.transpose(-3, -2).flatten(-2))


class Pooled(nn.Module):
    """The mean of the normalised tokens that are there, ``(n, tokens, width + 1) -> (n, width)``; zeros for none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, states: Tensor) -> Tensor:
        x, there = parted(states)
        return (there * self.norm(x)).sum(-2) / there.sum(-2).clamp(min=1)


def parted(states: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens ``(n, tokens, width)`` and which of them are there ``(n, tokens, 1)``."""
    return states[..., :-1], states[..., -1:].detach()
