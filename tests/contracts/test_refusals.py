"""What cannot be done right is refused, with the module's path and what to do."""

import pytest
import torch
from torch import nn

import headstart
from headstart.errors import DifferentiationError, UsageError
from headstart.testing import random_episodes


class Holder(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.block = nn.Sequential(layer)

    def forward(self, x):
        return self.block(x)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.EmbeddingBag(5, 3), "EmbeddingBag"),
        (nn.Embedding(5, 3, sparse=True), "Embedding"),
        (nn.Embedding(5, 3, max_norm=1.0), "Embedding"),
        (nn.Embedding(5, 3, scale_grad_by_freq=True), "Embedding"),
        (nn.EmbeddingBag(5, 3, max_norm=1.0), "EmbeddingBag"),
        (nn.LazyLinear(3), "LazyLinear"),
        (nn.SyncBatchNorm(3), "SyncBatchNorm"),
    ],
    ids=["EmbeddingBag", "sparse", "max_norm", "frequency", "max_norm of a bag", "lazy", "SyncBatchNorm"],
)
def test_layers_without_a_right_second_derivative_are_refused_by_path(layer, kind):
    with pytest.raises(DifferentiationError, match=rf"{kind} at 'block.0' .*(use|run)"):
        headstart.maml(Holder(layer))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_refuse_vmap_and_choose_loop_themselves(kind):
    with pytest.raises(DifferentiationError, match=f"{kind.__name__} at 'block.0'.*taskmap='loop' or 'auto'"):
        headstart.maml(Holder(kind(2, 2)), taskmap="vmap")
    headstart.maml(Holder(kind(2, 2)), taskmap="auto")


def test_a_lazy_layer_is_taken_once_it_has_weights():
    module = nn.Sequential(nn.LazyLinear(3))
    module(torch.zeros(1, 2))
    headstart.meta_gradient(*case(module.double(), (2,)))


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.InstanceNorm2d(3, track_running_stats=True), "InstanceNorm2d at 'block.0' cannot have statistics per task"),
        (nn.BatchNorm2d(3, momentum=None), "momentum"),
    ],
)
def test_statistics_per_task_are_refused_where_they_cannot_be(layer, why):
    with pytest.raises(DifferentiationError, match=why):
        headstart.maml(Holder(layer), buffers="task")


def case(module, shape, seed=None, **options):
    learner = headstart.maml(module, steps=1, **options)
    episodes = random_episodes(shape)
    if seed is not None:
        episodes = headstart.Episodes(*(batch._replace(seed=torch.full((3,), seed)) for batch in episodes))
    return learner, learner.init(None), episodes


@pytest.mark.parametrize(
    ("module", "path"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.AlphaDropout(0.1)), "AlphaDropout at '1'"),
        (nn.Sequential(nn.Linear(2, 3), nn.RReLU()), "RReLU at '1'"),
    ],
)
def test_layers_that_draw_their_own_random_numbers_are_refused_with_a_seed_and_taken_without(module, path):
    with pytest.raises(UsageError, match=f"{path} draws random numbers that Batch.seed cannot determine"):
        headstart.meta_gradient(*case(module.double(), (2,), seed=3))
    headstart.meta_gradient(*case(module.double(), (2,)))


def test_dropout_inside_attention_is_refused_with_a_seed():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)
    module = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3)).double()
    with pytest.raises(UsageError, match="MultiheadAttention at '0.self_attn'.*set its own dropout to 0"):
        headstart.meta_gradient(*case(module, (3, 4), seed=3))
    layer.self_attn.dropout = 0.0
    headstart.meta_gradient(*case(module, (3, 4), seed=3))


class Once(torch.autograd.Function):
    """x², whose backward pass is not differentiable."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Forgetful(torch.autograd.Function):
    """x², whose backward pass leaves out that it depends on x."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.x * grad


class Square(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


@pytest.mark.parametrize("function", [Once, Forgetful])
def test_custom_functions_without_a_right_second_derivative_are_refused_by_path(function):
    module = nn.Sequential(nn.Linear(2, 4), Square(function), nn.Linear(4, 3)).double()
    with pytest.raises(DifferentiationError, match="Square at '1'.*adjoint=FirstOrder"):
        headstart.meta_gradient(*case(module, (2,), taskmap="loop"))


class Convolutions(nn.Module):
    """So many ReLUs that one has its kink within any distance at which differences are taken."""

    def __init__(self):
        super().__init__()
        blocks = [(nn.Conv2d(1 if i == 0 else 16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for i in range(2)]
        self.body = nn.Sequential(*[layer for block in blocks for layer in block])
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def test_a_network_of_many_relus_is_not_refused():
    headstart.functional(Convolutions()).certify(torch.randn(1, 20, 1, 28, 28))
