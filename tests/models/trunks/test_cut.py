"""A network in two parts: the same numbers, and the first part once for all inner steps."""

import pytest
import torch
from torch import nn

from headstart import maml, meta_gradient
from headstart.algorithms.tuned import trunk
from headstart.models.trunks.cut import _Below, blocks_of, cut
from headstart.models.trunks.trunk import open_trunk
from headstart.types import Batch, Episodes


class Positioned(nn.Module):
    """Blocks that are handed more than what the block before gave."""

    def __init__(self, tail: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(nn.Bilinear(4, 4, 4) for _ in range(3))
        self.last = nn.Linear(4, 2) if tail else nn.Identity()

    def forward(self, x):
        hidden = start = self.first(x)
        for block in self.blocks:
            hidden = block(hidden, start)
        return self.last(hidden)


def learning(*paths: str, tail: bool = False) -> nn.Module:
    torch.manual_seed(0)
    module = Positioned(tail).double().requires_grad_(False)
    for path in paths:
        module.get_submodule(path).requires_grad_(True)
    return module


class Whole(nn.Module):
    """Hides that a module is a sequence."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("first", [1, 2])
def test_both_parts_are_the_whole(first):
    module = learning(*(f"blocks.{n}" for n in range(first, 3)))
    parts = cut(module, X)
    assert [name for name, _ in parts.named_children()] == ["below", "above"]
    assert parts(X).equal(module(X))
    learned = {name for name, value in parts.named_parameters() if value.requires_grad}
    assert learned == {f"above.network.blocks.{n}.{part}" for n in range(first, 3) for part in ("weight", "bias")}


@pytest.mark.parametrize("paths", [("blocks.0",), ("blocks.2", "first"), ("blocks.2", "last"), ()])
def test_what_is_learned_outside_of_later_blocks_leaves_it_whole(paths):
    module = learning(*paths, tail="last" in paths)
    assert cut(module, X) is module


def test_blocks_that_hand_on_more_than_one_tensor_leave_it_whole():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x, other):
            return self.linear(x), other + 1

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Pair() for _ in range(3))

        def forward(self, x):
            other = x
            for block in self.blocks:
                x, other = block(x, other)
            return x * other

    module = Pairs().double().requires_grad_(False)
    module.blocks[2].requires_grad_(True)
    assert cut(module, X) is module


def test_blocks_are_the_longest_run_of_one_kind():
    assert blocks_of(learning()) == ("blocks.0", "blocks.1", "blocks.2") and blocks_of(nn.Linear(2, 2)) == ()


def test_inner_steps_compute_what_is_below_once_and_the_gradient_is_that_of_the_whole(bert, monkeypatch):
    source = f"hf:{bert}"
    torch.manual_seed(0)
    net = trunk(12, 2, source=source, tuned="low_rank", blocks=1).double()
    for name, value in net.named_parameters():
        if name.endswith("up"):  # else the gradient of what stands before it is nothing
            nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(1))
    tokens = open_trunk(source).inputs(["where is my card", "the money back", "please", "i want a refund"])
    y = torch.tensor([[0, 1, 0, 1]])
    episodes = Episodes(Batch(tokens[None], y), Batch(tokens.flip(0)[None], y))
    counts, gradients = [], []

    def counted(part, x):
        counts[-1] += 1
        return forward(part, x)

    forward = _Below.forward
    for model in (net, Whole(net)):
        learner = maml(model, steps=3, rate=0.1, taskmap="loop", check=False)
        gradients.append(meta_gradient(learner, learner.init(None), episodes)[0])
        monkeypatch.setattr(_Below, "forward", counted)
        counts.append(0)
        learner.adapt(learner.init(None), episodes.support)
        monkeypatch.undo()
    assert counts == [1, 3]
    for name, value in gradients[0].params.items():
        torch.testing.assert_close(value, gradients[1].params[f"module.{name}"], rtol=1e-9, atol=1e-12)
        assert float(value.norm()) > 0
