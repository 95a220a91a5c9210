"""Operations that are taken apart give what PyTorch's own do, and are not there any more."""

import pytest
import torch
from torch import nan, nn
from torch.nn import functional

from headstart.kernels.operations import ATEN
from headstart.kernels.parts import in_parts
from headstart.kernels.translated import Kernel
from tests.kernels.same import check, record_of

TYPES = (torch.float64, torch.float32)


def with_slopes(function):
    """Return what a function gives, and its derivatives by all inputs."""

    def both(*inputs):
        inputs = [one.detach().requires_grad_() for one in inputs]
        out = function(*inputs)
        return [out.detach(), *torch.autograd.grad((out * out.detach().cos()).sum(), inputs)]

    return both


FUNCTIONS = {
    "softmax": lambda x, w, b: functional.softmax(x * b, -1) * w,
    "softmax of the first": lambda x, w, b: functional.softmax(x, 0) + b * w,
    "log softmax": lambda x, w, b: functional.log_softmax(x, 1) * w + b,
    "layer norm": lambda x, w, b: functional.layer_norm(x, (8,), w, b),
    "layer norm alone": lambda x, w, b: functional.layer_norm(x + w, (8,)) * b,
    "group norm": lambda x, w, b: functional.group_norm(x[:, :, None], 2, w, b),
    "batch norm": lambda x, w, b: functional.batch_norm(x, None, None, w, b, training=True),
    "gelu": lambda x, w, b: functional.gelu(x * w + b),
    "gelu by tanh": lambda x, w, b: functional.gelu(x * w + b, approximate="tanh"),
    "silu": lambda x, w, b: functional.silu(x * w + b),
    "elu": lambda x, w, b: functional.elu(x * w) + b,
    "softplus": lambda x, w, b: functional.softplus(x * w + b),
    "hardtanh": lambda x, w, b: functional.hardtanh(x * w + b),
    "leaky relu": lambda x, w, b: functional.leaky_relu(x * w + b, 0.2),
    "log sigmoid": lambda x, w, b: functional.logsigmoid(x * w + b),
    "mish": lambda x, w, b: functional.mish(x * w + b),
    "cross entropy": lambda x, w, b: functional.cross_entropy(x * w + b, torch.arange(6) % 8),
    "smoothed": lambda x, w, b: functional.cross_entropy(x * w + b, torch.arange(6) % 8, label_smoothing=0.1),
    "binary": lambda x, w, b: functional.binary_cross_entropy_with_logits(x * w, b.sigmoid().expand(6, 8)),
    "squares": lambda x, w, b: functional.mse_loss(x * w, b.expand(6, 8)),
    "smooth": lambda x, w, b: functional.smooth_l1_loss(x * w, b.expand(6, 8)),
    "variance": lambda x, w, b: x.var(1, keepdim=True) * w + x.std(0) + x.var() * b,
    "norm": lambda x, w, b: x / x.norm(dim=1, keepdim=True) * w + b,
    "logsumexp": lambda x, w, b: (x * w + b).logsumexp(1),
    "linear": lambda x, w, b: functional.linear(x * w, x + b).tanh(),
    "einsum": lambda x, w, b: torch.einsum("ij,j,kj->ik", x, w, x + b),
    "lerp": lambda x, w, b: torch.lerp(x * w, x + b, 0.3),
    "dot": lambda x, w, b: (x @ w).sin() + (x * b) @ b,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_their_derivatives(name, generator):
    x = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    w, b = (torch.rand(8, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2))
    check(with_slopes(FUNCTIONS[name]), x, w, b, parts=True, tolerance=1e-11)


LEFT = "norm backward softmax gelu silu elu"


@pytest.mark.parametrize(
    "name", ["softmax", "log softmax", "layer norm", "gelu", "gelu by tanh", "silu", "group norm", "batch norm"]
)
def test_nothing_is_left_of_functions_of_networks(name, generator):
    x = torch.randn(6, 8, generator=generator)
    w, b = torch.rand(8, generator=generator), torch.rand(8, generator=generator)
    module = check(with_slopes(FUNCTIONS[name]), x, w, b, parts=True, tolerance=1e-4)
    left = [str(node.target) for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert not any(word in each for each in left for word in LEFT.split()), left


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 2), (3, 2)])
def test_largest_of_windows(size, dtype, last, generator):
    """Ties, NaN, and rows and columns that are in no window among them."""
    x = torch.randint(-2, 3, (2, 3, *size), generator=generator).to(dtype)
    x[0, 0, 0, 1] = x[1, 2, 1, 0] = x[1, 2, 1, 1] = nan
    x[1, 1, :2, :2] = -float("inf")
    slopes = torch.randn(2, 3, size[0] // 2, size[1] // 2, generator=generator, dtype=dtype)
    if last:
        x, slopes = (one.to(memory_format=torch.channels_last) for one in (x, slopes))

    def function(x, slopes):
        y = x * 2
        best, at = ATEN.max_pool2d_with_indices(y, [2, 2], [2, 2])
        found = ATEN.max_pool2d_with_indices_backward(slopes, y, [2, 2], [2, 2], [0, 0], [1, 1], False, at)
        return [best + 0, at, found * 1]

    module = check(function, x, slopes, parts=True)
    assert not any("max_pool" in str(node.target) for node in module.graph.nodes)


def test_windows_of_other_sizes(generator):
    x = torch.randn(2, 2, 9, 10, generator=generator, dtype=torch.float64)

    def function(x):
        found = [functional.max_pool2d(x * 2, size).sin() for size in ((3, 2), (1, 4), (9, 10))]
        return torch.cat([one.flatten() for one in found])

    check(with_slopes(function), x, parts=True)


@pytest.mark.parametrize(
    "options", [{"stride": 1}, {"stride": 3}, {"padding": 1}, {"dilation": 2}, {"ceil_mode": True}, {"stride": (2, 1)}]
)
def test_windows_that_overlap_or_leave_gaps_are_left_to_pytorch(options, generator):
    x = torch.randn(2, 2, 7, 7, generator=generator, dtype=torch.float64)
    function = lambda x: functional.max_pool2d((x * 2 + 1).sin(), 2, **options).sin() * 2  # noqa: E731
    module = check(with_slopes(function), x, parts=True)
    assert any("max_pool" in str(node.target) for node in module.graph.nodes)


def test_what_parts_give_lies_in_memory_as_the_whole_did(generator):
    """Views are taken of it by where that has its numbers."""
    x = torch.randn(2, 4, 5, 6, generator=generator).to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)

    def function(x):
        one = functional.gelu(x * 2)
        soft = functional.softmax(x.transpose(1, 2), 1)
        return [one.permute(0, 2, 3, 1).reshape(-1) * 2, one, soft, soft.permute(0, 3, 1, 2)[1:] + 1, one[:, 1]]

    check(function, x, parts=True)
    check(lambda x: functional.gelu(x).t()[1:] * 2 + functional.silu(x).t()[:-1], x[0, 0].t(), parts=True)


def test_the_same_parts_are_computed_once(generator):
    x = torch.randn(4, 5, generator=generator)
    record = record_of(lambda x: [functional.softmax(x, 1), functional.softmax(x, 1) * 2], x)
    in_parts(record)
    assert [node.target for node in record.graph.nodes].count(ATEN.exp.default) == 1


def test_operations_without_parts_stay(generator):
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    function = lambda x: [(x * 2 + 1).sin().sort(1), (x.cumsum(0) * 2).erfinv().nan_to_num(), x.sin().topk(2)]  # noqa: E731
    check(function, x, parts=True)


def test_a_network_with_its_derivatives_is_one_kernel(generator):
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)).double()
    net.extend([nn.Conv2d(4, 3, 3), nn.GELU(), nn.Flatten(), nn.Linear(3 * 2 * 3, 5)]).double()
    names = [name for name, _ in net.named_parameters()]
    x, labels = torch.randn(6, 1, 9, 11, generator=generator, dtype=torch.float64), torch.tensor([0, 4, 2, 1, 3, 0])

    def function(x, labels, *params):
        params = [one.detach().requires_grad_() for one in params]
        out = torch.func.functional_call(net, dict(zip(names, params)), (x,))
        loss = functional.cross_entropy(out, labels)
        return [loss.detach(), *torch.autograd.grad(loss, params)]

    module = check(function, x, labels, *(one.detach() for one in net.parameters()), parts=True, tolerance=1e-10)
    assert len([node for node in module.graph.nodes if isinstance(node.target, Kernel)]) <= 2


def test_parts_of_the_same_tensor_twice_and_of_others(generator):
    x, y = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))

    def function(x, y):
        same, other = ATEN.gelu_backward(x, x), ATEN.gelu_backward(x, y)
        beside = [ATEN._softmax(one[start:, None].transpose(0, 1), -1, False) for one in (x, y) for start in (0, 2)]
        return [same, other, *beside, ATEN.silu_backward(y, x), ATEN.silu_backward(y, y)]

    check(function, x, y, parts=True)
