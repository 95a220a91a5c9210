"""Modules that nobody here has seen: without a step a prediction is theirs, and meta-gradients are a plain loop's."""

import copy
import functools
import logging
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import headstart
from headstart import Batch, Episodes
from headstart.errors import DifferentiationError, UsageError
from headstart.forward import functional as forward
from headstart.testing.contract import check_derivative

TASKS, STEPS, RATE = 3, 2, 0.1


class Between(nn.Module):
    """Two linear layers, and anything between them."""

    def __init__(self, between):
        super().__init__()
        self.a, self.between, self.b = nn.Linear(3, 4), between, nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.between(self.a(x)))


class Reused(nn.Module):
    """The input of an activation is used again."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, h):
        return self.act(h) + h


class Attribute(nn.Module):
    inplace = 3.0

    def forward(self, h):
        return self.inplace * torch.tanh(h)


class InputsChanged(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.b(x.mul_(0.5).add_(1).relu_()) + torch.tanh(self.a(x))


class Cached(nn.Module):
    """Keeps the first scale that it sees, as lazily made masks and tables are kept."""

    scale = None

    def forward(self, h):
        if self.scale is None:
            self.scale = h.square().mean()
        return h * self.scale


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, h):
        return self.function(h)


def by_state(make):
    """Return a layer that keeps the first scale that it sees in a list, a dict, or an object."""

    class State(nn.Module):
        def __init__(self):
            super().__init__()
            self.state = make()

        def forward(self, h):
            held = self.state if isinstance(self.state, list) else vars(self.state)["held"]
            if not held:
                held.append(h.square().mean())
            return h * held[0]

    return State()


GLOBAL = {}


def by_global_cache(h):
    return h * GLOBAL.setdefault(len(h), h.square().mean())


def by_closure_cache():
    cache = {}
    return Function(lambda h: h * cache.setdefault(len(h), h.square().mean()))


class Remembering(nn.Module):
    """Remembers by its class, and by a method's cache."""

    cache = {}

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    @functools.lru_cache  # noqa: B019
    def scale(self):
        return self.weight.square().mean()

    def forward(self, h):
        return h * self.scale() * self.cache.setdefault(len(h), h.square().mean())


def with_forward_set():
    """A layer's forward is a function of the layer itself."""
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    first = module[0]
    first.forward = lambda x: 2 * F.linear(x, first.weight, first.bias)
    return module


def with_hook_of_another(make_hook):
    """A hook of the last layer reads the weight of the first."""
    module = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    module[2].register_forward_hook(make_hook(module))
    return module


def with_features_caught():
    """A hook keeps what a layer gives for later in the pass; a pass has been before."""
    module = Between(nn.Tanh()).double()
    module.caught = {}
    module.a.register_forward_hook(lambda layer, args, out: module.caught.update(a=out))
    module.b.register_forward_hook(lambda layer, args, out: out + module.caught["a"].sum(1, keepdim=True))
    module(torch.zeros(1, 3, dtype=torch.float64))
    return module


class Pooled(nn.Module):
    """Ids to vectors by a function, or by a layer."""

    def __init__(self, layer=None):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, 2)
        if layer is None:
            self.weight = nn.Parameter(torch.randn(7, 4))

    def forward(self, x):
        found = F.embedding(x, self.weight, padding_idx=0) if self.layer is None else self.layer(x)
        return self.head(torch.tanh(found).mean(-2))


class Doubled(nn.Embedding):
    def forward(self, x):
        return 2 * super().forward(x)


def by_norm(h):
    return h / h.norm(dim=-1, keepdim=True).detach()


def by_data(h):
    return h / h.data.norm(dim=-1, keepdim=True)


def by_norm_without_grad(h):
    with torch.no_grad():
        norm = h.norm(dim=-1, keepdim=True)
    return h / norm


def by_number(h):
    return h / h.detach().abs().max().item()


def by_detached_in_place(h):
    return torch.tanh(h) * (2 * h).detach_()


def rounded(h):
    return h + (h.round() - h).detach()


def slope_doubled(h):
    h = torch.tanh(h)
    if h.requires_grad:
        h.register_hook(lambda slope: 2 * slope)
    return h


def weight_normed_before():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))
    module(torch.zeros(1, 3))  # leaves a weight with a history behind
    return module


def weight_normed():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))


MODULES = {
    "in place": lambda: Between(Reused(nn.ReLU(inplace=True))),
    "in place, behind another layer": lambda: Between(Reused(nn.Sequential(nn.Identity(), nn.ELU(inplace=True)))),
    "in place, in a chain": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2), nn.ReLU(inplace=True)),
    "in place, by a function": lambda: Between(Function(lambda h: (h + 1).mul_(2).tanh_() * h)),
    "an attribute called inplace": lambda: Between(Attribute()),
    "inputs changed": InputsChanged,
    "cached": lambda: Between(Cached()),
    "detached norm": lambda: Between(Function(by_norm)),
    "norm of data": lambda: Between(Function(by_data)),
    "norm without grad": lambda: Between(Function(by_norm_without_grad)),
    "norm by a number": lambda: Between(Function(by_number)),
    "detached in place": lambda: Between(Function(by_detached_in_place)),
    "straight through": lambda: Between(Function(rounded)),
    "hard sigmoid": lambda: nn.Sequential(nn.Linear(3, 4), nn.Hardsigmoid(), nn.Linear(4, 2)),
    "weight norm": weight_normed,
    "weight norm by a hook": weight_normed_before,
    "padding": lambda: Pooled(nn.Embedding(7, 4, padding_idx=0)),
    "kept in a list": lambda: Between(by_state(list)),
    "kept in an object": lambda: Between(by_state(lambda: SimpleNamespace(held=[]))),
    "kept in a global dict": lambda: Between(Function(by_global_cache)),
    "kept in a closure": lambda: Between(by_closure_cache()),
    "kept in a class": lambda: Between(Remembering()),
    "forward set": with_forward_set,
    "hook with a closure": lambda: with_hook_of_another(
        lambda module: lambda layer, args, out: out @ module[0].weight[:, :2]
    ),
    "hook with a default": lambda: with_hook_of_another(
        lambda module: lambda layer, args, out, first=module[0]: out @ first.weight[:, :2]
    ),
    "features caught": with_features_caught,
    "frozen bag": lambda: nn.Sequential(nn.EmbeddingBag(7, 4).requires_grad_(False), nn.Linear(4, 2)),
    "padding by a function": Pooled,
    "padding of a subclass": lambda: Pooled(Doubled(7, 4, padding_idx=2)),
    "padding, known layers": lambda: nn.Sequential(nn.Embedding(7, 4, padding_idx=-7), nn.Flatten(), nn.Linear(24, 2)),
}

#: Whose own second derivative PyTorch does not have, or not right.
REPLACED = {"hard sigmoid", "weight norm", "weight norm by a hook"}

#: Which do not run by vmap, as PyTorch says itself.
LOOPED = {"norm of data", "norm by a number", "detached in place", "frozen bag"}


@pytest.mark.parametrize("name", ["norm of data", "norm by a number"])
def test_what_vmap_cannot_do_is_refused_in_words_that_help(name):
    learner, given = maml(make(name), taskmap="vmap"), episodes(make(name))
    with pytest.raises(DifferentiationError, match="Between cannot be mapped .* by vmap; use taskmap='loop' or 'auto'"):
        learner.adapt(learner.init(None), given.support)


def make(name):
    torch.manual_seed(3)
    for cache in (GLOBAL, Remembering.cache):
        cache.clear()
    Remembering.scale.cache_clear()
    return MODULES[name]().double()


def episodes(module, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def batch():
        x = torch.randn(TASKS, 5, 3, dtype=torch.float64, generator=generator)
        if any(isinstance(layer, (nn.Embedding, nn.EmbeddingBag, Pooled)) for layer in module.modules()):
            x = torch.randint(0, 7, (TASKS, 5, 6), generator=generator)
            x[0, :, 2:], x[1, :, 4:] = 0, 0  # tasks differ in what is padded
        return Batch(x, torch.randn(TASKS, 5, 2, dtype=torch.float64, generator=generator))

    return Episodes(batch(), batch())


def plain(fresh, given, create_graph=True):
    """Return MAML's loss and its gradient by a plain loop over tasks and steps, each pass by a fresh module."""
    weights = {name: value for name, value in fresh().named_parameters() if value.requires_grad}
    start = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}

    def loss(params, batch, task):
        module = fresh()
        buffers = {name: value.clone() for name, value in module.named_buffers()}
        out = functional_call(module, {**params, **buffers}, (batch.x[task].clone(),))
        return (out - batch.y[task]).square().mean()

    total = torch.zeros(())
    for task in range(TASKS):
        own = start
        for _ in range(STEPS):
            slopes = torch.autograd.grad(loss(own, given.support, task), list(own.values()), create_graph=create_graph)
            own = {name: value - RATE * slope for (name, value), slope in zip(own.items(), slopes)}
        total = total + loss(own, given.query, task) / TASKS
    return total.detach(), dict(zip(start, torch.autograd.grad(total, list(start.values()))))


def maml(module, **options):
    return headstart.maml(module, **{"loss": "mse", "steps": STEPS, "rate": RATE, **options})


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("name", MODULES)
def test_a_prediction_without_a_step_is_the_modules(name, taskmap):
    x, y, *_ = episodes(make(name)).support
    expected = torch.stack([make(name)(task.clone()) for task in x])
    taskmap = "loop" if name in LOOPED else taskmap
    learner, before = maml(make(name), steps=0, taskmap=taskmap), x.clone()
    adapted, _ = learner.adapt(learner.init(None), Batch(x, y))
    for _ in range(2):  # a pass leaves nothing behind
        torch.testing.assert_close(learner.predict(adapted, x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("name", sorted(set(MODULES) - REPLACED))
def test_the_meta_gradient_is_that_of_a_plain_loop(name, taskmap):
    module = make(name)
    given = episodes(module)
    learner = maml(module, taskmap="loop" if name in LOOPED else taskmap)
    gradient, info = headstart.meta_gradient(learner, learner.init(None), given)
    loss, expected = plain(lambda: make(name), given)
    torch.testing.assert_close(info.query_loss.mean(), loss)
    torch.testing.assert_close(gradient.params, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("name", sorted(REPLACED))
def test_the_meta_gradient_is_right_where_pytorchs_is_not(name, taskmap):
    learner = maml(make(name), taskmap=taskmap)
    meta, given = learner.init(None), episodes(make(name))
    check_derivative(
        lambda params: float(headstart.meta_loss(learner, meta._replace(params=params), given)[0]),
        meta.params,
        headstart.meta_gradient(learner, meta, given)[0].params,
        contract=name,
    )


@pytest.mark.parametrize("name", ["padding", "padding by a function", "padding, known layers"])
def test_a_padding_row_stays_where_it_is(name):
    module = make(name)
    learner, given = maml(module, taskmap="vmap"), episodes(module)
    adapted, _ = learner.adapt(learner.init(None), given.support)
    row = next(weight for weight in adapted.params.values() if weight.shape[1:] == (7, 4))[:, 0]
    assert torch.equal(row, next(p for p in module.parameters() if p.shape == (7, 4))[0].expand_as(row))


@pytest.mark.parametrize("options", [{"adjoint": "first_order"}, {"check": False}], ids=["first order", "unchecked"])
def test_a_module_that_vmap_differentiates_otherwise_is_looped_or_refused(options):
    module = Between(Function(slope_doubled)).double()
    given = episodes(module)
    with pytest.raises(DifferentiationError, match="Between mapped .* by vmap has gradients that are off by .*'loop'"):
        maml(module, taskmap="vmap", **options).adapt(maml(module).init(None), given.support)
    learner = maml(module, **options)
    gradient, _ = headstart.meta_gradient(learner, learner.init(None), given)
    _, expected = plain(lambda: copy.deepcopy(module), given, create_graph="adjoint" not in options)
    torch.testing.assert_close(gradient.params, expected, rtol=1e-10, atol=1e-10)


#: Layers of PyTorch that are taken to be right, each behind a layer with weights, and the shape of an example.
TRUSTED = {
    "padding": (lambda: [nn.Embedding(7, 3, padding_idx=0), nn.Flatten()], None),
    "PReLU": (lambda: [nn.Linear(4, 4), nn.PReLU(4)], (4,)),
    "GLU": (lambda: [nn.Linear(4, 4), nn.GLU(), nn.Softsign()], (4,)),
    "RMS norm": (lambda: [nn.Linear(4, 4), nn.RMSNorm(4)], (4,)),
    "instance norm": (lambda: [nn.Conv1d(2, 2, 2), nn.InstanceNorm1d(2, affine=True)], (2, 4)),
    "response norm": (lambda: [nn.Conv2d(2, 2, 1), nn.LocalResponseNorm(2)], (2, 3, 3)),
    "transposed": (lambda: [nn.ConvTranspose2d(2, 2, 2, stride=2, output_padding=1, groups=2)], (2, 3, 3)),
    "circular": (lambda: [nn.Conv2d(2, 2, 2, padding=1, padding_mode="circular"), nn.LPPool2d(2, 2)], (2, 4, 4)),
    "bicubic": (lambda: [nn.Conv2d(2, 2, 1), nn.Upsample(scale_factor=2, mode="bicubic")], (2, 3, 3)),
    "folded": (lambda: [nn.Conv2d(2, 2, 1), nn.Unfold(2, stride=2), nn.Fold((4, 4), 2, stride=2)], (2, 4, 4)),
    "encoder": (lambda: [nn.TransformerEncoderLayer(4, 2, 4, dropout=0, batch_first=True)], (3, 4)),
}


@pytest.mark.parametrize("name", TRUSTED)
def test_trusted_layers_pass_the_checks_of_others(name, monkeypatch, caplog):
    monkeypatch.setattr(forward, "is_known", lambda layer: False)
    make, shape = TRUSTED[name]
    torch.manual_seed(0)
    function = forward.functional(nn.Sequential(*make()).double(), taskmap="vmap")
    x = torch.randint(0, 3, (3, 2, 5)) if shape is None else torch.randn(3, 2, *shape, dtype=torch.float64)
    with caplog.at_level(logging.DEBUG, logger="headstart"):
        function.apply(function.params, {}, x)
        function.certify(x)
    assert "not" not in caplog.text


class Reversal(torch.autograd.Function):
    """The identity, whose derivative is said to be −1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, slopes):
        return -slopes


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
def test_what_is_meant_to_be_no_derivative_is_refused_and_taken_unchecked(taskmap):
    module = Between(nn.Sequential(nn.Tanh(), Function(Reversal.apply))).double()
    given = episodes(module)
    with pytest.raises(DifferentiationError, match=r"Function at 'between.1' has a wrong second .*check=False"):
        learner = maml(module, taskmap=taskmap)
        headstart.meta_gradient(learner, learner.init(None), given)
    learner = maml(module, taskmap=taskmap, check=False)
    gradient, _ = headstart.meta_gradient(learner, learner.init(None), given)
    torch.testing.assert_close(gradient.params, plain(lambda: copy.deepcopy(module), given)[1], rtol=1e-10, atol=1e-10)


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.held = [self.linear.weight]

    def forward(self, x):
        return x @ self.held[0].mT


def closing_over_a_weight():
    linear = nn.Linear(3, 2).double()
    weight = linear.weight
    linear.register_forward_hook(lambda layer, args, out: args[0] @ weight.mT)
    return linear


class ByName(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.get_parameter("weight"))


class Freezing(nn.Linear):
    def forward(self, x):
        self.weight.requires_grad_(False)
        return super().forward(x)


ANYWHERE = nn.Linear(3, 2).double()


def by_global_name():
    module = nn.Sequential(ANYWHERE, nn.Identity())
    module[1].register_forward_hook(lambda layer, args, out: out + ANYWHERE.weight.mean())
    return module


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (Listed, "uses 'linear.weight' as a list, .* of Listed holds it.*take it from its layer in forward"),
        (closing_over_a_weight, "uses 'weight' as a list, dict, attribute or function"),
        (by_global_name, "Identity at '1' holds, takes '0' by the global name 'ANYWHERE'.*functools.partial"),
        (lambda: ByName(3, 2), "get_parameter.*take it as an attribute"),
        (lambda: Freezing(3, 2), "sets requires_grad of a weight.*freeze weights before"),
    ],
)
def test_weights_that_no_pass_could_hand_in_are_refused(make, match):
    module = make().double()
    with pytest.raises(UsageError, match=match):
        learner = maml(module, taskmap="loop")
        headstart.meta_gradient(learner, learner.init(None), episodes(module))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_inside_is_no_wrong_derivative(dtype):
    module = Between(Function(lambda h: torch.tanh(h.to(dtype)).double())).double()
    learner, given = maml(module, taskmap="loop"), episodes(module)
    gradient, _ = headstart.meta_gradient(learner, learner.init(None), given)
    torch.testing.assert_close(gradient.params, plain(lambda: copy.deepcopy(module), given)[1], rtol=1e-6, atol=1e-6)


class Clamping(nn.Linear):
    def forward(self, x):
        self.weight.data = self.weight.data.clamp(-0.1, 0.1)
        return super().forward(x)


@pytest.mark.parametrize("module", [Between(Function(slope_doubled)), Clamping(3, 2)], ids=["hook", "data"])
def test_what_the_names_of_operations_do_not_tell_is_refused(module):
    learner = maml(module.double(), taskmap="loop")
    with pytest.raises(DifferentiationError, match="has a wrong second derivative"):
        headstart.meta_gradient(learner, learner.init(None), episodes(module))


def test_the_operation_without_a_second_derivative_is_named():
    module = Between(Function(lambda h: torch.cdist(h, h[:1]) * h)).double()
    learner = maml(module)
    with pytest.raises(DifferentiationError, match=r"'between' has no second .* \(.*_cdist_backward"):
        headstart.meta_gradient(learner, learner.init(None), episodes(module))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(3, 2), 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * self.calls


def test_a_module_that_remembers_its_last_pass_is_refused():
    learner = maml(Counting().double())
    with pytest.raises(UsageError, match="the first one left 'calls' behind; keep it in a buffer"):
        learner.adapt(learner.init(None), episodes(Counting()).support)


class Moded(nn.Module):
    """Goes by its mode."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x) * (2 if self.training else 1)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_meta_training_can_be_chosen_and_that_of_predictions_is_evaluation(training):
    module = Moded().double().train()
    learner, (support, _) = maml(module, steps=0, training=training), episodes(module)
    for seed, factor in ((None, 1), (torch.arange(TASKS), 2 if training else 1)):
        adapted, _ = learner.adapt(learner.init(None), support._replace(seed=seed))
        torch.testing.assert_close(learner.predict(adapted, support.x), factor * module.linear(support.x))


class Moving(nn.Module):
    """Keeps a moving mean in a buffer, which it sets anew."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        self.mean = self.mean + 0.5 * (x.mean(0) - self.mean)
        return self.linear(x - self.mean)


@pytest.mark.parametrize("taskmap", ["vmap", "loop", "auto"])
def test_a_buffer_that_is_set_anew_is_refused_or_kept_for_each_task(taskmap):
    module = Moving().double()
    given = episodes(module)
    with pytest.raises(UsageError, match="changed buffer 'mean', .*buffers={'mean': 'task'}"):
        maml(module, taskmap=taskmap).adapt(maml(module).init(None), given.support)
    learner = maml(module, taskmap=taskmap, buffers={"mean": "task"})
    adapted, _ = learner.adapt(learner.init(None), given.support)
    torch.testing.assert_close(adapted.buffers["mean"], (1 - 0.5**STEPS) * given.support.x.mean(1))
    own = functional_call(
        copy.deepcopy(module),
        {**{name: value[0] for name, value in adapted.params.items()}, "mean": adapted.buffers["mean"][0].clone()},
        given.query.x[0],
    )
    torch.testing.assert_close(learner.predict(adapted, given.query.x)[0], own)
