"""Warped gradients: layers in M between those that adapt, which turn and stretch every inner step.

With a layer T behind y = W x, the inner loop moves W alone, and the product T W takes the gradient step of T W itself,
times T Tᵀ: M is a metric, learned across tasks.
"""

from collections.abc import Callable, Collection
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from headstart.algorithms.maml import Rate, maml
from headstart.algorithms.reading import read
from headstart.core.objective import after_adapting, backprop, query_losses
from headstart.core.parameters import Leaf, Structural, What, choose, matches, role_of
from headstart.core.rules import chain, scale, unit_mask
from headstart.errors import UnknownNameError, UsageError, check_known
from headstart.forward.surgery import followed, replaced
from headstart.schema import Positive, extends
from headstart.types import Episodes, Info, Learner, Meta

Warpable: TypeAlias = nn.Linear | _ConvNd
"""A layer that something can be put behind, as wide as its outputs."""


class Warp(Structural):
    """``x + layer(x)``: a warp layer that changes nothing while its layer is zero."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return the warped activations, of the same shape."""
        return x + self.layer(x)


@extends(maml)
def t_net(module: nn.Module, *, rate: Rate = 0.01, **options: Any) -> Learner:
    """T-net: `maml` with a learned linear map T behind every layer, f(x) = T^L W^L σ(… σ(T¹ W¹ x)); M = the T.

    The inner loop moves W and bias alone; T starts as the identity and only the outer loop learns it. The last layer
    has its T, too. As in the authors' code T comes behind the bias, T (W x + b), and is a 1×1 convolution behind a
    convolution. Layers whose weights are frozen have none, and neither have those inside PyTorch's attention and
    transformer layers. M holds ``<layer>.after.layer.weight``, the layer's own parameters are ``<layer>.layer.…``.

    Raises:
        UsageError: the model has no layer to put T behind.

    Reference: Lee, Choi 2018, arXiv:1801.05558.

    >>> import headstart
    >>> sorted(t_net(headstart.mlp(2, 3, hidden=(4,))).init(None).structure)
    ['head.after.layer.weight', 'hidden1.after.layer.weight']
    """
    layers = _warpable(module)
    if not layers:
        raise _nothing_to_warp(module, "with trainable weights")
    return maml(_followed(module, layers, _identity), rate=rate, **options)


@extends(maml, without=("rule",))
def mt_net(
    module: nn.Module, *, rate: Rate = 0.01, temperature: Positive = 1.0, hard: bool = False, **options: Any
) -> Learner:
    """MT-net: `t_net` that also learns which units move, θᵢ ← θᵢ − α mask ∘ ∇loss; M = the T and the masks' logits.

    Each output unit of a layer has one gate, which its row of W and its bias share. A task draws the gates once, by
    its seed; `rules.unit_mask` says how. M holds ``mask.<layer>.layer`` beside what `t_net` has.

    Args:
        temperature: how softly the Gumbel-softmax draws the gates: a low one near 0 and 1.
        hard: whether gates are 0 and 1, as in the authors' code, with the derivatives of soft ones; the learner is
            then not ``exact``.
        options: those of `maml`.

    Raises:
        UsageError: the model has no layer to put T behind.

    Reference: Lee, Choi 2018, arXiv:1801.05558.

    >>> import headstart
    >>> sorted(mt_net(headstart.mlp(2, 3, hidden=())).init(None).structure)
    ['head.after.layer.weight', 'mask.head.layer']
    """
    gates = unit_mask(temperature=temperature, hard=hard)
    return t_net(module, rule=chain(gates, scale(rate)), **options)


@extends(maml)
def warp_grad(
    module: nn.Module,
    *,
    warps: What | None = None,
    rate: Rate = 0.01,
    objective: Literal["trajectory", "meta"] = "trajectory",
    **options: Any,
) -> Learner:
    """WarpGrad: warp layers between the layers that adapt, learned across tasks by what they make of single steps.

    With ``objective="trajectory"``, M = φ, the warp layers, descends the paper's objective, each task's mean over its
    inner steps t = 0 … T − 1 of

        loss(sg(θ_t) − α ∇loss(sg(θ_t), φ; S), φ; Q)        sg(·): taken as a constant

    so nothing is differentiated through more than one step. θ descends the loss after all T steps as in `maml` (the
    paper's Warp-MAML). The gradient is thus not that of one loss, and the learner is not ``exact``; it costs about two
    adaptations. With ``adjoint=FirstOrder()`` both take the inner gradients as constants. With ``objective="meta"``, θ
    and φ both descend the loss after all T steps, exactly.

    The warp layers put in here are linear and residual, x + W x, with W = 0 at the start: a matrix behind a linear
    layer, a 3×3 convolution behind a convolution, each before the normalisation and the nonlinearity that follow. For
    others, put `Structural` modules into the model: where it holds some and ``warps`` is not given, it is taken as it
    is.

    Args:
        warps: the linear and convolution layers to put warp layers behind, by name or type; by default all but those
            of the head.
        objective: what the warp layers descend: the mean loss after single steps along the way (``"trajectory"``), or
            the loss after all of them (``"meta"``).
        options: those of `maml`.

    Raises:
        UnknownNameError: ``warps`` chooses no linear or convolution layer; an objective that does not exist.
        UsageError: the model has no layer to put a warp behind; no inner steps for the trajectory objective.

    Reference: Flennerhag, Rusu, Pascanu, Visin, Yin, Hadsell 2019, arXiv:1909.00025.

    >>> import headstart
    >>> learner = warp_grad(headstart.mlp(2, 3, hidden=(4,)), steps=2, rate=0.1)
    >>> sorted(learner.init(None).structure)
    ['hidden1.after.layer.weight']
    """
    check_known("objective", objective, ("trajectory", "meta"))
    has_warps = any(p.requires_grad and role_of(module, name) == "structure" for name, p in module.named_parameters())
    learner = maml(module if has_warps and warps is None else _warped(module, warps), rate=rate, **options)
    if objective == "meta":
        return learner
    if not learner.steps:
        raise UsageError("the trajectory objective judges inner steps; take steps=1 or more, or objective='meta'")
    return learner._replace(gradient=_along_trajectories, exact=False)


def _along_trajectories(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Meta, Info]:
    """Return the gradient of the learner's own loss for θ and that of the trajectory objective for M."""
    own = learner.objective or after_adapting

    def both(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Tensor, Info]:
        params, structure = ({name: value.detach() for name, value in part.items()} for part in meta)
        losses, info = own(learner, Meta(meta.params, structure), episodes)
        return losses + _step_losses(learner, Meta(params, meta.structure), episodes), info

    return backprop(learner._replace(objective=both), meta, episodes)


def _step_losses(learner: Learner, meta: Meta, episodes: Episodes) -> Tensor:
    """Return each task's query loss ``(B,)`` after a single step from each point of its path, in the mean."""
    assert learner.path is not None
    assert learner.steps is not None
    path = learner.path(meta, episodes.support, range(1, learner.steps + 1), detached=True)
    return torch.stack([query_losses(learner, adapted, episodes.query) for adapted, _ in path]).mean(0)


def _warped(module: nn.Module, warps: What | None) -> nn.Module:
    layers, head = _warpable(module), read(module).head
    behind = [path for path in layers if head and not matches(path, head)] if warps is None else _chosen(layers, warps)
    if not behind:
        raise _nothing_to_warp(module, f"with trainable weights before its head {head!r}" if head else "before a head")
    return _followed(module, behind, _zero)


def _warpable(module: nn.Module) -> dict[str, Warpable]:
    found: dict[str, Warpable] = {}

    def look(path: str, layer: nn.Module) -> None:
        if isinstance(layer, Warpable) and layer.weight.requires_grad:
            if role_of(module, f"{path}.weight") == "initial":
                found[path] = layer

    replaced(module, look)  # surgery knows where it cannot cut
    return found


def _chosen(layers: dict[str, Warpable], warps: What) -> set[str]:
    leaves = {
        name: Leaf(name, tuple(parameter.shape), type(layer))
        for path, layer in layers.items()
        for name, parameter in layer.named_parameters(prefix=path, recurse=False)
    }
    try:
        names = choose(leaves, warps)
    except UnknownNameError as error:
        raise UnknownNameError(f"warps= must choose among linear and convolution layers: {error}") from None
    return {name.rpartition(".")[0] for name in names}


def _followed(module: nn.Module, paths: Collection[str], make: Callable[[Warpable], nn.Module]) -> nn.Module:
    return followed(module, lambda path, it: make(it) if path in paths and isinstance(it, Warpable) else None)


def _identity(layer: Warpable) -> Structural:
    after = _square(layer, 1)
    with torch.no_grad():
        (nn.init.eye_ if isinstance(after, nn.Linear) else nn.init.dirac_)(after.weight)
    return Structural(after)


def _zero(layer: Warpable) -> Structural:
    after = _square(layer, 3)
    nn.init.zeros_(after.weight)
    return Warp(after)


def _square(layer: Warpable, kernel: int) -> Warpable:
    # made on the meta device, as drawing weights would move the global generator
    like: dict[str, Any] = {"bias": False, "device": "meta", "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.out_features, layer.out_features, **like).to_empty(device=layer.weight.device)
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(layer.kernel_size) - 1]
    square = convolution(layer.out_channels, layer.out_channels, kernel, padding=kernel // 2, **like)
    return square.to_empty(device=layer.weight.device)


def _nothing_to_warp(module: nn.Module, which: str) -> UsageError:
    kinds = sorted({type(layer).__name__ for layer in module.modules() if not list(layer.children())})
    return UsageError(
        f"{type(module).__name__} has no linear or convolution layer {which} to put another behind "
        f"(those inside PyTorch's attention and transformer layers cannot be changed); its layers: {', '.join(kinds)}"
    )
