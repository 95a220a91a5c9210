"""Layers with their own second derivatives are PyTorch's, and so are all their derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import headstart
from headstart.forward import derivatives
from headstart.forward.derivatives import Convolution, Linear, bilinear, plain
from headstart.forward.functional import functional
from headstart.forward.max_pool import MaxPool
from headstart.forward.over_tasks import _leaky_relu, _relu, over_tasks


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


def conv2d(*options):
    return Convolution(*options), lambda x, w, b: F.conv2d(x, w, b, *options)


def their_linear(x, w, b):
    return torch.bmm(x, w.mT) if b is None else torch.baddbmm(b.unsqueeze(1), x, w.mT)


#: Functions by name: the shapes of x, w and b, and ours and PyTorch's.
BILINEAR = {
    "convolution": ((3, 2, 6, 5), (4, 2, 3, 3), (4,), *conv2d((1, 1), (1, 1), (1, 1), 1)),
    "convolution with strides": ((3, 2, 7, 6), (4, 2, 3, 2), (4,), *conv2d((2, 1), (0, 2), (1, 1), 1)),
    "convolution with holes": ((2, 2, 7, 7), (3, 2, 3, 3), (3,), *conv2d((1, 2), (2, 0), (2, 1), 1)),
    "convolution in groups": ((2, 6, 5, 5), (9, 2, 2, 3), (9,), *conv2d((1, 1), (1, 1), (1, 1), 3)),
    "convolution of one image": ((1, 1, 4, 4), (2, 1, 4, 4), (2,), *conv2d((1, 1), (0, 0), (1, 1), 1)),
    "linear": ((3, 5, 4), (3, 2, 4), (3, 2), Linear(), their_linear),
    "linear of one number": ((3, 5, 1), (3, 1, 1), (3, 1), Linear(), their_linear),
}


def both(name, **options):
    """Return x, w and b as leaves, and the two functions of them."""
    *shapes, ours, theirs = BILINEAR[name]
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(shape, generator=generator, **{"dtype": torch.float64, **options}) for shape in shapes]
    return [part.requires_grad_() for part in parts], (lambda x, w, b: bilinear(ours, x, w, b), theirs)


def up_to_the_third(function, x, w, b):
    """Return the values and their derivatives in random directions, each of the one before it."""
    generator = torch.Generator().manual_seed(1)
    last = [function(x, w, b)]
    found, leaves = [*last], [part for part in (x, w, b) if part is not None and part.requires_grad]
    for _ in range(3):
        ways = [torch.randn(part.shape, dtype=part.dtype, generator=generator).requires_grad_() for part in last]
        last = torch.autograd.grad(last, leaves, ways, create_graph=True, materialize_grads=True)
        last, leaves = [part for part in last if part.requires_grad], [*leaves, *ways]
        found += last
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("moves", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("name", BILINEAR)
def test_derivatives_of_a_bilinear_function_are_those_of_pytorch(name, moves, bias):
    (x, w, b), functions = both(name)
    found = [
        up_to_the_third(function, x.requires_grad_(moves[0]), w.requires_grad_(moves[1]), b if bias else None)
        for function in functions
    ]
    assert len(found[0]) > 4
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("moves", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("name", BILINEAR)
def test_where_only_the_slope_of_the_constant_is_used_it_is_a_sum(name, moves):
    (x, w, b), functions = both(name)
    found = []
    for function in functions:
        value = function(x.requires_grad_(moves[0]), w.requires_grad_(moves[1]), b)
        g = torch.ones_like(value).requires_grad_()
        (first,) = torch.autograd.grad(value, b, g, create_graph=True)
        found.append((first, *torch.autograd.grad(first, g, torch.arange(1.0, b.numel() + 1).view(b.shape).double())))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", BILINEAR)
def test_the_values_of_a_bilinear_function_have_pytorchs_bits(name):
    parts, functions = both(name, dtype=torch.float32)
    assert torch.equal(*(function(*parts) for function in functions))


@pytest.mark.parametrize("name", BILINEAR)
def test_slopes_of_complex_numbers_are_conjugated(name):
    (x, w, b), functions = both(name, dtype=torch.complex128)
    torch.testing.assert_close(*(up_to_the_third(function, x, w, b) for function in functions))


class Products(TorchDispatchMode):
    """Notes the largest kernel of a convolution, and how many products are of two transposed matrices."""

    def __init__(self):
        super().__init__()
        self.largest = self.transposed = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().endswith("convolution"):
            self.largest = max(self.largest, *args[1].shape[2:])
        if func is torch.ops.aten.bmm.default:
            self.transposed += not any(part.is_contiguous() for part in args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["convolution", "linear"])
def test_no_kernel_is_as_large_as_the_images_and_no_product_of_transposed_matrices(name):
    parts, functions = both(name)
    found = []
    for function in functions:
        first = torch.autograd.grad(function(*parts).square().sum(), parts[:2], create_graph=True)
        with Products() as products:
            torch.autograd.grad(first, parts, [*map(torch.ones_like, parts[:2])], allow_unused=True)
        found.append((products.largest > 3, products.transposed))
    assert found[0] == (False, 0) < found[1]


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", ["convolution", "linear"])
def test_tangents_axes_of_vmap_and_batches_of_slopes_go_through_a_bilinear_function(name):
    (x, w, b), functions = both(name)
    x, w, b = x.detach(), w.detach(), b.detach()
    slopes = [torch.func.grad(lambda w, x, f=f: f(x, w, b).square().sum()) for f in functions]
    torch.testing.assert_close(*(torch.func.vmap(slope, (None, 0))(w, torch.stack((x, 2 * x))) for slope in slopes))
    torch.testing.assert_close(*(torch.func.jvp(lambda w, f=f: f(w, x), (w,), (w + 1,))[1] for f in slopes))
    value = functions[0](x, leaf := w.clone().requires_grad_(), b)
    ones = torch.ones(2, *value.shape, dtype=x.dtype)
    (many,) = torch.autograd.grad(value, leaf, ones, is_grads_batched=True, retain_graph=True)
    (single,) = torch.autograd.grad(value, leaf, ones[0])
    torch.testing.assert_close(many, torch.stack((single, single)))


class Operations(TorchDispatchMode):
    """Notes products, and which of their slopes kernels make."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        if name in ("bmm", "baddbmm", "convolution", "convolution_backward"):
            self.seen.append((name, tuple(args[-1])) if name == "convolution_backward" else name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("name", ["convolution", "convolution in groups", "linear"])
def test_slopes_that_nobody_asks_for_are_not_made(name, place, leaves, small_is_large):
    parts, (function, theirs) = both(name)
    parts = parts if leaves else [part * 1 for part in parts]
    value = function(*parts)
    g = torch.ones_like(value).requires_grad_()
    kinds = [kind == place for kind in range(3)]

    with Operations() as first:
        (found,) = torch.autograd.grad(value, parts[place], g, retain_graph=True)
    convolved = name.startswith("convolution")
    assert first.seen == ([("convolution_backward", tuple(kinds))] if convolved else ["bmm"] * (place < 2))
    assert torch.equal(found, torch.autograd.grad(value, parts, g, retain_graph=True)[place])
    torch.testing.assert_close(found, torch.autograd.grad(theirs(*parts), parts[place], g)[0])

    slopes = torch.autograd.grad(value, parts[:2], g, create_graph=True)
    asked, ways = (g, *parts[:2])[place], [torch.ones_like(part) for part in slopes]
    with Operations() as second:
        (found,) = torch.autograd.grad(slopes, asked, ways, retain_graph=True)
    if place == 0:
        assert second.seen == (["convolution"] * 2 if convolved else ["bmm"] * 2)
    else:
        assert second.seen == ([("convolution_backward", (place == 1, place == 2, False))] if convolved else ["bmm"])
    assert torch.equal(found, torch.autograd.grad(slopes, (g, *parts[:2]), ways, retain_graph=True)[place])


def test_the_slope_of_a_small_leaf_is_made_unasked():
    """To ask takes longer."""
    parts, (function, _) = both("linear")
    value = function(*parts)
    with Operations() as operations:
        torch.autograd.grad(value.sum(), parts[2])
    assert len(operations.seen) == 2


def test_an_inner_step_of_a_part_makes_no_slopes_of_the_rest(small_is_large):
    net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Conv2d(3, 3, 2), nn.Flatten(), nn.Linear(12, 3)).double()
    rule = headstart.rules.chain(headstart.rules.only("0.*"), headstart.rules.scale(0.1))
    learner = headstart.maml(net, steps=1, rule=rule, taskmap="vmap")
    episodes = headstart.testing.random_episodes((1, 4, 4), tasks=2)
    with Operations() as operations:
        leaves = learner.init(None)._replace(params={n: p.clone().requires_grad_() for n, p in net.named_parameters()})
        learner.adapt(leaves, episodes.support)
    masks = [mask for name, mask in (one for one in operations.seen if isinstance(one, tuple))]
    assert masks == [(True, False, False), (False, True, True)]


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
    monkeypatch.setattr(derivatives, "LARGE", 1)


def pixels(generator, channels_last=False):
    x = torch.randn(2, 3, 6, 8, generator=generator, dtype=torch.float64).round(decimals=1)
    x[0, 0, :2] = 0.0  # where it has a kink, and several are the largest
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def four(function, x, generator):
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
    x = pixels(generator, channels_last)
    ours, theirs = (four(function, x, generator) for function in PAIRS[name])
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
    assert ours[2].stride() == ours[0].stride()


@pytest.mark.parametrize("name", PAIRS)
def test_the_second_derivative_makes_no_zeros(name, generator, small_is_large):
    function, theirs = PAIRS[name]
    for one, none in ((function, True), (theirs, False)):
        value = one(x := pixels(generator).requires_grad_())
        (first,) = torch.autograd.grad(value, x, torch.ones_like(value).requires_grad_(), create_graph=True)
        (second,) = torch.autograd.grad(first, x, torch.ones_like(first), allow_unused=True)
        assert (second is None) == none and (none or not second.any())


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # in PyTorch's tangents
@pytest.mark.parametrize("name", [name for name in PAIRS if name != "in place"])  # a leaf is not changed in place
def test_what_only_pytorchs_functions_know_is_left_to_them(name, generator, small_is_large):
    ours, theirs = PAIRS[name]
    x = pixels(generator)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone().requires_grad_(), torch.ones_like(x))
        found = [forward_ad.unpack_dual(function(dual)).tangent for function in (ours, theirs)]
    assert torch.equal(*found)
    found = [torch.func.vmap(torch.func.grad(squares_of(function)))(x[None]) for function in (ours, theirs)]
    assert torch.equal(*found)
    value = ours(leaf := x.clone().requires_grad_())
    many = torch.autograd.grad(value, leaf, torch.ones(2, *value.shape, dtype=x.dtype), is_grads_batched=True)[0]
    assert torch.equal(many[0], many[1]) and many.any()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_slopes_of_slopes_may_come_in_batches(name, channels_last, generator, small_is_large):
    x = pixels(generator, channels_last).requires_grad_()
    value = PAIRS[name][0](x * 1)
    slopes = torch.ones_like(value).requires_grad_()
    (first,) = torch.autograd.grad(value, x, slopes, create_graph=True)
    ways = torch.randn(2, *x.shape, generator=generator, dtype=x.dtype)
    (found,) = torch.autograd.grad(first, slopes, ways, is_grads_batched=True, retain_graph=True)
    singly = [torch.autograd.grad(first, slopes, way, retain_graph=True)[0] for way in ways]
    assert torch.equal(found, torch.stack(singly))


@pytest.mark.parametrize("large", [True, False])
def test_a_relu_after_the_maximum_is_one_before_it(generator, monkeypatch, large):
    monkeypatch.setattr(derivatives, "LARGE", 1 if large else 2**30)
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


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_hook_that_changes_outputs_does_so_for_all_tasks_at_once(everywhere, generator):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(3, 5, 3, generator=generator, dtype=torch.float64)

    def doubled(module, given, out):
        return 2 * out if isinstance(module, nn.Linear) else None

    register = nn.modules.module.register_module_forward_hook if everywhere else net[0].register_forward_hook
    hook = register(doubled)
    try:
        functions = [functional(net, taskmap=taskmap) for taskmap in ("vmap", "loop")]
        found = [function.apply(function.params, {}, x)[0] for function in functions]
    finally:
        hook.remove()
    torch.testing.assert_close(*found)
    plain = functional(net, taskmap="loop")
    assert not torch.allclose(found[0], plain.apply(plain.params, {}, x)[0])
