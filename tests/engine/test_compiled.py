"""The compiled meta-gradient is the meta-gradient, and where it cannot be compiled, the uncompiled one runs."""

import contextlib
import functools
import logging

import pytest
import torch
from torch import nn

import headstart
from headstart.core.adjoints import Checkpointed
from headstart.core.objective import at, backprop, meta_gradient
from headstart.core.tree import mapped, tensors_of
from headstart.engine.accelerate import COMPILED, accelerate
from headstart.kernels import library
from headstart.kernels.library import has_compiler
from headstart.kernels.translated import Kernel
from headstart.testing import random_episodes
from headstart.types import Meta

compiled = functools.partial(accelerate, compile=True)

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C compiler is found")


def perceptron(*extra):
    return nn.Sequential(nn.Linear(3, 4), *extra, nn.Tanh(), nn.Linear(4, 2)).double()


def convolutional():
    layers = [nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 2)]
    return nn.Sequential(*layers).double()


def rows(seed, **options):
    return random_episodes((3,), outputs=2, tasks=2, seed=seed, **options)


def images(seed):
    return random_episodes((1, 3, 3), outputs=2, tasks=2, seed=seed)


def seeded(seed):
    return headstart.Episodes(*(batch._replace(seed=torch.tensor([seed, seed + 5])) for batch in rows(seed)))


def padded(seed):
    def masked(batch):
        count = batch.y.shape[1]
        return batch._replace(mask=torch.arange(count) < count - torch.tensor([seed, 1])[:, None])

    return headstart.Episodes(*map(masked, rows(seed)))


def frozen():
    module = perceptron(nn.LayerNorm(4))
    return module.requires_grad_(False).get_submodule("3").requires_grad_(True) and module


def maml_of(module, **options):
    return headstart.maml(module, **{"steps": 2, "rate": 0.1, "taskmap": "vmap", **options})


#: Learners by name, with what makes tasks from a seed.
CASES = {
    "convolutions": (lambda: maml_of(convolutional(), steps=1), images),
    "learned rates": (lambda: headstart.meta_sgd(perceptron(nn.LayerNorm(4)), steps=1, taskmap="vmap"), rows),
    "prototypes": (lambda: headstart.prototypes(perceptron(), ways=2, taskmap="vmap"), rows),
    "checkpointed": (lambda: maml_of(perceptron(), steps=3, adjoint=Checkpointed(every=2)), rows),
    "dropout": (lambda: maml_of(perceptron(nn.Dropout(0.4)), steps=1), seeded),
    "frozen, padded": (lambda: maml_of(frozen(), steps=1), padded),
}


def shaken(meta):
    generator = torch.Generator().manual_seed(9)
    return Meta(
        *(
            {n: v + 0.1 * torch.randn(v.shape, dtype=v.dtype, generator=generator) for n, v in part.items()}
            for part in meta
        )
    )


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@contextlib.contextmanager
def compilations(caplog, count):
    """Check that so many programs are compiled inside, and nothing else is said."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "headstart"):
        yield
    said = [r.message for r in caplog.records if r.name == "headstart" and not r.message.startswith("task map")]
    assert len(said) == count and all(line.startswith("meta-gradient compiled: ") for line in said), said


def copies(tensors):
    return [tensor.clone() for tensor in tensors]


@needs_compiler
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_stays_the_same_and_inputs_and_results_are_left_alone(case, caplog):
    make, tasks = CASES[case]
    learner = make()
    fast, meta = compiled(learner), learner.init(torch.Generator().manual_seed(0))
    episodes = tasks(1)
    inputs = tensors_of((meta, episodes))
    before = copies(inputs)
    with compilations(caplog, 1):
        first = meta_gradient(fast, meta, episodes)  # compiles, and has the bits of those that follow
        kept = copies(tensors_of(first[0]))
        second = meta_gradient(fast, shaken(meta), tasks(2))
        again = meta_gradient(fast, meta, episodes)
    assert_same(first, backprop(learner, meta, episodes))
    assert_same(second, backprop(learner, shaken(meta), tasks(2)))
    assert all(map(torch.equal, tensors_of(first[0]), kept)) and all(map(torch.equal, tensors_of(again[0]), kept))
    for gradient in tensors_of(again[0]):
        gradient.zero_()  # as an optimiser may
    assert all(map(torch.equal, inputs, before))
    assert all(map(torch.equal, tensors_of(meta_gradient(fast, meta, episodes)[0]), kept))
    assert any(value.abs().max() > 0 for value in kept)


@needs_compiler
def test_other_shapes_types_and_layouts_are_compiled_anew(caplog):
    learner = maml_of(nn.Sequential(nn.Linear(3, 2)).double(), steps=1, loss="mse")
    fast, meta = compiled(learner), learner.init(None)
    small, large = (random_episodes((3,), outputs=2, regression=True, support=n, tasks=2) for n in (3, 4))
    for episodes, count in ((small, 1), (large, 1), (small, 0), (large, 0)):
        with compilations(caplog, count):
            found = meta_gradient(fast, meta, episodes)
        assert_same(found, backprop(learner, meta, episodes))
    # inputs that lie otherwise in memory need no program of their own
    turned = [batch._replace(x=batch.x.mT.contiguous().mT, y=batch.y.mT.contiguous().mT) for batch in small]
    turned = headstart.Episodes(*turned)
    assert not turned.support.x.is_contiguous()
    strided = Meta({name: value.repeat_interleave(2, -1)[..., ::2] for name, value in meta.params.items()}, {})
    assert not strided.params["0.weight"].is_contiguous()
    with compilations(caplog, 0):
        assert_same(meta_gradient(fast, strided, turned), backprop(learner, meta, small))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, scale):
        return self.layer(x) * scale


@needs_compiler
def test_inputs_that_are_dicts_and_what_the_loss_is_given(caplog):
    learner = maml_of(Pair().double(), steps=1)
    fast, meta = compiled(learner), learner.init(None)

    def tasks(seed):
        return headstart.Episodes(*(b._replace(x={"scale": b.x[..., :2] ** 2, "x": b.x}) for b in rows(seed)))

    with compilations(caplog, 1):
        for seed in (1, 2):
            assert_same(meta_gradient(fast, meta, tasks(seed)), backprop(learner, meta, tasks(seed)))


@needs_compiler
def test_compiled_in_parts_and_threads(caplog):
    learner = maml_of(nn.Sequential(nn.Linear(3, 2)).double(), steps=1)
    episodes = random_episodes((3,), outputs=2, tasks=4)
    meta = learner.init(None)
    with compilations(caplog, 1):
        found = meta_gradient(accelerate(learner, compile=True, threads=2), meta, episodes)
    assert_same(found, backprop(learner, meta, episodes))


@needs_compiler
def test_the_forms_of_a_learner_that_changes_are_compiled_each(caplog):
    learner = headstart.maml_plus_plus(
        nn.Sequential(nn.Linear(3, 2)).double(), steps=1, taskmap="vmap", multi_step_until=0.0
    )
    fast, meta = accelerate(learner, compile=True, threads=1), learner.init(None)
    for done, count in ((0.0, 1), (0.1, 0), (0.9, 1), (1.0, 0)):
        with compilations(caplog, count):
            found = meta_gradient(at(fast, done), meta, rows(1))
        assert_same(found, meta_gradient(at(learner, done), meta, rows(1)))


@needs_compiler
def test_what_was_compiled_is_taken_from_the_disk(caplog, monkeypatch):
    learner = maml_of(nn.Sequential(nn.Linear(3, 2)).double(), steps=1, loss="mse")
    meta, episodes = learner.init(None), random_episodes((3,), outputs=2, regression=True, tasks=2)
    with compilations(caplog, 1):
        first = meta_gradient(compiled(learner), meta, episodes)
    monkeypatch.setattr(library, "_translate", None)
    with compilations(caplog, 1):
        again = meta_gradient(compiled(learner), meta, episodes)
    assert all(map(torch.equal, tensors_of(first[0]), tensors_of(again[0])))


@needs_compiler
def test_a_step_of_a_loop_is_compiled_once_however_many_there_are(caplog, monkeypatch):
    made = []

    class Counted(Kernel):
        def __init__(self, *args):
            made.append(args)
            super().__init__(*args)

    monkeypatch.setattr("headstart.kernels.translated.Kernel", Counted)
    numbers = set()
    for steps in (2, 9):
        learner = maml_of(perceptron(), steps=steps)
        fast, meta = compiled(learner), learner.init(None)
        with compilations(caplog, 1):
            assert_same(meta_gradient(fast, meta, rows(1)), backprop(learner, meta, rows(1)))
        numbers.add(len(made))
        made.clear()
    assert len(numbers) == 1 and numbers.pop() >= 3  # a step, its derivative, and what is around them


def wrong_by(factor, monkeypatch):
    def translated(graph):
        return lambda *inputs: [factor * output if output.is_floating_point() else output for output in graph(*inputs)]

    way = COMPILED._replace(translate=translated)
    monkeypatch.setattr("headstart.engine.accelerate.COMPILED", way)


@pytest.mark.parametrize("factor", [1.04, float("nan")])
def test_a_program_that_is_wrong_is_not_used(factor, monkeypatch, caplog):
    wrong_by(factor, monkeypatch)
    learner = headstart.maml(headstart.mlp(3, 2, hidden=(4,)), steps=1, taskmap="vmap")
    fast, meta = compiled(learner), learner.init(None)
    episodes = headstart.Episodes(*(batch._replace(x=batch.x.float()) for batch in rows(1)))
    for _ in range(2):
        assert_same(meta_gradient(fast, meta, episodes), backprop(learner, meta, episodes))
    (line,) = warnings_of(caplog)
    assert "it gives something else (θ." in line


def test_a_rounding_error_at_a_kink_is_no_reason_not_to_compile(monkeypatch, caplog):
    calls = []

    def translated(graph):
        def run(*inputs):
            calls.append(None)
            factor = 1.04 if len(calls) == 2 else 1.0  # the first that is compared
            return [factor * output if output.is_floating_point() else output for output in graph(*inputs)]

        return run

    monkeypatch.setattr("headstart.engine.accelerate.COMPILED", COMPILED._replace(translate=translated))
    learner = maml_of(perceptron(), steps=1)
    fast, meta = compiled(learner), learner.init(None)
    with compilations(caplog, 1):
        meta_gradient(fast, meta, rows(1))


def warnings_of(caplog):
    return [r.message for r in caplog.records if r.name == "headstart" and r.levelno >= logging.WARNING]


def test_what_the_compiler_raises_is_said_once_and_the_run_goes_on(caplog, monkeypatch):
    def broken(*_, **__):
        raise OSError("no room left\nat line 3")

    monkeypatch.setattr("headstart.kernels.translated.loaded", broken)
    learner = maml_of(perceptron(), steps=1)
    fast, meta = compiled(learner), learner.init(None)
    for seed in (1, 2):
        assert_same(meta_gradient(fast, meta, rows(seed)), backprop(learner, meta, rows(seed)))
    assert warnings_of(caplog) == ["meta-gradient not compiled, running as it is: OSError: no room left"]


def test_without_a_compiler_the_run_goes_on(caplog, monkeypatch):
    monkeypatch.setattr(library, "_compiler", lambda: None)
    learner = maml_of(perceptron(), steps=1)
    fast, meta = compiled(learner), learner.init(None)
    for seed in (1, 2):
        assert_same(meta_gradient(fast, meta, rows(seed)), backprop(learner, meta, rows(seed)))
    (line,) = warnings_of(caplog)
    assert line.startswith("meta-gradient not compiled, running as it is: RuntimeError: no C compiler")


class Inplace(nn.Module):
    def forward(self, x):
        found = x * 1.0
        found[:, :1].add_(1.0)
        return found


def test_what_writes_into_tensors_is_not_compiled(caplog):
    learner = maml_of(perceptron(Inplace()), steps=1)
    fast, meta = compiled(learner), learner.init(None)
    assert_same(meta_gradient(fast, meta, rows(1)), backprop(learner, meta, rows(1)))
    assert "it writes into tensors" in warnings_of(caplog)[0]


def test_what_is_on_another_device_is_not_compiled(caplog):
    learner = maml_of(perceptron(), steps=1)
    fast = compiled(learner)
    meta, episodes = mapped(lambda tensor: tensor.to("meta"), (learner.init(None), rows(1)))
    with contextlib.suppress(NotImplementedError, RuntimeError):  # which such tensors have values to compare with
        meta_gradient(fast, meta, episodes)
    assert any("kernels are for the CPU" in line for line in warnings_of(caplog))
