import pytest
import torch
from torch import nn

import headstart
from headstart import Batch, Episodes, rules
from headstart.algorithms.imaml import imaml
from headstart.core.adjoints import ConjugateGradient, Neumann
from headstart.data.curves.sinusoid import sinusoid
from headstart.errors import UsageError
from headstart.training.loop import fit, start

TASKS, FEATURES, STRENGTH = 3, 4, 0.5


@pytest.fixture
def regression(generator):
    """Tasks of linear regression: (support x, y, query x, y)."""

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    support = Batch(draw(TASKS, 8, FEATURES), draw(TASKS, 8, 1))
    return Episodes(support, Batch(draw(TASKS, 6, FEATURES), draw(TASKS, 6, 1)))


def gradient(learner, episodes):
    return headstart.meta_gradient(learner, learner.init(None), episodes)[0]


def linear():
    torch.manual_seed(0)
    return nn.Linear(FEATURES, 1, bias=False).double()


@pytest.mark.parametrize("solver", [ConjugateGradient(iterations=FEATURES), Neumann(terms=400)], ids=str)
def test_it_is_the_papers_gradient_on_ridge_regression(regression, solver):
    """φ = argmin mse(φ, S) + λ/2 ‖φ − θ‖² and g = (I + ∇²mse(φ, S) / λ)⁻¹ ∇mse(φ, Q), both in closed form."""
    net = linear()
    theta, eye = net.weight.detach().T, torch.eye(FEATURES, dtype=torch.float64)
    slopes = []
    for x, y, query_x, query_y in zip(*regression.support[:2], *regression.query[:2]):
        hessian = 2 * x.T @ x / len(x)
        phi = torch.linalg.solve(hessian + STRENGTH * eye, 2 * x.T @ y / len(x) + STRENGTH * theta)
        slope = 2 * query_x.T @ (query_x @ phi - query_y) / len(query_x)
        slopes.append(torch.linalg.solve(eye + hessian / STRENGTH, slope))
    expected = torch.stack(slopes).mean(0).T
    learner = imaml(net, loss="mse", strength=STRENGTH, rate=0.1, steps=500, solver=solver)
    torch.testing.assert_close(gradient(learner, regression).params["weight"], expected, rtol=1e-8, atol=1e-10)


def test_the_gradient_comes_nearer_to_that_of_the_unrolled_loop_with_every_step(regression):
    net, gaps = linear(), []
    for steps in (5, 20, 80, 320):
        learner = imaml(net, loss="mse", strength=STRENGTH, rate=0.1, steps=steps, damping=0, learn=True)
        rule = rules.chain(rules.proximal(STRENGTH, learn=True), rules.scale(0.1))
        unrolled = headstart.maml(net, loss="mse", rule=rule, steps=steps)
        ours, exact = (
            torch.cat([value.flatten() for part in gradient(one, regression) for value in part.values()])
            for one in (learner, unrolled)
        )
        gaps.append(((ours - exact).norm() / exact.norm()).item())
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] and gaps[3] < 1e-6


def test_few_iterations_of_the_solver_are_near_enough(regression):
    """Each iteration of the paper's solver brings the gradient nearer."""
    full, *few = (
        gradient(
            imaml(linear(), loss="mse", strength=STRENGTH, steps=300, iterations=iterations, damping=0), regression
        ).params["weight"]
        for iterations in (FEATURES, 1, 2, 3)
    )
    gaps = [((each - full).norm() / full.norm()).item() for each in few]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.1


def test_damping_adds_to_the_strength_in_the_linear_system(regression):
    """λ (∇²mse + (λ + δ) I)⁻¹ ∇mse(φ, Q)."""
    net, damping = linear(), 0.7
    options = {"loss": "mse", "strength": STRENGTH, "rate": 0.1, "steps": 500, "iterations": FEATURES}
    learner = imaml(net, damping=damping, **options)
    adapted, _ = learner.adapt(learner.init(None), regression.support)
    slopes = []
    for task, (x, query_x, query_y) in enumerate(zip(regression.support.x, *regression.query[:2])):
        matrix = 2 * x.T @ x / len(x) + (STRENGTH + damping) * torch.eye(FEATURES, dtype=torch.float64)
        slope = 2 * query_x.T @ (query_x @ adapted.params["weight"][task].T - query_y) / len(query_x)
        slopes.append(STRENGTH * torch.linalg.solve(matrix, slope))
    expected = torch.stack(slopes).mean(0).T
    torch.testing.assert_close(gradient(learner, regression).params["weight"], expected, rtol=1e-8, atol=1e-10)


def test_a_strong_pull_leaves_the_query_gradient_at_the_start(regression):
    learner = imaml(linear(), loss="mse", strength=1e6, rate=1e-7, steps=3, damping=0)
    still = headstart.maml(linear(), loss="mse", steps=0)
    got, expected = (gradient(one, regression).params["weight"] for one in (learner, still))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_it_learns_the_strength_if_asked(regression):
    learner = imaml(linear(), loss="mse", strength=0.5, learn=True)
    meta = learner.init(None)
    assert list(meta.structure) == ["log_proximal.weight"]
    torch.testing.assert_close(learner.shown(meta)["proximal.weight"], torch.tensor(0.5, dtype=torch.float64))
    assert gradient(learner, regression).structure["log_proximal.weight"] != 0
    assert not imaml(linear(), loss="mse").init(None).structure


def test_meta_training_lowers_the_loss_after_adapting():
    learner = imaml(headstart.mlp(1, 1, hidden=(40,)), loss="mse", strength=0.5, rate=0.01, taskmap="vmap")
    tasks = sinusoid(shots=10)
    state = start(learner, optimizer=lambda tensors: torch.optim.Adam(tensors, lr=0.02))
    episodes = tasks.sample("test", range(100))
    before = headstart.meta_loss(learner, state.meta, episodes)[0].item()
    for _ in fit(learner, tasks, steps=80, tasks_per_step=8, state=state):
        pass
    assert headstart.meta_loss(learner, state.meta, episodes)[0].item() < 0.9 * before


def test_its_options_are_those_of_maml(regression):
    learner = imaml(linear(), loss="mse", steps=2, taskmap="loop")
    adapted, info = learner.adapt(learner.init(None), regression.support)
    assert info.support_loss.shape == (2, TASKS) and adapted.step == 2 and not learner.exact


def test_damping_below_zero_is_refused():
    with pytest.raises(UsageError, match="damping must be 0 or more"):
        imaml(linear(), loss="mse", damping=-1.0)
