import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

import headstart
from headstart.errors import DifferentiationError, ShapeError, UnknownNameError, UsageError
from headstart.forward.functional import LARGE, channels_last, functional, one_by_one, widest
from headstart.models.conv4 import conv4
from headstart.testing.contract import module_state, same_bits


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def batched(module, x, **options):
    function = functional(module, **options)
    own = {name: value.expand(x.shape[0], *value.shape) for name, value in function.buffers.items()}
    return function, function.apply(function.params, own, x)


@pytest.mark.parametrize("taskmap", ["vmap", "loop", "auto"])
def test_the_function_computes_what_the_module_computes(taskmap):
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randn(3, 5, 1, 4, 4)
    _, (out, buffers) = batched(module, x, taskmap=taskmap)
    torch.testing.assert_close(out, torch.stack([module(task) for task in x]))
    assert buffers == {}


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_do_what_they_do_in_the_module(register):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    getattr(module[0], register)(lambda layer, slopes, *_: tuple(10 * slope for slope in slopes if slope is not None))
    x = torch.randn(2, 5, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(torch.stack([module(task) for task in x]).square().sum(), x)
    _, (out, _) = batched(module, x)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), x), (expected,))
    with pytest.raises(DifferentiationError, match="Linear with backward hooks at '0' .* taskmap='loop' or 'auto'"):
        functional(module, taskmap="vmap")


def test_tasks_use_their_own_parameters_beside_shared_ones():
    module = nn.Linear(2, 3)
    function = functional(module, taskmap="vmap")
    weights = torch.randn(4, 3, 2)
    x = torch.randn(4, 5, 2)
    out, _ = function.apply({"weight": weights, "bias": function.params["bias"]}, {}, x)
    torch.testing.assert_close(out, x @ weights.transpose(1, 2) + module.bias)


def test_a_tied_weight_counts_once_and_stays_tied():
    module = Tied()
    function = functional(module, taskmap="vmap")
    assert list(function.params) == ["a.weight", "a.bias", "b.bias"] == list(function.leaves)
    changed = {**function.params, "a.weight": torch.eye(3)}
    x = torch.randn(2, 4, 3)
    expected = torch.tanh(x + module.a.bias) + module.b.bias
    torch.testing.assert_close(function.apply(changed, {}, x)[0], expected)


@pytest.mark.parametrize("policy", ["batch", "frozen", "task"])
@pytest.mark.parametrize("training", [True, False])
def test_the_module_is_left_as_it_is(policy, training):
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train(training)
    module[0].weight.grad = torch.ones(4, 3)
    before = copy.deepcopy(module_state(module))
    function = functional(module, buffers=policy)
    own = {name: value.expand(2, *value.shape) for name, value in function.buffers.items()}
    for seed in (None, torch.tensor([1, 2])):
        for phase in ("support", "query"):
            function.apply(function.params, own, torch.randn(2, 5, 3), seed=seed, phase=phase)
    after = module_state(module)
    assert same_bits(before[0], after[0]) and before[1] == after[1]


def test_what_happens_to_the_module_later_does_not_change_the_function():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    x = torch.randn(2, 5, 3)
    function, (before, _) = batched(module, x, buffers="frozen")
    with torch.no_grad():
        module[0].weight.zero_()
        module.train()(100 * torch.randn(9, 3))
    assert torch.equal(function.apply(function.params, {}, x)[0], before)


def test_frozen_parameters_stay_constants():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    function, (out, _) = batched(module, torch.randn(3, 4, 2))
    assert list(function.params) == ["1.weight", "1.bias"]
    assert out.shape == (3, 4, 2) and not out.requires_grad


def norm(**options):
    module = nn.Sequential(nn.BatchNorm1d(3, **options)).double().train()
    module(3 * torch.randn(50, 3).double() + 1)
    return module


X = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(5)).double()


def test_the_batch_policy_normalises_by_the_batch_in_both_phases():
    module = norm()
    expected = torch.stack([copy.deepcopy(module).train()(task) for task in X])
    function = functional(module)
    for phase in ("support", "query"):
        torch.testing.assert_close(function.apply(function.params, {}, X, phase=phase)[0], expected)


def test_the_frozen_policy_normalises_by_the_modules_own_statistics():
    module = norm()
    _, (out, _) = batched(module, X, buffers="frozen")
    torch.testing.assert_close(out, torch.stack([module.eval()(task) for task in X]))


def test_the_task_policy_keeps_statistics_as_the_module_would():
    module = norm(momentum=0.3)
    function, (out, left) = batched(module, X, buffers="task")
    other = torch.randn(4, 2, 3).double()
    queried, _ = function.apply(function.params, left, other, phase="query")
    for task in range(4):
        one = copy.deepcopy(module).train()
        torch.testing.assert_close(out[task], one(X[task]))
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(left[f"0.{name}"][task], getattr(one[0], name))
        torch.testing.assert_close(queried[task], one.eval()(other[task]))


def test_a_normalisation_layer_in_two_places_keeps_statistics_as_the_module_would():
    layer = nn.BatchNorm1d(3, momentum=0.3).double()
    module = nn.Sequential(layer, nn.Linear(3, 3).double(), layer)
    _, (out, left) = batched(module, X, buffers="task")
    one = copy.deepcopy(module).train()
    torch.testing.assert_close(out[0], one(X[0]))
    torch.testing.assert_close(left["0.running_var"][0], one[0].running_var)


def test_policies_by_name_pattern():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    function = functional(module, buffers={"1": "task"})
    assert set(function.buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    with pytest.raises(UnknownNameError, match="unknown buffer '2'"):
        functional(module, buffers={"2": "task"})
    with pytest.raises(UnknownNameError, match="unknown buffer policy 'freeze'; did you mean 'frozen'"):
        functional(module, buffers="freeze")


class Counter(nn.Module):
    """Has a buffer of its own, which it changes in place."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.linear(x) + self.seen


@pytest.mark.parametrize("taskmap", ["vmap", "loop", "auto"])
def test_a_shared_buffer_that_changes_is_refused_and_one_per_task_is_kept(taskmap):
    module, x = Counter(), torch.zeros(3, 1, 2)
    with pytest.raises(UsageError, match="changed buffer 'seen', .*buffers={'seen': 'task'}"):
        batched(module, x, taskmap=taskmap)
    assert module.seen == 0
    function, (out, left) = batched(module, x, buffers={"seen": "task"}, taskmap=taskmap)
    assert left["seen"].tolist() == [1, 1, 1] and function.buffers["seen"] == 0
    torch.testing.assert_close(out, (module.linear.bias + 1).expand(3, 1, 2))


def test_a_buffer_that_is_no_statistic_cannot_follow_the_batch():
    with pytest.raises(UsageError, match="buffer 'seen' is not a running statistic"):
        functional(Counter(), buffers={"seen": "batch"})


def test_an_unknown_task_map_is_refused():
    with pytest.raises(UnknownNameError, match="unknown task map 'vmpa'; did you mean 'vmap'"):
        functional(nn.Linear(2, 2), taskmap="vmpa")


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x, scale):
        return self.linear(x) * scale


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_modules_of_several_inputs(kind):
    module, x, scale = Two(), torch.randn(3, 4, 2), torch.randn(3, 4, 1)
    tree = (x, scale) if kind == "tuple" else {"scale": scale, "x": x}
    function = functional(module)
    torch.testing.assert_close(function.apply(function.params, {}, tree)[0], module.linear(x) * scale)


def test_fused_attention_is_back_on_after_a_pass():
    module = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    assert torch.backends.mha.get_fastpath_enabled()
    batched(nn.Sequential(module), torch.randn(2, 3, 5, 4))
    assert torch.backends.mha.get_fastpath_enabled()


def test_evaluation_mode_is_what_a_pass_without_a_seed_has():
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.9)).train()
    x = torch.randn(2, 5, 3)
    _, (out, _) = batched(module, x)
    expected = functional_call(copy.deepcopy(module).eval(), dict(module.named_parameters()), (x,))
    torch.testing.assert_close(out, expected.detach())


@pytest.mark.parametrize("taskmap", ["vmap", "loop", "auto"])
@pytest.mark.parametrize(
    ("module", "x", "shape"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), torch.zeros(2, 5, 3, 8, 8), r"\(4, 1, 3, 3\)"),
        (nn.Sequential(nn.Linear(6, 4), nn.ReLU()), torch.zeros(2, 5, 7), r"\(4, 6\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_both_shapes(module, x, shape, taskmap):
    learner = headstart.maml(module, steps=1, taskmap=taskmap)
    features = ", ".join(str(size) for size in x.shape[1:])
    with pytest.raises(ShapeError, match=rf"\({features}\).*{shape}"):
        learner.adapt(learner.init(None), headstart.Batch(x, torch.zeros(2, 5, dtype=torch.long)))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 2, 3, 4, 5), (2, 1, 4, 5), (1, 2, 1, 3, 3)])
def test_the_channels_of_a_pixel_come_to_lie_beside_each_other(shape, generator):
    x = torch.randn(shape, generator=generator)
    turned = channels_last(x)
    assert torch.equal(turned, x)
    assert turned.stride()[-3:] == (1, shape[-1] * shape[-3], shape[-3])
    assert channels_last(turned) is turned


def test_what_is_no_image_stays_as_it_is(generator):
    x = torch.randn(2, 3, 4, generator=generator)
    assert channels_last(x) is x


def test_large_images_are_taken_in_turn_on_a_cpu():
    assert one_by_one(torch.zeros(2, 4, 1, 16, 16), channels=LARGE // 1024)
    assert not one_by_one(torch.zeros(2, 3, 1, 16, 16), channels=LARGE // 1024)
    assert not one_by_one(torch.zeros(2, 4, 1, 16, 16, device="meta"), channels=LARGE)
    assert not one_by_one(torch.zeros(2, 4096), channels=LARGE)


def test_the_widest_feature_map_is_as_large_as_strides_leave_it():
    images = torch.zeros(2, 5, 1, 28, 28)
    assert one_by_one(images, widest(conv4((1, 28, 28), 5, filters=32).modules()))
    assert not one_by_one(images, widest(conv4((1, 28, 28), 5, filters=32, downsample="stride").modules()))
    assert widest([nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(3, 6, 3)]) == 8
    assert widest([nn.Linear(2, 3)]) == 1


@pytest.mark.parametrize("tasks", [1, 3])
def test_every_feature_map_of_large_images_is_channels_last(tasks, generator, monkeypatch):
    forward, maps = functional(conv4((1, 28, 28), 5, filters=32)), []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.conv2d:
                maps.extend((args[0], out))
            return out

    params = {name: value.expand(tasks, *value.shape).clone() for name, value in forward.params.items()}
    x = torch.randn(tasks, 4, 1, 28, 28, generator=generator)
    with Watch():
        forward.apply(params, {}, x)
    assert len(maps) == 2 * 4 * tasks
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in maps)


class Residual(nn.Module):
    """A network of images in code of its own, which counts the examples of its passes."""

    seen = 0

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.Linear(32, 5)

    def forward(self, x):
        Residual.seen += len(x)
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_a_frozen_trunk_is_what_it_is_in_evaluation_mode():
    trunk = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).double()
    trunk(torch.randn(50, 3).double() + 2)  # statistics
    trunk.requires_grad_(False).eval()
    module = torch.nn.Sequential(trunk, torch.nn.Linear(4, 2).double())
    batch = headstart.Batch(torch.randn(2, 6, 3).double(), torch.randn(2, 6, 2).double())
    learner = headstart.maml(module, loss="mse")
    adapted, _ = learner.adapt(learner.init(None), batch, steps=0)
    torch.testing.assert_close(learner.predict(adapted, batch.x), module.eval()(batch.x.flatten(0, 1)).view(2, 6, 2))


def test_one_example_cannot_be_normalised_by_itself():
    learner = headstart.maml(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)), loss="mse")
    with pytest.raises(ShapeError, match="there is only one; give more, or normalise by .*buffers='frozen'"):
        learner.adapt(learner.init(None), headstart.Batch(torch.randn(2, 1, 3), torch.randn(2, 1, 4)))


def test_the_first_meta_gradient_takes_few_passes_more_than_any_other():
    """Tasks of large images go one by one without a trial, and a few examples show whether derivatives are right."""
    learner, seen = headstart.maml(Residual(), steps=1), []
    support, query = (headstart.Batch(torch.randn(2, n, 3, 16, 16), torch.arange(n).expand(2, n) % 5) for n in (25, 75))
    for _ in range(2):
        Residual.seen = 0
        headstart.meta_gradient(learner, learner.init(None), headstart.Episodes(support, query))
        seen.append(Residual.seen)
    assert seen[1] == 200 and seen[0] <= 1.3 * seen[1]


class Whole(nn.Module):
    """Takes ten examples and no other number; its second derivative is wrong."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return Frozen.apply(self.layer(x.reshape(10, 3)))


class Frozen(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0].detach())

    @staticmethod
    def backward(ctx, slope):
        return 2 * ctx.saved_tensors[0].detach() * slope


def test_a_module_that_takes_no_fewer_examples_is_checked_on_all():
    with pytest.raises(DifferentiationError, match=r"'the top'.*second derivative"):
        functional(Whole(), taskmap="loop").certify(torch.randn(2, 10, 3))
