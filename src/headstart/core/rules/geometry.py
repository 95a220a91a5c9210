"""Geometry: learned linear maps of a gradient, by which adaptation goes downhill in another metric."""

from math import prod

import torch
from torch import Generator, Tensor

from headstart.core import tree
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
                eye = value.new_ones(size) if factor == "diagonal" else torch.eye(size).to(value)
                found[f"{name}.{factor}.{key}"] = eye
        return found

    def transform(m: Params, grads: Params, params: Params) -> Params:
        return {key: _curved(gradient, m, name, key) for key, gradient in grads.items()}

    def shown(m: Params) -> Params:
        return tree.prefixed(name, tree.within(m, name))

    return stateless(transform)._replace(structure=structure, shown=shown)


def _factors(shape: tuple[int, ...]) -> dict[str, int]:
    """Return the factors of a tensor of this shape, with their sizes."""
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
