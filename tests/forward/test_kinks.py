"""ReLU and the maximum of pixels are PyTorch's, and so are all their derivatives."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from headstart.forward import kinks
from headstart.forward.functional import functional
from headstart.forward.kinks import MaxPool
from headstart.forward.over_tasks import _leaky_relu, _relu, over_tasks

POOLS = [
    {"kernel_size": 2}, {"kernel_size": (2, 2), "stride": (2, 2)}, {"kernel_size": 2, "ceil_mode": True},
    {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 2, "stride": 1}, {"kernel_size": 2, "dilation": 2},
]  # fmt: skip
PAIRS = {
    "relu": (lambda x: _relu(nn.ReLU(), {}, x), nn.ReLU()),
    "in place": (lambda x: _relu(nn.ReLU(inplace=True), {}, x), nn.ReLU()),
    "leaky": (lambda x: _leaky_relu(nn.LeakyReLU(0.2), {}, x), nn.LeakyReLU(0.2)),
    **{f"pool {number}": (MaxPool(**options), nn.MaxPool2d(**options)) for number, options in enumerate(POOLS)},
}


class Numbers(TorchDispatchMode):
    """Counts the numbers that ReLUs are taken of."""

    def __init__(self):
        super().__init__()
        self.of_relu = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.relu.default:
            self.of_relu += args[0].numel()
        return func(*args, **(kwargs or {}))


def squares_of(function):
    return lambda x: function(x).square().sum()


@pytest.fixture
def small_is_large(monkeypatch):
    monkeypatch.setattr(kinks, "LARGE", 1)


def images(generator, channels_last=False):
    x = torch.randn(2, 3, 6, 8, generator=generator, dtype=torch.float64).round(decimals=1)
    x[0, 0, :2] = 0.0  # where it has a kink, and several are the largest
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def derivatives(function, x, generator):
    """Return the value, the derivative, that of it in both, and that of that."""
    x, ways = x.clone().requires_grad_(), torch.Generator().manual_seed(1)

    def like(value):
        return torch.randn(value.shape, dtype=value.dtype, generator=ways).requires_grad_()

    value = function(x)
    slopes = like(value)
    (first,) = torch.autograd.grad(value, x, slopes, create_graph=True)
    way = like(first)
    second = torch.autograd.grad(first, (slopes, x), way, create_graph=True, allow_unused=True)
    third = torch.autograd.grad(second[0], way, torch.ones_like(second[0]))
    in_x = torch.zeros_like(x) if second[1] is None else second[1]
    return value, first, second[0], in_x, *third


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_all_derivatives_are_pytorchs(name, channels_last, generator, small_is_large):
    x = images(generator, channels_last)
    ours, theirs = (derivatives(function, x, generator) for function in PAIRS[name])
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
    assert ours[2].stride() == ours[0].stride()


@pytest.mark.parametrize("name", PAIRS)
def test_the_second_derivative_makes_no_zeros(name, generator, small_is_large):
    function, theirs = PAIRS[name]
    for one, none in ((function, True), (theirs, False)):
        value = one(x := images(generator).requires_grad_())
        (first,) = torch.autograd.grad(value, x, torch.ones_like(value).requires_grad_(), create_graph=True)
        (second,) = torch.autograd.grad(first, x, torch.ones_like(first), allow_unused=True)
        assert (second is None) == none and (none or not second.any())


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # in PyTorch's tangents
@pytest.mark.parametrize("name", [name for name in PAIRS if name != "in place"])  # a leaf is not changed in place
def test_what_only_pytorchs_functions_know_is_left_to_them(name, generator, small_is_large):
    ours, theirs = PAIRS[name]
    x = images(generator)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone().requires_grad_(), torch.ones_like(x))
        found = [forward_ad.unpack_dual(function(dual)).tangent for function in (ours, theirs)]
    assert torch.equal(*found)
    found = [torch.func.vmap(torch.func.grad(squares_of(function)))(x[None]) for function in (ours, theirs)]
    assert torch.equal(*found)
    value = ours(leaf := x.clone().requires_grad_())
    many = torch.autograd.grad(value, leaf, torch.ones(2, *value.shape, dtype=x.dtype), is_grads_batched=True)[0]
    assert torch.equal(many[0], many[1]) and many.any()


@pytest.mark.parametrize("options", POOLS)
@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (2, 3, 7, 5), (3, 4, 4)])
def test_the_maximum_is_pytorchs(options, shape, generator):
    x = torch.randn(shape, generator=generator)
    x[0, 0, 0, ...] = torch.nan
    with torch.no_grad():
        assert torch.equal(MaxPool(**options)(x).nan_to_num(9), nn.MaxPool2d(**options)(x).nan_to_num(9))


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
def test_it_stands_in_a_function_of_all_tasks(taskmap, generator):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten())
    function = functional(net, taskmap=taskmap)
    x = torch.randn(3, 5, 1, 9, 9, generator=generator)
    with torch.no_grad():
        found, _ = function.apply(function.params, {}, x)
        torch.testing.assert_close(found, net(x.flatten(0, 1)).view(3, 5, -1))


@pytest.mark.parametrize("shape", [(8, 8), (2, 2, 3, 8, 8), (0, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8)])
def test_what_pytorch_refuses_is_refused(shape):
    with torch.no_grad(), pytest.raises(RuntimeError, match="expected for input|Expected 3D or 4D"):
        MaxPool(2)(torch.zeros(shape))


@pytest.mark.parametrize("large", [True, False])
def test_a_relu_after_the_maximum_is_one_before_it(generator, monkeypatch, large):
    monkeypatch.setattr(kinks, "LARGE", 1 if large else 2**30)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 2), nn.Flatten()
    net = nn.Sequential(*layers).double()
    x = torch.randn(3, 5, 1, 8, 8, generator=generator, dtype=torch.float64)
    found = []
    for taskmap in ("vmap", "loop"):  # which runs the layers as they are
        function = functional(net, taskmap=taskmap)
        params = {name: value.expand(3, *value.shape).clone() for name, value in function.params.items()}
        leaves = [value.requires_grad_() for value in params.values()]
        with Numbers() as numbers:
            out, _ = function.apply(params, {}, x)
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(slope.square().sum() for slope in first), leaves)
        found.append((numbers.of_relu, [out, *first, *second]))
    (few, ours), (many, theirs) = found
    assert few * 4 == many
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_hook_sees_what_it_always_saw(generator):
    seen = []
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    net[1].register_forward_hook(lambda module, given, out: seen.append(out.shape[-2:]))
    over_tasks(net, dict(net.named_parameters()), {}, torch.randn(3, 5, 1, 8, 8, generator=generator))
    assert seen == [(6, 6)] * len(seen) and seen
