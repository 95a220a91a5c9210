import pytest
import torch
from torch import nn
from torch.func import functional_call

import headstart
from headstart.errors import ShapeError, UnknownNameError, UsageError
from headstart.forward.functional import functional
from headstart.forward.trunk import split
from headstart.models.resnet12 import resnet12
from headstart.testing import random_episodes

SHAPE, RATE, STEPS = (1, 16, 16), 0.1, 2


def net(norm="batch", **options):
    return resnet12(SHAPE, 3, widths=(2, 3, 3, 4), norm=norm, **options).double()


def episodes():
    return random_episodes(SHAPE, tasks=2)


@pytest.mark.parametrize(
    ("pooled", "features"), [(True, 640), (False, 16_000)], ids=["mean over places", "every place"]
)
def test_the_head_sees_as_many_features_as_in_the_paper(pooled, features):
    model = resnet12((3, 84, 84), 5, pooled=pooled)
    assert model.head.in_features == features
    assert resnet12((3, 84, 84), None, pooled=pooled)(torch.randn(2, 3, 84, 84)).shape == (2, features)


@pytest.mark.parametrize(
    ("widths", "millions"), [((64, 160, 320, 640), 12.42), ((64, 128, 256, 512), 8.0)], ids=["wide", "narrow"]
)
def test_its_size_is_the_usual_one(widths, millions):
    body = resnet12((3, 84, 84), None, widths=widths)
    channels, expected = 3, 0
    for filters in widths:
        expected += filters * (9 * channels + 2 * 9 * filters + channels) + 4 * 2 * filters
        channels = filters
    count = sum(p.numel() for p in body.parameters())
    assert count == expected and count / 1e6 == pytest.approx(millions, abs=0.01)


def test_a_block_is_what_the_papers_say():
    block, x = net().block2, torch.randn(5, 2, 8, 8, dtype=torch.float64)

    def normed(conv, norm, x):
        x = nn.functional.conv2d(x, conv.weight, padding=conv.weight.shape[-1] // 2)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]

    def leaky(x):
        return torch.where(x > 0, x, 0.1 * x)

    for norm in (block.residual.norm1, block.shortcut.norm):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    residual = block.residual
    inner = leaky(normed(residual.conv1, residual.norm1, x))
    inner = leaky(normed(residual.conv2, residual.norm2, inner))
    added = normed(residual.conv3, residual.norm3, inner) + normed(block.shortcut.conv, block.shortcut.norm, x)
    expected = leaky(added).unflatten(-1, (4, 2)).unflatten(-3, (4, 2)).amax((-1, -3))
    assert torch.allclose(block(x), expected)


def plain_meta_gradient(module, meta, episodes):
    """Return MAML's meta-gradient by a loop over tasks and steps, and nothing of ours."""
    theta = {name: value.detach().clone().requires_grad_() for name, value in meta.params.items()}
    total = torch.zeros((), dtype=torch.float64)

    def loss(params, batch, task):
        return nn.functional.cross_entropy(functional_call(module, params, (batch.x[task],)), batch.y[task])

    for task in range(len(episodes.support.y)):
        params = dict(theta)
        for _ in range(STEPS):
            grads = torch.autograd.grad(loss(params, episodes.support, task), list(params.values()), create_graph=True)
            params = {name: value - RATE * grad for (name, value), grad in zip(params.items(), grads)}
        total = total + loss(params, episodes.query, task) / len(episodes.support.y)
    return dict(zip(theta, torch.autograd.grad(total, list(theta.values()))))


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_the_meta_gradient_is_that_of_a_plain_loop(norm):
    module = net(norm)
    module.train()
    found = []
    for taskmap in ("vmap", "loop"):
        learner = headstart.maml(module, rate=RATE, steps=STEPS, taskmap=taskmap)
        meta = learner.init(None)
        found.append(headstart.meta_gradient(learner, meta, episodes())[0].params)
    expected = plain_meta_gradient(module, meta, episodes())
    scale = max(value.abs().max() for value in expected.values())
    assert scale > 1e-2
    for name, value in expected.items():
        for gradient in found:
            assert (gradient[name] - value).abs().max() <= 1e-12 * max(scale, 1), name


def test_the_trunk_of_a_head_that_moves_is_all_before_it():
    module = net()
    moving = {"head.weight", "head.bias"}
    trunk, rest = split(module, moving)
    assert list(trunk._modules) == ["block1", "block2", "block3", "block4", "average", "flatten"]
    x = episodes().support.x
    whole, body, head = functional(module), functional(trunk), functional(rest)
    features = body.apply(body.params, {}, x)[0]
    assert torch.equal(head.apply(head.params, {}, features)[0], whole.apply(whole.params, {}, x)[0])
    assert list(split(module, {"block3.shortcut.conv.weight"})[0]._modules) == ["block1", "block2"]


def test_convolutions_have_a_bias_only_where_nothing_is_normalised():
    assert not [name for name, _ in net().named_parameters() if "conv" in name and name.endswith("bias")]
    biases = [name for name, _ in net("none").named_parameters() if "conv" in name and name.endswith("bias")]
    assert len(biases) == 16


def test_small_and_strange_images_are_refused():
    with pytest.raises(ShapeError, match=r"needs 16 x 16 or more; got \(1, 15, 28\)"):
        resnet12((1, 15, 28), 5)
    with pytest.raises(ShapeError, match=r"resnet12 takes images \(channels, height, width\); got .* \(28, 28\)"):
        resnet12((28, 28), 5)


def test_unknown_options_are_refused():
    for options in ({"widths": (64, 64, 64)}, {"widths": (64, 0, 64, 64)}, {"ways": 0}):
        with pytest.raises(UsageError, match="four positive widths and positive ways"):
            resnet12((3, 84, 84), **{"ways": 5, **options})
    with pytest.raises(UnknownNameError, match="unknown norm 'bach'; did you mean 'batch'"):
        resnet12(SHAPE, 5, widths=(2, 2, 2, 2), norm="bach")
