import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from headstart.algorithms.gaussian_process import (
    HEAD,
    dkt,
    gaussian_process,
    mean_cost,
    mean_start,
    mean_values,
    pooled,
)
from headstart.core.objective import meta_loss
from headstart.data.rows import Rows, row_tasks
from headstart.errors import ShapeError, UnknownNameError, UsageError
from headstart.testing import check_learner, random_episodes
from headstart.training.evaluate import evaluate
from headstart.training.loop import fit, start
from headstart.types import Batch, Episodes, Meta

TABLE = partial(gaussian_process, inputs=3, outputs=2, dtype=torch.float64)
EPISODES = random_episodes((3,), regression=True, outputs=2)


def net(outputs: int, inputs: int = 3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def test_a_gaussian_process_with_a_network_for_its_mean_keeps_the_contract():
    module = net(2)
    check_learner(lambda taskmap: TABLE(module, taskmap=taskmap), EPISODES, order=True, module=module)


def covariance(meta: Meta, x: torch.Tensor) -> torch.Tensor:
    """Of the observations of a gaussian_process with an rbf rest, by hand."""
    m = meta.structure
    size = x.shape[-1] + 1
    unit = torch.eye(size, dtype=x.dtype)
    rows, columns = torch.tril_indices(size, size, -1)
    unit[rows, columns] = m["kernel.effects.lower"]
    factor = torch.diag(m["kernel.effects.log_diagonal"].exp()) @ unit
    design = torch.cat([torch.ones_like(x[:, :1]), x], 1) @ factor
    scaled = x / m["kernel.rest.log_length"].exp()
    rest = torch.exp(2 * m["kernel.rest.log_scale"] - torch.cdist(scaled, scaled).square() / 2)
    return design @ design.T + rest + torch.exp(2 * m["log_noise"]) * torch.eye(len(x), dtype=x.dtype)


def moved(meta: Meta) -> Meta:
    generator = torch.Generator().manual_seed(5)
    return Meta(
        *(
            {k: v + 0.2 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in part.items()}
            for part in meta
        )
    )


def test_prediction_is_the_conditional_of_the_joint_distribution():
    learner = TABLE(kernel="rbf", mean="linear")
    meta = moved(learner.init(None))
    support, query = EPISODES
    adapted, info = learner.adapt(meta, support)
    got = learner.distribution(adapted, query.x)
    assert info.support_loss.shape == (0, 3) and learner.steps is None
    for task in range(3):
        x = torch.cat([support.x[task], query.x[task]])
        k, m = covariance(meta, x), meta.params["mean.bias"] + x @ meta.params["mean.linear"]
        gain = k[4:, :4] @ k[:4, :4].inverse()
        torch.testing.assert_close(got.mean[task], m[4:] + gain @ (support.y[task] - m[:4]))
        variance = (k[4:, 4:] - gain @ k[:4, 4:]).diagonal()
        torch.testing.assert_close(got.variance[task], variance[:, None].expand(5, 2))
    torch.testing.assert_close(learner.predict(adapted, query.x), got.mean)


def test_the_joint_loss_is_the_marginal_likelihood_of_all_of_a_tasks_points():
    learner = TABLE(kernel="rbf", mean="linear", regularization=0)
    meta = moved(learner.init(None))
    losses, info = learner.objective(learner, meta, EPISODES)
    for task in range(3):
        x = torch.cat([batch.x[task] for batch in EPISODES])
        y = torch.cat([batch.y[task] for batch in EPISODES])
        left = y - meta.params["mean.bias"] - x @ meta.params["mean.linear"]
        density = MultivariateNormal(torch.zeros(9).double(), covariance(meta, x)).log_prob(left.T).sum()
        torch.testing.assert_close(losses[task], -density / 18)
    adapted, _ = learner.adapt(meta, EPISODES.support)
    torch.testing.assert_close(
        info.query_loss, (learner.predict(adapted, EPISODES.query.x) - EPISODES.query.y).square().mean((1, 2))
    )


def test_the_joint_and_the_predictive_likelihood_agree_on_one_query_row():
    """log p(y_s, y_q) − log p(y_s) = log p(y_q | y_s)."""
    learner, other = TABLE(), TABLE(likelihood="predictive")
    meta = moved(learner.init(None))
    support, query = EPISODES
    one = Batch(query.x[:, :1], query.y[:, :1])
    none = Batch(query.x[:, :1], query.y[:, :1], torch.zeros(3, 1, dtype=torch.bool))
    both, _ = learner.objective(learner, meta, Episodes(support, one))
    first, _ = learner.objective(learner, meta, Episodes(support, none))
    expected, _ = other.objective(other, meta, Episodes(support, one))
    torch.testing.assert_close(10 * both - 8 * first, 2 * expected)


def test_deep_kernels_are_kernels_of_the_networks_features():
    module = net(4)
    learner = dkt(module, outputs=2)
    meta = learner.init(None)
    adapted, _ = learner.adapt(meta, EPISODES.support)
    got = learner.predict(adapted, EPISODES.query.x)
    left, right = module(EPISODES.query.x[0]), module(EPISODES.support.x[0])
    k = torch.exp(-torch.cdist(right, right).square() / 2) + 0.09 * torch.eye(4)
    cross = torch.exp(-torch.cdist(left, right).square() / 2)
    torch.testing.assert_close(got[0], cross @ k.inverse() @ EPISODES.support.y[0])


def test_without_evidence_the_prior_is_predicted():
    learner = TABLE(mean="constant")
    meta = moved(learner.init(None))
    support = EPISODES.support._replace(mask=torch.zeros(3, 4, dtype=torch.bool))
    adapted, _ = learner.adapt(meta, support)
    got = learner.distribution(adapted, EPISODES.query.x)
    torch.testing.assert_close(got.mean, meta.params["mean.bias"].expand(3, 5, 2))
    assert (got.variance > torch.exp(2 * meta.structure["log_noise"])).all()


def test_the_weak_prior_counts_once_for_all_values():
    learner = TABLE(regularization=2.0)
    meta = learner.init(None)
    further = meta._replace(structure=meta.structure | {"log_noise": meta.structure["log_noise"] + 0.5})
    difference = learner.penalty(further) - learner.penalty(meta)
    many = further._replace(structure=further.structure | {"values": torch.tensor(5000.0).double()})
    assert difference > 0
    torch.testing.assert_close(learner.penalty(many) * 5, learner.penalty(further))
    base = TABLE(regularization=0)
    torch.testing.assert_close(
        meta_loss(learner, further, EPISODES)[0] - meta_loss(base, further, EPISODES)[0], learner.penalty(further)
    )


@pytest.mark.parametrize(("tasks", "factor"), [(0, 1), (15, 16 / 9), (400, 401 / 394), (3, 2)])
def test_few_training_tasks_widen_the_effects_of_a_new_one(tasks, factor):
    learner, narrow = TABLE(kernel="linear"), TABLE(kernel="linear", likelihood="predictive")
    meta = moved(learner.init(None))
    told = meta._replace(structure=meta.structure | {"tasks": torch.tensor(float(tasks)).double()})
    logs = meta.structure["kernel.effects.log_diagonal"] + 0.5 * math.log(factor)
    wide = meta._replace(structure=meta.structure | {"kernel.effects.log_diagonal": logs})
    ours = learner.distribution(learner.adapt(told, EPISODES.support)[0], EPISODES.query.x)
    theirs = narrow.distribution(narrow.adapt(wide, EPISODES.support)[0], EPISODES.query.x)
    torch.testing.assert_close(ours, theirs)
    # what is fitted to the training tasks stays as it is
    assert torch.equal(learner.objective(learner, told, EPISODES)[0], learner.objective(learner, meta, EPISODES)[0])


def test_a_learner_that_has_counted_its_tasks_keeps_the_contract():
    learner = TABLE()

    def init(generator=None):
        meta = learner.init(generator)
        return meta._replace(structure=meta.structure | {"tasks": torch.tensor(9.0).double()})

    check_learner(learner._replace(init=init), EPISODES)


def panel(tasks: int = 30, rows: int = 8, seed: int = 0) -> Rows:
    """Lines with intercepts (1 ± 0.8) and slopes (−2 ± 0.5), noise 0.2, around a bend."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.linspace(-1.5, 1.5, rows).repeat(tasks)
    task = torch.arange(tasks).repeat_interleave(rows)
    effects = torch.randn(tasks, 2, generator=generator) * torch.tensor([0.8, 0.5]) + torch.tensor([1.0, -2.0])
    y = effects[task, 0] + effects[task, 1] * x + 0.2 * torch.randn(len(x), generator=generator)
    return Rows(x[:, None], (y + torch.cos(2 * x))[:, None], task, tuple(map(str, range(tasks))))


def panel_tasks():
    return row_tasks(panel(), {"train": range(20), "test": range(20, 30)}, support=3, order="first")


def test_preparing_starts_at_the_pooled_line_and_counts_the_values():
    rows, tasks = panel(), panel_tasks()
    learner = gaussian_process(inputs=1)
    meta = learner.init(None)
    prepared = learner.prepare(meta, tasks, 0)
    train = rows.task < 20
    design = torch.cat([torch.ones(160, 1), rows.x[train]], 1)
    line = torch.linalg.lstsq(design, rows.y[train]).solution
    torch.testing.assert_close(prepared.params["mean.bias"], line[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prepared.params["mean.linear"], line[1:], atol=1e-4, rtol=1e-4)
    assert prepared.structure["values"] == 160 and prepared.structure["tasks"] == 20
    assert {k: v.dtype for k, v in prepared.params.items()} == {k: v.dtype for k, v in meta.params.items()}


def test_it_finds_the_variances_of_a_mixed_effects_model_and_the_bend():
    tasks = panel_tasks()
    learner = gaussian_process(inputs=1, kernel="linear")
    meta = learner.prepare(learner.init(torch.Generator().manual_seed(0)), tasks, 0)
    state = start(learner, optimizer=partial(torch.optim.Adam, lr=0.03), meta=meta)
    for _ in fit(learner, tasks, steps=150, tasks_per_step=20, state=state, schedule="cosine"):
        pass
    seen = learner.shown(state.meta)
    assert seen["noise"].item() == pytest.approx(0.2, abs=0.05)
    assert seen["effects.inputs"][0, 0].sqrt().item() == pytest.approx(0.8, abs=0.3)
    episodes = tasks.sample("test", range(10))
    adapted, _ = learner.adapt(state.meta, episodes.support)
    predicted = learner.distribution(adapted, episodes.query.x)
    error = (predicted.mean - episodes.query.y).square()
    # a line of its own for every task cannot bend, and three rows do not say its slope
    assert error.mean().sqrt() < 0.8
    covered = (error < 4 * predicted.variance).float().mean()
    assert 0.85 <= covered <= 1
    line = gaussian_process(inputs=1, mean="linear", kernel="linear")
    first = line.prepare(line.init(None), tasks, 0)
    before = line.predict(line.adapt(first, episodes.support)[0], episodes.query.x)
    assert error.mean() < 0.5 * (before - episodes.query.y).square().mean()


def test_float32_copes_with_rows_that_repeat():
    learner = gaussian_process(inputs=1, kernel="rbf")
    meta = learner.init(None)
    meta = meta._replace(structure=meta.structure | {"log_noise": torch.tensor(math.log(1e-4))})
    batch = Batch(torch.zeros(1, 30, 1), torch.ones(1, 30, 1))
    adapted, _ = learner.adapt(meta, batch)
    got = learner.distribution(adapted, batch.x)
    torch.testing.assert_close(got.mean, batch.y, atol=1e-2, rtol=0)
    assert (got.variance > 0).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(UnknownNameError, match="unknown kernel 'rfb'; did you mean 'rbf'"):
        gaussian_process(inputs=1, kernel="rfb")
    with pytest.raises(UnknownNameError, match="unknown mean"):
        gaussian_process(inputs=1, mean="mlp")
    with pytest.raises(UnknownNameError, match="unknown likelihood 'marginal'"):
        dkt(net(2), likelihood="marginal")
    with pytest.raises(UnknownNameError, match="unknown kernel 'cosine'"):
        dkt(net(2), kernel="cosine")
    with pytest.raises(UsageError, match="a module is the mean function's network"):
        gaussian_process(net(1), inputs=3, mean="linear")
    learner = TABLE()
    with pytest.raises(ShapeError, match="outputs= the number of target values"):
        learner.adapt(learner.init(None), EPISODES.support._replace(y=EPISODES.support.y[..., :1]))
    with pytest.raises(ShapeError, match="inputs have 2 features; the learner was made for inputs=3"):
        learner.adapt(learner.init(None), EPISODES.support._replace(x=EPISODES.support.x[..., :2]))
    deep = dkt(net(4), features=3, outputs=2)
    with pytest.raises(ShapeError, match="the network gives 4 features; the kernel was made for 3"):
        deep.adapt(deep.init(None), EPISODES.support)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_padding_changes_nothing_whatever_the_unit_of_the_targets(scale):
    learner = gaussian_process(inputs=2)
    start = learner.init(torch.Generator().manual_seed(0))
    logs = ("log_noise", "kernel.effects.log_diagonal", "kernel.rest.log_scale")
    meta = start._replace(structure={k: v + math.log(scale) if k in logs else v for k, v in start.structure.items()})
    generator = torch.Generator().manual_seed(1)
    x, y, query = (torch.randn(2, n, d, generator=generator) for n, d in ((5, 2), (5, 1), (4, 2)))
    longer = [torch.nn.functional.pad(part, (0, 0, 0, 30)) for part in (x, scale * y)]
    padded = Batch(*longer, (torch.arange(35) < 5).expand(2, -1))
    alone, beside = (
        learner.distribution(learner.adapt(meta, batch)[0], query) for batch in (Batch(x, scale * y), padded)
    )
    torch.testing.assert_close(beside.mean, alone.mean, atol=1e-5 * scale, rtol=1e-5)
    torch.testing.assert_close(beside.variance, alone.variance, atol=0, rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: dkt(nn.Linear(3, 4, device="meta"), features=4),
        lambda: gaussian_process(nn.Linear(3, 1, device="meta"), inputs=3),
    ],
)
def test_what_is_learned_is_where_the_network_is(make):
    meta = make().init(None)
    assert {value.device.type for part in meta for value in part.values()} == {"meta"}


X = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))


def begun(form, hidden=(), inputs=3, outputs=2, generator=None, dtype=torch.float32):
    return mean_start(form, inputs, outputs, hidden, generator, dtype)


def test_a_line_starts_as_zero_and_is_one():
    assert not mean_values(begun("linear"), X).any()
    params = {"bias": torch.tensor([1.0, 2.0]), "linear": torch.arange(6.0).view(3, 2)}
    torch.testing.assert_close(mean_values(params, X), X @ params["linear"] + params["bias"])
    constant = begun("constant") | {"bias": params["bias"]}
    torch.testing.assert_close(mean_values(constant, X), params["bias"].expand(2, 5, 2))


def test_a_network_bends_the_line_once_its_head_has_weights():
    params = begun("network", (4, 5), generator=torch.Generator().manual_seed(1))
    assert not mean_values(params, X).any()
    params["head"] = torch.ones(5, 2)
    hidden = X
    for layer in (1, 2):
        hidden = (hidden @ params[f"hidden{layer}.weight"] + params[f"hidden{layer}.bias"]).tanh()
    torch.testing.assert_close(mean_values(params, X), hidden.sum(-1, keepdim=True).expand(2, 5, 2))


def test_the_prior_of_a_network_is_normal_with_the_widths_that_are_told():
    started = begun("network", (4,), outputs=1, dtype=torch.float64)
    params = {name: torch.zeros_like(value) for name, value in started.items()}
    assert mean_cost(params) == 0

    def cost(name):
        return mean_cost(params | {name: torch.ones_like(params[name])}).item()

    assert cost("hidden1.weight") == pytest.approx(3 * 12 / 2)
    assert cost("hidden1.bias") == pytest.approx(4 / 2)
    assert cost("head") == pytest.approx(4 / 2 / HEAD**2)
    assert cost("bias") == cost("linear") == 0


def test_a_network_is_the_same_for_a_seed_and_for_none():
    starts = [begun("network", (3,), generator=g) for g in (None, None, torch.Generator().manual_seed(4))]
    assert torch.equal(starts[0]["hidden1.weight"], starts[1]["hidden1.weight"])
    assert not torch.equal(starts[0]["hidden1.weight"], starts[2]["hidden1.weight"])


def test_a_module_is_added_to_the_line():
    module = nn.Linear(3, 2)
    learner = gaussian_process(module, inputs=3, outputs=2)
    meta = learner.init(None)
    meta.params["mean.bias"] += 1
    none = Batch(X, module(X).detach(), torch.zeros(X.shape[:2], dtype=torch.bool))
    torch.testing.assert_close(learner.predict(learner.adapt(meta, none)[0], X), module(X).detach() + 1)


def test_pooling_is_least_squares_over_the_rows_that_are_there():
    """Tasks of different sizes are padded; the padding is no row."""
    generator = torch.Generator().manual_seed(0)
    task = torch.tensor([0] * 4 + [1] * 9 + [2] * 6)
    x = torch.randn(19, 2, generator=generator)
    y = 1 + x @ torch.tensor([[2.0], [-1.0]]) + 0.1 * torch.randn(19, 1, generator=generator)
    tasks = row_tasks(Rows(x, y, task, ("a", "b", "c")), {"train": (0, 1), "test": (2,)}, support=3)
    found, *counts = pooled(tasks, torch.float32)
    design = torch.cat([torch.ones(13, 1), x[:13]], 1)
    line = torch.linalg.lstsq(design, y[:13]).solution
    torch.testing.assert_close(found, line, atol=1e-4, rtol=1e-4)
    assert counts == [13, 2]


def test_pooling_copes_with_constant_features():
    x = torch.ones(8, 2)
    tasks = row_tasks(
        Rows(x, torch.arange(8.0)[:, None], torch.arange(8) // 4, ("a", "b")), {"train": (0, 1)}, support=1
    )
    line = pooled(tasks, torch.float32)[0]
    assert line.isfinite().all()
    assert line.sum().item() == pytest.approx(3.5, rel=1e-3)


def test_a_quadratic_trend_is_a_line_in_the_square_of_time_too():
    check_learner(lambda taskmap: TABLE(trend="quadratic", kernel="linear"), EPISODES, order=True)
    generator = torch.Generator().manual_seed(0)
    time, task = torch.linspace(-1, 1, 10).repeat(30), torch.arange(30).repeat_interleave(10)
    bend = torch.randn(30, generator=generator)[task]
    y = (bend * time.square() + 0.05 * torch.randn(300, generator=generator)).unsqueeze(1)
    splits = {"train": range(20), "validation": range(20, 22), "test": range(22, 30)}
    tasks = row_tasks(Rows(time.unsqueeze(1), y, task, tuple(map(str, range(30)))), splits, support=4)
    errors = {}
    for trend in ("linear", "quadratic"):
        learner = gaussian_process(inputs=1, trend=trend, kernel="linear")
        *_, last = fit(
            learner, tasks, steps=100, tasks_per_step=20, optimizer=lambda values: torch.optim.Adam(values, 0.05)
        )
        errors[trend] = evaluate(learner, last.state.meta, tasks).mean
    assert errors["quadratic"] < 0.01 < errors["linear"]
