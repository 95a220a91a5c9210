import torch

from headstart.engine.workload import workload


def test_views_do_not_count_and_work_in_place_does():
    x = torch.ones(2, 3)

    def function():
        y = x.mT.reshape(3, 2)[:, :1].expand(3, 4).unsqueeze(0)  # views of x
        y = y * 2
        y.add_(1)
        return y

    # in place an operation gives no tensor of its own, and is work still
    found = workload(function)
    assert found.operations >= 2 and found.elements % 12 == 0 and found.elements >= 24


def test_backward_passes_inside_count():
    x = torch.ones(5, requires_grad=True)
    forward = workload(lambda: x.exp().sum())
    both = workload(lambda: torch.autograd.grad(x.exp().sum(), x))
    assert forward == (2, 6)
    assert both.operations > forward.operations and both.elements >= forward.elements + 5


def test_the_count_is_the_same_on_every_run_and_grows_with_the_sizes():
    def step(size):
        w = torch.ones(size, size, requires_grad=True)
        return lambda: torch.autograd.grad((w @ w).tanh().sum(), w)

    small, large = workload(step(4)), workload(step(40))
    assert small == workload(step(4)) and small.operations == large.operations
    assert large.size > 50 * small.size


def test_several_outputs_count_together_and_nothing_is_no_work():
    found = workload(lambda: torch.sort(torch.zeros(7)))
    assert found == (2, 7 + 14)
    assert workload(lambda: None).size == 0
