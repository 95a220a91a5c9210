import pytest
import torch
from torch import nn

from headstart import maml, meta_gradient
from headstart.algorithms.alfa import alfa
from headstart.testing import check_learner, random_episodes


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def test_it_starts_as_maml_and_learns_all_of_its_part_of_m(generator):
    episodes = random_episodes((3,))
    ours, plain = alfa(net(), rate=0.1, steps=3, taskmap="vmap"), maml(net(), rate=0.1, steps=3, taskmap="vmap")
    meta = ours.init(generator)
    theirs = plain.init(None)
    torch.testing.assert_close(
        ours.adapt(meta, episodes.support)[0].params, plain.adapt(theirs, episodes.support)[0].params
    )
    torch.testing.assert_close(
        meta_gradient(ours, meta, episodes)[0].params, meta_gradient(plain, theirs, episodes)[0].params
    )
    assert {k for k in ours.shown(meta)} == {k for k in meta.structure if "rate" in k or "decay" in k}
    # a step along the gradient opens the way to the hidden layer, behind weights that start at zero
    structure = {k: meta.structure[k] - 0.1 * g for k, g in meta_gradient(ours, meta, episodes)[0].structure.items()}
    gradient = meta_gradient(ours, meta._replace(structure=structure), episodes)[0].structure
    assert all(bool(g.any()) for g in gradient.values())


@pytest.mark.parametrize("options", [{}, {"decay": 0.01, "hidden": 4}])
def test_alfa_keeps_the_contract(options):
    module = net()
    check_learner(
        lambda taskmap: alfa(module, rate=0.1, steps=2, taskmap=taskmap, **options),
        random_episodes((3,)),
        module=module,
        order=True,
    )


def test_alfa_without_steps_is_the_initial_model():
    learner = alfa(net(), steps=0)
    episodes = random_episodes((3,))
    adapted, _ = learner.adapt(learner.init(torch.Generator()), episodes.support)
    torch.testing.assert_close(learner.predict(adapted, episodes.query.x), net()(episodes.query.x))
