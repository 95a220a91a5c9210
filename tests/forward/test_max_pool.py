"""The maximum of pixels is PyTorch's."""

import pytest
import torch
from torch import nn

from headstart.forward.functional import functional
from headstart.forward.max_pool import MaxPool

POOLS = [
    {"kernel_size": 2}, {"kernel_size": (2, 2), "stride": (2, 2)}, {"kernel_size": 2, "ceil_mode": True},
    {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 2, "stride": 1}, {"kernel_size": 2, "dilation": 2},
]  # fmt: skip


@pytest.mark.parametrize("options", POOLS)
@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (2, 3, 7, 5), (3, 4, 4)])
def test_the_maximum_is_pytorchs(options, shape, generator):
    x = torch.randn(shape, generator=generator)
    x[0, 0, 0, ...] = torch.nan
    with torch.no_grad():
        assert torch.equal(MaxPool(**options)(x).nan_to_num(9), nn.MaxPool2d(**options)(x).nan_to_num(9))


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
def test_it_stands_in_a_function_of_all_tasks(taskmap, generator):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten())
    function = functional(net, taskmap=taskmap)
    x = torch.randn(3, 5, 1, 9, 9, generator=generator)
    with torch.no_grad():
        found, _ = function.apply(function.params, {}, x)
        torch.testing.assert_close(found, net(x.flatten(0, 1)).view(3, 5, -1))


@pytest.mark.parametrize("shape", [(8, 8), (2, 2, 3, 8, 8), (0, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8)])
def test_what_pytorch_refuses_is_refused(shape):
    with torch.no_grad(), pytest.raises(RuntimeError, match="expected for input|Expected 3D or 4D"):
        MaxPool(2)(torch.zeros(shape))
