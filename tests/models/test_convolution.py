import pytest
import torch
from torch import nn

import headstart
from headstart.errors import ShapeError, UsageError
from headstart.models.convolution import convolution
from headstart.testing import check_learner, random_episodes

TOKENS, LENGTH = 11, 6


def net(depth=2, **options):
    return convolution(LENGTH, 3, vocabulary=TOKENS, width=5, depth=depth, window=3, **options).double()


def test_what_stands_behind_a_text_changes_nothing():
    model = net()
    short = torch.tensor([[3, 1], [4, 2]])
    long = nn.functional.pad(short, (0, 4))
    nn.init.normal_(model.embedding.token.weight[0])
    for layer in (model.block1, model.block2, model.pool):
        nn.init.normal_(layer.norm.bias)  # else padding is normalised to 0
    assert torch.allclose(model(short), model(long), rtol=0, atol=1e-14)
    assert not torch.allclose(model(short), model(short.flip(1)))
    other = net(padding=7)
    assert torch.allclose(other(torch.tensor([[3, 7, 7]])), other(torch.tensor([[3]])))


def test_blocks_see_so_many_tokens_together():
    """A token changes what is read of those that are near, and of no others: 1 + (3 − 1)(2² − 1) = 7 in two blocks."""
    body = net()[:3]
    ids = torch.randint(1, TOKENS, (1, 20), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 10] = ids[0, 10] % 10 + 1
    changed = (body(ids) - body(other)).abs().sum(-1)[0] > 1e-12
    assert changed.nonzero().flatten().tolist() == list(range(7, 14))


def test_a_text_without_tokens_has_no_features_and_finite_gradients():
    model = net()
    outputs = model(torch.zeros(2, LENGTH, dtype=torch.int64))
    assert torch.equal(outputs, model.head.bias.expand(2, 3))
    outputs.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_it_keeps_the_contract():
    module = net(depth=1)
    check_learner(
        lambda taskmap: headstart.maml(module, rate=0.1, steps=2, taskmap=taskmap),
        random_episodes((LENGTH,), tokens=TOKENS),
        module=module,
        directions=2,
        order=True,
    )


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ShapeError, "texts as token ids", lambda: convolution((3, 4), 2)),
        (UsageError, "an odd window", lambda: convolution(8, 2, window=4)),
        (UsageError, "padding id", lambda: convolution(8, 2, padding=256)),
        (ShapeError, "an integer type", lambda: net()(torch.zeros(2, 3))),
        (ShapeError, "ids go from 0 to 11, but the vocabulary has 11", lambda: net()(torch.tensor([[0, 11]]))),
    ],
)
def test_what_it_does_not_take(error, message, call):
    with pytest.raises(error, match=message):
        call()
