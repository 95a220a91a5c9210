"""What modules take and give besides tensors: flags and None, structures, checkpoints; what cannot be is refused."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import headstart
from headstart import Batch, Episodes, meta_gradient
from headstart.engine.accelerate import REPLAYED
from headstart.engine.record import Recorded
from headstart.errors import DifferentiationError, ShapeError
from headstart.forward.functional import functional

TASKS, EXAMPLES, FEATURES, WAYS, RATE = 3, 5, 4, 3, 0.3


class Cache:
    """What is no tensor and holds some."""

    def __init__(self, held):
        self.held = held


class Output(OrderedDict):
    """As the libraries of language models give it: a mapping with attributes."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


class Net(nn.Module):
    """Takes what those take, and gives its logits as ``give`` says."""

    def __init__(self, give=lambda logits: logits, again=None):
        super().__init__()
        self.body, self.head = nn.Linear(FEATURES, 6).double(), nn.Linear(6, WAYS).double()
        self.give, self.again = give, again

    def forward(self, x, mask=None, scale=1.0, use_cache=False, how="tanh"):
        def body(x):
            return getattr(torch, how)(self.body(x)) * scale

        hidden = body(x) if self.again is None else checkpoint(body, x, use_reentrant=self.again)
        hidden = hidden if mask is None else hidden * mask
        return self.give(self.head(hidden))


def gives(logits):
    return Output(logits=logits, hidden=None, past=Cache(logits), states=(logits, logits))


X = torch.randn(TASKS, EXAMPLES, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(EXAMPLES).expand(TASKS, -1) % WAYS
MASK = (X[..., :1] > 0).double()

CASES = {
    "flags by name": (Net(), {"x": X, "mask": None, "scale": 2.0, "use_cache": True, "how": "sin"}, {}),
    "flags by place": (Net(), (X, None, 0.5), {}),
    "tensors by name": (Net(), {"mask": MASK, "x": X}, {}),
    "logits": (Net(gives), X, {}),
    "one tensor of several things": (Net(lambda logits: (logits, None)), X, {}),
    "a structure for a loss": (
        Net(lambda logits: {"a": logits, "none": None, "past": Cache(logits), "b": logits.square()}),
        {"x": X, "use_cache": False},
        {"loss": lambda out, batch: out["b"].mean((1, 2)) + headstart.losses.cross_entropy(out["a"], batch)},
    ),
    "checkpoint": (Net(again=False), X, {}),
    "reentrant checkpoint": (Net(again=True), X, {}),
    "a chain with a structure in it": (nn.Sequential(nn.Identity(), Net(gives)), X, {}),
}


def own_loss(out, y, loss):
    if loss is not None:
        return loss({name: part[None] for name, part in out.items() if name in "ab"}, Batch(None, y[None]))[0]
    return F.cross_entropy(out if isinstance(out, torch.Tensor) else out[0] if type(out) is tuple else out.logits, y)


def by_hand(module, x, loss):
    """Return ∂/∂θ of the mean of the tasks' losses after one step, of the module as it is."""
    params, total = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}, 0.0
    for task in range(TASKS):
        args, kwargs = ((), x) if isinstance(x, dict) else ((x if isinstance(x, tuple) else (x,)), {})
        args, kwargs = ([v[task] if torch.is_tensor(v) else v for v in args], dict(kwargs))
        kwargs = {name: v[task] if torch.is_tensor(v) else v for name, v in kwargs.items()}
        before = own_loss(functional_call(module, params, tuple(args), kwargs), Y[task], loss)
        slopes = torch.autograd.grad(before, list(params.values()), create_graph=True)
        moved = {name: p - RATE * slope for (name, p), slope in zip(params.items(), slopes)}
        total = total + own_loss(functional_call(module, moved, tuple(args), kwargs), Y[task], loss)
    return dict(zip(params, torch.autograd.grad(total / TASKS, list(params.values()))))


class Logits(nn.Module):
    def forward(self, output):
        return output.logits


def test_layers_may_hand_each_other_anything():
    """Also where the first ones, which do not move, are computed once for all steps if that can be."""
    module = nn.Sequential(Net(gives), Logits(), nn.Linear(WAYS, WAYS).double())
    batch = Batch(X, Y)
    for taskmap in ("vmap", "loop"):
        learner = headstart.anil(module, head="2*", steps=2, taskmap=taskmap)
        meta = learner.init(None)
        adapted = learner.adapt(meta, batch)[0]
        torch.testing.assert_close(
            learner.predict(adapted, X)[1], learner.predict(learner.adapt(meta, Batch(X[1:2], Y[1:2]))[0], X[1:2])[0]
        )
        torch.testing.assert_close(learner.predict(learner.adapt(meta, batch, steps=0)[0], X)[2], module(X[2]))


@pytest.mark.parametrize("taskmap", ["vmap", "loop", "auto"])
@pytest.mark.parametrize("case", CASES)
def test_the_meta_gradient_is_that_of_the_module(case, taskmap):
    module, x, options = CASES[case]
    learner = headstart.maml(module, steps=1, rate=RATE, taskmap=taskmap, **options)
    batch, meta = Batch(x, Y), learner.init(None)
    got = meta_gradient(learner, meta, Episodes(batch, batch))[0].params
    inside = module[1] if isinstance(module, nn.Sequential) else module
    inside.again, again = None, inside.again  # which by hand must not lose the tensors that it is called with
    expected = by_hand(module, x, options.get("loss"))
    inside.again = again
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)
    out = learner.predict(learner.adapt(meta, batch, steps=0)[0], x)
    if "loss" in options:
        assert out["a"].shape == out["b"].shape == (TASKS, EXAMPLES, WAYS) and out["none"] is None is out["past"]
    else:
        assert out.shape == (TASKS, EXAMPLES, WAYS)


def test_a_record_goes_by_the_flags():
    """A flag is a part of the program, so another one is another program."""
    learner = headstart.maml(Net(), steps=1, rate=RATE)
    quick = learner._replace(gradient=Recorded(REPLAYED._replace(after=0)))
    meta = learner.init(None)
    for scale in (1.0, 2.0, 1.0, 2.0):
        batch = Batch({"x": X, "mask": None, "scale": scale}, Y)
        got, expected = (meta_gradient(one, meta, Episodes(batch, batch))[0] for one in (quick, learner))
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert sum(program is not None for program in quick.gradient.programs.values()) == 2


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (
            lambda: torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)),
            "compiled by torch.jit.*give the module that it was made",
        ),
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(2, 2)), nn.Linear(2, 2)), "at '0' is compiled by torch.jit"),
        (lambda: nn.DataParallel(nn.Linear(2, 2)), "DataParallel at 'the top' copies its weights.*`.module`"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_modules_that_cannot_be_are_refused_by_name(module, match):
    with pytest.raises(DifferentiationError, match=match):
        functional(module())


def test_modules_in_parts_are_refused_by_name(tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        sharded = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        fully_shard(sharded[2], mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(DifferentiationError, match="at '2' holds its parameters in parts.*before fully_shard"):
            functional(sharded)
    finally:
        dist.destroy_process_group()


def test_what_is_neither_a_tensor_nor_plain_is_refused():
    learner = headstart.maml(Net(), steps=1)
    with pytest.raises(ShapeError, match=r"the inputs hold a numpy.ndarray; they are tensors \(tasks, examples"):
        learner.adapt(learner.init(None), Batch({"x": X, "mask": MASK.numpy()}, Y))


@pytest.mark.parametrize("give", [lambda out: (out, out), lambda out: {"a": out, "b": out, "c": None}])
def test_two_tensors_need_to_be_told_apart(give):
    learner = headstart.maml(Net(give), steps=1)
    with pytest.raises(ShapeError, match=r"the model gives a (tuple|dict) of .*Tensor.*`return self.net\(x\)\[0\]`"):
        learner.adapt(learner.init(None), Batch(X, Y))


def test_training_takes_flags_and_masks():
    inputs = {"x": X, "mask": None, "use_cache": False}
    batch = Batch(inputs, Y, mask=torch.arange(EXAMPLES).expand(TASKS, -1) < 4)
    tasks = headstart.Tasks("flags", lambda split, numbers: Episodes(batch, batch), "classification", (4,), WAYS, {})
    *_, last = headstart.fit(headstart.maml(Net(gives), steps=1), tasks, steps=2, tasks_per_step=TASKS)
    assert torch.isfinite(torch.as_tensor(last.loss))
