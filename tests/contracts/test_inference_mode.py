"""Whatever takes derivatives of its own does so inside of ``torch.inference_mode()``, too."""

import numpy as np
import pytest
import torch
from torch import nn

import headstart
from headstart import registry
from headstart.core.tree import mapped, tensors_of
from headstart.data.curves.sinusoid import sinusoid
from headstart.errors import DifferentiationError
from headstart.forward.functional import functional
from headstart.testing import random_episodes
from headstart.testing.learners import made
from tests.contracts.test_learners import OPTIONS

ADAPTED = [
    (row.name, layer) for row in registry.METHODS for layer in (("batch", "own") if row.model != "none" else ("batch",))
]


class Own(nn.Module):
    """A layer that nobody has seen, which is looked at once."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 1.5, dtype=torch.float64))

    def forward(self, x):
        return x.tanh() * self.scale


def case(name, layer):
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(4).double() if layer == "batch" else Own()
    module = nn.Sequential(nn.Linear(3, 4).double(), middle, nn.Linear(4, 3).double())
    episodes = random_episodes((3,), regression=registry.find("method", name).targets[0] == "regression", seed=1)
    return made(name, module, episodes, **OPTIONS.get(name, {})), episodes


def bits(tree):
    return [tensor.detach().clone() for tensor in tensors_of(tree)]


def answers(name, layer, inside):
    """Return what a learner says, all of whose first calls are inside of the mode, or under ``torch.no_grad()``."""
    learner, episodes = case(name, layer)
    with torch.inference_mode() if inside else torch.no_grad():
        meta = learner.init(torch.Generator().manual_seed(0))
        episodes = mapped(torch.clone, episodes)
        before = bits(learner.predict(learner.adapt(meta, episodes.support, 0)[0], episodes.query.x))
        adapted, _ = learner.adapt(meta, episodes.support)
        outputs = learner.predict(adapted, episodes.query.x)
        loss, _ = headstart.meta_loss(learner, meta, episodes)
        found = [*before, *bits((adapted[1:3], outputs, loss))]
        if learner.gradient is not None:
            found += bits(headstart.meta_gradient(learner, meta, episodes))
    return [part.cpu() for part in found]


@pytest.mark.parametrize(("name", "layer"), ADAPTED)
def test_all_methods_say_inside_what_they_say_without_gradients(name, layer):
    ours, theirs = (answers(name, layer, inside) for inside in (True, False))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


def test_what_was_made_inside_is_taken_outside():
    with torch.inference_mode():
        learner, episodes = case("maml", "batch")
        meta = learner.init(None)
        episodes = mapped(torch.clone, episodes)
    assert episodes.support.x.is_inference()
    found, _ = headstart.meta_gradient(learner, meta, episodes)
    outside, episodes = case("maml", "batch")
    expected, _ = headstart.meta_gradient(outside, outside.init(None), episodes)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("accelerated", [False, True])
def test_training_inside_goes_on_outside_with_the_same_bits(accelerated):
    found = []
    for inside in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
        learner, tasks = headstart.maml(net, loss="mse", steps=1, rate=0.01, taskmap="vmap"), sinusoid(shots=5)
        learner = headstart.accelerate(learner) if accelerated else learner
        modes = []
        with torch.inference_mode(inside):
            for record in headstart.fit(learner, tasks, steps=2):
                modes.append(torch.is_inference_mode_enabled())
                state = record.state
            score = headstart.evaluate(learner, state.meta, tasks, episodes=4)
        assert modes == [inside] * 2, "what yields hands on the mode of the caller"
        (last,) = headstart.fit(learner, tasks, steps=3, state=state)
        found.append((last.loss, score.values, last.state.meta.params))
    assert found[0][:2] == found[1][:2]
    torch.testing.assert_close(found[0][2], found[1][2], rtol=0, atol=0)


def test_the_first_look_at_a_module_is_no_less_inside(caplog):
    torch.manual_seed(0)
    function = functional(nn.Sequential(nn.Linear(3, 4), nn.Conv1d(2, 2, 1)), taskmap="auto")
    with torch.inference_mode(), caplog.at_level("DEBUG", logger="headstart"):
        function.apply(function.params, {}, torch.zeros(2, 5, 2, 3))
    assert "task map: " in caplog.text and "cannot" not in caplog.text
    with torch.inference_mode(), pytest.raises(DifferentiationError, match="has a wrong second derivative"):
        functional(Forgetful()).certify(torch.ones(2, 4, 3))


class Detached(torch.autograd.Function):
    """A product whose second derivative is forgotten."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, slopes):
        x, weight = (part.detach() for part in ctx.saved_tensors)
        return slopes * weight, (slopes * x).sum(0)


class Forgetful(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return Detached.apply(x.sin() * self.weight, self.weight)


def test_runs_and_estimators_learn_and_answer_inside(tmp_path, unrendered):
    sklearn = pytest.importorskip("headstart.integrations.sklearn")
    rows = [f"{task},{x},{(task + 1) * x}" for task in range(12) for x in range(8)]
    (tmp_path / "rows.csv").write_text("\n".join(["task,x,y", *rows]))
    (tmp_path / "new.csv").write_text("\n".join(["task,x,y", *(f"new,{x},{7 * x}" for x in range(5))]))
    (tmp_path / "asked.csv").write_text("x\n6\n7\n")
    config = {
        "tasks": {"name": str(tmp_path / "rows.csv"), "task_column": "task", "target": "y", "shots": 3, "queries": 3},
        "method": {"name": "maml", "steps": 1},
        "outer": {"steps": 2, "tasks_per_step": 2},
    }
    x, y = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32), np.arange(24) % 3
    found = []
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            run = tmp_path / mode.__name__
            headstart.train(config, run)
            adapted = headstart.adapt(run, tmp_path / "new.csv", tmp_path / f"{mode.__name__} adapted")
            (answer, *_) = headstart.predict(adapted, tmp_path / "asked.csv")
            model = sklearn.FewShotClassifier(method="maml", steps=2, support=2, random_state=0)
            found.append((answer, model.fit(x, y).predict_proba(x).tolist()))
    assert found[0] == found[1]
