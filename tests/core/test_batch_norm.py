"""Batch normalisation with its own second derivative is PyTorch's, and so are all its derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from headstart.core import batch_norm as module
from headstart.core.batch_norm import batch_norm

EPS = 1e-3
SHAPES = [(4, 3, 2, 3), (2, 1, 1, 2), (5, 2, 1, 1), (6, 3), (3, 2, 4)]


def theirs(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)


def ours(x, weight, bias):
    return batch_norm(x, weight, bias, EPS)


def operands(shape, generator, affine=True):
    x = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    if not affine:
        return x, None, None
    weight, bias = (torch.randn(shape[1], dtype=torch.float64, generator=generator) for _ in range(2))
    return x, weight.requires_grad_(), bias.requires_grad_()


def second(function, parts, given):
    """Return the derivatives of the derivatives in random directions."""
    leaves = [part for part in parts if part is not None and part.requires_grad]
    slopes = given[0].clone().requires_grad_()
    first = torch.autograd.grad(function(*parts), leaves, slopes, create_graph=True)
    ways = [torch.randn(part.shape, dtype=part.dtype, generator=given[1]) for part in first]
    return first, torch.autograd.grad(first, [slopes, *leaves], ways, allow_unused=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
def test_outputs_and_both_derivatives_are_those_of_pytorch(shape, affine):
    found = []
    for function in (ours, theirs):
        generator = torch.Generator().manual_seed(0)
        parts = operands(shape, generator, affine)
        given = torch.randn(shape, dtype=torch.float64, generator=generator), generator
        found.append((function(*parts), *second(function, parts, given)))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "moves", [(True, False, False), (False, True, False), (False, True, True), (True, False, True)]
)
def test_what_needs_no_gradient_gets_none(moves, generator):
    parts = [part.detach().requires_grad_(moved) for part, moved in zip(operands((4, 3, 2, 2), generator), moves)]
    slopes = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=generator)
    state = generator.get_state()
    found = second(ours, parts, (slopes, generator))
    expected = second(theirs, parts, (slopes, generator.set_state(state)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_finite_differences_agree_up_to_the_third_derivative(generator):
    parts = operands((3, 2, 1, 2), generator)
    assert torch.autograd.gradcheck(ours, parts)
    assert torch.autograd.gradgradcheck(ours, parts)

    def derivative(x, weight, bias, slopes):
        return torch.autograd.grad(ours(x, weight, bias), (x, weight), slopes, create_graph=True)

    slopes = torch.randn(3, 2, 1, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradgradcheck(derivative, (*parts, slopes))


def test_a_weight_of_zero_has_a_second_derivative(generator):
    x, weight, bias = operands((4, 3, 2, 2), generator)
    with torch.no_grad():
        weight[1] = 0.0
    slopes, state = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=generator), generator.get_state()
    found = second(ours, (x, weight, bias), (slopes, generator))
    expected = second(theirs, (x, weight, bias), (slopes, generator.set_state(state)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_the_order_in_memory_stays(order, generator):
    x = torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=order).requires_grad_()
    weight = torch.randn(3, generator=generator, requires_grad=True)
    slopes = torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=order).requires_grad_()
    (first,) = torch.autograd.grad(ours(x, weight, None), x, slopes, create_graph=True)
    way = torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=order)
    to_g, to_x = torch.autograd.grad(first, (slopes, x), way)
    assert all(part.is_contiguous(memory_format=order) for part in (first, to_g, to_x))


def test_one_number_a_channel_is_refused_as_by_pytorch():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm(torch.zeros(1, 3, 1, 1), None, None, EPS)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_tangents_and_axes_of_vmap_go_through(generator):
    x, weight, bias = (part.detach() for part in operands((4, 3, 2, 2), generator))
    tangent = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    expected = torch.func.jvp(lambda x: theirs(x, weight, bias), (x,), (tangent,))
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(ours(forward_ad.make_dual(x, tangent), weight, bias))
        torch.testing.assert_close((found.primal, found.tangent), expected)
    torch.testing.assert_close(torch.func.jvp(lambda x: ours(x, weight, bias), (x,), (tangent,)), expected)
    both = torch.stack([x, tangent])
    torch.testing.assert_close(
        torch.func.vmap(lambda x: ours(x, weight, bias))(both),
        torch.stack([theirs(part, weight, bias) for part in both]),
    )


def test_it_is_not_pytorchs_own_derivative(generator, monkeypatch):
    called = []
    monkeypatch.setattr(module, "_second", lambda *args: called.append(args) or (None, None, None))
    parts = operands((4, 3, 2, 2), generator)
    second(ours, parts, (torch.ones(4, 3, 2, 2, dtype=torch.float64), generator))
    assert len(called) == 1
