import pytest
import torch

import headstart
from headstart import FirstOrder, Unrolled, rules
from headstart.core.adjoints import Truncated
from headstart.errors import UsageError


@pytest.mark.parametrize("adjoint", [FirstOrder(), Unrolled()], ids=str)
def test_the_first_order_takes_statistics_of_the_task_as_constants(images, adjoint):
    learner = headstart.maml(images.module, adjoint=adjoint, buffers="task", **images.options)
    meta = learner.init(None)
    for value in meta.params.values():
        value.requires_grad_()
    adapted, _ = learner.adapt(meta, images.episodes.support)
    depends = [value.requires_grad for value in adapted.buffers.values() if value.is_floating_point()]
    assert depends == [adjoint.exact] * 2 and all(value.requires_grad for value in adapted.params.values())
    if adjoint.exact:  # so that it makes a difference to the derivative
        assert images.gap(FirstOrder(), adjoint, buffers="task") > 1e-3


RULE = rules.chain(rules.momentum(decay=0.5), rules.scale(0.1, learn=True))


def test_no_steps_are_the_first_order_and_all_of_them_the_whole(images):
    assert images.gap(Truncated(0), FirstOrder(), rule=RULE, buffers="task") == 0
    assert images.gap(Truncated(5), Unrolled(), rule=RULE, buffers="task") == 0
    assert images.gap(Truncated(8), Unrolled(), rule=RULE, buffers="task") == 0
    assert images.gap(Truncated(2), Unrolled(), rule=RULE, buffers="task") > 1e-3


@pytest.mark.parametrize("last", [1, 3])
def test_the_last_steps_are_those_of_a_loop_by_hand(generator, last):
    x, y = (torch.randn(2, 6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    learner = headstart.maml(
        torch.nn.Linear(3, 3, bias=False).double(),
        loss="mse",
        rule=rules.scale(0.2, learn=True),
        steps=4,
        adjoint=Truncated(last),
    )
    episodes = headstart.Episodes(headstart.Batch(x[:1], y[:1]), headstart.Batch(x[1:], y[1:]))
    meta = learner.init(None)
    got, _ = headstart.meta_gradient(learner, meta, episodes)

    theta, rate = (meta.params["weight"].clone().requires_grad_(), meta.structure["rate"].clone().requires_grad_())
    weight = theta
    for step in range(4):
        loss = (x[0] @ weight.T - y[0]).square().mean()
        (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
        weight = weight - rate * (slope if step >= 4 - last else slope.detach())
    expected = torch.autograd.grad((x[1] @ weight.T - y[1]).square().mean(), [theta, rate])
    torch.testing.assert_close([got.params["weight"], got.structure["rate"]], list(expected))


def test_memory_goes_by_the_last_steps(rows, peak_bytes):
    few, many = (peak_bytes(lambda steps=steps: rows.gradient(Truncated(2), steps=steps)) for steps in (4, 20))
    assert many < 1.1 * few


@pytest.mark.parametrize("last", [-1, 1.5, "all"])
def test_no_number_of_steps_is_refused(last):
    with pytest.raises(UsageError, match=r"Truncated\(last=...\) must be a number of steps from 0 up"):
        Truncated(last)
