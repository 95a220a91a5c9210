"""θ, M and each task's own, told apart by the modules that hold them, and chosen by name."""

import pytest
import torch
from torch import nn

import headstart
from headstart import Context, Stepped, Structural, rules
from headstart.core.parameters import matches
from headstart.errors import UnknownNameError, UsageError
from headstart.forward.functional import functional
from headstart.testing import check_learner, random_episodes


class Shift(Context):
    def __init__(self, size):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return x + self.values


class Counted(Structural, Stepped):
    """Multiplies by a weight of the inner step."""

    def __init__(self, steps):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(steps + 1))

    def forward(self, x):
        return x * self.weights[min(self.step, len(self.weights) - 1)]


def net():
    torch.manual_seed(0)
    layers = [nn.Linear(2, 4), Structural(nn.Linear(4, 4)), nn.Tanh(), Shift(4), Counted(2), nn.Linear(4, 3)]
    return nn.Sequential(*layers).double()


def test_each_parameter_has_its_role():
    function = functional(net())
    assert set(function.params) == {"0.weight", "0.bias", "5.weight", "5.bias"}
    assert set(function.structure) == {"1.layer.weight", "1.layer.bias", "4.weights"}
    assert set(function.context) == {"3.values"}


def test_the_inner_loop_moves_theta_and_context_but_not_the_structure():
    learner = headstart.maml(net(), steps=2, rate=0.1, taskmap="vmap")
    meta = learner.init(None)
    assert set(meta.structure) == {"1.layer.weight", "1.layer.bias", "4.weights"}
    assert "3.values" not in meta.params
    adapted, _ = learner.adapt(meta, random_episodes((2,)).support)
    assert set(adapted.params) == {"0.weight", "0.bias", "5.weight", "5.bias", "3.values"}
    assert not adapted.params["3.values"].eq(0).all()


def test_context_alone_can_move_by_its_type():
    rule = rules.chain(rules.only(Context), rules.scale(0.1))
    learner = headstart.maml(net(), steps=2, rule=rule, taskmap="vmap")
    adapted, _ = learner.adapt(learner.init(None), random_episodes((2,)).support)
    assert set(adapted.params) == {"3.values"}


def test_the_structure_cannot_be_asked_to_move():
    with pytest.raises(UnknownNameError, match="no parameter matches '4.weights'"):
        headstart.maml(net(), rule=rules.chain(rules.only("4.weights"), rules.scale(0.1)))


def test_a_stepped_module_sees_every_step_and_the_query_set_the_last():
    learner = headstart.maml(net(), steps=2, rate=0.1, taskmap="vmap")
    gradient, _ = headstart.meta_gradient(learner, learner.init(None), random_episodes((2,)))
    assert (gradient.structure["4.weights"] != 0).all()


def test_all_of_it_keeps_the_contract():
    model = net()
    check_learner(
        lambda taskmap: headstart.maml(
            model, steps=2, rule=rules.chain(rules.curvature(), rules.per_tensor(0.1, steps=2)), taskmap=taskmap
        ),
        random_episodes((2,)),
        module=model,
    )


def test_parts_of_m_that_share_a_name_are_refused():
    clash = nn.Sequential()
    clash.add_module("rate", Structural(nn.Linear(2, 2)))
    clash.add_module("out", nn.Linear(2, 3))
    rule = rules.Rule(lambda m, s, g, p, step: (g, s), structure=lambda p, g: {"rate.layer.bias": torch.zeros(2)})
    with pytest.raises(UsageError, match="the module and the rule.*both hold 'rate.layer.bias'"):
        headstart.maml(clash, rule=rule)


def test_the_path_ends_where_adaptation_ends():
    learner, support = headstart.maml(net(), steps=3, rate=0.1, taskmap="vmap"), random_episodes((2,)).support
    meta = learner.init(None)
    assert learner.path is not None
    for stops in (None, (0, 2, 5)):
        reached = list(learner.path(meta, support, stops))
        assert sum(len(info.support_loss) for _, info in reached) == (stops or (3,))[-1]
        for steps, (adapted, _) in zip(stops or range(4), reached, strict=True):
            expected, _ = learner.adapt(meta, support, steps=steps)
            assert all(torch.equal(adapted.params[name], value) for name, value in expected.params.items())
            assert adapted.step == expected.step == steps


def test_structure_that_is_frozen_is_not_shown():
    mixture = headstart.Mixture({"linear": nn.Linear(2, 2), "skip": headstart.Skip()})
    mixture.gates.requires_grad_(False)
    learner = headstart.maml(nn.Sequential(mixture, nn.Linear(2, 1)), loss="mse")
    assert learner.shown is not None and learner.shown(learner.init(None)) == {}


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("head.weight", "head", True),
        ("head.weight", "head.weight", True),
        ("head.weight", "weight", False),
        ("heads.weight", "head", False),
        ("body.head.weight", "head", False),
        ("body.head.weight", "*.head", True),
        ("block1.conv.weight", "block?", True),
        ("block12.conv.weight", "block?", False),
        ("block3.conv.weight", "block[1-2]", False),
        ("weight", "*", True),
    ],
)
def test_patterns_fit_a_name_or_a_module_around_it(name, pattern, fits):
    assert matches(name, pattern) is fits
