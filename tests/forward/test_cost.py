import pytest
import torch
from torch import nn

from headstart import conv4
from headstart.errors import ShapeError, UsageError
from headstart.forward.cost import expected_cost, multiply_adds
from headstart.forward.mixture import Mixture, Skip
from headstart.types import Meta


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Linear(10, 20), (10,), 10 * 20),
        (nn.Linear(10, 20), (7, 10), 7 * 10 * 20),
        (nn.Conv2d(3, 8, 3, padding=1), (3, 6, 5), 6 * 5 * 8 * 3 * 9),
        (nn.Conv2d(4, 8, 5, stride=2, padding=2, groups=2, bias=False), (4, 8, 8), 4 * 4 * 8 * 2 * 25),
        (nn.Conv1d(2, 3, 4), (2, 10), 7 * 3 * 2 * 4),
        (nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)), (2, 4, 4), 0),
        (Mixture({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": Skip()}), (4,), 32),
    ],
)
def test_multiply_adds_are_those_counted_by_hand(module, shape, expected):
    assert multiply_adds(module, shape) == expected


def test_the_network_of_the_demo():
    blocks = 14 * 14 * 32 * 9 + (7 * 7 + 4 * 4 + 2 * 2) * 32 * 32 * 9
    assert multiply_adds(conv4((1, 28, 28), 5, filters=32, downsample="stride"), (1, 28, 28)) == blocks + 2 * 2 * 32 * 5


def test_counting_leaves_the_module_alone():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    multiply_adds(module, (3,))
    assert module.training and all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not module[0]._forward_hooks and module[0].weight.device.type == "cpu"


def test_an_input_that_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match=r"Linear cannot take one example of shape \(4,\)"):
        multiply_adds(nn.Linear(3, 3), (4,))


def choice(wide):
    return Mixture({"wide": wide, "narrow": nn.Linear(4, 4), "skip": Skip()})  # wide, 16, 0


def model():
    wide = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))  # 64
    return nn.Sequential(choice(wide), nn.Linear(4, 5))  # and 20


def test_expected_cost_is_the_mean_over_choices_by_the_dearest():
    cost = expected_cost(model(), (4,))
    assert cost(Meta({}, {"0.gates.logits": torch.zeros(3)})).item() == pytest.approx((80 / 3 + 20) / 84)
    for index, own in enumerate([64, 16, 0]):
        gates = torch.full((3,), -1e3)
        gates[index] = 0
        assert cost(Meta({}, {"0.gates.logits": gates})).item() == pytest.approx((own + 20) / 84)


def test_mixtures_within_candidates_count_by_the_product_of_probabilities():
    nested = Mixture({"deep": nn.Sequential(nn.Linear(4, 4), choice(nn.Linear(4, 4))), "skip": Skip()})
    cost = expected_cost(nn.Sequential(nested), (4,))
    outer = torch.tensor([0.25, 0.75]).log()
    inner = torch.tensor([0.5, 0.25, 0.25]).log()
    got = cost(Meta({}, {"0.gates.logits": outer, "0.candidates.deep.1.gates.logits": inner}))
    assert got.item() == pytest.approx(0.25 * (16 + 0.75 * 16) / 32)


def test_expected_cost_has_a_gradient_in_the_gates_that_says_cheaper():
    gates = torch.zeros(3, requires_grad=True)
    cost = expected_cost(model(), (4,))
    (slope,) = torch.autograd.grad(cost(Meta({}, {"0.gates.logits": gates})), gates)
    assert slope[0] > 0 > slope[1] > slope[2]


def test_what_has_no_cost_or_no_choice_is_refused():
    with pytest.raises(UsageError, match="all choices in Mixture cost 0"):
        expected_cost(Mixture([nn.Tanh(), nn.ReLU()]), (4,))
    with pytest.raises(UsageError, match="holds no Mixture"):
        expected_cost(nn.Linear(4, 4), (4,))


def test_another_modules_meta_is_refused():
    with pytest.raises(UsageError, match="M holds no '0.gates.logits'.*it holds: rate"):
        expected_cost(model(), (4,))(Meta({}, {"rate": torch.ones(())}))
