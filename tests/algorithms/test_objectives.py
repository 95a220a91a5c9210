import pytest
import torch
from torch import nn

import headstart
from headstart import rules
from headstart.algorithms.objectives import first_order_until, multi_step, step_weights
from headstart.core.objective import after_adapting, at
from headstart.errors import UsageError
from headstart.testing import check_learner, random_episodes
from headstart.types import Info

EPISODES = random_episodes((2,))
WEIGHTS = [0.2, 0.0, 0.7]


def net():
    return headstart.mlp(2, 3, hidden=(4,)).double()


def maml(module=None, steps=3, **options):
    return headstart.maml(module or net(), steps=steps, **{"rate": 0.2} | options)


def losses_by_step(learner, meta, episodes=EPISODES):
    """Return the query losses after 1, 2, ..., T steps, each adapted to from the start."""
    taken = (learner.adapt(meta, episodes.support, steps=t)[0] for t in range(1, learner.steps + 1))
    return [learner.loss(learner.predict(adapted, episodes.query.x), episodes.query) for adapted in taken]


def same_gradient(one, other, meta):
    for ours, theirs in zip(*(headstart.meta_gradient(learner, meta, EPISODES)[0] for learner in (one, other))):
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name])


@pytest.mark.parametrize("buffers", ["batch", "task"])
def test_the_multi_step_loss_keeps_the_contract(buffers):
    module = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, momentum=0.7), nn.Tanh(), nn.Linear(4, 3)).double()
    check_learner(
        lambda taskmap: multi_step(
            maml(module, rule=rules.per_tensor(0.2, steps=3), buffers=buffers, taskmap=taskmap), weights=WEIGHTS
        ),
        EPISODES,
        module=module,
        masks=False,
        order=True,
    )


def test_the_multi_step_loss_is_the_weighted_sum_of_the_losses_after_each_step():
    plain = maml()
    learner, meta = multi_step(plain, weights=WEIGHTS), plain.init(None)
    by_step = losses_by_step(plain, meta)
    losses, info = learner.objective(learner, meta, EPISODES)
    torch.testing.assert_close(losses, sum(w * loss for w, loss in zip(WEIGHTS, by_step)))
    torch.testing.assert_close(info.query_loss, by_step[-1])
    expected = after_adapting(plain, meta, EPISODES)[1]
    torch.testing.assert_close(info, Info(expected.support_loss, expected.query_loss))
    assert not info.query_loss.requires_grad


def test_all_the_weight_on_the_last_step_is_the_plain_query_loss():
    plain = maml()
    same_gradient(multi_step(plain, weights=[0, 0, 1]), plain, plain.init(None))


def test_the_multi_step_loss_of_a_linear_model_has_its_closed_form():
    module = nn.Linear(3, 1, bias=False).double()
    episodes = random_episodes((3,), outputs=1, regression=True, support=6, query=7)
    rate, weights = 0.05, [0.3, 0.7]
    (h, b), (hq, bq) = [
        (2 * s.x.transpose(1, 2) @ s.x / s.x.shape[1], 2 * s.x.transpose(1, 2) @ s.y / s.x.shape[1]) for s in episodes
    ]
    learner = multi_step(headstart.maml(module, loss="mse", steps=2, rate=rate), weights=weights)
    meta = learner.init(None)
    w, jacobian, expected = meta.params["weight"].reshape(3, 1), torch.eye(3).double(), torch.zeros(3, 1).double()
    for weight in weights:
        w = w - rate * (h @ w - b)
        jacobian = jacobian @ (torch.eye(3).double() - rate * h)
        expected = expected + weight * (jacobian.transpose(1, 2) @ (hq @ w - bq)).mean(0)
    gradient, _ = headstart.meta_gradient(learner, meta, episodes)
    torch.testing.assert_close(gradient.params["weight"].reshape(3, 1), expected)


def test_weights_start_equal_and_go_over_to_the_last_step():
    assert step_weights(5, 0.0) == pytest.approx([0.2] * 5)
    assert step_weights(5, 0.4) == pytest.approx([0.12] * 4 + [0.52])
    # where the authors' code stops
    assert step_weights(5, 0.99) == pytest.approx([0.006] * 4 + [0.976])
    assert step_weights(1, 0.3) == (1.0,)
    for done in (0.0, 0.3, 0.7, 1.0):
        assert sum(step_weights(4, done)) == pytest.approx(1)


@pytest.mark.parametrize("done, share", [(0.0, 0.0), (0.1, 0.5), (0.19, 0.95)])
def test_the_objective_is_annealed(done, share):
    plain = maml()
    learner, meta = multi_step(plain, until=0.2), plain.init(None)
    now = at(learner, done)
    expected = sum(w * loss for w, loss in zip(step_weights(3, share), losses_by_step(plain, meta)))
    torch.testing.assert_close(now.objective(now, meta, EPISODES)[0], expected)
    assert learner.objective is None


def test_after_the_annealing_the_learner_is_the_one_given():
    plain = maml()
    learner = multi_step(plain, until=0.2)
    assert at(learner, 0.2) == at(learner, 0.9) == plain
    assert at(multi_step(plain), 0.09).objective is not None and at(multi_step(plain), 0.1) == plain


def test_steps_that_count_for_nothing_are_not_predicted():
    seen = []
    plain = maml()
    learner = multi_step(plain, weights=WEIGHTS)
    counting = learner._replace(predict=lambda adapted, x: (seen.append(adapted.step), plain.predict(adapted, x))[1])
    counting.objective(counting, plain.init(None), EPISODES)
    assert seen == [1, 3]


@pytest.mark.parametrize("multi_first", [True, False])
@pytest.mark.parametrize("fixed", [True, False])
def test_derivative_order_and_multi_step_loss_compose_in_either_order(multi_first, fixed):
    module = net()
    plain, cheap = maml(module), maml(module, adjoint=headstart.FirstOrder())
    options = {"weights": WEIGHTS} if fixed else {"until": 0.5}
    if multi_first:
        learner = first_order_until(multi_step(plain, **options), first_order=cheap, fraction=0.25)
    else:
        learner = multi_step(first_order_until(plain, first_order=cheap, fraction=0.25), **options)
    meta = plain.init(None)
    for done in (0.0, 0.2, 0.25, 0.4, 0.6):
        order = cheap if done < 0.25 else plain
        weights = WEIGHTS if fixed else step_weights(3, 2 * done) if done < 0.5 else [0, 0, 1]
        assert at(learner, done).exact == (done >= 0.25)
        same_gradient(at(learner, done), multi_step(order, weights=weights), meta)
    assert learner.exact


def test_first_order_gradients_are_others_than_exact_ones():
    module = net()
    plain, cheap = maml(module), maml(module, adjoint=headstart.FirstOrder())
    learner, meta = first_order_until(plain, first_order=cheap, fraction=1.0), plain.init(None)
    early, late = (headstart.meta_gradient(one, meta, EPISODES)[0].params for one in (at(learner, 0.99), learner))
    assert max((early[name] - late[name]).abs().max().item() for name in early) > 1e-3
    same_gradient(at(learner, 0.99), cheap, meta)


def test_what_has_no_steps_to_look_at_is_refused():
    with pytest.raises(UsageError, match="this learner takes none"):
        multi_step(headstart.prototypes(net()))
    with pytest.raises(UsageError, match="this learner takes 0 steps"):
        multi_step(maml(steps=0))
    with pytest.raises(UsageError, match="Learner.path is None"):
        multi_step(maml()._replace(path=None))
    for other in (headstart.reptile, headstart.joint, headstart.scratch):
        with pytest.raises(UsageError, match="does not follow the gradient"):
            multi_step(other(net(), steps=2))
    with pytest.raises(UsageError, match="objective of its own"):
        multi_step(multi_step(maml(), weights=WEIGHTS))


@pytest.mark.parametrize("weights", [[1.0], [0.5, -0.1, 1.0], [0, 0, 0], [1, 1, float("nan")], [1, 1, float("inf")]])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(UsageError, match="weights must be 3 numbers"):
        multi_step(maml(), weights=weights)


def test_fractions_out_of_range_are_refused():
    for until in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="until must be above 0 and at most 1"):
            multi_step(maml(), until=until)
    with pytest.raises(UsageError, match="either until= or weights="):
        multi_step(maml(), until=0.1, weights=WEIGHTS)
    for fraction in (-0.1, 1.5):
        with pytest.raises(UsageError, match="fraction must be from 0 to 1"):
            first_order_until(maml(), first_order=maml(), fraction=fraction)


def test_a_first_order_learner_of_something_else_is_refused():
    with pytest.raises(UsageError, match="same method on the same module"):
        first_order_until(maml(), first_order=maml(headstart.mlp(2, 3, hidden=(5,))), fraction=0.5)
    with pytest.raises(UsageError, match="in 2 steps"):
        first_order_until(maml(), first_order=maml(steps=2), fraction=0.5)
