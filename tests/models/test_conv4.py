import pytest
import torch
from torch import nn

from headstart import conv4
from headstart.errors import ShapeError, UnknownNameError, UsageError


@pytest.mark.parametrize(
    ("shape", "filters", "downsample", "features"),
    [((1, 28, 28), 64, "pool", 64), ((1, 28, 28), 64, "stride", 256), ((3, 84, 84), 32, "pool", 800)],
    ids=["omniglot, pool", "omniglot, stride", "miniImageNet"],
)
def test_the_head_sees_as_many_features_as_in_the_papers(shape, filters, downsample, features):
    model = conv4(shape, 5, filters=filters, downsample=downsample)
    assert model.head.in_features == features
    assert model(torch.randn(2, *shape)).shape == (2, 5)
    assert conv4(shape, None, filters=filters, downsample=downsample)(torch.randn(2, *shape)).shape == (2, features)


def test_its_size_is_the_usual_one():
    model = conv4((1, 28, 28), 5)
    convolutions = 64 * 9 + 64 + 3 * (64 * 64 * 9 + 64)
    assert sum(p.numel() for p in model.parameters()) == convolutions + 4 * 2 * 64 + 64 * 5 + 5


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("batch", nn.BatchNorm2d),
        ("instance", nn.InstanceNorm2d),
        ("layer", nn.GroupNorm),
        ("group", nn.GroupNorm),
        ("none", nn.Identity),
    ],
)
def test_norms(norm, kind):
    model = conv4((1, 16, 16), 3, filters=16, norm=norm)
    assert type(model.block1.norm) is kind
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 3)
    if kind is nn.GroupNorm:
        assert model.block1.norm.num_groups == {"layer": 1, "group": 2}[norm]


def test_small_and_strange_images_are_refused():
    with pytest.raises(ShapeError, match=r"needs 16 x 16 or more; got \(1, 15, 28\)"):
        conv4((1, 15, 28), 5)
    assert conv4((1, 15, 28), 5, filters=4, downsample="stride")(torch.zeros(1, 1, 15, 28)).shape == (1, 5)
    for shape in ((28, 28), (1, 28, 28, 3), (0, 28, 28)):
        with pytest.raises(ShapeError, match="channels, height, width"):
            conv4(shape, 5)


def test_unknown_options_are_refused():
    with pytest.raises(UnknownNameError, match="unknown downsample 'pooling'; did you mean 'pool'"):
        conv4((1, 28, 28), 5, downsample="pooling")
    with pytest.raises(UnknownNameError, match="unknown norm 'bach'; did you mean 'batch'"):
        conv4((1, 28, 28), 5, norm="bach")
    with pytest.raises(UsageError, match="positive filters and ways"):
        conv4((1, 28, 28), 5, filters=0)
