"""Fully connected networks."""

from collections import OrderedDict
from collections.abc import Sequence
from math import prod

from torch import nn

from headstart.errors import UsageError
from headstart.schema import Sizes


def mlp(inputs: int | Sequence[int], outputs: int | None, *, hidden: Sizes = (40, 40)) -> nn.Sequential:
    """Return fully connected layers with ReLU between them; the last one is called ``head``.

    Args:
        inputs: number of input values, or the shape of an input, which is flattened.
        outputs: number of output values; ``None`` leaves the head out, for an embedding.
        hidden: widths of the hidden layers; (40, 40) is the sine network of Finn, Abbeel, Levine 2017.

    >>> import torch
    >>> mlp(1, 1)(torch.zeros(10, 1)).shape
    torch.Size([10, 1])
    """
    flat = inputs if isinstance(inputs, int) else prod(inputs)
    widths = [flat, *hidden]
    if min([*widths, 1 if outputs is None else outputs]) < 1:
        raise UsageError(f"mlp needs positive widths, got inputs {inputs}, hidden {tuple(hidden)}, outputs {outputs}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if not isinstance(inputs, int) and len(inputs) > 1:
        layers["flatten"] = nn.Flatten()
    for index, (width_in, width_out) in enumerate(zip(widths, widths[1:]), start=1):
        layers[f"hidden{index}"] = nn.Linear(width_in, width_out)
        layers[f"relu{index}"] = nn.ReLU()
    if outputs is not None:
        layers["head"] = nn.Linear(widths[-1], outputs)
    return nn.Sequential(layers)
