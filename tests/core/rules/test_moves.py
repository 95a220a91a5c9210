"""What moves."""

import pytest
from torch import nn

from headstart import errors
from headstart.core.patterns import Leaf
from headstart.core.rules import exclude, only
from headstart.forward.functional import functional


def leaves():
    module = nn.Sequential()
    module.add_module("block1", nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    module.add_module("block2", nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)))
    module.add_module("head", nn.Linear(2, 2))
    return functional(module).leaves


@pytest.mark.parametrize(
    ("what", "chosen"),
    [
        (("head",), {"head.weight", "head.bias"}),
        (("*.bias",), {"block1.0.bias", "block1.1.bias", "block2.0.bias", "block2.1.bias", "head.bias"}),
        (("block?.0",), {"block1.0.weight", "block1.0.bias", "block2.0.weight", "block2.0.bias"}),
        ((nn.BatchNorm2d,), {"block1.1.weight", "block1.1.bias", "block2.1.weight", "block2.1.bias"}),
        ((nn.Linear, "block1.0.bias"), {"head.weight", "head.bias", "block1.0.bias"}),
        ((lambda leaf: len(leaf.shape) == 4,), {"block1.0.weight", "block2.0.weight"}),
    ],
)
def test_only_and_exclude_choose_by_pattern_type_and_predicate(what, chosen):
    assert only(*what).moves(leaves()) == chosen
    assert exclude(*what).moves(leaves()) == leaves().keys() - chosen


def test_what_chooses_nothing_is_answered_with_what_there_is():
    with pytest.raises(errors.UnknownNameError, match="no parameter matches 'haed'; nearest: head"):
        only("haed").moves(leaves())
    with pytest.raises(
        errors.UnknownNameError, match="belongs to a LSTM. There are parameters of: BatchNorm2d, Conv2d, Lin"
    ):
        only(nn.LSTM).moves(leaves())
    with pytest.raises(errors.UnknownNameError, match="the predicate chooses none"):
        exclude(lambda leaf: False).moves(leaves())


def test_a_leaf_knows_the_layer_that_holds_it():
    assert leaves()["block2.1.weight"] == Leaf("block2.1.weight", (2,), nn.BatchNorm2d)
