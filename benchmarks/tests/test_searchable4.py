import pytest
import torch

from benchmarks.searchable4 import searchable4
from headstart import conv4, maml
from headstart.algorithms.architecture import derive
from headstart.errors import ShapeError, UnknownNameError, UsageError
from headstart.forward.cost import multiply_adds
from headstart.forward.mixture import mixtures

SHAPE = (1, 28, 28)


def gates(module, name):
    """Return a meta value that chooses the candidate ``name`` wherever it is there."""
    meta = maml(module).init(None)
    for path, mixture in mixtures(module).items():
        if name in mixture.gates.names:
            meta.structure[f"{path}.gates.logits"][mixture.gates.names.index(name)] = 5.0
    return meta


@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("name", ["conv3", "conv5", "pointwise", "separable3", "separable5", "average", "skip"])
def test_every_candidate_can_be_chosen_in_every_block_that_it_fits(downsample, name):
    module = searchable4(SHAPE, 5, filters=6, downsample=downsample)
    x = torch.randn(3, *SHAPE)
    assert module(x).shape == (3, 5)
    plain = derive(module, gates(module, name))
    assert plain(x).shape == (3, 5) and type(plain.block2) is torch.nn.Sequential
    there = {path: name in mixture.gates.names for path, mixture in mixtures(module).items()}
    expected = name != "skip" or downsample == "pool"
    assert list(there.values()) == [name not in ("average", "skip"), expected, expected, expected]


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_conv4_is_one_of_the_choices(downsample):
    module, known = (make(SHAPE, 5, filters=8, downsample=downsample) for make in (searchable4, conv4))
    plain = derive(module, gates(module, "conv3"))
    assert multiply_adds(plain, SHAPE) == multiply_adds(known, SHAPE)
    for ours, theirs in zip(plain.parameters(), known.parameters(), strict=True):
        assert ours.shape == theirs.shape
        ours.data.copy_(theirs.data)
    x = torch.randn(4, *SHAPE)
    torch.testing.assert_close(plain(x), known(x))


def test_candidates_can_be_named():
    module = searchable4(SHAPE, None, filters=4, norm="layer", candidates=("conv3", "pointwise", "skip"))
    assert [m.gates.names for m in mixtures(module).values()] == [("conv3", "pointwise")] + [
        ("conv3", "pointwise", "skip")
    ] * 3
    assert module(torch.zeros(2, *SHAPE)).shape == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((SHAPE, 5), {"candidates": ("conv3", "conv7")}, UnknownNameError, "unknown candidate 'conv7'"),
        ((SHAPE, 5), {"candidates": ("conv3", "skip")}, UsageError, "at least 2 candidates.*got conv3"),
        ((SHAPE, 5), {"downsample": "half"}, UnknownNameError, "unknown downsample 'half'"),
        ((SHAPE, 5), {"norm": "none "}, UnknownNameError, "unknown norm"),
        ((SHAPE, 0), {}, UsageError, "positive filters and ways"),
        (((28, 28), 5), {}, ShapeError, "searchable4 takes images"),
        (((1, 15, 15), 5), {}, ShapeError, "16 x 16 or more"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        searchable4(*arguments, **options)
