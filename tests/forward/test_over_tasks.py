"""A chain of layers on all tasks at once computes what the same layers compute on one task after another."""

import copy
from collections import OrderedDict

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from torch import nn

import headstart
from headstart.errors import ShapeError
from headstart.forward import functional as functional_module, over_tasks as layers
from headstart.forward.functional import functional
from headstart.testing import random_episodes

TASKS = 3


class Gate(nn.Module):
    """A layer of somebody's own, with a parameter and a buffer."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))
        self.register_buffer("shift", torch.randn(width))

    def forward(self, x):
        return torch.tanh(x * self.weight + self.shift) * x.mean(0)


class Residual(nn.Sequential):
    """A sequence with a forward of its own."""

    def forward(self, x):
        return x + super().forward(x)


class Beside(layers.Composed):
    """Two layers side by side."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def compose(self, run, x):
        return run("first", x).sigmoid() * run("second", x) + 0.5


class Inside(layers.Composed):
    """It runs the layers of a sequence one by one."""

    def __init__(self, *both):
        super().__init__()
        self.both = nn.Sequential(*both)

    def compose(self, run, x):
        return run("both.0", x) - run("both.1", x)


class Shifted(Beside):
    """One with a tensor of its own, which it would not find for all tasks at once."""

    def __init__(self, *both):
        super().__init__(*both)
        self.shift = nn.Parameter(torch.randn(()))

    def compose(self, run, x):
        return super().compose(run, x) + self.shift


#: Chains by name, with the shape of an example.
CHAINS = {
    "linear": (lambda: [nn.Linear(4, 3)], (4,)),
    "linear without bias": (lambda: [nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 2)], (4,)),
    "linear on several axes": (lambda: [nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2, bias=False)], (2, 5, 4)),
    "linear on numbers": (lambda: [nn.Linear(5, 3)], ()),
    "convolution": (lambda: [nn.Conv2d(2, 3, 3)], (2, 5, 6)),
    "convolution without bias": (lambda: [nn.Conv2d(2, 3, 3, bias=False), nn.SiLU(), nn.Conv2d(3, 2, 2)], (2, 5, 6)),
    "convolution with strides": (lambda: [nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2))], (2, 7, 6)),
    "convolution with holes": (lambda: [nn.Conv2d(2, 3, 3, dilation=2, padding=1)], (2, 7, 6)),
    "convolution in groups": (
        lambda: [nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.Conv2d(6, 6, 3, groups=6)], (4, 4, 5)
    ),
    "convolution of the same size": (lambda: [nn.Conv2d(2, 3, (3, 1), padding="same", dilation=2)], (2, 4, 5)),
    "convolution on a torus": (lambda: [nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")], (2, 4, 5)),
    "batch norm": (lambda: [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 2)], (2, 5, 6)),
    "batch norm, not affine": (lambda: [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False), nn.Tanh()], (2, 5, 6)),
    "layer norm": (lambda: [nn.Linear(4, 3), nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 2)], (4,)),
    "layer norm on several axes": (lambda: [nn.LayerNorm((5, 4)), nn.Linear(4, 2)], (2, 5, 4)),
    "layer norm, not affine": (lambda: [nn.Linear(4, 3), nn.LayerNorm(3, elementwise_affine=False)], (2, 4)),
    "layer norm without bias": (lambda: [nn.Linear(4, 3), nn.LayerNorm(3, bias=False)], (4,)),
    "group norm": (lambda: [nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh()], (2, 4, 5)),
    # groups of four: of two numbers that are nearly equal, no derivative is precise
    "group norm of rows": (lambda: [nn.Linear(4, 8), nn.GroupNorm(2, 8), nn.Linear(8, 2)], (4,)),
    "group norm, not affine": (lambda: [nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4, affine=False)], (2, 4, 5)),
    "pools": (
        lambda: [nn.Conv2d(2, 3, 3), nn.MaxPool2d(2, stride=1), nn.AvgPool2d(2, ceil_mode=True),
                 nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(6, 2)], (2, 8, 7)
    ),
    "pools after ReLU": (
        lambda: [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2, stride=1, padding=1), nn.ReLU(),
                 nn.AvgPool2d(2, stride=1), nn.ReLU()], (2, 8, 7)
    ),
    "max pool first": (lambda: [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)], (2, 4, 5)),
    "flatten some axes": (lambda: [nn.Flatten(2, 3), nn.Linear(6, 3), nn.Flatten(-2), nn.Linear(6, 2)], (2, 3, 2)),
    "batch norm of rows": (lambda: [nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)], (4,)),
    "batch norm of volumes": (lambda: [nn.BatchNorm3d(2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)], (2, 2, 2, 2)),
    "instance norm": (lambda: [nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.Tanh()], (2, 5, 6)),
    "other convolutions": (lambda: [nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)], (2, 4)),
    "one's own": (lambda: [nn.Linear(4, 3), Gate(3), nn.Linear(3, 2)], (4,)),
    "nested": (
        lambda: [nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Tanh(), nn.LayerNorm(3))), Residual(nn.Linear(3, 3)),
                 nn.Sequential(), nn.Linear(3, 2)], (4,)
    ),
    "composed": (
        lambda: [nn.Conv2d(2, 3, 3, padding=1), Beside(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)),
                 nn.Sequential(Beside(nn.Conv2d(4, 2, 2), nn.Sequential(nn.Conv2d(4, 2, 2), nn.Tanh())))], (2, 4, 5)
    ),
    "composed of layers of a sequence": (lambda: [nn.Tanh(), Inside(nn.Linear(3, 2), nn.Linear(3, 2))], (3,)),
    "composed with its own tensor": (lambda: [nn.Linear(4, 3), Shifted(nn.Linear(3, 2), nn.Linear(3, 2))], (4,)),
    "elementwise": (lambda: [nn.Linear(4, 3), *(kind() for kind in layers.ELEMENTWISE), nn.Linear(3, 2)], (4,)),
    "dropout at rest": (lambda: [nn.Linear(4, 3), nn.Dropout(0.5), nn.Tanh(), nn.Linear(3, 2)], (4,)),
}  # fmt: skip

#: Those of them that have layers which are mapped one by one.
MAPPED = {"convolution on a torus", "flatten some axes", "instance norm", "other convolutions",
          "one's own", "nested", "composed with its own tensor"}  # fmt: skip


def chain_of(name):
    make, shape = CHAINS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*make()).double(), shape


def inputs(shape, generator, tasks=TASKS, examples=5):
    return torch.randn(tasks, examples, *shape, dtype=torch.float64, generator=generator)


def own_params(function, own, generator, tasks=TASKS):
    """Return leaves: those named in ``own`` with a task axis, each task's a little different."""
    made = {}
    for name, value in function.params.items():
        if name in own:
            noise = torch.randn(tasks, *value.shape, dtype=value.dtype, generator=generator)
            value = value + 0.3 * noise
        made[name] = value.clone().requires_grad_()
    return made


def derivatives(function, params, x, **options):
    """Return the outputs, and their first and second derivatives by parameters and inputs in random directions."""
    x = x.clone().requires_grad_()
    leaves = [*params.values(), x]
    generator = torch.Generator().manual_seed(7)
    out, _ = function.apply(params, {}, x, **options)
    weights = torch.randn(out.shape, dtype=out.dtype, generator=generator)
    first = torch.autograd.grad((out.square() * weights).sum(), leaves, create_graph=True, materialize_grads=True)
    total = sum((g * torch.randn(g.shape, dtype=g.dtype, generator=generator)).sum() for g in first)
    second = torch.autograd.grad(total, leaves, materialize_grads=True)
    return out, first, second


def assert_same(module, x, own, generator, **options):
    one, other = (functional(module, taskmap=taskmap) for taskmap in ("vmap", "loop"))
    params = own_params(one, own, generator, len(x))
    torch.testing.assert_close(
        derivatives(one, params, x, **options), derivatives(other, params, x, **options), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("whose", ["every task's own", "shared"])
def test_outputs_and_derivatives_are_those_of_single_tasks(name, whose, generator):
    module, shape = chain_of(name)
    own = [n for n, _ in module.named_parameters()] if whose != "shared" else []
    assert_same(module, inputs(shape, generator), own, generator)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_of_the_tensors_may_be_the_tasks_own(data):
    module, shape = chain_of(data.draw(st.sampled_from(sorted(CHAINS))))
    names = [name for name, _ in module.named_parameters()]
    assume(names)
    own = data.draw(st.sets(st.sampled_from(names)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in own or data.draw(st.booleans()))
    assert_same(module, inputs(shape, generator, tasks=data.draw(st.integers(1, 3))), own, generator)


@settings(max_examples=50, deadline=None)
@given(
    groups=st.sampled_from([1, 2]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    bias=st.booleans(),
    own=st.sets(st.sampled_from(["0.weight", "0.bias"])),
)
def test_convolutions_of_every_kind(groups, kernel, stride, padding, dilation, bias, own):
    module = nn.Sequential(nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups, bias)).double()
    generator = torch.Generator().manual_seed(1)
    assert_same(module, inputs((2, 6, 5), generator, examples=2), own, generator)


@settings(max_examples=50, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    bias=st.booleans(),
)
def test_a_convolution_of_unfolded_patches_is_the_grouped_one(kernel, stride, padding, dilation, bias):
    layer = nn.Conv2d(2, 3, kernel, stride, padding, dilation, bias=bias)
    generator = torch.Generator().manual_seed(2)
    params = {"weight": torch.randn(TASKS, *layer.weight.shape, dtype=torch.float64, generator=generator)}
    if bias:
        params["bias"] = torch.randn(TASKS, 3, dtype=torch.float64, generator=generator)
    x = inputs((2, 6, 7), generator, examples=4).transpose(3, 4)  # not contiguous
    params = {name: value.requires_grad_() for name, value in params.items()}

    class Ways:
        def __init__(self, way):
            self.way = way

        def apply(self, params, buffers, x):
            return self.way(layer, params, x), {}

    unfolded = Ways(lambda layer, params, x: layers._unfolded(layer, params["weight"], params.get("bias"), x))
    torch.testing.assert_close(
        derivatives(unfolded, params, x), derivatives(Ways(layers._convolution), params, x), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("name", CHAINS)
def test_meta_gradients_are_those_of_single_tasks(name):
    module, shape = chain_of(name)
    out = module(torch.zeros(5, *shape, dtype=torch.float64)).shape
    generator = torch.Generator().manual_seed(3)
    batches = [
        headstart.Batch(inputs(shape, generator), torch.randn(TASKS, *out, dtype=torch.float64, generator=generator))
        for _ in range(2)
    ]

    def found(taskmap, method):
        options = {} if method is headstart.maml else {"head": ["*"] if len(module) == 1 else "0.*"}
        learner = method(module, loss="mse", steps=2, rate=0.1, taskmap=taskmap, **options)
        return headstart.meta_gradient(learner, learner.init(None), headstart.Episodes(*batches))

    methods = [headstart.maml]
    if len(module) > 1 and any(True for _ in module[0].parameters()) and sum(1 for _ in module.parameters()) > 2:
        methods += [headstart.anil, headstart.boil]
    for method in methods:
        torch.testing.assert_close(found("vmap", method), found("loop", method), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CHAINS)
def test_known_layers_run_on_all_tasks_at_once(name, monkeypatch, generator):
    module, shape = chain_of(name)
    mapped = []
    one_by_one = layers._mapped

    def counted(layer, *rest):
        mapped.append(layer)
        return one_by_one(layer, *rest)

    monkeypatch.setattr(layers, "_mapped", counted)
    function = functional(module, taskmap="vmap")
    function.apply(own_params(function, dict(module.named_parameters()), generator), {}, inputs(shape, generator))
    assert bool(mapped) == (name in MAPPED), mapped


def ways(monkeypatch):
    """Return a list that grows with every pass of a chain on all tasks at once."""
    passes = []
    at_once = functional_module.over_tasks

    def counted(*args):
        passes.append(args)
        return at_once(*args)

    monkeypatch.setattr(functional_module, "over_tasks", counted)
    return passes


def test_one_activation_in_two_places(generator):
    tanh = nn.Tanh()
    module = nn.Sequential(nn.Linear(4, 4), tanh, nn.Linear(4, 4), tanh).double()
    assert_same(module, inputs((4,), generator), ["0.weight", "2.bias"], generator)


def tied_weights():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


def repeated():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer)


def repeated_in_a_nest():
    layer = nn.LayerNorm(4)
    return nn.Sequential(layer, nn.Sequential(nn.Linear(4, 4), layer))


@pytest.mark.parametrize("make", [tied_weights, repeated, repeated_in_a_nest])
def test_tied_weights_stay_tied(make, generator):
    module = make().double()
    assert_same(module, inputs((4,), generator), [name for name, _ in module.named_parameters()], generator)


def test_a_layer_with_statistics_in_two_places(generator):
    norm = nn.BatchNorm1d(4, affine=False)
    module = nn.Sequential(norm, nn.Linear(4, 4), norm).double()
    module(3 * torch.randn(20, 4, dtype=torch.float64, generator=generator) + 1)
    x = inputs((4,), generator)
    for taskmap in ("vmap", "loop"):
        function = functional(module, taskmap=taskmap, buffers="frozen")
        out, _ = function.apply(function.params, {}, x)
        torch.testing.assert_close(out, torch.stack([module.eval()(task) for task in x]))


def test_a_buffer_that_two_layers_share(generator):
    module = nn.Sequential(Gate(4), nn.Tanh(), Gate(4)).double()
    module[2].shift = module[0].shift
    assert_same(module, inputs((4,), generator), ["0.weight"], generator)


@pytest.mark.parametrize("frozen", ["0.*", "2.weight", "2.bias", "norm"])
def test_frozen_tensors_are_shared_by_all_tasks(frozen, generator, monkeypatch):
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(8, 2))
    module = module.double()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not name.startswith({"0.*": "0.", "norm": "1."}.get(frozen, frozen)))
    passes = ways(monkeypatch)
    own = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert_same(module, inputs((2, 4, 4), generator), own, generator)
    assert passes


@pytest.mark.parametrize("policy", ["batch", "frozen", "task"])
def test_running_statistics_follow_their_policy(policy, generator):
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)).double()
    module(inputs((2, 4, 4), generator)[0])
    episodes = random_episodes((2, 4, 4), outputs=2)

    def found(taskmap):
        learner = headstart.maml(module, steps=2, rate=0.1, taskmap=taskmap, buffers=policy)
        return headstart.meta_gradient(learner, learner.init(None), episodes)

    torch.testing.assert_close(found("vmap"), found("loop"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
def test_layers_that_work_in_place_leave_the_inputs_alone(taskmap, generator):
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3), nn.ReLU(inplace=True)).double()
    function = functional(module, taskmap=taskmap)
    x = inputs((4,), generator)
    before = x.clone()
    out, _ = function.apply(own_params(function, ["1.weight"], generator), {}, x)
    assert torch.equal(x, before) and (x < 0).any() and (out >= 0).all()


def test_dropout_with_a_seed_is_that_of_single_tasks(generator):
    module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.4), nn.Tanh(), nn.Linear(8, 2)).double()
    x, seed = inputs((4,), generator), torch.tensor([3, 1, 4])
    assert_same(module, x, ["0.weight", "3.bias"], generator, seed=seed, draw=2)
    function = functional(module, taskmap="vmap")
    dropped, whole = (function.apply(function.params, {}, x, seed=s)[0] for s in (seed, None))
    assert not torch.allclose(dropped, whole)


def hooked(module):
    module[0].register_forward_hook(lambda layer, args, out: out * 2)


def hooked_before(module):
    module[2].register_forward_pre_hook(lambda layer, args: (args[0] + 1,))


def hooked_whole(module):
    module.register_forward_hook(lambda layer, args, out: out - 3)


def patched(module):
    layer = module[0]
    layer.forward = lambda x: torch.sin(x @ torch.eye(4, dtype=x.dtype))


def weighted(module):
    nn.utils.parametrizations.weight_norm(module[0])


@pytest.mark.parametrize("change", [hooked, hooked_before, hooked_whole, patched, weighted])
def test_layers_that_somebody_changed_do_what_they_do_now(change, generator):
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    plain = copy.deepcopy(module)
    change(module)
    x = inputs((4,), generator)
    function = functional(module, taskmap="vmap")
    out, _ = function.apply(function.params, {}, x)
    torch.testing.assert_close(out, torch.stack([module(task) for task in x]))
    if change is not weighted:
        assert not torch.allclose(out, torch.stack([plain(task) for task in x]))


def test_a_layer_that_holds_another_one_of_the_chain(generator):
    class Echo(nn.Module):
        def __init__(self, other):
            super().__init__()
            self.others = [other]

        def forward(self, x):
            return x @ self.others[0].weight

    first = nn.Linear(4, 4)
    module = nn.Sequential(first, nn.Tanh(), Echo(first)).double()
    x = inputs((4,), generator)
    function = functional(module, taskmap="vmap")
    out, _ = function.apply(function.params, {}, x)
    torch.testing.assert_close(out, torch.stack([module(task) for task in x]))


def test_tensors_that_are_not_contiguous(generator):
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2)).double()
    x = inputs((5, 2, 6), generator).transpose(2, 3)[..., :5]
    assert not x.is_contiguous()
    assert_same(module, x, [name for name, _ in module.named_parameters()], generator)
    rows = inputs((), generator, examples=4)[:, None, :].expand(TASKS, 5, 4)
    assert_same(nn.Sequential(nn.Linear(4, 3)).double(), rows, ["0.weight"], generator)


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 2), (5,)),
        (nn.Conv2d(2, 3, 2), (3, 4, 4)),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_the_same_words(layer, shape, taskmap, generator):
    function = functional(nn.Sequential(layer).double(), taskmap=taskmap)
    params = own_params(function, function.params, generator)
    with pytest.raises(ShapeError, match="the model cannot take a task's inputs"):
        function.apply(params, {}, inputs(shape, generator))


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(1), nn.GroupNorm(1, 1)])
@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("own", [True, False])
def test_a_norm_of_one_channel_does_not_take_several(layer, taskmap, own, generator):
    function = functional(nn.Sequential(layer).double(), taskmap=taskmap)
    params = own_params(function, function.params if own else (), generator)
    with pytest.raises(RuntimeError, match="weight"):
        function.apply(params, {}, inputs((3, 2, 2), generator))


def test_a_chain_gives_the_bits_of_before_on_every_call(generator):
    module = OrderedDict(body=nn.Conv2d(2, 3, 2), norm=nn.BatchNorm2d(3), flat=nn.Flatten(), head=nn.Linear(27, 2))
    chain, x = nn.Sequential(module).double(), inputs((2, 4, 4), generator)
    function = functional(chain, taskmap="vmap")
    params = own_params(function, ["head.weight", "body.bias"], generator)
    one, other = (derivatives(function, params, x) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert all(torch.equal(a, b) for which in (1, 2) for a, b in zip(one[which], other[which]))
