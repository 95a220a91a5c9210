import pytest
import torch
from torch import nn

from headstart import maml
from headstart.errors import ShapeError, UsageError
from headstart.forward.functional import functional
from headstart.forward.mixture import Mixture, Skip, mixtures
from headstart.testing import check_learner, random_episodes


def layers():
    return {"linear": nn.Linear(4, 4), "tanh": nn.Sequential(nn.Linear(4, 4), nn.Tanh()), "skip": Skip()}


def test_a_mixture_is_the_weighted_sum_of_its_candidates():
    made, x = layers(), torch.randn(5, 4)
    mixture = Mixture(made)
    with torch.no_grad():
        mixture.gates.logits.copy_(torch.tensor([0.0, 1.0, 2.0]))
    p = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    torch.testing.assert_close(mixture(x), p[0] * made["linear"](x) + p[1] * made["tanh"](x) + p[2] * x)


def test_only_the_gates_are_structure_and_the_rule_never_moves_them():
    model = functional(nn.Sequential(Mixture(layers()), nn.Linear(4, 3)))
    assert set(model.structure) == {"0.gates.logits"}
    assert set(model.params) == {
        "0.candidates.linear.weight", "0.candidates.linear.bias", "0.candidates.tanh.0.weight",
        "0.candidates.tanh.0.bias", "1.weight", "1.bias",
    }  # fmt: skip
    learner = maml(nn.Sequential(Mixture(layers()), nn.Linear(4, 3)), steps=1)
    support = random_episodes((4,)).support
    adapted, _ = learner.adapt(learner.init(None), support._replace(x=support.x.float()))
    assert "0.gates.logits" not in adapted.params and "0.candidates.linear.weight" in adapted.params


def test_shown_are_the_proportions_by_candidate():
    model = functional(nn.Sequential(Mixture(layers())))
    shown = model.shown({"0.gates.logits": torch.tensor([0.0, 0.0, 100.0])})
    expected = {"0.gates.linear": 0.0, "0.gates.tanh": 0.0, "0.gates.skip": 1.0}
    assert {name: value.item() for name, value in shown.items()} == pytest.approx(expected)


@pytest.mark.parametrize("nested", [False, True])
def test_a_learner_with_mixtures_keeps_the_contract(nested):
    inner = Mixture([nn.Linear(4, 4), Skip()]) if nested else nn.Linear(4, 4)
    module = nn.Sequential(
        nn.Linear(3, 4),
        Mixture({"a": inner, "b": nn.Sequential(nn.Linear(4, 4), nn.Tanh()), "c": Skip()}),
        nn.Linear(4, 3),
    ).double()
    check_learner(
        lambda taskmap: maml(module, steps=2, rate=0.1, taskmap=taskmap),
        random_episodes((3,)),
        module=module,
        order=True,
    )


@pytest.mark.parametrize("candidates", [[], [nn.Identity()], {"only": nn.Identity()}])
def test_a_choice_needs_two_candidates(candidates):
    with pytest.raises(UsageError, match="at least 2 candidates"):
        Mixture(candidates)


def test_candidates_of_different_shapes_are_named():
    mixture = Mixture({"wide": nn.Linear(4, 6), "narrow": nn.Linear(4, 4)})
    with pytest.raises(ShapeError, match=r"'wide' gives \(2, 6\) and 'narrow' gives \(2, 4\)"):
        mixture(torch.zeros(2, 4))


def test_shapes_that_would_broadcast_are_refused_too():
    with pytest.raises(ShapeError, match="one shape"):
        Mixture([nn.Linear(4, 4), nn.Linear(4, 1)])(torch.zeros(2, 4))


def test_the_choice_is_the_most_probable_candidate():
    mixture = Mixture(layers())
    assert mixture.choice() == "linear"  # of equal ones, the first
    with torch.no_grad():
        mixture.gates.logits[2] = 1.0
    assert mixture.choice() == "skip" and type(mixture.chosen()) is nn.Identity


def test_a_module_without_a_mixture_has_nothing_to_choose():
    with pytest.raises(UsageError, match="Linear holds no Mixture"):
        mixtures(nn.Linear(2, 2))
