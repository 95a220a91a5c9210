import weakref

import pytest
import torch
from torch import nn

import headstart
from headstart import Checkpointed, FirstOrder, Unrolled
from headstart.errors import UsageError
from headstart.testing import random_episodes


def module():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(48, 3)
    ).double()


def episodes():
    drawn = random_episodes((1, 4, 4))
    return headstart.Episodes(*(batch._replace(seed=torch.arange(3) + 5) for batch in drawn))


def gradient(adjoint, taskmap, buffers, steps=5):
    torch.manual_seed(0)
    learner = headstart.maml(module(), steps=steps, rate=0.1, adjoint=adjoint, taskmap=taskmap, buffers=buffers)
    return headstart.meta_gradient(learner, learner.init(None), episodes())


@pytest.mark.parametrize("buffers", ["batch", "task"])
@pytest.mark.parametrize("taskmap", ["vmap", "loop", "auto"])
@pytest.mark.parametrize("every", [1, 3, "sqrt", 7])
def test_checkpoints_change_no_gradient(every, taskmap, buffers):
    expected, told = gradient(Unrolled(), "loop" if taskmap == "auto" else taskmap, buffers)
    got, info = gradient(Checkpointed(every), taskmap, buffers)
    tolerance = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(got.params, expected.params, **tolerance)
    torch.testing.assert_close(info, told, **tolerance)


def peak_bytes(adjoint, steps):
    """Return the most bytes that autograd holds saved at one time in forward and backward passes."""
    live, peak = {}, 0

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor

    def pack(tensor):
        nonlocal peak
        saved = Saved(tensor)
        key = id(saved)
        live[key] = tensor.numel() * tensor.element_size()
        weakref.finalize(saved, live.pop, key)
        peak = max(peak, sum(live.values()))
        return saved

    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    learner = headstart.maml(net, steps=steps, rate=0.1, adjoint=adjoint, taskmap="vmap")
    data = random_episodes((8,), support=30)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        headstart.meta_gradient(learner, learner.init(None), data)
    return peak


def test_the_memory_of_checkpoints_grows_slower_than_that_of_an_unrolled_loop():
    unrolled = [peak_bytes(Unrolled(), steps) for steps in (4, 16)]
    square_root = [peak_bytes(Checkpointed(), steps) for steps in (4, 16)]
    assert unrolled[1] / unrolled[0] > 3
    assert square_root[1] / square_root[0] < 2.6
    assert square_root[1] < 0.6 * unrolled[1]
    assert peak_bytes(Checkpointed(1), 16) < 0.6 * unrolled[1]


@pytest.mark.parametrize("every", [0, -1, 1.5, "root"])
def test_checkpoints_at_no_interval_are_refused(every):
    with pytest.raises(UsageError, match=r"Checkpointed\(every=...\) must be a positive number of steps or 'sqrt'"):
        Checkpointed(every)


def test_adjoints_are_values():
    assert Unrolled() == Unrolled() and Checkpointed(2) == Checkpointed(2) != Checkpointed(3)
    assert (Unrolled().exact, Checkpointed().exact, FirstOrder().exact) == (True, True, False)


def test_the_first_order_takes_statistics_of_the_task_as_constants():
    got, _ = gradient(FirstOrder(), "vmap", "task")
    assert all(bool(value.isfinite().all()) for value in got.params.values())
