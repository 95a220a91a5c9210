"""Running statistics that belong to the task."""

import copy

import pytest
import torch
from torch import nn

from headstart.forward.batch_norm import TaskStatistics
from headstart.forward.functional import functional


class Residual(nn.Module):
    """A block that nobody knows, with normalisation in it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=1.0)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("inside", [False, True])
def test_statistics_of_tasks_are_the_same_at_once_in_turn_and_without_gradients(gradients, inside, generator):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6, momentum=0.5, affine=False))
    middle = Residual() if inside else nn.BatchNorm2d(4, momentum=1.0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), middle, nn.ReLU(), nn.MaxPool2d(2), *flat).double()
    support, query = (torch.randn(3, n, 1, 6, 6, dtype=torch.float64, generator=generator) for n in (5, 2))
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def found(taskmap, gradients):
        function = functional(net, buffers="task", taskmap=taskmap, check=False)
        own = {name: value.expand(3, *value.shape).clone() for name, value in function.buffers.items()}
        # some weights are each task's own, some are shared
        params = {n: p * scale.view(3, *(1,) * p.ndim) if "weight" in n else p for n, p in function.params.items()}
        with torch.set_grad_enabled(gradients):
            first, own = function.apply(params, own, support, phase="support")
            second, after = function.apply(params, own, query, phase="query")
        assert all(torch.equal(after[name], own[name]) for name in own), "query sets leave nothing behind"
        return [first, second, *(value.double() for _, value in sorted(own.items()))]

    for one, other in zip(found("vmap", gradients), found("loop", True)):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_statistics_that_a_task_leaves_are_those_of_pytorch(generator):
    layer = nn.BatchNorm2d(3, momentum=0.4).double()
    theirs, ours = copy.deepcopy(layer), TaskStatistics(layer)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.updated["running_mean"], theirs.running_mean)
    torch.testing.assert_close(ours.updated["running_var"], theirs.running_var)
