from functools import partial

import pytest
import torch
from torch import nn

import headstart
from headstart.algorithms.maml_plus_plus import StepBatchNorm, has_batch_norm, maml_plus_plus, per_step_norm
from headstart.algorithms.objectives import multi_step, step_weights
from headstart.core.objective import at
from headstart.data.curves.sinusoid import sinusoid
from headstart.errors import DifferentiationError, UsageError
from headstart.forward.functional import functional
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


@pytest.mark.parametrize("done", [0.0, 0.2, 1.0])
def test_what_is_replaced_later_holds_throughout_or_is_refused(done):
    learner = maml_plus_plus(nn.Linear(2, 2), steps=2, multi_step_until=0.1, first_order_until=0.3)
    changed = learner._replace(penalty=lambda meta: 1.0, loss=lambda outputs, batch: outputs.sum((1, 2)))
    now = at(changed, done)
    assert now.penalty is changed.penalty and now.loss is changed.loss
    assert now.exact == (done >= 0.3) and (now.objective is None) == (done >= 0.1)
    own = learner._replace(adapt=lambda meta, support, steps=None: learner.adapt(meta, support, steps))
    if done >= 0.3:
        assert at(own, done).adapt is own.adapt
    else:
        with pytest.raises(UsageError, match="adapt of the learner was replaced, and changes in the course of its"):
            at(own, done)


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


SHAPES = {nn.BatchNorm1d: (6, 3), nn.BatchNorm2d: (6, 3, 4, 4), nn.BatchNorm3d: (6, 3, 2, 2, 2)}


def random_affine(norm):
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    return norm.double()


def normed(momentum=0.7):
    norm = random_affine(nn.BatchNorm2d(4, momentum=momentum))
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    with torch.no_grad():
        module(2 * torch.randn(20, 1, 4, 4).double() + 0.5)
    return module


@pytest.mark.parametrize("kind", SHAPES)
def test_it_equals_batch_normalisation_at_equal_weights_and_biases(kind):
    norm = random_affine(kind(3))
    stepped = StepBatchNorm(norm, steps=4)
    x = torch.randn(SHAPES[kind]).double()
    for step in (0, 3, 4, 9):
        stepped.step = step
        torch.testing.assert_close(stepped(x), norm(x))
    norm.eval()
    stepped.eval()
    # both have seen x four times
    torch.testing.assert_close(stepped(x), norm(x))


def test_a_pass_goes_by_its_own_row_and_later_ones_by_the_last():
    stepped = StepBatchNorm(nn.BatchNorm1d(2), steps=2)
    with torch.no_grad():
        stepped.bias.copy_(torch.arange(3.0)[:, None].expand(3, 2))
    x = torch.randn(5, 2)
    for step, row in ((0, 0.0), (1, 1.0), (2, 2.0), (3, 2.0), (50, 2.0)):
        stepped.step = step
        torch.testing.assert_close(stepped(x).mean(0), torch.full((2,), row), atol=1e-6, rtol=0)


def test_rows_get_gradient_from_their_own_step_only():
    model = functional(StepBatchNorm(nn.BatchNorm1d(2).double(), steps=3), taskmap="vmap")
    x = torch.randn(2, 5, 2).double()
    for step in range(4):
        leaves = {name: value.clone().requires_grad_() for name, value in model.structure.items()}
        outputs, _ = model.apply(leaves, model.buffers, x, step=step)
        outputs.pow(3).sum().backward()
        for leaf in leaves.values():
            assert leaf.grad.abs().sum(1).nonzero().flatten().tolist() == [step]


@pytest.mark.parametrize("buffers", ["batch", "task", "frozen"])
def test_the_contract_holds_with_every_buffer_policy(buffers):
    module = per_step_norm(normed(), steps=2)
    check_learner(
        lambda taskmap: headstart.maml(module, steps=2, rate=0.1, buffers=buffers, taskmap=taskmap),
        random_episodes((1, 4, 4), seed=1),
        module=module,
        masks=buffers == "frozen",
        order=True,
        directions=2,
    )


@pytest.mark.parametrize("buffers", ["batch", "task", "frozen"])
def test_adaptation_is_that_of_a_module_whose_norm_does_not_move(buffers):
    module = normed()
    still = headstart.rules.chain(headstart.rules.exclude(nn.BatchNorm2d), headstart.rules.scale(0.1))
    plain = headstart.maml(module, steps=2, rule=still, buffers=buffers)
    stepped = headstart.maml(per_step_norm(module, 2), steps=2, rate=0.1, buffers=buffers)
    episodes = random_episodes((1, 4, 4))
    outputs = []
    for learner in (plain, stepped):
        adapted, _ = learner.adapt(learner.init(None), episodes.support)
        outputs.append(learner.predict(adapted, episodes.query.x))
    torch.testing.assert_close(*outputs)


def test_with_statistics_of_the_task_a_query_is_judged_on_its_own():
    learner = headstart.maml(per_step_norm(normed(momentum=1.0), 2), steps=2, rate=0.1, buffers="task")
    episodes = random_episodes((1, 4, 4))
    adapted, _ = learner.adapt(learner.init(None), episodes.support)
    together = learner.predict(adapted, episodes.query.x)
    alone = torch.cat([learner.predict(adapted, x) for x in episodes.query.x.split(1, 1)], 1)
    torch.testing.assert_close(alone, together)


def test_every_batch_norm_is_replaced_and_the_module_left_alone():
    module = headstart.conv4((1, 16, 16), ways=5, filters=4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    body = per_step_norm(module, steps=3)
    assert [name for name, layer in body.named_modules() if isinstance(layer, StepBatchNorm)] == [
        f"block{i}.norm" for i in range(1, 5)
    ]
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    learner = headstart.maml(body, steps=3)
    meta = learner.init(None)
    assert meta.structure.keys() == {f"block{i}.norm.{part}" for i in range(1, 5) for part in ("weight", "bias")}
    assert learner.shown(meta).keys() == meta.structure.keys()
    again = per_step_norm(body, steps=9)
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in body.state_dict().items()
    }


def test_layers_without_weights_or_statistics_and_frozen_ones():
    bare = StepBatchNorm(nn.BatchNorm1d(3, affine=False, track_running_stats=False), steps=1)
    assert torch.equal(bare.weight, torch.ones(2, 3)) and torch.equal(bare.bias, torch.zeros(2, 3))
    assert bare.weight.requires_grad
    frozen = StepBatchNorm(nn.BatchNorm1d(3).requires_grad_(False), steps=1)
    assert not frozen.weight.requires_grad and not frozen.bias.requires_grad
    assert StepBatchNorm(nn.BatchNorm1d(3, affine=False).double(), steps=1).weight.dtype == torch.float64


def test_a_module_without_batch_norm_is_refused_with_the_norms_it_has():
    module = headstart.conv4((1, 16, 16), ways=5, filters=8, norm="group")
    assert not has_batch_norm(module) and has_batch_norm(normed())
    with pytest.raises(UsageError, match=r"no BatchNorm1d.*block1.norm \(GroupNorm\)"):
        per_step_norm(module, 3)
    with pytest.raises(UsageError, match="its normalisation layers are: none"):
        per_step_norm(nn.Linear(2, 2), 3)
    with pytest.raises(UsageError, match="steps must be at least 1, got 0"):
        per_step_norm(normed(), 0)
    with pytest.raises(DifferentiationError, match="has no parameters yet"):
        per_step_norm(nn.Sequential(nn.LazyBatchNorm1d()), 1)
