"""Batch normalisation with its own second derivative is PyTorch's, and so are all its derivatives."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from headstart.forward import batch_norm as module
from headstart.forward.batch_norm import TaskStatistics, batch_norm, plain
from headstart.forward.functional import functional

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


def by_means(x, weight, bias):
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + EPS) * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)


@pytest.mark.parametrize("weigh", [lambda x, weight: weight, lambda x, weight: weight * x.square().mean((0, 2, 3))])
def test_derivatives_are_right_where_slopes_and_weights_come_from_the_inputs(weigh):
    found = []
    for function in (ours, by_means):
        generator = torch.Generator().manual_seed(0)
        x, weight, bias = operands((3, 2, 1, 2), generator)
        out = function(x, weigh(x, weight), bias).sin().square().sum()
        for _ in range(3):  # each with a graph for the next
            slopes = torch.autograd.grad(out, (x, weight, bias), create_graph=True)
            found.append(slopes)
            out = torch.stack([(part * torch.randn(part.shape, generator=generator)).sum() for part in slopes]).sum()
    torch.testing.assert_close(found[:3], found[3:], rtol=1e-9, atol=1e-9)


def test_slopes_that_are_constant_have_no_slope_in_the_third_derivative(generator):
    x, weight, bias = operands((3, 2, 1, 2), generator)
    slopes = torch.randn(3, 2, 1, 2, dtype=torch.float64, generator=generator)
    first = torch.autograd.grad(ours(x, weight, bias), (x, weight, bias), slopes, create_graph=True)
    ways = [torch.randn(part.shape, dtype=part.dtype, generator=generator) for part in first]
    found = torch.autograd.grad(first, (x, weight, bias), ways, create_graph=True, allow_unused=True)
    again = torch.autograd.grad(by_means(x, weight, bias), (x, weight, bias), slopes, create_graph=True)
    expected = torch.autograd.grad(again[:2], (x, weight, bias), ways[:2], create_graph=True, allow_unused=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


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


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_slopes_may_have_tangents(generator):
    parts = operands((4, 3, 2, 2), generator)
    slopes, tangent = (torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    first = [torch.autograd.grad(f(*parts).sin(), parts, slopes, create_graph=True) for f in (ours, theirs)]
    ways = [torch.randn(part.shape, dtype=part.dtype, generator=generator) for part in first[0]]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(slopes, tangent)
        found = [torch.autograd.grad(f(*parts), parts, dual) for f in (ours, theirs)]
        duals = [forward_ad.make_dual(way, way.cos()) for way in ways]
        found += [torch.autograd.grad(slopes, parts, duals) for slopes in first]
        found = [[forward_ad.unpack_dual(part).tangent for part in parts] for parts in found]
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[2][:2], found[3][:2], rtol=1e-9, atol=1e-9)


def test_batches_of_slopes_keep_their_graph(generator):
    parts = operands((4, 3, 2, 2), generator)
    batch = torch.randn(5, 4, 3, 2, 2, dtype=torch.float64, generator=generator)
    found = []
    for function in (ours, theirs):
        out = function(*parts)
        slopes = torch.autograd.grad(out, parts, batch, is_grads_batched=True, create_graph=True)
        found.append((slopes, torch.autograd.grad(slopes[0].pow(3).sum(), parts[:2])))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


class Kernels(TorchDispatchMode):
    """Notes whether kernels of the derivative were given a weight."""

    def __init__(self):
        super().__init__()
        self.given = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.native_batch_norm_backward.default:
            self.given.append(args[2] is not None)
        return func(*args, **(kwargs or {}))


def test_sums_are_asked_of_kernels_that_are_given_a_weight(generator):
    """Those of a GPU give none otherwise."""
    with Kernels() as kernels:
        for affine in (True, False):
            parts = operands((4, 3, 2, 2), generator, affine)
            second(ours, parts, (torch.ones(4, 3, 2, 2, dtype=torch.float64), generator))
    assert kernels.given == [True] * 6


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_it_is_as_precise_as_pytorchs_far_from_zero(offset, generator):
    shapes = (8, 3, 5, 5), (3,), (3,)
    parts, ways = ([torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes] for _ in range(2))
    slopes = torch.randn(shapes[0], dtype=torch.float64, generator=generator) + 1
    parts[0] += offset

    def derivative(function, kind):
        leaves = [part.to(kind).requires_grad_() for part in (slopes, *parts)]
        first = torch.autograd.grad(function(*leaves[1:]), leaves[1:], leaves[0], create_graph=True)
        return torch.autograd.grad(first, leaves[:3], [way.to(kind) for way in ways])

    def gap(function):
        exact, found = derivative(theirs, torch.float64), derivative(function, torch.float32)
        return max(float((own - one).norm() / one.norm()) for one, own in zip(exact, found))

    assert gap(ours) < 4 * gap(theirs) < 1e-5


def test_shapes_alone_go_through():
    x = torch.zeros(4, 3, 2, 2, device="meta")
    assert ours(x, torch.ones(3, device="meta"), None).shape == x.shape


def test_it_is_not_pytorchs_own_derivative(generator, monkeypatch):
    called = []
    monkeypatch.setattr(module, "_second", lambda *args: called.append(args) or (None, None, None))
    parts = operands((4, 3, 2, 2), generator)
    second(ours, parts, (torch.ones(4, 3, 2, 2, dtype=torch.float64), generator))
    assert len(called) == 1


def test_tensors_of_one_type_are_plain():
    x = torch.zeros(2)
    assert plain(x) and plain(x, None, torch.ones(3, requires_grad=True))
    assert not plain(x, torch.zeros(2, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_a_tangent_a_batch_axis_and_autocast_are_not_plain():
    x, seen = torch.zeros(2), []
    with forward_ad.dual_level():
        assert plain(x) and not plain(x, forward_ad.make_dual(x, x))
    torch.func.vmap(lambda part: seen.append(plain(part)) or part)(x)
    torch.func.grad(lambda part: seen.append(plain(part)) or part.sum())(x)
    torch.func.vmap(lambda part: seen.append(plain(torch.ones(3))) or part)(x)
    assert seen == [False, False, False], "nor is what goes beside a transform, which no custom function may"
    with torch.autocast("cpu", torch.bfloat16):
        assert not plain(x)
    assert plain(x)


def test_nothing_is_plain_and_shapes_alone_are_not():
    assert plain(None) and not plain(torch.zeros(2, device="meta"))


def test_slopes_that_come_in_batches_are_not_plain():
    x, seen = torch.zeros(3, requires_grad=True), []
    out = x.clone()
    out.register_hook(lambda slopes: seen.append(plain(slopes)))
    torch.autograd.grad(out, x, torch.eye(3), is_grads_batched=True)
    assert seen == [False]


class Residual(nn.Module):
    """A block that nobody knows, with normalisation in it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=1.0)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("inside", [False, True])
def test_statistics_of_tasks_are_the_same_at_once_in_turn_and_without_gradients(gradients, inside, generator):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6, momentum=0.5, affine=False))
    middle = Residual() if inside else nn.BatchNorm2d(4, momentum=1.0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), middle, nn.ReLU(), nn.MaxPool2d(2), *flat).double()
    support, query = (torch.randn(3, n, 1, 6, 6, dtype=torch.float64, generator=generator) for n in (5, 2))
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def found(taskmap, gradients):
        function = functional(net, buffers="task", taskmap=taskmap, check=False)
        own = {name: value.expand(3, *value.shape).clone() for name, value in function.buffers.items()}
        # some weights are each task's own, some are shared
        params = {n: p * scale.view(3, *(1,) * p.ndim) if "weight" in n else p for n, p in function.params.items()}
        with torch.set_grad_enabled(gradients):
            first, own = function.apply(params, own, support, phase="support")
            second, after = function.apply(params, own, query, phase="query")
        assert all(torch.equal(after[name], own[name]) for name in own), "query sets leave nothing behind"
        return [first, second, *(value.double() for _, value in sorted(own.items()))]

    for one, other in zip(found("vmap", gradients), found("loop", True)):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_statistics_that_a_task_leaves_are_those_of_pytorch(generator):
    layer = nn.BatchNorm2d(3, momentum=0.4).double()
    theirs, ours = copy.deepcopy(layer), TaskStatistics(layer)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.updated["running_mean"], theirs.running_mean)
    torch.testing.assert_close(ours.updated["running_var"], theirs.running_var)
