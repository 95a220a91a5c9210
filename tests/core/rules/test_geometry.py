"""Learned geometries against their equations."""

import pytest
import torch

from headstart.core.rules import curvature, diagonal, kronecker
from headstart.testing import check_rule

SHAPES = {"conv": (3, 2, 2, 2), "linear": (3, 4), "bias": (3,), "scalar": ()}


def case(rule, generator):
    """Return random M, and gradients of two tasks, in float64."""
    theta = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    m = {
        key: torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for key, value in rule.structure(theta, None).items()
    }
    grads = {name: torch.randn(2, *shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}
    return m, grads


@pytest.mark.parametrize("make", [curvature, diagonal, kronecker])
def test_a_geometry_starts_as_the_identity_and_is_exact(make, generator):
    rule = make()
    check_rule(rule)
    _, grads = case(rule, generator)
    start = rule.structure({name: value[0] for name, value in grads.items()}, None)
    torch.testing.assert_close(rule.update(start, {}, grads, grads, 0)[0], grads)


@pytest.mark.parametrize("make", [curvature, diagonal, kronecker])
def test_a_geometry_is_exact_far_from_the_identity(make):
    rule = make()

    def structure(params, generator):
        return {
            key: value + 0.5 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
            for key, value in rule.structure(params, generator).items()
        }

    check_rule(rule._replace(structure=structure))


def test_kronecker_is_one_matrix_on_the_flattened_gradient(generator):
    rule = kronecker()
    m, grads = case(rule, generator)
    out, _ = rule.update(m, {}, grads, grads, 0)
    for name in ("conv", "linear"):
        a, b = m[f"kronecker.output.{name}"], m[f"kronecker.input.{name}"]
        whole = torch.kron(a @ a.T, b @ b.T)
        for task in range(2):
            torch.testing.assert_close(out[name][task].flatten(), whole @ grads[name][task].flatten())
        assert torch.linalg.eigvalsh(whole).min() > -1e-12
        assert (out[name] * grads[name]).flatten(1).sum(1).min() > 0, "a step must go downhill"
    for name in ("bias", "scalar"):
        torch.testing.assert_close(out[name], m[f"kronecker.diagonal.{name}"] ** 2 * grads[name])
    shown = rule.shown(m)
    assert shown.keys() == m.keys()
    torch.testing.assert_close(
        shown["kronecker.output.linear"] @ grads["linear"][0] @ shown["kronecker.input.linear"], out["linear"][0]
    )


def test_curvature_multiplies_along_each_axis(generator):
    rule = curvature()
    m, grads = case(rule, generator)
    out, _ = rule.update(m, {}, grads, grads, 0)
    torch.testing.assert_close(rule.shown(m), m)

    left, right = m["curvature.output.linear"], m["curvature.input.linear"]
    torch.testing.assert_close(out["linear"][1], left @ grads["linear"][1] @ right.T)

    outs, ins, inside = (m[f"curvature.{factor}.conv"] for factor in ("output", "input", "filter"))
    g = grads["conv"][0].flatten(2)
    expected = torch.zeros_like(g)
    for o in range(3):
        for i in range(2):
            for f in range(4):
                for p in range(3):
                    for j in range(2):
                        for e in range(4):
                            expected[o, i, f] += outs[o, p] * ins[i, j] * inside[f, e] * g[p, j, e]
    torch.testing.assert_close(out["conv"][0].flatten(2), expected)
    for name in ("bias", "scalar"):
        expected = m[f"curvature.diagonal.{name}"].view(SHAPES[name]) * grads[name]
        torch.testing.assert_close(out[name], expected)


def test_a_diagonal_stays_positive_whatever_the_outer_loop_does(generator):
    rule = diagonal()
    m, grads = case(rule, generator)
    out, _ = rule.update({key: value - 3 for key, value in m.items()}, {}, grads, grads, 0)
    assert all(bool((out[name].sign() == grads[name].sign()).all()) for name in grads)
    assert rule.shown(m).keys() == {f"diagonal.{name}" for name in SHAPES}
