from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from headstart.algorithms.bayesian_linear import alpaca
from headstart.algorithms.gaussian_process import gaussian_process
from headstart.algorithms.kernels import triangular
from headstart.data.rows import Rows, row_tasks
from headstart.errors import ShapeError, UnknownNameError, UsageError
from headstart.testing import random_episodes
from headstart.training.loop import fit, start
from headstart.types import Batch, Episodes, Meta

RAW = partial(alpaca, inputs=3, outputs=2, dtype=torch.float64)
EPISODES = random_episodes((3,), regression=True, outputs=2)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh()).double()


def moved(meta: Meta) -> Meta:
    generator = torch.Generator().manual_seed(5)
    parts = (
        {k: v + 0.3 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in part.items()}
        for part in meta
    )
    return Meta(*parts)


def by_hand(meta: Meta, design: torch.Tensor, y: torch.Tensor):
    """The posterior mean and precision of the paper's equations."""
    m = meta.structure
    factor = triangular(m["log_diagonal"], m["lower"])
    prior = factor @ factor.T
    precision = design.T @ design + prior
    return precision.inverse() @ (design.T @ y + prior @ m["mean"]), precision


def test_the_posterior_is_that_of_the_paper():
    module = net()
    learner = alpaca(module, outputs=2)
    meta = moved(learner.init(None))
    support, query = EPISODES
    adapted, _ = learner.adapt(meta, support)
    got = learner.distribution(adapted, query.x)
    for task in range(3):

        def design(x):
            return torch.cat([torch.ones_like(x[:, :1]), torch.func.functional_call(module, meta.params, x)], 1)

        mean, precision = by_hand(meta, design(support.x[task]), support.y[task])
        phi = design(query.x[task])
        torch.testing.assert_close(adapted.params["mean"][task], mean)
        torch.testing.assert_close(got.mean[task], phi @ mean)
        spread = 1 + ((phi @ precision.inverse()) * phi).sum(1, keepdim=True)
        torch.testing.assert_close(got.variance[task], spread * torch.exp(2 * meta.structure["log_noise"]))


def test_it_is_trained_on_the_posterior_predictive_likelihood_of_the_query_set():
    learner = RAW()
    meta = moved(learner.init(None))
    losses, info = learner.objective(learner, meta, EPISODES)
    adapted, _ = learner.adapt(meta, EPISODES.support)
    got = learner.distribution(adapted, EPISODES.query.x)
    expected = -torch.distributions.Normal(got.mean, got.variance.sqrt()).log_prob(EPISODES.query.y)
    torch.testing.assert_close(losses, expected.mean((1, 2)))
    torch.testing.assert_close(info.query_loss, (got.mean - EPISODES.query.y).square().mean((1, 2)))


def test_the_joint_likelihood_is_that_of_all_rows():
    learner = RAW(likelihood="joint")
    meta = moved(learner.init(None))
    losses, info = learner.objective(learner, meta, EPISODES)
    adapted, _ = learner.adapt(meta, EPISODES.support)
    predicted = learner.predict(adapted, EPISODES.query.x)
    torch.testing.assert_close(info.query_loss, (predicted - EPISODES.query.y).square().mean((1, 2)))
    x, y = (torch.cat([getattr(batch, name)[0] for batch in EPISODES]) for name in "xy")
    design = torch.cat([torch.ones_like(x[:, :1]), x], 1)
    factor = triangular(meta.structure["log_diagonal"], meta.structure["lower"])
    spread = torch.eye(9) + design @ (factor @ factor.T).inverse() @ design.T
    noise = torch.exp(2 * meta.structure["log_noise"])
    density = sum(
        MultivariateNormal(design @ meta.structure["mean"][:, o], noise[o] * spread).log_prob(y[:, o]) for o in range(2)
    )
    torch.testing.assert_close(losses[0], -density / 18)


def test_raw_features_are_a_gaussian_process_with_random_effects():
    """The same prior in weights and in functions gives the same predictions."""
    linear = alpaca(inputs=3, dtype=torch.float64)
    process = gaussian_process(inputs=3, mean="linear", kernel="linear", dtype=torch.float64)
    process_meta = moved(process.init(None))
    m = process_meta.structure
    factor = triangular(m["kernel.effects.log_diagonal"], m["kernel.effects.lower"])
    precision = torch.linalg.cholesky((factor @ factor.T).inverse() * torch.exp(2 * m["log_noise"]))
    rows, columns = torch.tril_indices(4, 4, -1)
    scale = precision.diagonal()
    structure = {
        "mean": torch.cat([process_meta.params["mean.bias"][None], process_meta.params["mean.linear"]]),
        "log_diagonal": scale.log(),
        "lower": (precision / scale[:, None])[rows, columns],
        "log_noise": m["log_noise"][None],
    }
    support, query = (batch._replace(y=batch.y[..., :1]) for batch in EPISODES)
    ours = linear.distribution(linear.adapt(Meta({}, structure), support)[0], query.x)
    theirs = process.distribution(process.adapt(process_meta, support)[0], query.x)
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)


def test_a_single_support_row_teaches_a_little():
    learner = RAW()
    meta = learner.init(None)
    one = Batch(EPISODES.support.x[:, :1], EPISODES.support.y[:, :1])
    prior = learner.distribution(learner.adapt(meta, one._replace(mask=torch.zeros(3, 1, dtype=torch.bool)))[0], one.x)
    posterior = learner.distribution(learner.adapt(meta, one)[0], one.x)
    assert (posterior.variance < prior.variance).all()
    assert ((posterior.mean - one.y).abs() < (prior.mean - one.y).abs()).all()


def lines(tasks: int = 24, rows: int = 8) -> Rows:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tasks * rows, 1, generator=generator)
    task = torch.arange(tasks).repeat_interleave(rows)
    effects = torch.randn(tasks, 2, generator=generator) * torch.tensor([0.8, 0.3]) + torch.tensor([1.0, -2.0])
    y = effects[task, :1] + effects[task, 1:] * x + 0.2 * torch.randn(len(x), 1, generator=generator)
    return Rows(x, y, task, tuple(map(str, range(tasks))))


def test_training_beats_the_line_through_all_tasks_and_a_line_for_each():
    tasks = row_tasks(lines(), {"train": range(16), "test": range(16, 24)}, support=2)
    learner = alpaca(inputs=1)
    meta = learner.prepare(learner.init(None), tasks, 0)
    torch.testing.assert_close(meta.structure["mean"], torch.tensor([[1.0], [-2.0]]), atol=0.5, rtol=0)
    state = start(learner, optimizer=partial(torch.optim.Adam, lr=0.03), meta=meta)
    for _ in fit(learner, tasks, steps=150, tasks_per_step=16, state=state, schedule="cosine"):
        pass
    support, query = tasks.sample("test", range(8))
    adapted, _ = learner.adapt(state.meta, support)
    ours = (learner.predict(adapted, query.x) - query.y).square().mean()
    design, new = (torch.cat([torch.ones_like(x), x], -1) for x in (support.x, query.x))
    pooled = new @ meta.structure["mean"]
    own = new @ torch.linalg.lstsq(design, support.y).solution
    assert ours < 0.5 * (pooled - query.y).square().mean()
    assert ours < 0.8 * (own - query.y).square().mean()
    assert learner.shown(state.meta)["noise"].item() == pytest.approx(0.2, abs=0.06)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="needs inputs="):
        alpaca()
    with pytest.raises(UsageError, match="say features="):
        alpaca(nn.Conv1d(1, 1, 1))
    with pytest.raises(UnknownNameError, match="unknown likelihood 'joined'; did you mean 'joint'"):
        alpaca(inputs=1, likelihood="joined")
    learner = alpaca(net(), features=3, outputs=2)
    with pytest.raises(ShapeError, match="there are 4 features, but the learner was made for 3"):
        learner.adapt(learner.init(None), EPISODES.support)
    learner = RAW()
    with pytest.raises(ShapeError, match="the targets must be floating"):
        learner.adapt(learner.init(None), Episodes(*random_episodes((3,))).support)


def test_what_is_learned_is_where_the_network_is():
    meta = alpaca(nn.Linear(3, 4, device="meta")).init(None)
    assert {value.device.type for part in meta for value in part.values()} == {"meta"}
