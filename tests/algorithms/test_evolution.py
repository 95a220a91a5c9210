import math

import pytest
import torch
from torch import nn

import headstart
from headstart.algorithms import evolution
from headstart.algorithms.evolution import Evolution, centred_ranks, es_maml, normals, smoothed_gradient
from headstart.core import rules
from headstart.core.objective import backprop, meta_gradient
from headstart.data.curves.sinusoid import sinusoid
from headstart.errors import UnknownNameError, UsageError
from headstart.testing import random_episodes
from headstart.training.loop import fit, start
from headstart.types import Adapted, Batch, Episodes, Info, Learner, Meta


def flat(meta):
    return torch.cat([value.flatten() for part in meta for value in part.values()])


def seeded(episodes, start=0):
    tasks = len(episodes.query.y)
    seeds = torch.arange(start, start + tasks) * 7919 + 1
    return Episodes(*(batch._replace(seed=seeds) for batch in episodes))


@pytest.fixture
def smooth():
    """A learner of six numbers whose meta-loss is smooth, and tasks."""
    net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1, bias=False)).double()
    learner = headstart.maml(net, loss="mse", steps=2, rate=0.1, rule=rules.per_tensor(0.1), taskmap="vmap")
    return learner, random_episodes((1,), outputs=1, regression=True)


def bare(function, w=0.3, m=2.0):
    """Return a learner whose losses are ``function`` of w and m, adapting nothing."""

    def adapt(meta, support, /, steps=None):
        return Adapted(meta, {}, {}, support.seed), Info(torch.zeros(0, len(support.y)))

    def predict(adapted, x):
        return function(adapted.meta.params["w"], adapted.meta.structure["m"]).expand(x.shape[:2])

    meta = Meta(*({name: torch.tensor(v, dtype=torch.float64)} for name, v in (("w", w), ("m", m))))
    return Learner(lambda generator: meta, adapt, predict, lambda out, batch: out.mean(1), Evolution(), exact=False)


def batch_of(tasks=2):
    batch = Batch(torch.zeros(tasks, 1, 1), torch.zeros(tasks, 1, 1))
    return Episodes(batch, batch)


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_error_falls_like_one_over_the_root_of_the_samples(antithetic):
    learner = bare(lambda w, m: (w.sin() * m.exp()).sum() + w.prod(), w=[0.3, -1.0, 2.0, 0.5], m=[0.1, 0.2, -0.3, 0.0])
    meta = learner.init(None)
    exact = flat(backprop(learner, meta, batch_of())[0])
    counts, errors = (16, 256), []
    for samples in counts:
        estimate = Evolution(deviation=1e-3, samples=samples, antithetic=antithetic)
        found = torch.stack([flat(estimate(learner, meta, seeded(batch_of(), 100 * s))[0]) for s in range(12)])
        errors.append((found - exact).square().sum(1).mean().sqrt())
    order = math.log(errors[1] / errors[0]) / math.log(counts[1] / counts[0])
    assert order == pytest.approx(-0.5, abs=0.12)
    # of directions that are drawn alike: sqrt((d + 1) / n) of the gradient's length
    assert errors[1] / exact.norm() == pytest.approx(math.sqrt((len(exact) + 1) / counts[1]), rel=0.3)


def test_the_estimate_tends_to_the_exact_meta_gradient(smooth):
    learner, episodes = smooth
    meta = learner.init(None)
    exact = flat(backprop(learner, meta, episodes)[0])
    found = flat(Evolution(deviation=1e-3, samples=200)(learner, meta, seeded(episodes))[0])
    assert torch.cosine_similarity(found, exact, dim=0) > 0.95
    assert (found.norm() / exact.norm()).item() == pytest.approx(1, abs=0.25)


def test_a_step_has_the_gradient_of_the_smoothed_step():
    learner = bare(lambda w, m: (w > 0).double() * m.round())
    gradient, _ = Evolution(deviation=0.5, samples=3000)(learner, learner.init(None), batch_of())
    density = math.exp(-((0.3 / 0.5) ** 2) / 2) / math.sqrt(2 * math.pi) / 0.5
    assert gradient.params["w"].item() == pytest.approx(2 * density, rel=0.1)
    # m, rounded, has a slope too: the chance that w is above 0
    chance = (1 + math.erf(0.3 / 0.5 / math.sqrt(2))) / 2
    assert gradient.structure["m"].item() == pytest.approx(chance, rel=0.25)


def test_both_sides_cancel_what_is_even():
    learner = bare(lambda w, m: 1e6 + (w - 0.3) ** 2 + 0 * m)
    gradient, _ = Evolution(samples=3)(learner, learner.init(None), batch_of())
    assert abs(gradient.params["w"].item()) < 1e-6
    one_sided, _ = Evolution(samples=3, antithetic=False)(learner, learner.init(None), batch_of())
    assert abs(one_sided.params["w"].item()) > 1e-3


def test_the_penalty_counts():
    learner = bare(lambda w, m: 0 * w)._replace(penalty=lambda meta: 3 * meta.structure["m"])
    gradient, info = Evolution(samples=500)(learner, learner.init(None), batch_of())
    assert gradient.structure["m"].item() == pytest.approx(3, rel=0.2)
    assert info.query_loss.tolist() == [0, 0]


@pytest.mark.parametrize("shaping", [None, "ranks"])
def test_a_function_of_the_seeds_alone(smooth, shaping):
    learner, episodes = smooth
    meta, estimate = learner.init(None), Evolution(samples=4, shaping=shaping)
    first = flat(estimate(learner, meta, seeded(episodes))[0])
    torch.rand(3)
    assert torch.equal(first, flat(estimate(learner, meta, seeded(episodes))[0]))
    assert not torch.allclose(first, flat(estimate(learner, meta, seeded(episodes, 50))[0]))
    backwards = Episodes(*(Batch(*(None if v is None else v.flip(0) for v in batch)) for batch in seeded(episodes)))
    assert torch.allclose(first, flat(estimate(learner, meta, backwards)[0]), atol=1e-9)
    # without seeds, one that is fixed
    unseeded = [flat(estimate(learner, meta, episodes)[0]) for _ in range(2)]
    assert torch.equal(*unseeded) and not torch.allclose(first, unseeded[0])


def test_ranks_do_not_see_how_far_an_outlier_is(smooth):
    learner, episodes = smooth
    meta, estimate = learner.init(None), Evolution(samples=8, shaping="ranks")
    found, stretched = (
        flat(estimate(learner._replace(loss=loss), meta, episodes)[0])
        for loss in (learner.loss, lambda out, batch: learner.loss(out, batch).mean().exp().mul(1e3).expand(3))
    )
    assert torch.equal(found, stretched)
    exact = flat(backprop(learner, meta, episodes)[0])
    many = flat(Evolution(deviation=0.01, samples=100, shaping="ranks")(learner, meta, episodes)[0])
    assert torch.cosine_similarity(many, exact, dim=0) > 0.85


def test_centred_ranks():
    values = torch.tensor([3.0, float("nan"), -1.0, 3.0, 7.0])
    assert centred_ranks(values).tolist() == pytest.approx([-0.125, 0.5, -0.5, -0.125, 0.25])
    assert centred_ranks(torch.tensor([4.0])).tolist() == [0]
    assert centred_ranks(torch.ones(3)).tolist() == [0, 0, 0]


def test_no_history_and_nothing_written(smooth):
    learner, episodes = smooth
    meta = Meta(*({n: v.requires_grad_() for n, v in part.items()} for part in learner.init(None)))
    before = flat(meta).detach().clone()
    gradient, info = meta_gradient(learner._replace(gradient=Evolution(samples=2)), meta, episodes)
    assert not flat(gradient).requires_grad and not info.query_loss.requires_grad
    assert torch.equal(flat(meta), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_are_normal(dtype):
    drawn = normals(20_001, range(1), torch.tensor(3), (0, 0), dtype)
    assert drawn.dtype == dtype and drawn.shape == (1, 20_001)
    moments = [drawn.double().pow(power).mean().item() for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.15)
    assert drawn.abs().max() > 3.5 and drawn.isfinite().all()


def test_normals_differ_by_all_that_they_go_by():
    seeds = torch.tensor([1, 2, 2**40 + 1])
    drawn = normals(6, range(2), seeds, (0, 0))
    assert drawn.shape == (2, 3, 6)
    assert torch.equal(drawn[1:, 1:2], normals(6, range(1, 2), seeds[1:2], (0, 0)))
    others = [normals(6, range(2), seeds, key) for key in ((1, 0), (0, 1))]
    everything = torch.cat([drawn, *others]).flatten()
    assert len(everything.unique()) == len(everything)


def test_directions_are_the_same_however_many_are_computed_at_once(smooth, monkeypatch):
    learner, episodes = smooth
    meta = learner.init(None)
    together = flat(Evolution(samples=7)(learner, meta, seeded(episodes))[0])
    monkeypatch.setattr(evolution, "_AT_ONCE", 25)
    assert torch.equal(together, flat(Evolution(samples=7)(learner, meta, seeded(episodes))[0]))


def test_every_task_has_its_own_estimate():
    slopes = torch.tensor([[1.0, -2.0], [3.0, 0.5]], dtype=torch.float64)
    point = {"w": torch.zeros(2, 2, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}
    found = smoothed_gradient(lambda p: (p["w"] * slopes).sum(1) - p["b"], point, torch.tensor([5, 6]), 0.1, 1000)
    assert torch.allclose(found["w"], slopes, atol=0.3)
    assert torch.allclose(found["b"], -torch.ones(2, dtype=torch.float64), atol=0.3)


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="deviation"):
        Evolution(deviation=0)
    with pytest.raises(UsageError, match="samples"):
        Evolution(samples=0)
    with pytest.raises(UnknownNameError, match="ranks"):
        Evolution(shaping="rank")  # type: ignore[arg-type]


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


def test_what_es_maml_cannot_be_is_refused():
    with pytest.raises(UnknownNameError, match="evolution"):
        es_maml(nn.Linear(1, 1), inner="evolved")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="inner_samples"):
        es_maml(nn.Linear(1, 1), inner="evolution", inner_samples=0)
