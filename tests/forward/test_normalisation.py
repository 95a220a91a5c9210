"""Normalisation is PyTorch's, and its derivatives are right however often they are taken."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import headstart
from headstart.core.process import differentiated_once
from headstart.forward import normalisation
from headstart.forward.normalisation import batch_norm, instance_norm, layer_norm
from headstart.types import Batch, Episodes

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
    monkeypatch.setattr(normalisation, "_second_of_channels", lambda *args: called.append(args) or (None, None, None))
    parts = operands((4, 3, 2, 2), generator)
    second(ours, parts, (torch.ones(4, 3, 2, 2, dtype=torch.float64), generator))
    assert len(called) == 1


def in_full(axes, facing):
    """Return normalisation over axes, from plain operations."""

    def function(x, weight, bias):
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        out = (x - mean) / (variance + EPS).sqrt()
        out = out if weight is None else out * facing(weight)
        return out if bias is None else out + facing(bias)

    return function


def scaled(x, weight, bias):
    x = x if weight is None else x * weight.unsqueeze(1)
    return x if bias is None else x + bias.unsqueeze(1)


#: By name: the shapes of x and of the weights, and ours, PyTorch's, and the same in plain operations.
KINDS = {
    "batch": ((4, 3, 2), (3,), ours, theirs, in_full((0, 2), lambda part: part[:, None])),
    "batch of rows": ((5, 3), (3,), ours, theirs, in_full((0,), lambda part: part)),
    "instance": (
        (2, 3, 2, 3),
        (3,),
        lambda x, weight, bias: instance_norm(x, weight, bias, EPS),
        lambda x, weight, bias: F.instance_norm(x, weight=weight, bias=bias, eps=EPS),
        in_full((2, 3), lambda part: part[:, None, None]),
    ),
    "layer": (
        (2, 3, 4),
        (4,),
        lambda x, weight, bias: layer_norm(x, (4,), weight, bias, EPS),
        lambda x, weight, bias: F.layer_norm(x, (4,), weight, bias, EPS),
        in_full((2,), lambda part: part),
    ),
    "layer on all axes": (
        (2, 4),
        (2, 4),
        lambda x, weight, bias: layer_norm(x, (2, 4), weight, bias, EPS),
        lambda x, weight, bias: F.layer_norm(x, (2, 4), weight, bias, EPS),
        in_full((0, 1), lambda part: part),
    ),
    "layer of tasks": (
        (2, 3, 4),
        (2, 4),
        lambda x, weight, bias: layer_norm(x, (4,), weight, bias, EPS),
        lambda x, weight, bias: scaled(F.layer_norm(x, (4,), eps=EPS), weight, bias),
        in_full((2,), lambda part: part[:, None]),
    ),
}


def parts_of(name, weighted=(True, True)):
    generator = torch.Generator().manual_seed(0)
    shape, own, *functions = KINDS[name]
    x, *weights = (torch.randn(size, dtype=torch.float64, generator=generator) for size in (shape, own, own))
    return [x, *(part if there else None for part, there in zip(weights, weighted))], functions


def derivatives_of(function, parts, times):
    """Return the value and its derivatives in random directions, each of the one before it."""
    generator = torch.Generator().manual_seed(1)
    last = [function(*parts)]
    found, leaves = [*last], [part for part in parts if part is not None and part.requires_grad]
    for number in range(times):
        drawn = [torch.randn(part.shape, dtype=torch.float64, generator=generator) for part in last]
        ways = [way.to(part.dtype).requires_grad_() for way, part in zip(drawn, last)]
        more = number < times - 1
        last = torch.autograd.grad(last, leaves, ways, create_graph=more, materialize_grads=True)
        found += last
        last, leaves = [part for part in last if part.requires_grad], [*leaves, *ways]
    return found


@pytest.mark.parametrize("weighted", [(True, True), (False, False), (True, False), (False, True)])
@pytest.mark.parametrize("moves", [(True, True, True), (True, False, False), (False, True, True), (False, False, True)])
@pytest.mark.parametrize("name", KINDS)
def test_two_derivatives_of_each_kind_are_those_of_pytorch(name, moves, weighted):
    parts, (own, theirs, full) = parts_of(name, weighted)
    if not any(moved for part, moved in zip(parts, moves) if part is not None):
        return
    parts = [part if part is None else part.requires_grad_(moved) for part, moved in zip(parts, moves)]
    assert torch.equal(own(*parts), theirs(*parts))
    with torch.no_grad():
        assert torch.equal(own(*parts), theirs(*parts))
    theirs = full if weighted == (False, True) else theirs  # PyTorch's own has no second derivative then
    torch.testing.assert_close(derivatives_of(own, parts, 1), derivatives_of(theirs, parts, 1), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(derivatives_of(own, parts, 2), derivatives_of(theirs, parts, 2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weighted", [(True, True), (False, False), (True, False)])
@pytest.mark.parametrize("name", KINDS)
def test_derivatives_are_right_however_often_they_are_taken(name, weighted):
    parts, (own, theirs, full) = parts_of(name, weighted)
    parts = [part if part is None else part.requires_grad_() for part in parts]
    expected = derivatives_of(full, parts, 4)
    torch.testing.assert_close(derivatives_of(own, parts, 4), expected, rtol=1e-8, atol=1e-8)
    gaps = [float((a - b).detach().abs().max()) for a, b in zip(derivatives_of(theirs, parts, 3), expected)]
    assert max(gaps) > 1e-2, "PyTorch's are right: this may be theirs"


def slope_of_slopes(function, times):
    """Return a function of the same arguments: one number of its derivatives, taken so many times."""
    for _ in range(times):
        function = (lambda inner: lambda *parts: sum(p.sin().sum() for p in torch.func.grad(inner, (0, 1, 2))(*parts)))(
            function
        )
    return function


def tangent_of_tangents(function, times):
    for _ in range(times):
        function = (lambda inner: lambda *parts: torch.func.jvp(inner, parts, tuple(p.cos() for p in parts))[1])(
            function
        )
    return function


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("transform", [slope_of_slopes, tangent_of_tangents])
@pytest.mark.parametrize("name", KINDS)
def test_transforms_of_functions_are_right_however_often_they_are_taken(name, transform):
    parts, (own, _, full) = parts_of(name)
    made = [transform(lambda *p, f=f: f(*p).sin().square().sum(), 3) for f in (own, full)]
    torch.testing.assert_close(*(function(*parts) for function in made), rtol=1e-8, atol=1e-8)
    forth = (transform(slope_of_slopes(lambda *p, f=f: f(*p).sin().square().sum(), 2), 1) for f in (own, full))
    torch.testing.assert_close(*(function(*parts) for function in forth), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dims", [(0, 0, 0), (1, 0, None), (0, None, None), (None, 0, 0)])
@pytest.mark.parametrize("name", KINDS)
def test_what_vmap_maps_has_all_derivatives_outside(name, dims):
    parts, (own, theirs, full) = parts_of(name)
    stacked = [part if dim is None else torch.stack([part, part.cos()], dim) for part, dim in zip(parts, dims)]
    leaves = [part.requires_grad_() for part in stacked]
    own, theirs, full = (torch.func.vmap(function, dims) for function in (own, theirs, full))
    torch.testing.assert_close(derivatives_of(own, leaves, 2), derivatives_of(theirs, leaves, 2), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(derivatives_of(own, leaves, 3), derivatives_of(full, leaves, 3), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_vmap_inside_of_vmap_goes_through(name):
    parts, (own, theirs, full) = parts_of(name)
    x, weight, bias = parts
    many = torch.stack([torch.stack([x, x.sin()]), torch.stack([x.cos(), 2 * x]), torch.stack([x + 1, x.exp()])])
    leaves = [part.requires_grad_() for part in (many, torch.stack([weight, 2 * weight, weight.cos()]), bias)]
    both = [torch.func.vmap(torch.func.vmap(f, (0, None, None)), (0, 0, None)) for f in (own, full)]
    torch.testing.assert_close(*(derivatives_of(function, leaves, 3) for function in both), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_numbers_of_two_types_have_a_third_derivative_too(name):
    parts, (own, theirs, full) = parts_of(name)
    parts = [part.bfloat16().double() for part in parts]

    def third(function, kinds):
        leaves = [part.to(kind).requires_grad_() for part, kind in zip(parts, kinds)]
        return [part.double() for part in derivatives_of(function, leaves, 3)]

    exact = third(full, [torch.float64] * 3)
    found = [third(function, [torch.bfloat16, torch.float32, torch.float32]) for function in (own, theirs)]
    gap, other = (sum(float((a - b).detach().norm()) for a, b in zip(parts, exact)) for parts in found)
    size = sum(float(part.detach().norm()) for part in exact)
    assert gap < 0.03 * size and 4 * gap < other


@pytest.mark.parametrize("name", KINDS)
def test_where_derivatives_are_taken_once_they_are_pytorchs_own(name):
    """Which take fewer calls of Python."""
    parts, (own, *_) = parts_of(name)
    leaves = [part.requires_grad_() for part in parts]
    slow = torch.autograd.grad(own(*leaves).sin().sum(), leaves)
    with differentiated_once(True):
        out = own(*leaves)
        both = torch.func.vmap(own)(*(torch.stack([part, 2 * part]) for part in leaves))
    nodes, left = set(), [out.grad_fn, both.grad_fn]
    while left:
        nodes.add(left[-1].name())
        left += [node for node, _ in left.pop().next_functions if node is not None]
    assert not any("Of" in node for node in nodes) and any("Native" in node for node in nodes)
    for one, other in zip(slow, torch.autograd.grad(out.sin().sum(), leaves)):
        assert torch.equal(one, other)
    torch.testing.assert_close(slow, torch.autograd.grad(both[0].sin().sum(), leaves))


class Operations(TorchDispatchMode):
    """Counts operations, and notes which slopes kernels are asked for."""

    def __init__(self):
        super().__init__()
        self.count, self.masks = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if func.name().endswith("norm_backward"):
            self.masks.append(tuple(args[-1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_slopes_that_nobody_asks_for_are_not_made(name, leaves, monkeypatch):
    monkeypatch.setattr(normalisation, "LARGE", 1)
    parts, (own, *_) = parts_of(name)
    parts = [part.requires_grad_() if leaves else part.requires_grad_() * 1 for part in parts]
    out = own(*parts)
    g = torch.ones_like(out).requires_grad_()
    slopes = torch.autograd.grad(out, parts, g, create_graph=True)
    ways = [part.detach().cos() for part in slopes]
    for results, given, asked in ([out], [g], parts), (slopes, ways, [g, *parts[:2]]):
        with Operations() as whole:
            every = torch.autograd.grad(results, asked, given, retain_graph=True)
        for place, one in enumerate(asked):
            with Operations() as part:
                (found,) = torch.autograd.grad(results, one, given, retain_graph=True)
            assert torch.equal(found, every[place])
            assert part.count < whole.count or sum(map(sum, part.masks)) < sum(map(sum, whole.masks))
            if results is not slopes and place:
                assert not any(mask[0] for mask in part.masks), "the slope of x has most numbers"


class Functional(nn.Module):
    """Calls functions of PyTorch, and not its layers."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.weight, self.bias = kind, nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))

    def forward(self, x):
        if self.kind == "layer":
            return F.layer_norm(x, (4,), weight=self.weight, bias=self.bias)
        if self.kind == "instance":
            return F.instance_norm(x.view(-1, 1, 4)).view(x.shape) * self.weight
        return F.batch_norm(x, None, None, self.weight, self.bias, True)


NETS = {
    "batch": lambda: nn.BatchNorm1d(4),
    "layer": lambda: nn.LayerNorm(4),
    "inside a block": lambda: Beside(nn.LayerNorm(4), nn.BatchNorm1d(4)),
    "statistics of tasks": lambda: nn.BatchNorm1d(4, momentum=1.0),
    "group": lambda: nn.GroupNorm(2, 4),
    "recurrent": lambda: Recurrent(),
    "weights by their norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "attention": lambda: Rows(nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=True, activation="gelu")),
    **{f"function {kind}": (lambda kind=kind: Functional(kind)) for kind in ("batch", "layer", "instance")},
}


class Beside(nn.Module):
    def __init__(self, one, other):
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x):
        return self.one(x) + self.other(x)


class Recurrent(nn.GRU):
    def __init__(self):
        super().__init__(4, 4)

    def forward(self, x):
        return super().forward(x)[0]


class Rows(nn.Module):
    """Takes the examples for a sequence."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.unsqueeze(0)).squeeze(0)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("name", NETS)
def test_the_hessian_of_a_meta_loss_is_right(name, taskmap, generator):
    net = nn.Sequential(nn.Linear(3, 4), NETS[name](), nn.Tanh(), nn.Linear(4, 1)).double()
    buffers = "task" if name == "statistics of tasks" else "batch"
    taskmap = "loop" if name == "recurrent" else taskmap  # which cannot be mapped
    learner = headstart.maml(net, loss="mse", steps=1, rate=0.5, taskmap=taskmap, buffers=buffers)
    x, y = (torch.randn(2, 2, 5, size, dtype=torch.float64, generator=generator) for size in (3, 1))
    episodes, meta = Episodes(*map(Batch, x, y)), learner.init(None)
    sizes = {name: value.numel() for name, value in meta.params.items()}
    start = torch.cat([value.flatten() for value in meta.params.values()]).detach()
    way, other = torch.randn(2, len(start), dtype=torch.float64, generator=generator)

    def at(values):
        parts = zip(meta.params.items(), values.split(list(sizes.values())))
        return meta._replace(params={name: part.view_as(value) for (name, value), part in parts})

    def loss(values):
        return headstart.meta_loss(learner, at(values), episodes)[0]

    def slope(values):
        slopes = headstart.meta_gradient(learner, at(values), episodes)[0].params
        return torch.cat([part.flatten() for part in slopes.values()]) @ way

    def by_transforms(values):  # before all others, when nobody has seen the module yet
        return way @ torch.func.hessian(loss)(values) @ other

    def by_autograd(values):
        leaf = values.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        return torch.autograd.grad(first @ way, leaf)[0] @ other

    found = [function(start) for function in (by_transforms, by_autograd, by_transforms)]
    step = 1e-5
    expected = (slope(start + step * other) - slope(start - step * other)) / (2 * step)
    for one in found:
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-7)
