import pytest
import torch
from torch import nn

from headstart.algorithms.encoder import Sizes, drawn, embedded, encoder
from headstart.errors import ShapeError, UsageError
from headstart.types import Batch

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
    network = encoder(Sizes(reads, outputs, hidden=6, embedding=5))
    return network, drawn(network, torch.zeros((), dtype=torch.float64), torch.Generator().manual_seed(0))


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


def test_weights_start_by_the_generator_alone():
    reads = nn.Linear(2, 2)
    network, first = made(reads)
    before = torch.get_rng_state()
    _, second = made(reads)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {name for name, _ in network.named_parameters()} == first.keys()


def test_what_it_cannot_read_is_refused():
    with pytest.raises(UsageError, match="LayerNorm does not tell"):
        encoder(Sizes(nn.LayerNorm(3), 3, 6, 5))
    network, weights = made(nn.Linear(4, 2))
    y = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ShapeError, match="vectors of 4 values"):
        embedded(network, weights, Batch(torch.zeros(2, 3, 6, dtype=torch.float64), y))
    with pytest.raises(ShapeError, match="one tensor x, got tuple"):
        embedded(network, weights, Batch((torch.zeros(2, 3, 4),), y))
