"""MMAML: a network reads the support set and modulates the model before it adapts."""

from typing import Any

from torch import Generator, Tensor, nn
from torch.nn.modules.conv import _ConvNd

from headstart.algorithms.encoder import Sizes, drawn, embedded, encoder
from headstart.algorithms.film import Channels, channels_of, film, layers_to_modulate
from headstart.algorithms.maml import maml
from headstart.algorithms.variants import Gradient, Start
from headstart.core import tree
from headstart.core.patterns import What
from headstart.core.roles import Context
from headstart.core.rules import chain, exclude, scale
from headstart.errors import UsageError
from headstart.forward.surgery import followed
from headstart.types import Batch, Learner, Params


def mmaml(
    module: nn.Module,
    *,
    embedding: int = 64,
    hidden: int = 64,
    what: What | None = None,
    outputs: int | None = None,
    rate: float = 0.005,
    **options: Any,
) -> Learner:
    """MMAML: `maml` of a model whose hidden layers are modulated by an embedding of the task.

    e = encoder(Sᵢ); (γ, β)_layer = G_layer e + g_layer; h ← (1 + γ) h + β channel by channel; then θ adapts as in
    MAML, with γ and β held fixed. M = the encoder (``encoder.…``) and the generators (``generator.…``), which the
    outer loop learns together with θ. The generators start at zero, so that the model starts as the module is.

    The encoder works on every example (x, y) by itself and takes the mean (`TaskEncoder`), so the order of the
    support examples does not matter. The paper's reads (x, y) with a bidirectional LSTM for curves, and pools images
    without their labels; here class ids are read as well, one-hot. Where classes are numbered
    arbitrarily, as in few-shot classification, the encoder has to learn to leave the numbers aside.

    Args:
        module: the model.
        embedding: size of e.
        hidden: width of the encoder's layers.
        what: the layers to modulate: names, a type or a predicate; by default every hidden one (behind its
            normalisation, where it has one).
        outputs: number of classes, or of target values; by default the size of the module's last layer.
        rate: the inner step size. Modulation makes gradients longer, so it bears smaller ones than `maml`.
        options: those of `maml`.

    Raises:
        UsageError: a size below 1, or a module whose layers do not tell what its inputs and outputs are.

    Reference: Vuorio, Sun, Hu, Lim 2019, arXiv:1910.13616 (FiLM modulation); FiLM: Perez et al. 2017,
    arXiv:1709.07871.

    >>> import torch, headstart
    >>> learner = mmaml(headstart.mlp(1, 1), loss="mse", embedding=8, hidden=16)
    >>> meta = learner.init(torch.Generator().manual_seed(0))
    >>> {name: tuple(value.shape) for name, value in meta.structure.items() if name.startswith("generator")}
    {'generator.hidden1.weight': (80, 8), 'generator.hidden1.bias': (80,), 'generator.hidden2.weight': (80, 8), \
'generator.hidden2.bias': (80,)}
    """
    for name, size in {"embedding": embedding, "hidden": hidden}.items():
        if size < 1:
            raise UsageError(f"{name} must be at least 1, got {size}")
    sites = layers_to_modulate(module, what)
    sizes = Sizes(_first_layer(module), outputs or _output_size(module), hidden, embedding)
    like = next(module.parameters()).detach()
    body = followed(module, lambda path, _: Modulated(sites[path], like) if path in sites else None)
    return maml(body, rule=chain(exclude(Modulated), scale(rate)), start=_modulation(sites, sizes), **options)


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


def _modulation(sites: dict[str, Channels], sizes: Sizes) -> Start:
    """Return the start that sets scales and shifts by the embedding of the support set."""
    network = encoder(sizes)

    def structure(params: Params, generator: Generator | None) -> Params:
        like = next(iter(params.values()))
        parts = tree.prefixed("encoder", drawn(network, like, generator))
        for path, channels in sites.items():
            parts[_named("generator", path, "weight")] = like.new_zeros(2 * channels.count, sizes.embedding)
            parts[_named("generator", path, "bias")] = like.new_zeros(2 * channels.count)
        return parts

    def values(m: Params, params: Params, shared: Params, support: Batch, gradient: Gradient) -> Params:
        task = embedded(network, tree.within(m, "encoder"), support)
        modulated = dict(params)
        for path in sites:
            weight, bias = (m[_named("generator", path, part)] for part in ("weight", "bias"))
            gamma, beta = nn.functional.linear(task, weight, bias).chunk(2, dim=1)
            modulated[_named(path, "after", "scale")] = gamma
            modulated[_named(path, "after", "shift")] = beta
        return modulated

    return Start(values, structure)


def _named(*parts: str) -> str:
    """Return a name of those parts that are not empty: the path of a module that is itself a layer is."""
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
