"""Geometry: learned linear maps of a gradient, by which adaptation goes downhill in another metric."""

from math import prod

import torch
from torch import Generator, Tensor

from headstart.core import tree
from headstart.core.rules.atoms import per_weight
from headstart.core.rules.rule import Rule, stateless
from headstart.types import Params


def curvature(*, name: str = "curvature") -> Rule:
    """Transform each tensor's gradient by learned matrices along its axes: G ×₃ M_f ×₂ M_i ×₁ M_o (Meta-Curvature).

    A convolution's weight ``(out, in, *kernel)`` has an output factor M_o ``(out, out)``, an input factor M_i
    ``(in, in)`` and a filter factor M_f ``(d, d)`` with d the size of the kernel; a linear layer's ``(out, in)`` the
    first two; a vector, such as a bias, a diagonal. All start as identities, so that adaptation starts as without.

    Reference: Park, Oliva 2019, arXiv:1902.03356, their MC1.
    """

    def structure(params: Params, generator: Generator | None) -> Params:
        found: Params = {}
        for key, value in params.items():
            for factor, size in _factors(tuple(value.shape)).items():
                start = torch.ones(size) if factor == "diagonal" else torch.eye(size)
                found[f"{name}.{factor}.{key}"] = start.to(value)
        return found

    rule = stateless(lambda m, grads, params: {key: _curved(g, m, name, key) for key, g in grads.items()})
    return rule._replace(structure=structure, shown=lambda m: tree.prefixed(name, tree.within(m, name)))


def diagonal(*, name: str = "diagonal") -> Rule:
    """Multiply each weight's gradient by a learned positive number: a diagonal preconditioner, from the identity.

    M holds the logarithms (``log_diagonal.<parameter>``), so that every step goes downhill; a step size is to follow.
    """
    return per_weight(1.0, positive=True, name=name)


def kronecker(*, name: str = "kronecker") -> Rule:
    """Precondition each tensor's gradient by learned Kronecker factors: G → (A Aᵀ) G (B Bᵀ), from the identity.

    G is a tensor's gradient seen as a matrix ``(out, rest)``, A is ``(out, out)`` and B ``(rest, rest)``; a vector has
    a diagonal d and goes to d² ∘ g. Products with their own transposes are symmetric and positive semi-definite
    whatever the outer loop does to M, so a step never goes uphill. (`curvature` is not bound to that, and is smaller
    for convolutions: it splits ``rest`` into input and kernel.)

    M holds A, B and d as ``kronecker.output.<parameter>``, ``kronecker.input.…`` and ``kronecker.diagonal.…``.

    Reference: Martens, Grosse 2015, arXiv:1503.05671, for the structure (K-FAC). Here the outer loop learns the
    factors; they are not estimates of the Fisher matrix.
    """

    def structure(params: Params, generator: Generator | None) -> Params:
        found: Params = {}
        for key, value in params.items():
            if value.ndim < 2:
                found[f"{name}.diagonal.{key}"] = torch.ones_like(value)
            else:
                found[f"{name}.output.{key}"] = torch.eye(value.shape[0]).to(value)
                found[f"{name}.input.{key}"] = torch.eye(value[0].numel()).to(value)
        return found

    def conditioned(m: Params, key: str, gradient: Tensor) -> Tensor:
        if gradient.ndim < 3:
            return gradient * m[f"{name}.diagonal.{key}"].square()
        left, right = (_gram(m[f"{name}.{side}.{key}"]) for side in ("output", "input"))
        return (left @ gradient.flatten(2) @ right).view(gradient.shape)

    def shown(m: Params) -> Params:
        own = tree.within(m, name).items()
        return {f"{name}.{key}": v.square() if key.startswith("diagonal.") else _gram(v) for key, v in own}

    rule = stateless(lambda m, grads, params: {key: conditioned(m, key, g) for key, g in grads.items()})
    return rule._replace(structure=structure, shown=shown)


def _gram(factor: Tensor) -> Tensor:
    return factor @ factor.T


def _factors(shape: tuple[int, ...]) -> dict[str, int]:
    if len(shape) < 2:
        return {"diagonal": prod(shape)}
    factors = {"output": shape[0], "input": shape[1]}
    return factors | ({"filter": prod(shape[2:])} if len(shape) > 2 else {})


def _curved(gradient: Tensor, m: Params, name: str, key: str) -> Tensor:
    if gradient.ndim < 3:
        return gradient * m[f"{name}.diagonal.{key}"].view(gradient.shape[1:])
    # (B, out, in, d): each matrix product takes one axis
    curved = gradient.flatten(3) if gradient.ndim > 4 else gradient
    if gradient.ndim > 3:
        curved = curved @ m[f"{name}.filter.{key}"].T
        curved = torch.einsum("ji,boid->bojd", m[f"{name}.input.{key}"], curved)
        curved = torch.einsum("po,boid->bpid", m[f"{name}.output.{key}"], curved)
    else:
        curved = m[f"{name}.output.{key}"] @ curved @ m[f"{name}.input.{key}"].T
    return curved.view(gradient.shape)
