"""Convolutions with their own second derivative are PyTorch's, and so are all their derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from headstart.forward import convolution as module
from headstart.forward.convolution import conv2d

#: (shape of x, shape of the kernels, stride, padding, dilation, groups)
CASES = {
    "plain": ((2, 3, 5, 6), (4, 3, 3, 3), (1, 1), (0, 0), (1, 1), 1),
    "padded": ((2, 3, 5, 6), (4, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "strides that leave a rest": ((2, 2, 6, 8), (3, 2, 3, 2), (2, 3), (1, 0), (1, 1), 1),
    "holes": ((1, 2, 7, 6), (3, 2, 3, 2), (1, 1), (1, 2), (2, 2), 1),
    "groups": ((2, 4, 4, 5), (6, 2, 3, 3), (1, 1), (1, 1), (1, 1), 2),
    "each channel by itself": ((2, 3, 4, 5), (3, 1, 3, 3), (2, 1), (1, 1), (1, 1), 3),
    "one point": ((3, 2, 1, 1), (4, 2, 1, 1), (1, 1), (0, 0), (1, 1), 1),
}


def operands(case, generator):
    x, weight = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in CASES[case][:2])
    bias = torch.randn(len(weight), dtype=torch.float64, generator=generator)
    return x, weight, bias


def derivatives(function, parts, case, seed=1):
    generator = torch.Generator().manual_seed(seed)
    out = function(*parts, *CASES[case][2:])
    leaves = [part for part in parts if part is not None and part.requires_grad]
    slopes = torch.randn(out.shape, dtype=out.dtype, generator=generator).requires_grad_()
    first = torch.autograd.grad(out, leaves, slopes, create_graph=True)
    ways = [torch.randn(part.shape, dtype=part.dtype, generator=generator) for part in first]
    return out, first, torch.autograd.grad(first, [slopes, *leaves], ways, allow_unused=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "moves", [(1, 1, 1), (1, 1, None), (0, 1, 1), (1, 0, 0), (0, 1, None), (0, 0, 1)], ids=lambda moves: str(moves)
)
def test_outputs_and_both_derivatives_are_those_of_pytorch(case, moves, generator):
    parts = [
        None if moved is None else part.requires_grad_(bool(moved))
        for part, moved in zip(operands(case, generator), moves)
    ]
    found, expected = (derivatives(function, parts, case) for function in (conv2d, F.conv2d))
    for ours, theirs in zip(found[2], expected[2]):
        # what is not there is zero
        both = [
            part if part is not None else torch.zeros_like(ours if theirs is None else theirs)
            for part in (ours, theirs)
            if ours is not None or theirs is not None
        ]
        if both:
            torch.testing.assert_close(*both, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["padded", "strides that leave a rest", "groups"])
def test_finite_differences_agree_up_to_the_third_derivative(case, generator):
    x, weight, bias = (part.requires_grad_() for part in operands(case, generator))
    x, weight = x[:1, :, :3, :3].detach().requires_grad_(), weight

    def function(x, weight, bias):
        return conv2d(x, weight, bias, *CASES[case][2:])

    assert torch.autograd.gradcheck(function, (x, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, weight, bias), fast_mode=True)
    slopes = torch.randn_like(function(x, weight, bias)).requires_grad_()

    def derivative(x, weight, slopes):
        return torch.autograd.grad(function(x, weight, bias), (x, weight), slopes, create_graph=True)

    assert torch.autograd.gradgradcheck(derivative, (x, weight, slopes), fast_mode=True)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_padding_by_name_tangents_autocast_and_vmap_are_left_to_pytorch(generator, monkeypatch):
    x, weight, bias = operands("padded", generator)
    rest = CASES["padded"][2:]

    def refuse(*args):
        raise AssertionError("this is for plain passes only")

    monkeypatch.setattr(module._Convolved, "apply", refuse)
    with pytest.raises(AssertionError, match="plain passes"):
        conv2d(x, weight, bias, *rest)
    expected = F.conv2d(x, weight, bias, *rest)
    torch.testing.assert_close(conv2d(x, weight, bias, (1, 1), "same", (1, 1), 1), expected)
    tangent = torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(conv2d(x, forward_ad.make_dual(weight, tangent), bias, *rest))
        torch.testing.assert_close(found.tangent, F.conv2d(x, tangent, None, *rest))
    torch.testing.assert_close(torch.func.vmap(lambda x: conv2d(x, weight, bias, *rest))(x[None]), expected[None])
    with torch.autocast("cpu", torch.bfloat16):
        assert conv2d(x.float(), weight.float(), bias.float(), *rest).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_slopes_may_have_tangents_and_come_in_batches(generator):
    parts, rest = [part.requires_grad_() for part in operands("padded", generator)], CASES["padded"][2:]
    slopes, *batch = (torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=generator) for _ in range(4))
    found = []
    for function in (conv2d, F.conv2d):
        out = function(*parts, *rest)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(slopes, batch[0])
            duals = torch.autograd.grad(out, parts, dual, retain_graph=True)
            tangents = [forward_ad.unpack_dual(part).tangent for part in duals]
        some = torch.autograd.grad(out, parts, torch.stack(batch), is_grads_batched=True, create_graph=True)
        found.append((tangents, some, torch.autograd.grad(some[0].pow(3).sum(), parts[1])))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("change", [lambda part: part, lambda part: torch.complex(part, part.sin())])
def test_complex_numbers_and_one_image_alone_are_left_to_pytorch(change, generator):
    x, weight, bias = (change(part).requires_grad_() for part in operands("padded", generator))
    image = x[0] if not x.is_complex() else x
    found = []
    for function in (conv2d, F.conv2d):
        out = torch.view_as_real(function(image, weight, bias, *CASES["padded"][2:]) * (1 + 0j))
        first = torch.autograd.grad(out.pow(3).sum(), (x, weight, bias), create_graph=True)
        total = sum((part * part.conj()).sum().real for part in first)
        found.append((out, first, torch.autograd.grad(total, (x, weight, bias))))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_images_of_which_no_slope_is_wanted_cost_no_pass_back(generator, monkeypatch):
    x, weight, bias = operands("padded", generator)
    asked, back = [], module._back
    monkeypatch.setattr(module, "_back", lambda *args: asked.append(args[-1]) or back(*args))
    derivatives(conv2d, (x, weight.requires_grad_(), bias), "padded")
    assert asked == [(False, True, False)], "the second derivative of what is linear in the kernels is zero"
