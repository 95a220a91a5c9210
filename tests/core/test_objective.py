import pytest
import torch
from torch import nn

import headstart
from headstart.core import losses, tree
from headstart.core.process import ONCE
from headstart.errors import DifferentiationError, UnknownNameError, UsageError
from headstart.testing import random_episodes
from headstart.types import Batch, Episodes, Meta


def case(**options):
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    learner = headstart.maml(net, steps=2, rate=0.1, taskmap="vmap", **options)
    return learner, learner.init(None), random_episodes((2,), tasks=4)


def test_the_sum_is_the_number_of_tasks_times_the_mean():
    args = case()
    mean, info = headstart.meta_loss(*args)
    total, _ = headstart.meta_loss(*args, reduction="sum")
    torch.testing.assert_close(total, info.query_loss.sum())
    torch.testing.assert_close(total, 4 * mean)
    gradient, summed = (headstart.meta_gradient(*args, reduction=how)[0] for how in ("mean", "sum"))
    torch.testing.assert_close(summed.params, {name: 4 * g for name, g in gradient.params.items()})


def test_the_mean_over_tasks_of_the_gradients_is_the_gradient():
    learner, meta, episodes = case()
    whole = headstart.meta_gradient(learner, meta, episodes)[0].params
    parts = [
        headstart.meta_gradient(learner, meta, Episodes(*(Batch(b.x[i : i + 1], b.y[i : i + 1]) for b in episodes)))[
            0
        ].params
        for i in range(4)
    ]
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.stack([part[name] for part in parts]).mean(0))


def test_an_unknown_reduction_is_refused():
    for function in (headstart.meta_loss, headstart.meta_gradient):
        with pytest.raises(UnknownNameError, match="unknown reduction 'total'"):
            function(*case(), reduction="total")


def test_a_learner_that_learns_nothing_across_tasks_has_no_gradient():
    learner, meta, episodes = case()
    with pytest.raises(UsageError, match="learns nothing across tasks"):
        headstart.meta_gradient(learner._replace(gradient=None), meta, episodes)


def test_the_loss_can_be_differentiated_by_hand():
    learner, meta, episodes = case()
    leaves = {name: value.requires_grad_() for name, value in meta.params.items()}
    loss, info = headstart.meta_loss(learner, meta._replace(params=leaves), episodes)
    loss.backward()
    expected = headstart.meta_gradient(learner, meta, episodes)[0].params
    torch.testing.assert_close({name: value.grad for name, value in leaves.items()}, expected)
    assert not info.support_loss.requires_grad and not info.query_loss.requires_grad


def test_a_gradient_inside_no_grad_is_a_gradient():
    with torch.no_grad():
        gradient, _ = headstart.meta_gradient(*case())
    assert any(bool(value.any()) for value in gradient.params.values())


def test_a_missing_second_derivative_in_the_loss_is_explained():
    loss = losses.per_task(nn.functional.multi_margin_loss)
    with pytest.raises(DifferentiationError, match="aten::multi_margin_loss_backward.*or use adjoint=FirstOrder"):
        headstart.meta_gradient(*case(loss=loss))
    headstart.meta_gradient(*case(loss=loss, adjoint=headstart.FirstOrder()))


def test_other_errors_are_passed_on_as_they_are():
    class Broken(torch.nn.Linear):
        def forward(self, x):
            raise RuntimeError("out of luck")

    learner = headstart.maml(Broken(2, 2), steps=1)
    batch = headstart.Batch(torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(RuntimeError, match="out of luck"):
        headstart.meta_gradient(learner, learner.init(None), headstart.Episodes(batch, batch))


@pytest.mark.parametrize("last", [False, True])
def test_gradients_lie_in_memory_as_their_parameters_do(last):
    net = headstart.conv4((1, 28, 28), 5, filters=16)
    net = net.to(memory_format=torch.channels_last) if last else net
    learner = headstart.maml(net, steps=1, taskmap="vmap")
    meta = learner.init(None)
    x, y = torch.randn(2, 10, 1, 28, 28), torch.arange(10).remainder(5).repeat(2, 1)
    gradient, _ = headstart.meta_gradient(learner, meta, headstart.Episodes(*[headstart.Batch(x, y)] * 2))
    assert all(gradient.params[name].stride() == value.stride() for name, value in meta.params.items())


@pytest.mark.parametrize("adjoint", ["unrolled", "first_order"])
def test_layers_know_whose_derivatives_are_taken_once(adjoint):
    seen = []

    def loss(outputs, batch):
        seen.append(ONCE.get())
        return losses.cross_entropy(outputs, batch)

    learner, meta, episodes = case(adjoint=adjoint, loss=loss)
    headstart.meta_gradient(learner, meta, episodes)
    assert seen == [adjoint == "first_order"] * 2 + [True] and not ONCE.get()
    seen.clear()
    headstart.meta_loss(learner, Meta(tree.detached(meta.params), {}), episodes)
    assert seen == [adjoint == "first_order"] * 2 + [False], "what is handed out may be differentiated again"
    seen.clear()
    learner.adapt(meta, episodes.support)
    assert seen == [True] * 2
