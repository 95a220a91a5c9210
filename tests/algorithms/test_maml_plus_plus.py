from functools import partial

import pytest
import torch
from torch import nn

import headstart
from headstart.algorithms.maml_plus_plus import maml_plus_plus
from headstart.algorithms.objectives import multi_step, step_weights
from headstart.algorithms.step_norm import per_step_norm
from headstart.core.objective import at
from headstart.data.curves.sinusoid import sinusoid
from headstart.errors import UsageError
from headstart.testing import check_learner, random_episodes


def convolutional(norm):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()


EPISODES = random_episodes((1, 4, 4), seed=1)


@pytest.mark.parametrize("done", [None, 0.0, 0.5])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4)], ids=["batch norm", "group norm"])
def test_the_contract_holds_from_start_to_end(norm, done):
    module = convolutional(norm)

    def learner(taskmap):
        made = maml_plus_plus(module, steps=2, multi_step_until=0.6, taskmap=taskmap)
        return made if done is None else at(made, done)

    assert learner("loop").exact == (done != 0.0)
    batch = isinstance(norm, nn.BatchNorm2d)
    check_learner(learner, EPISODES, module=module, masks=not batch, order=True, directions=2)


def test_it_is_what_it_is_put_together_from():
    module = convolutional(nn.BatchNorm2d(4))
    made = maml_plus_plus(module, steps=3, rate=0.05, multi_step_until=0.2, first_order_until=0.5)
    rule = headstart.rules.per_tensor(0.05, steps=3)
    exact = headstart.maml(per_step_norm(module, 3), steps=3, rule=rule)
    cheap = headstart.maml(per_step_norm(module, 3), steps=3, rule=rule, adjoint=headstart.FirstOrder())
    meta = made.init(None)
    expected = {
        0.0: multi_step(cheap, weights=step_weights(3, 0.0)),
        0.1: multi_step(cheap, weights=step_weights(3, 0.5)),
        0.3: cheap,
        0.5: exact,
    }
    for done, other in expected.items():
        ours, theirs = (headstart.meta_gradient(one, meta, EPISODES)[0] for one in (at(made, done), other))
        for one, two in zip(ours, theirs):
            assert one.keys() == two.keys()
            for name in one:
                torch.testing.assert_close(one[name], two[name])
    assert made.exact and made.objective is None


def test_m_holds_rates_by_step_and_norms_by_step_which_no_step_moves():
    learner = maml_plus_plus(convolutional(nn.BatchNorm2d(4)), steps=3, rate=0.05)
    meta = learner.init(None)
    weights = {"0.weight", "0.bias", "4.weight", "4.bias"}
    assert meta.params.keys() == weights
    assert meta.structure.keys() == {f"rate.{name}" for name in weights} | {"1.weight", "1.bias"}
    assert {meta.structure[f"rate.{name}"].shape for name in weights} == {(3,)}
    assert meta.structure["1.weight"].shape == (4, 4)
    adapted, _ = learner.adapt(meta, EPISODES.support)
    assert adapted.params.keys() == weights
    assert learner.shown(meta).keys() == meta.structure.keys()


def test_without_batch_norm_that_part_is_left_out():
    learner = maml_plus_plus(convolutional(nn.GroupNorm(2, 4)), steps=2)
    assert {name.partition(".")[0] for name in learner.init(None).structure} == {"rate"}


def test_parts_can_be_switched_off():
    module = convolutional(nn.BatchNorm2d(4))
    plain = maml_plus_plus(module, steps=2, multi_step_until=0, first_order_until=0)
    assert plain.during is None
    early = at(maml_plus_plus(module, steps=2, multi_step_until=0), 0.0)
    assert early.objective is None and not early.exact
    early = at(maml_plus_plus(module, steps=2, first_order_until=0), 0.0)
    assert early.objective is not None and early.exact


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="steps must be at least 1"):
        maml_plus_plus(nn.Linear(2, 2), steps=0)
    with pytest.raises(UsageError, match="until must be above 0"):
        maml_plus_plus(nn.Linear(2, 2), multi_step_until=-0.1)
    with pytest.raises(UsageError, match="fraction must be from 0 to 1"):
        maml_plus_plus(nn.Linear(2, 2), first_order_until=2)


def test_it_learns_sine_curves():
    tasks = sinusoid(shots=10)
    learner = maml_plus_plus(headstart.mlp(1, 1), loss="mse", steps=2, rate=0.1, taskmap="vmap")
    optimizer = partial(torch.optim.Adam, lr=5e-3)
    run = headstart.fit(learner, tasks, steps=200, tasks_per_step=10, optimizer=optimizer, schedule="cosine")
    meta, episodes = list(run)[-1].state.meta, tasks.sample("validation", range(200))
    with torch.no_grad():
        before, _ = headstart.meta_loss(learner, learner.init(None), episodes)
        after, _ = headstart.meta_loss(learner, meta, episodes)
        unadapted, _ = learner.adapt(meta, episodes.support, steps=0)
        at_first = learner.loss(learner.predict(unadapted, episodes.query.x), episodes.query).mean()
    assert after < 0.6 * before and after < 0.8 * at_first
    rates = torch.stack([value for name, value in meta.structure.items() if name.startswith("rate")])
    assert (rates - 0.1).abs().max() > 0.01
