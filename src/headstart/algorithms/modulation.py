"""MMAML: a network reads the support set and modulates the model before it adapts."""

from math import sqrt
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from headstart.algorithms.adaptation import Gradient, Start, uniform
from headstart.algorithms.film import Channels, channels_of, film, layers_to_modulate
from headstart.algorithms.gaussians import zeroed
from headstart.algorithms.maml import Rate, maml
from headstart.core import tree
from headstart.core.parameters import Context, What
from headstart.core.rules import chain, exclude, scale
from headstart.errors import ShapeError, UsageError
from headstart.forward.surgery import followed
from headstart.schema import Size, extends
from headstart.types import Batch, Learner, Params, Tree


@extends(maml, without=("rule", "start"))
def mmaml(
    module: nn.Module,
    *,
    embedding: Size = 64,
    hidden: Size = 64,
    what: What | None = None,
    outputs: int | None = None,
    rate: Rate = 0.005,
    **options: Any,
) -> Learner:
    """MMAML: `maml` of a model whose hidden layers are modulated by an embedding of the task.

    e = encoder(Sᵢ); (γ, β)_layer = G_layer e + g_layer; h ← (1 + γ) h + β channel by channel; then θ adapts as in
    MAML, with γ and β held fixed. M = the encoder (``encoder.…``) and the generators (``generator.…``), which the
    outer loop learns together with θ. The generators start at zero, so that the model starts as the module is.

    The encoder works on every example (x, y) by itself and takes the mean (`TaskEncoder`), so the order of the
    support examples does not matter. The paper's reads (x, y) with a bidirectional LSTM for curves, and pools images
    without their labels; here class ids are read as well, one-hot, also where their numbers are arbitrary.

    Args:
        module: the model.
        embedding: size of e, the embedding of a task.
        hidden: width of the layers of the task encoder.
        what: the layers to modulate: names, a type or a predicate; by default all hidden ones (behind normalisation).
        outputs: number of classes, or of target values; by default the size of the module's last layer.
        rate: the inner step size; modulation makes gradients longer, so it bears smaller ones than `maml`.
        options: those of `maml`.

    Raises:
        UsageError: a size below 1, or a module whose layers do not tell what its inputs and outputs are.

    Reference: Vuorio, Sun, Hu, Lim 2019, arXiv:1910.13616; FiLM: Perez et al. 2017, arXiv:1709.07871.

    >>> import torch, headstart
    >>> learner = mmaml(headstart.mlp(1, 1), loss="mse", embedding=8, hidden=16)
    >>> meta = learner.init(torch.Generator().manual_seed(0))
    >>> {name: tuple(value.shape) for name, value in meta.structure.items() if name.startswith("generator")}
    {'generator.hidden1.weight': (80, 8), 'generator.hidden1.bias': (80,), 'generator.hidden2.weight': (80, 8), \
'generator.hidden2.bias': (80,)}
    """
    if min(embedding, hidden) < 1:
        raise UsageError(f"embedding and hidden must be at least 1, got {embedding} and {hidden}")
    sites = layers_to_modulate(module, what)
    with torch.device("meta"):  # its weights are in M
        network = TaskEncoder(_first_layer(module), outputs or _output_size(module), hidden, embedding)
    like = next(module.parameters()).detach()
    body = followed(module, lambda path, _: Modulated(sites[path], like) if path in sites else None)

    def structure(params: Params, generator: Generator | None) -> Params:
        like = next(iter(params.values()))
        parts = tree.prefixed("encoder", drawn(network, like, generator))
        for path, (count, _) in sites.items():
            parts[_named("generator", path, "weight")] = like.new_zeros(2 * count, embedding)
            parts[_named("generator", path, "bias")] = like.new_zeros(2 * count)
        return parts

    def values(m: Params, params: Params, shared: Params, support: Batch, gradient: Gradient) -> Params:
        task = functional_call(network, tree.within(m, "encoder"), (support.x, support.y, support.mask))
        modulated = dict(params)
        for path in sites:
            weight, bias = (m[_named("generator", path, part)] for part in ("weight", "bias"))
            gamma, beta = nn.functional.linear(task, weight, bias).chunk(2, dim=1)
            modulated[_named(path, "after", "scale")] = gamma
            modulated[_named(path, "after", "shift")] = beta
        return modulated

    return maml(body, rule=chain(exclude(Modulated), scale(rate)), start=Start(values, structure), **options)


class Modulated(Context):
    """Scales and shifts a layer's channels by values that a task is given at its start, zero by themselves."""

    def __init__(self, channels: Channels, like: Tensor) -> None:
        super().__init__()
        self.axis = channels.axis
        self.scale = nn.Parameter(like.new_zeros(channels.count))
        self.shift = nn.Parameter(like.new_zeros(channels.count))

    def forward(self, y: Tensor) -> Tensor:
        """Take outputs ``(n, …)``."""
        return film(y, self.scale, self.shift, self.axis)


def _named(*parts: str) -> str:
    """Return the parts that are not empty as a name: the path of a module that is itself a layer is."""
    return ".".join(part for part in parts if part)


def _first_layer(module: nn.Module) -> nn.Module:
    kinds = (nn.Linear, _ConvNd, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
    first = next((layer for layer in module.modules() if isinstance(layer, kinds)), None)
    if first is None:
        raise UsageError(
            f"{type(module).__name__} has no linear, convolution, embedding, recurrent or attention layer, so the "
            f"task encoder cannot tell what its inputs are"
        )
    return first


def _output_size(module: nn.Module) -> int:
    last = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, _ConvNd))]
    channels = channels_of(last[-1]) if last else None
    if channels is None:
        raise UsageError(f"{type(module).__name__} does not tell how many outputs it has; say so with outputs=")
    return channels.count


class TaskEncoder(nn.Module):
    """Each example by itself, then their mean: so the order of the examples does not matter.

    e = tanh(W₃ · mean over examples and positions of ReLU(W₂ ReLU(f(x) + U y)))

    Positions are the pixels that three convolutions with stride 2 leave of an image, the tokens of a text, or the
    vectors of which an input consists; f is linear, an embedding, or the convolutions, after the kind of the model's
    first layer, ``reads``. y is one-hot for class ids.
    """

    def __init__(self, reads: nn.Module, outputs: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.inputs, self.width = _stem(reads, hidden)
        self.target = nn.Linear(outputs, hidden, bias=False)
        self.middle = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, embedding)

    def forward(self, x: Tree, y: Tensor, mask: Tensor | None) -> Tensor:
        """Return ``(B, embedding)`` for examples ``x`` ``(B, n, *features)`` and ``y`` ``(B, n)`` or ``(B, n, …)``."""
        if not isinstance(x, Tensor):
            raise ShapeError(f"the task encoder reads one tensor x, got {type(x).__name__}")
        features = self._features(x) + self.target(self._targets(y)).unsqueeze(2)
        each = self.middle(features.relu()).relu().mean(2)
        count = each.shape[1] if mask is None else mask.sum(1, keepdim=True).clamp(min=1)
        pooled = zeroed(each, mask).sum(1) / count
        # bounded, so that a task with large targets cannot send the modulation far off
        return self.last(pooled).tanh()

    def _features(self, x: Tensor) -> Tensor:
        """Return ``(B, n, positions, hidden)``."""
        if isinstance(self.inputs, nn.Embedding):
            return self.inputs(x.reshape(*x.shape[:2], -1))
        if isinstance(self.inputs, nn.Linear):
            if x[0, 0].numel() % self.width:
                raise ShapeError(
                    f"the task encoder reads vectors of {self.width} values, as the model's first layer does, but "
                    f"inputs have shape {tuple(x.shape[2:])}"
                )
            return self.inputs(x.reshape(*x.shape[:2], -1, self.width))
        return self.inputs(x.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, x.shape[:2])

    def _targets(self, y: Tensor) -> Tensor:
        """Return ``(B, n, outputs)``."""
        outputs, like = self.target.in_features, self.middle.weight
        if not y.is_floating_point():
            return (y.unsqueeze(-1) == torch.arange(outputs, device=y.device)).to(like.dtype)
        if y[0, 0].numel() != outputs:
            raise ShapeError(
                f"the task encoder reads {outputs} target values of an example, but y has shape {tuple(y.shape)}; "
                f"say how many with outputs="
            )
        return y.reshape(*y.shape[:2], outputs)


def drawn(network: nn.Module, like: Tensor, generator: Generator | None) -> Params:
    """Return weights to start from, drawn uniformly from ± 1/√(inputs of a unit), as ``nn.Linear`` does."""
    weights: Params = {}
    for path, layer in network.named_modules():
        own = dict(layer.named_parameters(recurse=False))
        for name in own:
            fan_in = 1 if isinstance(layer, nn.Embedding) else own["weight"][0].numel()
            weights[f"{path}.{name}"] = uniform(own[name].shape, 1 / sqrt(fan_in), like, generator)
    return weights


def _stem(reads: nn.Module, hidden: int) -> tuple[nn.Module, int]:
    """Return what reads an input, and the width of the vectors that it takes (0 where it takes none)."""
    vectors = ((nn.Linear, "in_features"), (nn.RNNBase, "input_size"), (nn.MultiheadAttention, "embed_dim"))
    for kind, name in vectors:
        if isinstance(reads, kind):
            width = getattr(reads, name)
            return nn.Linear(width, hidden), width
    if isinstance(reads, nn.Embedding):
        return nn.Embedding(reads.num_embeddings, hidden), 0
    assert isinstance(reads, _ConvNd)
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(reads.kernel_size)]
    layers: list[nn.Module] = []
    for channels in (reads.in_channels, hidden, hidden):
        layers += [convolution(channels, hidden, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), 0
