"""Learned rules joined to one, in a learner: exact in θ and in all of M."""

import pytest
import torch
from torch import nn

from headstart import Checkpointed, Episodes, FirstOrder, Unrolled, maml, meta_gradient, meta_loss, rules
from headstart.testing import check_learner, random_episodes


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(48, 3)
    ).double()


def episodes(seeded=True):
    drawn = random_episodes((1, 4, 4))
    return Episodes(*(b._replace(seed=11 + torch.arange(3)) for b in drawn)) if seeded else drawn


def everything():
    return rules.chain(
        rules.proximal(0.05, learn=True),
        rules.weight_decay(0.02, learn=True),
        rules.mask(target=0.3, granularity="unit"),
        rules.curvature(),
        rules.momentum(decay=0.6, learn=True),
        rules.per_tensor(0.1, steps=2, positive=True),
    )


COMPOSED = {
    "rates of each step, mask, curvature": lambda: rules.chain(
        rules.mask(target=0.3), rules.curvature(), rules.per_tensor(0.1, steps=2)
    ),
    "unit mask, Kronecker factors": lambda: rules.chain(rules.unit_mask(), rules.kronecker(), rules.scale(0.1)),
    "everything": everything,
    "fixed mask, generated rates": lambda: rules.chain(
        rules.fixed_mask({"4.weight": torch.arange(144).view(3, 48) % 3 > 0}), rules.generated_rates(0.1, steps=2)
    ),
}


@pytest.mark.parametrize(("adjoint", "seeded"), [(Checkpointed(every=2), True), (Unrolled(), False)])
@pytest.mark.parametrize("name", COMPOSED)
def test_composed_rules_keep_the_contract_of_a_learner(name, adjoint, seeded):
    module = net()
    learner = maml(module, steps=3, rule=COMPOSED[name](), adjoint=adjoint)
    assert learner.exact
    check_learner(
        lambda taskmap: maml(module, steps=3, rule=COMPOSED[name](), adjoint=adjoint, taskmap=taskmap),
        episodes(seeded),
        module=module,
        # dropout draws by position, so examples that are not there shift its draws
        masks=not seeded,
        directions=2,
    )


def test_a_first_order_learner_learns_its_masks_too(generator):
    learner = maml(net(), steps=2, rule=everything(), adjoint=FirstOrder())
    assert not learner.exact
    check_learner(learner, episodes(), masks=False)
    gradient, _ = meta_gradient(learner, learner.init(generator), episodes())
    assert all(bool(g.any()) for name, g in gradient.structure.items() if name.startswith("mask"))


def test_a_straight_through_mask_makes_a_learner_that_is_not_exact():
    learner = maml(net(), steps=2, rule=rules.chain(rules.mask(kind="straight_through"), rules.scale(0.1)))
    assert not learner.exact
    check_learner(learner, episodes(), masks=False)


def test_the_meta_loss_pays_for_open_gates_and_reports_show_them():
    def learner(strength):
        return maml(net(), steps=1, rule=rules.chain(rules.mask(target=0.1, strength=strength), rules.scale(0.1)))

    free, dear = learner(0.0), learner(2.0)
    meta = dear.init(None)
    assert set(dear.shown(meta)) == set(meta.structure) == {f"mask.{name}" for name in meta.params}
    part = torch.sigmoid(torch.tensor(1.0 + 2 / 3 * torch.tensor(11.0).log().item()))
    costs = [meta_loss(one, meta, episodes())[0].item() for one in (free, dear)]
    assert costs[1] - costs[0] == pytest.approx(2.0 * (part.item() - 0.1) ** 2, rel=1e-5)


def test_a_mask_that_is_shut_leaves_its_parameters_where_they_are():
    learner = maml(net(), steps=2, rule=rules.chain(rules.mask(granularity="tensor"), rules.scale(0.1)))
    meta = learner.init(None)
    meta = meta._replace(structure={**meta.structure, "mask.0.weight": torch.tensor(-9.0, dtype=torch.float64)})
    adapted, _ = learner.adapt(meta, episodes(seeded=False).support)
    assert torch.equal(adapted.params["0.weight"], meta.params["0.weight"].expand(3, -1, -1, -1, -1))
    assert not torch.equal(adapted.params["0.bias"], meta.params["0.bias"].expand(3, -1))
