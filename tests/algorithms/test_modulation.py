import pytest
import torch
from torch import nn

import headstart
from headstart.algorithms.modulation import TaskEncoder, drawn, mmaml
from headstart.errors import ShapeError, UsageError
from headstart.testing import check_learner, random_episodes
from headstart.types import Batch, Meta

SMALL = {"embedding": 3, "hidden": 4, "steps": 2}


def net(outputs=3):
    return headstart.mlp(2, outputs, hidden=(5, 4)).double()


def images():
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 3, 3, stride=2), nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(3, 3)).double()


def stirred(learner):
    """Return the learner with generators that have left zero, so that the encoder counts."""

    def init(generator):
        meta = learner.init(generator)
        noise = torch.Generator().manual_seed(5)
        moved = {k: v + 0.3 * torch.randn(v.shape, generator=noise, dtype=v.dtype) for k, v in meta.structure.items()}
        return Meta(meta.params, moved)

    return learner._replace(init=init)


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
    with pytest.raises(UsageError, match="embedding and hidden must be at least 1"):
        mmaml(net(), embedding=0)
    with pytest.raises(UsageError, match="cannot tell what its inputs are"):
        mmaml(nn.Sequential(nn.LayerNorm(3), nn.Tanh()), what=nn.LayerNorm)
    learner = mmaml(net(), outputs=2, loss="mse")
    with pytest.raises(ShapeError, match="outputs="):
        learner.adapt(learner.init(None), random_episodes((2,), regression=True).support)


READS = {
    "linear": (nn.Linear(6, 2), (6,)),
    "flattened": (nn.Linear(6, 2), (2, 3)),
    "vectors": (nn.Linear(3, 2), (2, 3)),
    "sequence": (nn.GRU(3, 4), (5, 3)),
    "attention": (nn.MultiheadAttention(4, 2), (3, 4)),
    "signal": (nn.Conv1d(2, 3, 3), (2, 9)),
    "image": (nn.Conv2d(1, 3, 3), (1, 5, 5)),
    "volume": (nn.Conv3d(1, 3, 3), (1, 3, 4, 3)),
}


def made(reads, outputs=3):
    network = TaskEncoder(reads, outputs, hidden=6, embedding=5).to("meta")
    return network, drawn(network, torch.zeros((), dtype=torch.float64), torch.Generator().manual_seed(0))


def embedded(network, weights, batch):
    return torch.func.functional_call(network, weights, (batch.x, batch.y, batch.mask))


@pytest.mark.parametrize("kind", READS)
def test_a_support_set_of_any_kind_has_an_embedding(kind, generator):
    reads, shape = READS[kind]
    network, weights = made(reads)
    x = torch.randn((4, 7, *shape), generator=generator, dtype=torch.float64)
    y = torch.randint(3, (4, 7), generator=generator)
    embedding = embedded(network, weights, Batch(x, y))
    assert embedding.shape == (4, 5)
    assert len(embedding.unique(dim=0)) == 4
    order = torch.randperm(7, generator=generator)
    assert torch.allclose(embedded(network, weights, Batch(x[:, order], y[:, order])), embedding, rtol=1e-12)
    # which label an example has matters
    assert not torch.allclose(embedded(network, weights, Batch(x, y[:, order])), embedding)


def test_tokens_are_embedded(generator):
    network, weights = made(nn.Embedding(9, 4))
    x, y = torch.randint(9, (2, 4, 6), generator=generator), torch.randint(3, (2, 4), generator=generator)
    assert embedded(network, weights, Batch(x, y)).shape == (2, 5)


def test_class_ids_are_read_as_one_hot_targets(generator):
    network, weights = made(nn.Linear(2, 2))
    x, y = torch.randn(2, 4, 2, generator=generator, dtype=torch.float64), torch.randint(3, (2, 4), generator=generator)
    one_hot = nn.functional.one_hot(y, 3).double()
    assert torch.equal(embedded(network, weights, Batch(x, y)), embedded(network, weights, Batch(x, one_hot)))


def test_what_it_cannot_read_is_refused():
    network, weights = made(nn.Linear(4, 2))
    y = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ShapeError, match="vectors of 4 values"):
        embedded(network, weights, Batch(torch.zeros(2, 3, 6, dtype=torch.float64), y))
    with pytest.raises(ShapeError, match="one tensor x, got tuple"):
        embedded(network, weights, Batch((torch.zeros(2, 3, 4),), y))
