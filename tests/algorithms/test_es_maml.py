"""MAML by evolution strategies."""

import pytest
import torch
from torch import nn

import headstart
from headstart.algorithms.es_maml import es_maml
from headstart.data.curves.sinusoid import sinusoid
from headstart.errors import UnknownNameError, UsageError
from headstart.testing import check_learner, random_episodes
from headstart.training.loop import fit, start
from headstart.types import Batch, Episodes

INNER = ("gradient", "evolution")


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("dropout", [False, True])
def test_keeps_the_contract(inner, dropout):
    layers = [nn.Linear(2, 4), *([nn.Dropout(0.3)] if dropout else []), nn.Tanh(), nn.Linear(4, 3)]
    module = nn.Sequential(*layers).double()
    episodes = random_episodes((2,))
    if dropout:
        episodes = Episodes(*(batch._replace(seed=torch.tensor([3, 4, 5])) for batch in episodes))
    options = {"steps": 2, "rate": 0.1, "samples": 2, "inner": inner, "inner_samples": 2}
    check_learner(
        lambda taskmap: es_maml(module, taskmap=taskmap, **options), episodes, module=module, masks=not dropout
    )


def test_the_inner_steps_are_those_of_maml():
    module = headstart.mlp(2, 3, hidden=(4,)).double()
    episodes = random_episodes((2,))
    ours, theirs = (make(module, steps=3, rate=0.1, taskmap="vmap") for make in (es_maml, headstart.maml))
    meta = ours.init(None)
    for a, b in zip(*(learner.adapt(meta, episodes.support)[0].params.values() for learner in (ours, theirs))):
        assert torch.equal(a, b)


def test_estimated_inner_steps_tend_to_exact_ones():
    module = nn.Linear(2, 1).double()
    episodes = random_episodes((2,), outputs=1, regression=True)
    options = {"loss": "mse", "steps": 1, "rate": 0.1, "taskmap": "vmap"}
    exact = headstart.maml(module, **options)
    meta = exact.init(None)
    goal = exact.adapt(meta, episodes.support)[0].params["weight"] - meta.params["weight"]
    gaps = []
    for samples in (8, 600):
        learner = es_maml(module, inner="evolution", inner_samples=samples, inner_deviation=0.01, **options)
        moved = learner.adapt(meta, episodes.support)[0].params["weight"] - meta.params["weight"]
        gaps.append(((moved - goal).norm() / goal.norm()).item())
    assert gaps[1] < 0.15 < gaps[0]


def test_estimated_inner_steps_learn_a_model_without_derivatives():
    class Steps(nn.Module):
        """As flat as can be almost everywhere."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return (self.w * 20).round() / 20 + 0 * x

    support = Batch(torch.zeros(2, 3, 1), torch.tensor([1.0, -1.0]).view(2, 1, 1).expand(2, 3, 1))
    options = {"loss": "mse", "steps": 20, "rate": 0.1}
    blind = es_maml(Steps(), **options)
    meta = blind.init(None)
    assert blind.adapt(meta, support)[0].params["w"].abs().max() == 0
    learner = es_maml(Steps(), inner="evolution", inner_deviation=0.1, **options)
    adapted, info = learner.adapt(meta, support)
    assert torch.allclose(adapted.params["w"], torch.tensor([[1.0], [-1.0]]), atol=0.2)
    assert info.support_loss[-1].max() < 0.05 * info.support_loss[0].min()


@pytest.mark.parametrize("options", [{"inner": "gradient"}, {"inner": "gradient", "shaping": "ranks"}])
def test_meta_training_lowers_the_loss_after_adapting(options):
    learner = es_maml(
        headstart.mlp(1, 1, hidden=(8,)), loss="mse", steps=1, rate=0.05, samples=8, taskmap="vmap", **options
    )
    tasks = sinusoid(shots=10)

    def optimizer(tensors):
        return torch.optim.Adam(tensors, lr=0.03)

    state = start(learner, optimizer=optimizer)
    episodes = tasks.sample("test", range(100))
    before = headstart.meta_loss(learner, state.meta, episodes)[0].item()
    for _ in fit(learner, tasks, steps=40, tasks_per_step=8, state=state):
        pass
    assert headstart.meta_loss(learner, state.meta, episodes)[0].item() < 0.95 * before


def test_what_cannot_be_is_refused():
    with pytest.raises(UnknownNameError, match="evolution"):
        es_maml(nn.Linear(1, 1), inner="evolved")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="inner_samples"):
        es_maml(nn.Linear(1, 1), inner="evolution", inner_samples=0)
