import pytest
import torch
from torch import nn

import headstart
from headstart import Checkpointed, FirstOrder, Unrolled
from headstart.algorithms.modulation import mmaml
from headstart.errors import ShapeError, UsageError
from headstart.testing import ContractError, check_learner, random_episodes
from headstart.types import Batch, Meta

SMALL = {"embedding": 3, "hidden": 4, "steps": 2}


def net(outputs=3):
    return headstart.mlp(2, outputs, hidden=(5, 4)).double()


def images():
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 3, 3, stride=2), nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(3, 3)).double()


def tokens():
    return nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)).double()


MODELS = {
    "mlp": (net, random_episodes((2,))),
    "regression": (net, random_episodes((2,), regression=True)),
    "convolutions": (images, random_episodes((1, 4, 4))),
    "tokens": (tokens, random_episodes((2,), tokens=8)),
}


def stirred(learner):
    """Return the learner with generators that have left zero, so that the encoder counts."""

    def init(generator):
        meta = learner.init(generator)
        noise = torch.Generator().manual_seed(5)
        moved = {k: v + 0.3 * torch.randn(v.shape, generator=noise, dtype=v.dtype) for k, v in meta.structure.items()}
        return Meta(meta.params, moved)

    return learner._replace(init=init)


@pytest.mark.parametrize("adjoint", [Unrolled(), Checkpointed(1), FirstOrder()], ids=["all", "some", "first order"])
@pytest.mark.parametrize("model", MODELS)
def test_modulation_keeps_the_contract(model, adjoint):
    make, episodes = MODELS[model]
    module, loss = make(), "mse" if model == "regression" else "cross_entropy"
    check_learner(
        lambda taskmap: stirred(mmaml(module, **SMALL, rate=0.1, adjoint=adjoint, taskmap=taskmap, loss=loss)),
        episodes,
        module=module,
        directions=2,
        order=True,
        initial=False,
    )


def test_the_kit_sees_that_the_start_depends_on_the_support_set():
    with pytest.raises(ContractError, match="with steps=0 the prediction depends on the support set"):
        check_learner(stirred(mmaml(net(), **SMALL)), random_episodes((2,)))


@pytest.mark.parametrize(("make", "shape"), [(net, (2,)), (images, (1, 4, 4))])
def test_it_starts_as_the_module_is(make, shape):
    """With generators at zero, what an inner step does is what MAML's does."""
    module, episodes = make(), random_episodes(shape)
    ours, plain = mmaml(module, rate=0.1, steps=2), headstart.maml(module, rate=0.1, steps=2)
    outputs = [
        learner.predict(learner.adapt(learner.init(None), episodes.support)[0], episodes.query.x)
        for learner in (ours, plain)
    ]
    assert torch.allclose(*outputs, rtol=1e-12, atol=1e-14)


def test_the_inner_loop_moves_the_weights_and_not_the_modulation():
    learner, episodes = stirred(mmaml(net(), **SMALL)), random_episodes((2,))
    meta = learner.init(torch.Generator().manual_seed(0))
    start, end = (learner.adapt(meta, episodes.support, steps=steps)[0].params for steps in (0, 2))
    for name in start:
        assert torch.equal(start[name], end[name]) == name.endswith(("scale", "shift")), name
    assert not torch.allclose(start["hidden1.after.scale"][0], start["hidden1.after.scale"][1])


def test_the_generators_learn_at_once_and_the_encoder_once_they_left_zero():
    episodes = random_episodes((2,))
    for learner, encoder_learns in ((mmaml(net(), **SMALL), False), (stirred(mmaml(net(), **SMALL)), True)):
        meta = learner.init(torch.Generator().manual_seed(0))
        gradient, _ = headstart.meta_gradient(learner, meta, episodes)
        assert any((gradient.structure[name] != 0).any() for name in meta.structure if name.startswith("generator"))
        found = any((gradient.structure[name] != 0).any() for name in meta.structure if name.startswith("encoder"))
        assert found == encoder_learns


def test_targets_are_read():
    learner, episodes = stirred(mmaml(net(), **SMALL, loss="mse")), random_episodes((2,), regression=True)
    meta = learner.init(torch.Generator().manual_seed(0))
    first = learner.adapt(meta, episodes.support, steps=0)[0].params["hidden1.after.scale"]
    other = episodes.support._replace(y=episodes.support.y + 1)
    assert not torch.allclose(learner.adapt(meta, other, steps=0)[0].params["hidden1.after.scale"], first)


def test_masked_examples_are_not_read():
    learner, support = stirred(mmaml(net(), **SMALL)), random_episodes((2,), support=6).support
    meta = learner.init(torch.Generator().manual_seed(0))
    mask = torch.arange(6).expand(3, 6) < torch.tensor([[6], [4], [3]])
    adapted, _ = learner.adapt(meta, support._replace(mask=mask))
    for task, count in enumerate((6, 4, 3)):
        alone = Batch(support.x[task : task + 1, :count], support.y[task : task + 1, :count])
        expected = learner.adapt(meta, alone)[0].params
        for name, value in adapted.params.items():
            assert torch.allclose(value[task], expected[name][0], rtol=1e-10, atol=1e-14)


def test_layers_can_be_chosen():
    meta = mmaml(net(), what="hidden2").init(None)
    generators = {name for name in meta.structure if name.startswith("generator")}
    assert generators == {"generator.hidden2.weight", "generator.hidden2.bias"}


def test_a_single_layer_can_be_modulated():
    module = nn.Linear(2, 3).double()
    check_learner(
        lambda taskmap: stirred(mmaml(module, what="*", **SMALL, taskmap=taskmap)),
        random_episodes((2,)),
        module=module,
        directions=1,
        initial=False,
    )


def test_what_cannot_be_done_is_refused():
    with pytest.raises(UsageError, match="embedding must be at least 1"):
        mmaml(net(), embedding=0)
    with pytest.raises(UsageError, match="cannot tell what its inputs are"):
        mmaml(nn.Sequential(nn.LayerNorm(3), nn.Tanh()), what=nn.LayerNorm)
    learner = mmaml(net(), outputs=2, loss="mse")
    with pytest.raises(ShapeError, match="outputs="):
        learner.adapt(learner.init(None), random_episodes((2,), regression=True).support)
