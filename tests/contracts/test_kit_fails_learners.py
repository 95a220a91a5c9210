"""The kit must fail: each check is shown something that breaks what it checks."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from headstart import fomaml, maml, prototypes, rules
from headstart.core.objective import backprop
from headstart.errors import UsageError
from headstart.testing import (
    ContractError,
    check_derivative,
    check_learner,
    random_episodes,
)
from headstart.types import Adapted, Batch, Episodes, Info, Meta


def net(*norm):
    return nn.Sequential(nn.Linear(3, 5), *norm, nn.Tanh(), nn.Linear(5, 3)).double()


def changed(adapt=None, predict=None, module=None, **fields):
    """Return a correct learner with one of its functions wrapped: ``adapt(original, meta, support, steps)``."""
    learner = maml(module or net(), steps=2, rate=0.1, taskmap="vmap")
    if adapt is not None:
        original = learner.adapt
        learner = learner._replace(adapt=lambda meta, support, /, steps=None: adapt(original, meta, support, steps))
    if predict is not None:
        whole = learner.predict
        learner = learner._replace(predict=lambda adapted, x: predict(whole, adapted, x))
    return learner._replace(**fields)


EPISODES = random_episodes((3,))


def breaks(contract, learner, episodes=EPISODES, **options):
    with pytest.raises(ContractError, match=f"^{contract}"):
        check_learner(learner, episodes, **options)


@pytest.mark.parametrize(
    ("norm", "layer"),
    [(nn.BatchNorm1d(5, track_running_stats=False), "batch"), (nn.LayerNorm(5), "layer"), (None, "none")],
    ids=["batch norm", "layer norm", "no norm"],
)
def test_differentiating_vmap_of_grad_is_wrong_through_norms_and_the_kit_says_so(norm, layer):
    module = net(*([norm] if norm else []))

    def loss(params, x, y):
        return nn.functional.cross_entropy(functional_call(module, params, (x,)), y)

    def adapt(original, meta, support, steps):
        params = {name: p.expand(support.y.shape[0], *p.shape) for name, p in meta.params.items()}
        losses = []
        for _ in range(2 if steps is None else steps):
            losses.append(torch.func.vmap(loss)(params, support.x, support.y).detach())
            grads = torch.func.vmap(torch.func.grad(loss))(params, support.x, support.y)
            params = {name: p - 0.1 * grads[name] for name, p in params.items()}
        recorded = torch.stack(losses) if losses else torch.zeros(0, support.y.shape[0])
        return Adapted(meta, params, {}, None), Info(recorded)

    learner = changed(adapt, module=module)
    if layer == "none":
        check_learner(learner, EPISODES, masks=False)
    else:
        breaks("exact in θ: along a random direction", learner, masks=False)


def test_a_first_order_method_must_not_claim_to_be_exact():
    learner = fomaml(net(), steps=2, rate=0.1)
    check_learner(learner, EPISODES)
    breaks("exact in θ", learner._replace(exact=True))


def test_a_wrong_gradient_of_the_structure_is_found():
    def half(learner, meta, episodes):
        gradient, info = backprop(learner, meta, episodes)
        return Meta(gradient.params, {name: 0.5 * g for name, g in gradient.structure.items()}), info

    learner = maml(net(), steps=2, rule=rules.scale(0.1, learn=True))
    check_learner(learner, EPISODES)
    breaks("exact in M", learner._replace(gradient=half))


def test_a_learner_that_changes_its_module_is_found():
    module = net()

    def adapt(original, meta, support, steps):
        with torch.no_grad():
            module[0].bias.add_(1.0)
        return original(meta, support, steps=steps)

    breaks("pure: the learner changes the module", changed(adapt, module=module), module=module)


def test_a_learner_that_switches_its_module_to_training_is_found():
    module = net().eval()

    def adapt(original, meta, support, steps):
        module.train()
        return original(meta, support, steps=steps)

    breaks("pure: the learner changes the module", changed(adapt, module=module), module=module)


def test_a_learner_that_writes_into_the_meta_value_or_the_episodes_is_found():
    def meta_written(original, meta, support, steps):
        next(iter(meta.params.values())).data.mul_(0.9)
        return original(meta, support, steps=steps)

    def support_written(original, meta, support, steps):
        support.x.add_(1)
        return original(meta, support, steps=steps)

    breaks("pure: the learner writes into", changed(meta_written))
    breaks("pure: the learner writes into", changed(support_written), episodes=copy.deepcopy(EPISODES))


def test_a_history_that_nobody_asked_for_is_found():
    def adapt(original, meta, support, steps):
        with torch.enable_grad():
            leaf = torch.ones((), dtype=torch.float64, requires_grad=True)
            adapted, info = original(meta, support, steps=steps)
            return adapted._replace(params={k: v * leaf for k, v in adapted.params.items()}), info

    breaks("pure: under torch.no_grad", changed(adapt))


def test_a_learner_that_draws_from_the_global_generator_is_found():
    def adapt(original, meta, support, steps):
        return original(meta, support._replace(x=support.x + 1e-3 * torch.randn_like(support.x)), steps=steps)

    breaks("deterministic: the learner draws from the global generator", changed(adapt))


def test_a_learner_that_counts_its_calls_is_found():
    calls = []

    def predict(original, adapted, x):
        calls.append(1)
        return original(adapted, x) + len(calls)

    breaks("deterministic: two equal calls differ", changed(predict=predict))


def test_initial_values_from_a_global_generator_or_shared_memory_are_found():
    learner = changed()
    params = learner.init(None).params
    breaks("init: two calls return the same memory", learner._replace(init=lambda generator: Meta(params, {})))

    def drawn(generator):
        return Meta({name: torch.rand_like(value) for name, value in params.items()}, {})

    breaks("init: generators of one seed", learner._replace(init=drawn))


def test_a_leak_through_the_mean_of_all_tasks_is_found():
    def adapt(original, meta, support, steps):
        return original(meta, support._replace(x=support.x - support.x.mean((0, 1))), steps=steps)

    breaks("isolated: the result of task 0 changes", changed(adapt), masks=False)


def test_a_leak_between_neighbours_that_only_other_data_show_is_found():
    def predict(original, adapted, x):
        # alone and in pairs alike: every task is told the sign of the largest input of all
        return original(adapted, x) + 1e-6 * x.sum((1, 2)).max()

    breaks("isolated", changed(predict=predict))


def test_prototypes_that_are_told_the_ways_by_the_labels_of_other_tasks_are_found():
    support = Batch(torch.randn(2, 3, 3).double(), torch.tensor([[0, 1, 1], [0, 1, 2]]))
    query = Batch(torch.randn(2, 2, 3).double(), torch.tensor([[0, 1], [0, 1]]))
    episodes = Episodes(support, query)
    breaks("isolated: the result of task 0 changes", prototypes(net()), episodes, masks=False)
    check_learner(prototypes(net(), ways=3), episodes)


def test_steps_that_cannot_be_overridden_or_that_are_not_steps_are_found():
    def deaf(original, meta, support, steps):
        return original(meta, support)

    def eager(original, meta, support, steps):
        adapted, info = original(meta, support, steps=(2 if steps is None else steps) + 1)
        return adapted, info._replace(support_loss=info.support_loss[1:])

    breaks("steps: with steps=0 the prediction depends", changed(deaf))
    breaks("steps: with steps=0 the prediction depends", changed(eager))


def test_wrong_shapes_are_found():
    def flat(original, adapted, x):
        return original(adapted, x).flatten(0, 1)

    def partial(learner, meta, episodes):
        gradient, info = backprop(learner, meta, episodes)
        return gradient._replace(params=dict(list(gradient.params.items())[1:])), info

    def broken(learner, meta, episodes):
        gradient, info = backprop(learner, meta, episodes)
        return gradient._replace(params={name: g / 0 for name, g in gradient.params.items()}), info

    def loss(outputs, batch):
        return nn.functional.cross_entropy(outputs.flatten(0, 1), batch.y.flatten()).expand(2)

    with pytest.raises((ContractError, IndexError, RuntimeError, UsageError)):
        check_learner(changed(predict=flat), EPISODES)
    breaks("shapes: loss gives", changed(loss=loss))
    breaks("shapes: the gradient has", changed(gradient=partial))
    breaks("shapes: the meta-gradient holds NaN", changed(gradient=broken))


def test_a_mask_that_is_not_heeded_is_found():
    def adapt(original, meta, support, steps):
        return original(meta, support._replace(mask=None, x=support.x.nan_to_num()), steps=steps)

    breaks("masks: examples that are masked out change the result", changed(adapt))


def test_a_learner_that_looks_at_the_order_is_found():
    def adapt(original, meta, support, steps):
        rank = torch.arange(support.y.shape[1], dtype=torch.float64)[None, :, None]
        return original(meta, support._replace(x=support.x * (1 + 0.01 * rank)), steps=steps)

    learner = changed(adapt)
    check_learner(learner, EPISODES)
    breaks("order: reversing", learner, order=True)


def test_task_maps_that_disagree_are_found():
    module, seen = net(), []

    def other(taskmap):
        seen.append(taskmap)
        rate = 0.1 if taskmap == "vmap" else 0.1 + 1e-8
        return maml(module, steps=1, rate=rate, taskmap=taskmap)

    breaks("task maps vmap and loop agree: their results differ", other)
    assert seen == ["vmap", "loop"]


def test_single_precision_and_single_tasks_are_refused():
    with pytest.raises(UsageError, match="need float64"):
        check_learner(maml(nn.Linear(3, 3)), EPISODES)
    with pytest.raises(UsageError, match="two or more"):
        check_learner(maml(net()), random_episodes((3,), tasks=1))


def test_differences_find_small_errors_and_forgive_kinks():
    point = {"w": torch.linspace(-1, 1, 7, dtype=torch.float64)}

    def function(values):
        return (values["w"].abs() + values["w"].sin()).sum().item()

    # w[3] is 1e-5 away from the kink of |w|
    moved = {"w": point["w"] + 1e-5}
    right = {"w": moved["w"].sign() + moved["w"].cos()}
    check_derivative(function, moved, right, contract="right")
    with pytest.raises(ContractError, match="wrong: along a random direction"):
        check_derivative(function, moved, {"w": right["w"] + 3e-5}, contract="wrong")
    with pytest.raises(ContractError, match="rough: central differences settled along 0 of 9"):
        check_derivative(lambda values: (1e9 * values["w"]).sin().sum().item(), point, right, contract="rough")
