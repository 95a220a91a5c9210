import pytest
import torch

import headstart
from headstart import Checkpointed, FirstOrder, Unrolled
from headstart.core.adjoint import Implicit, MixedMode
from headstart.errors import DifferentiationError

SWEPT = [Checkpointed(), Checkpointed(1), Checkpointed(memory=20_000), MixedMode(), MixedMode(memory=20_000)]


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("adjoint", SWEPT, ids=str)
def test_steps_that_are_taken_again_draw_the_same_random_numbers(noisy, adjoint, taskmap):
    assert noisy.gap(adjoint, Unrolled(), taskmap=taskmap) < 1e-12


@pytest.mark.parametrize("adjoint", [*SWEPT, Implicit()], ids=str)
def test_the_generator_goes_on_as_if_no_step_had_been_taken_again(noisy, adjoint):
    noisy.gradient(Unrolled() if adjoint.exact else FirstOrder())
    expected = torch.get_rng_state()
    noisy.gradient(adjoint)
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("adjoint", [Checkpointed(), MixedMode(), Implicit()], ids=str)
def test_a_derivative_of_the_derivative_is_refused(rows, adjoint):
    learner = headstart.maml(rows.module, adjoint=adjoint, **rows.options)
    meta = learner.init(None)
    leaves = [value.requires_grad_() for value in meta.params.values()]
    loss, _ = headstart.meta_loss(learner, meta, rows.episodes)
    with pytest.raises(DifferentiationError, match=r"first derivatives only.*adjoint=Unrolled\(\)"):
        torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)


@pytest.mark.parametrize("adjoint", [Checkpointed(), MixedMode(2), Implicit()], ids=str)
def test_a_graph_that_is_kept_gives_the_same_derivative_again(rows, adjoint):
    learner = headstart.maml(rows.module, adjoint=adjoint, rule=headstart.rules.proximal(0.1), steps=5)
    meta = learner.init(None)
    leaves = [value.requires_grad_() for value in meta.params.values()]
    loss, _ = headstart.meta_loss(learner, meta, rows.episodes)
    first, second = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert any(bool(slope.any()) for slope in first)
