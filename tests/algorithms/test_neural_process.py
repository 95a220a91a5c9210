import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from headstart.algorithms.neural_process import CrossAttention, anp, cnp
from headstart.core.objective import meta_loss
from headstart.data.curves.gp_curves import gp_curves, true_distribution
from headstart.errors import ShapeError, UsageError
from headstart.testing import random_episodes
from headstart.training.loop import fit
from headstart.types import Adapted, Batch, Episodes, Gaussian, Learner, Meta

SMALL = {"hidden": 8, "depth": 3, "dtype": torch.float64}
BOTH = pytest.mark.parametrize("make", [cnp, anp])


def distribution(learner: Learner, meta: Meta, support: Batch, x: Tensor) -> Gaussian:
    assert learner.distribution is not None
    with torch.no_grad():
        return learner.distribution(learner.adapt(meta, support)[0], x)


def started(learner: Learner, seed: int = 0) -> Meta:
    return learner.init(torch.Generator().manual_seed(seed))


def log_density(found: Gaussian, y: Tensor) -> Tensor:
    return Normal(found.mean, found.variance.sqrt()).log_prob(y)


@BOTH
def test_tasks_of_other_sizes_are_as_they_are_alone(make: Callable[..., Learner]) -> None:
    learner = make(inputs=1, **SMALL)
    meta, (support, query) = started(learner), random_episodes((1,), outputs=1, support=5, regression=True)
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 0, 0, 0], [1, 0, 1, 0, 0]]).bool()
    x, y = (torch.where(mask[..., None], values, math.nan) for values in (support.x, support.y))
    together = distribution(learner, meta, Batch(x, y, mask), query.x)
    for task in range(3):
        own = slice(task, task + 1)
        alone = Batch(x[own, mask[task]], y[own, mask[task]])
        for got, expected in zip(together, distribution(learner, meta, alone, query.x[own])):
            torch.testing.assert_close(got[own], expected)
    # padding of the query set, too, and of support and query at once
    found, _ = meta_loss(learner, meta, Episodes(Batch(x, y, mask), query))
    long = Batch(*(torch.cat((values, math.nan * values[:, :2]), 1) for values in query[:2]), torch.arange(7) < 5)
    long = long._replace(mask=long.mask.expand(3, -1))  # type: ignore[union-attr]
    torch.testing.assert_close(meta_loss(learner, meta, Episodes(Batch(x, y, mask), long))[0], found)


@BOTH
def test_predictions_are_the_means_and_nothing_is_surer_than_the_floor(make: Callable[..., Learner]) -> None:
    learner = make(inputs=1, floor=0.3, **SMALL)
    meta, (support, query) = started(learner), random_episodes((1,), outputs=1, regression=True)
    adapted, info = learner.adapt(meta, support)
    found = distribution(learner, meta, support, query.x)
    assert torch.equal(learner.predict(adapted, query.x), found.mean)
    assert found.variance.min() > 0.3**2 and info.support_loss.shape == (0, 3) and meta.structure == {}
    expected = (found.mean - query.y).square().mean((1, 2))
    torch.testing.assert_close(learner.loss(found.mean, query), expected)


@BOTH
def test_a_task_without_support_gets_an_answer(make: Callable[..., Learner]) -> None:
    learner = make(inputs=1, **SMALL)
    meta, (support, query) = started(learner), random_episodes((1,), outputs=1, regression=True)
    none = support._replace(mask=torch.zeros(3, 4, dtype=torch.bool))
    assert all(part.isfinite().all() for part in distribution(learner, meta, none, query.x))


@BOTH
def test_weights_have_the_type_asked_for(make: Callable[..., Learner]) -> None:
    for dtype in (torch.float32, torch.float64):
        assert {value.dtype for value in started(make(inputs=1, hidden=8, dtype=dtype)).params.values()} == {dtype}
    assert {value.device.type for value in make(inputs=1, hidden=8, device="meta").init(None).params.values()} == {
        "meta"
    }


@BOTH
def test_weights_start_large_enough_for_the_support_set_to_be_seen(make: Callable[..., Learner]) -> None:
    for name, value in started(make(inputs=1, hidden=64)).params.items():
        if value.ndim == 1:
            assert (value == 0).all(), name
        else:
            bound = (6 / sum(value.shape)) ** 0.5
            assert value.abs().max() <= bound
            assert abs(value.std() / (bound / 3**0.5) - 1) < 4 / value.numel() ** 0.5, name


def test_cnp_pools_by_the_mean_and_minimises_the_likelihood() -> None:
    learner = cnp(inputs=2, outputs=2, **SMALL)
    meta, episodes = started(learner), random_episodes((2,), outputs=2, regression=True)
    support, query = episodes
    whole = learner.adapt(meta, support)[0].params["representation"]
    ones = [learner.adapt(meta, Batch(support.x[:, [i]], support.y[:, [i]]))[0] for i in range(4)]
    torch.testing.assert_close(whole, torch.stack([one.params["representation"] for one in ones]).mean(0))
    weights = [meta.params[f"decoder.{i}.{part}"] for i in (0, 2, 4) for part in ("weight", "bias")]
    layer = torch.cat((whole.unsqueeze(1).expand(-1, 5, -1), query.x), -1)
    for place, (weight, bias) in enumerate(zip(weights[::2], weights[1::2])):
        layer = layer @ weight.T + bias
        layer = layer if place == 2 else layer.relu()
    found = Normal(layer[..., :2], 0.01 + 0.99 * nn.functional.softplus(layer[..., 2:]))
    expected = -found.log_prob(query.y).mean((1, 2))
    assert learner.objective is not None
    losses, info = learner.objective(learner, meta, episodes)
    torch.testing.assert_close(losses, expected)
    assert info.query_loss is not None
    # reported is the error of the mean, as of every regressor
    torch.testing.assert_close(info.query_loss, (found.mean - query.y).square().mean((1, 2)))


def test_attention_is_that_of_torch_with_padding_left_out() -> None:
    torch.manual_seed(0)
    ours, theirs = CrossAttention(8, 4).double(), nn.MultiheadAttention(8, 4, bias=False, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.out_proj.weight.copy_(ours.output.weight)
    query, key, value = (torch.randn(n, 8, dtype=torch.float64) for n in (5, 6, 6))
    there = torch.tensor([1.0, 1, 0, 1, 0, 1], dtype=torch.float64)
    expected, _ = theirs(query[None], key[None], value[None], key_padding_mask=(there == 0)[None])
    torch.testing.assert_close(ours(query, key, value, there), expected[0])


def test_anp_minimises_a_bound_of_the_likelihood() -> None:
    """E over z ~ q(z | S ∪ Q) of −log p(y | z), plus KL; it bounds −log ∫ p(y | z) q(z | S) dz from above."""
    learner = anp(inputs=1, latent=2, draws=1, floor=0.5, **SMALL)
    assert learner.objective is not None and learner.distribution is not None
    start = started(learner, 3).params
    # a latent encoder that tells sets apart
    meta = Meta({name: (2 if name.startswith("latent") else 1) * value for name, value in start.items()}, {})
    one = random_episodes((1,), outputs=1, tasks=1, query=3, regression=True)
    support, query = (Batch(b.x.expand(2000, -1, -1), b.y.expand(2000, -1, -1), None, torch.arange(2000)) for b in one)
    # every seed draws its own z
    prior, _ = learner.adapt(meta, support)
    each = log_density(learner.distribution(prior, query.x), query.y).sum((1, 2))
    likelihood = each.logsumexp(0) - math.log(2000)
    found = 3 * learner.objective(learner, meta, Episodes(support, query))[0]
    assert each.std() > 0.05 and found.std() > 0.05
    assert -likelihood < found.mean() < -likelihood + 0.1

    posterior, _ = learner.adapt(meta, Batch(*(torch.cat(pair, 1) for pair in zip(support[:2], query[:2]))))
    normals = [Normal(*adapted.params["latent"][0]) for adapted in (posterior, prior)]
    divergence = kl_divergence(*normals).sum()
    error = 4 * (2 / 2000) ** 0.5 * each.std()
    assert divergence > error
    drawn = prior._replace(params={**prior.params, "latent": posterior.params["latent"]})
    nats = -log_density(learner.distribution(drawn, query.x), query.y).sum((1, 2))
    assert abs(found.mean() - divergence - nats.mean()) < error


def test_anp_predicts_a_mixture_by_the_tasks_seed() -> None:
    one, many = (anp(inputs=1, draws=draws, latent=2, floor=0.5, **SMALL) for draws in (1, 3000))
    meta = Meta({name: 2 * value for name, value in started(one).params.items()}, {})
    support, query = random_episodes((1,), outputs=1, tasks=1, regression=True)
    wide = Batch(support.x.expand(3000, -1, -1), support.y.expand(3000, -1, -1), seed=torch.arange(3000))
    parts = distribution(one, meta, wide, query.x.expand(3000, -1, -1))
    mixture = distribution(many, meta, support, query.x)
    spread = parts.mean.var(0)
    assert spread.min() > 1e-6
    assert ((parts.mean.mean(0) - mixture.mean[0]).abs() < 6 * (2 * spread / 3000).sqrt()).all()
    torch.testing.assert_close(mixture.variance[0], parts.variance.mean(0) + spread, rtol=0.1, atol=0)
    # the same seed, the same draw; without one, the same for every task
    again = distribution(one, meta, wide, query.x.expand(3000, -1, -1))
    assert torch.equal(again.mean, parts.mean)
    unseeded = distribution(one, meta, wide._replace(seed=None), query.x.expand(3000, -1, -1))
    torch.testing.assert_close(unseeded.mean, unseeded.mean[:1].expand(3000, -1, -1))


@BOTH
def test_training_learns_to_read_the_support_set(make: Callable[..., Learner]) -> None:
    tasks = gp_curves(queries=12, lengthscale=1.0)
    learner = make(inputs=1, hidden=32, depth=3)
    for record in fit(learner, tasks, steps=200, optimizer=lambda tensors: torch.optim.Adam(tensors, lr=3e-3)):
        state = record.state
    support, query = tasks.sample("validation", range(200))

    def likelihood(known: Batch) -> float:
        return log_density(distribution(learner, state.meta, known, query.x), query.y).mean().item()

    # 1.42 nats are the cost of N(0, 1 + 0.1²), the best that can be said without the support set
    reached, shuffled = (likelihood(Batch(*(v.roll(k, 0) for v in support[:3]))) for k in (0, 1))  # type: ignore[union-attr]
    best = log_density(true_distribution(tasks, support, query.x), query.y).mean().item()
    assert -1.1 < reached < best
    assert shuffled < reached - 0.3


@BOTH
def test_what_cannot_be_is_refused(make: Callable[..., Learner]) -> None:
    for options in ({"inputs": 0}, {"outputs": 0}, {"hidden": 0}, {"depth": 1}, {"floor": 0.0}, {"floor": 1.0}):
        with pytest.raises(UsageError, match="a neural process needs"):
            make(**{"inputs": 1, **options})
    learner = make(inputs=2, **SMALL)
    meta, (support, query) = started(learner), random_episodes((2,), outputs=1, regression=True)
    with pytest.raises(ShapeError, match=r"2 inputs.*\(3, 4, 1\)"):
        learner.adapt(meta, support._replace(x=support.x[..., :1]))
    with pytest.raises(ShapeError, match=r"1 target values.*int64"):
        learner.adapt(meta, random_episodes((2,)).support)
    adapted: Adapted = learner.adapt(meta, support)[0]
    with pytest.raises(ShapeError, match="2 inputs"):
        learner.predict(adapted, query.x[..., :1])
    with pytest.raises(ShapeError, match="dict"):
        learner.adapt(meta, Batch({"x": support.x}, support.y))


def test_attention_and_latent_sizes_that_cannot_be_are_refused() -> None:
    for options in ({"heads": 3}, {"heads": 0}, {"latent": 0}, {"draws": 0}):
        with pytest.raises(UsageError, match="heads that divide hidden"):
            anp(inputs=1, hidden=8, **options)
