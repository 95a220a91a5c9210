"""Gradients that nobody reads have the derivatives of those that are computed."""

import pytest
import torch
import torch.nn.functional as F

from headstart.core.unread import is_unread, is_unread_later, unread, unread_later, without_numbers
from headstart.forward.convolution import conv2d
from headstart.forward.product import product


def convolved(x, weight, bias):
    return conv2d(x, weight, bias, (1, 1), (1, 1), (1, 1), 1)


def linear(x, weight, bias):
    return F.linear(x, weight, bias)


def each_linear(x, weight, bias):
    return torch.stack([F.linear(*parts) for parts in zip(x, weight, [None] * len(x) if bias is None else bias)])


#: (as here, as PyTorch has it, the shapes of x, w and b)
LAYERS = {
    "convolution": (convolved, lambda *parts: F.conv2d(*parts, padding=1), ((2, 3, 4, 5), (4, 3, 3, 3), (4,))),
    "linear": (product, linear, ((5, 3), (4, 3), (4,))),
    "linear, of each task": (product, each_linear, ((2, 5, 3), (2, 4, 3), (2, 4))),
}
#: What of x, w and b moves, 0: it is there and does not; and along what of it the derivative is taken.
PAIRS = [
    (moves, along)
    for moves in [(1, 1, 1), (0, 1, 1), (1, 1, None), (0, 1, None), (1, 0, 1)]
    for along in [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)]
    if any(moved and way for moved, way in zip(moves, along))
]


def drawn(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def second(function, parts, ways, read):
    """Return the outputs, the first derivatives, and the second along ``ways``, of a function that bends."""
    moving = [part for part in parts if part is not None and part.requires_grad]
    out = function(*parts)
    with unread(not read):
        first = torch.autograd.grad(out.sin().sum(), moving, create_graph=True)
    pairs = [(slope, way) for slope, way in zip(first, ways) if way is not None and slope.requires_grad]
    slopes, ways = zip(*pairs)
    return out, first, torch.autograd.grad(slopes, moving, ways, materialize_grads=True)


@pytest.mark.parametrize(("moves", "along"), PAIRS, ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_second_derivatives_are_those_of_pytorch_whatever_moves(layer, moves, along):
    ours, theirs, shapes = LAYERS[layer]
    parts = [None if m is None else part.requires_grad_(bool(m)) for part, m in zip(drawn(shapes, 0), moves)]
    ways = [way if a else None for way, a, m in zip(drawn(shapes, 1), along, moves) if m]
    out, first, found = second(ours, parts, ways, read=False)
    expected = second(theirs, parts, ways, read=True)
    torch.testing.assert_close(out, expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected[2], rtol=1e-10, atol=1e-10)
    moving = [name for name, m in zip(("x", "weight", "bias"), moves) if m]
    for name, slope, right in zip(moving, first, expected[1]):
        if name == "weight":  # so that a result that reads it is none either
            assert slope.isnan().all()
            assert slope.shape == right.shape
        else:
            torch.testing.assert_close(slope, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", LAYERS)
def test_outside_all_gradients_have_numbers(layer):
    ours, theirs, shapes = LAYERS[layer]
    parts = [part.requires_grad_() for part in drawn(shapes, 0)]
    with unread_later(True):
        out = ours(*parts)
        assert is_unread_later()
        assert not is_unread()
    found, expected = (torch.autograd.grad(each.sin().sum(), parts) for each in (out, theirs(*parts)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_an_error_ends_it_too():
    with pytest.raises(ZeroDivisionError), unread(True), unread_later(True):
        raise ZeroDivisionError
    assert not (is_unread() or is_unread_later())


def test_what_has_no_numbers_takes_the_memory_of_one():
    like = torch.zeros(300, 200)
    assert without_numbers(like).untyped_storage().nbytes() == 4
    assert without_numbers(like).dtype == torch.float32
