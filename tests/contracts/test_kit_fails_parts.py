"""The kit must fail: rules and adjoints that break what it checks."""

import pytest
import torch

from headstart import FirstOrder, Unrolled, rules
from headstart.core.inner import stacked
from headstart.testing import ContractError, check_adjoint, check_rule


def rule_breaks(contract, rule, **options):
    with pytest.raises(ContractError, match=f"^{contract}"):
        check_rule(rule, **options)


def stateless(transform):
    return rules.Rule(lambda m, state, grads, params, step: ({k: transform(g) for k, g in grads.items()}, state))


def test_a_rule_whose_derivatives_are_nan_at_a_zero_gradient_is_found():
    def normalised(g):
        length = g.square().flatten(1).sum(1).sqrt()
        return g / (length.view(-1, *(1,) * (g.ndim - 1)) + 1e-8)

    rule_breaks("zero: the derivative is NaN", stateless(normalised))
    rule_breaks("zero: the second derivative is NaN", stateless(lambda g: g.abs().pow(1.5)))


def test_a_rule_that_is_not_differentiable_in_what_it_uses_is_found():
    rule_breaks("exact in the gradients of step 0", stateless(lambda g: g.detach() * 0.1))
    weight = rules.Rule(lambda m, s, grads, params, step: ({k: g + params[k].detach() for k, g in grads.items()}, s))
    rule_breaks("exact in params", weight)
    learned = rules.scale(0.1, learn=True)
    frozen = learned._replace(update=lambda m, *rest: learned.update({k: v.detach() for k, v in m.items()}, *rest))
    rule_breaks("exact in structure", frozen)
    momentum = rules.momentum(decay=0.9)

    def forgetful(m, state, grads, params, step):
        update, state = momentum.update(m, state, grads, params, step)
        return update, {k: v.detach() for k, v in state.items()}

    rule_breaks("exact in the gradients of step 0", momentum._replace(update=forgetful))


def test_a_rule_that_mixes_tasks_is_found():
    rule_breaks("isolated: task 0 moves differently", stateless(lambda g: g / (1 + g.square().mean())))


def test_a_rule_that_writes_into_its_gradients_is_found():
    def update(m, state, grads, params, step):
        return {k: g.data.mul_(0.1) * 1 for k, g in grads.items()}, state

    rule_breaks("pure", rules.Rule(update))


def test_a_rule_of_wrong_shapes_or_states_is_found():
    rule_breaks("shapes: step 0", stateless(lambda g: g.float()))
    rule_breaks("shapes: a step holds NaN", stateless(lambda g: g / 0))
    grows = rules.Rule(
        lambda m, state, grads, params, step: (grads, {"seen": torch.cat([state["seen"]] * 2, 1)}),
        state=lambda m, params, seed: {"seen": torch.zeros(next(iter(params.values())).shape[0], 1)},
    )
    rule_breaks("state: its shapes, types or names change at step 1", grows)
    shared = rules.Rule(
        lambda m, s, grads, params, step: (grads, s), state=lambda m, params, seed: {"count": torch.zeros(())}
    )
    rule_breaks("state: it holds", shared)


def test_a_rule_that_moves_what_is_not_there_is_found():
    rule_breaks("moves: it moves ghost", rules.scale(0.1)._replace(moves=lambda leaves: frozenset({"ghost"})))
    rule_breaks("moves: it moves nothing", rules.scale(0.1)._replace(moves=lambda leaves: frozenset()))


def test_a_structure_from_a_global_generator_is_found():
    rule = rules.per_weight()._replace(
        structure=lambda theta, generator: {f"rate.{k}": torch.rand_like(v) for k, v in theta.items()}
    )
    rule_breaks("structure", rule)


class Liar(FirstOrder):
    exact = True


class Skipping(Unrolled):
    """Leaves out the last step."""

    def __call__(self, step, given, start, steps):
        return super().__call__(step, given, start, max(0, steps - 1))


class Hoarding(Unrolled):
    """Always remembers."""

    def __call__(self, step, given, start, steps):
        state, losses = start, []
        with torch.enable_grad():
            for number in range(steps):
                state, loss = step(given, state, number, True)
                losses.append(loss)
        return state, stacked(losses, state)


def test_wrong_adjoints_are_found():
    with pytest.raises(ContractError, match="^exact: .* says that it is exact"):
        check_adjoint(Liar())
    with pytest.raises(ContractError, match="^values"):
        check_adjoint(Skipping())
    with pytest.raises(ContractError, match="^lean"):
        check_adjoint(Hoarding())
