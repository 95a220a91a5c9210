"""Generated learning rates and weight decays against the equations."""

import pytest
import torch

from headstart import errors
from headstart.core.rules import generated_rates
from headstart.testing import check_rule

SHAPES = {"head.weight": (2, 4), "body.weight": (4, 3), "body.bias": (4,), "alpha": ()}


def shaken(rule, size=0.5):
    """Return the rule with random M."""

    def structure(params, generator):
        return {
            key: value + size * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
            for key, value in rule.structure(params, generator).items()
        }

    return rule._replace(structure=structure)


def drawn(generator):
    return {name: torch.randn(3, *shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def by_hand(m, grads, params, step):
    """Return the new weights of one task, number by number: the mean of each tensor, two layers, one update."""
    names = sorted(grads)
    task = [grads[k].mean() for k in names] + [params[k].mean() for k in names]
    hidden = []
    for row, bias in zip(m["alfa.hidden.weight"], m["alfa.hidden.bias"]):
        hidden.append(max(sum(w * t for w, t in zip(row, task)) + bias, torch.zeros(())))
    outputs = []
    for row, bias in zip(m["alfa.output.weight"], m["alfa.output.bias"]):
        outputs.append(sum(w * h for w, h in zip(row, hidden)) + bias)
    new = {}
    for place, k in enumerate(names):
        alpha = m[f"alfa.rate.{k}"][min(step, 1)] * outputs[place]
        beta = 1 - m[f"alfa.decay.{k}"][min(step, 1)] * outputs[place + len(names)]
        new[k] = beta * params[k] - alpha * grads[k]
    return new


def test_a_step_is_that_of_the_equations(generator):
    rule = shaken(generated_rates(0.1, steps=2, decay=0.2, hidden=5))
    m = rule.structure({name: value[0] for name, value in drawn(generator).items()}, generator)
    assert m["alfa.hidden.weight"].shape == (5, 8) and m["alfa.rate.alpha"].shape == (2,)
    for step in range(4):
        grads, params = drawn(generator), drawn(generator)
        moved, _ = rule.update(m, {}, grads, params, step)
        for task in range(3):
            expected = by_hand(m, *({k: v[task] for k, v in one.items()} for one in (grads, params)), step)
            new = {k: params[k][task] - moved[k][task] for k in params}
            torch.testing.assert_close(new, expected)


def test_the_order_in_which_m_or_the_weights_are_held_does_not_matter(generator):
    rule = shaken(generated_rates(0.1))
    grads, params = drawn(generator), drawn(generator)
    m = rule.structure({name: value[0] for name, value in params.items()}, generator)
    expected, _ = rule.update(m, {}, grads, params, 0)
    backwards = [dict(reversed(one.items())) for one in (m, grads, params)]
    got, _ = rule.update(backwards[0], {}, backwards[1], backwards[2], 0)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("options", [{}, {"steps": 2, "decay": 0.1, "hidden": 3}])
def test_it_keeps_the_contract_where_it_starts_and_elsewhere(options):
    check_rule(generated_rates(0.1, **options))
    check_rule(shaken(generated_rates(0.1, **options)))


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"decay": 1.0}, {"decay": -0.1}, {"steps": 0}, {"hidden": 0}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(errors.UsageError, match="got"):
        generated_rates(**{"rate": 0.1, **options})
