"""One product in place of one for each task: the same to rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from headstart.engine.merged import merge

TASKS = 3


def tensors(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def merged(function, *inputs):
    """Return the names of a merged record's operations, which computes what the function does."""
    record = make_fx(function, tracing_mode="fake")(*inputs)
    merge(record)
    torch.testing.assert_close(record(*inputs), function(*inputs), rtol=1e-12, atol=1e-12)
    return [node.target.__name__.partition(".")[0] for node in record.graph.nodes if node.op == "call_function"]


def over_tasks(weight):
    return weight.expand(TASKS, *weight.shape)


def test_a_product_with_what_all_tasks_share_is_one():
    x, weight, bias = tensors((TASKS, 4, 5), (5, 2), (2,))
    names = merged(lambda x, w: torch.bmm(x, over_tasks(w)), x, weight)
    assert names.count("mm") == 1
    assert "bmm" not in names
    names = merged(lambda x, w, b: torch.baddbmm(b.expand(TASKS, 1, 2), x, over_tasks(w)), x, weight, bias)
    assert names.count("mm") == 1
    assert "baddbmm" not in names
    assert "mm" in merged(lambda x, w: torch.bmm(x, over_tasks(w).mT), x, weight.T.contiguous())


def test_products_with_what_a_task_has_of_its_own_stay():
    x, weights, weight = tensors((TASKS, 4, 5), (TASKS, 5, 2), (5, 2))
    assert merged(torch.bmm, x, weights).count("bmm") == 1
    # its rows do not follow each other
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert merged(lambda x, w: torch.bmm(x, over_tasks(w)), turned, weight).count("bmm") == 1
    assert merged(lambda w: torch.bmm(over_tasks(w.T), over_tasks(w)), weight).count("bmm") == 1


def test_what_is_summed_over_tasks_is_one_product():
    g, x, other = tensors((TASKS, 4, 5), (TASKS, 4, 2), (TASKS, 2, 5))

    def slope(g, x, other):
        return (torch.bmm(g.mT, x) + other.mT + torch.bmm(x.mT, g).mT).sum(0)

    names = merged(slope, g, x, other)
    assert names.count("mm") == 2
    assert "bmm" not in names
    assert "mm" in merged(lambda g, x: torch.bmm(g.mT, x).sum(0, keepdim=True), g, x)


def test_a_product_that_is_needed_besides_is_made_once():
    g, x = tensors((TASKS, 4, 5), (TASKS, 4, 2))

    def both(g, x):
        product = torch.bmm(g.mT, x)
        return product.sum(0), product.square()

    names = merged(both, g, x)
    assert names.count("bmm") == 1
    assert "mm" not in names


def test_what_sums_to_another_type_or_holds_nothing_is_right_too():
    numbers = torch.arange(24, dtype=torch.int32).view(2, 3, 4)
    names = merged(lambda x: torch.bmm(x, x.mT).sum(0), numbers)
    assert "mm" not in names
    x, weight = tensors((TASKS, 0, 5), (5, 2))
    merged(lambda x, w: torch.bmm(x, over_tasks(w)), x, weight)
    merged(lambda x: torch.bmm(x.mT, x).sum(0), x)
    assert "mm" not in merged(lambda x: torch.bmm(x.mT, x).sum(None), tensors((TASKS, 2, 5))[0])


@pytest.mark.parametrize("axes", [(1,), (0, 1), (2,)])
def test_other_sums_stay(axes):
    g, x = tensors((TASKS, 4, 5), (TASKS, 4, 2))
    assert "bmm" in merged(lambda g, x: torch.bmm(g.mT, x).sum(axes), g, x)


def test_what_is_spread_while_it_is_added_stays():
    g, x, row = tensors((TASKS, 4, 5), (TASKS, 4, 2), (1, 2))
    assert "bmm" in merged(lambda g, x, row: (torch.bmm(g.mT, x) + row).sum(0), g, x, row)
    assert "bmm" in merged(lambda g, x, y: torch.add(torch.bmm(g.mT, x), y, alpha=2).sum(0), g, x, g.mT @ x)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_the_second_derivative_of_two_layers_is_the_same_whatever_their_sizes(tasks, rows, width, out, seed):
    x, first, second, way = tensors((tasks, rows, width), (width, width), (width, out), (width, out), seed=seed)

    def derivatives(x, first, second, way):
        first, second = first.detach().requires_grad_(), second.detach().requires_grad_()
        weights = [weight.expand(tasks, *weight.shape) for weight in (first, second)]
        loss = torch.bmm(torch.tanh(torch.bmm(x, weights[0])), weights[1]).square().sum()
        slopes = torch.autograd.grad(loss, weights, create_graph=True)
        moved = torch.bmm(x, weights[0] - slopes[0]).square().sum() + (slopes[1] * way).sum()
        return torch.autograd.grad(moved, (first, second))

    merged(derivatives, x, first, second, way)
