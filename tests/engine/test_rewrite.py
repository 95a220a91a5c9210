import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from headstart.core.counting import Counted
from headstart.engine.rewrite import call_directly, fold, numbers_apart, settle, shorten, writes

MATRIX = torch.arange(12.0).reshape(3, 4) - 5


def traced(function, *tensors):
    return make_fx(function, tracing_mode="fake")(*tensors)


def operations(graph):
    return [node.target.name() for node in graph.graph.nodes if node.op == "call_function"]


def shortened(function, *tensors, folded=False):
    """Return the operations that are left, after checking that the results are the same, bit by bit."""
    record = traced(function, *tensors)
    expected = record(*tensors)
    shorten(record.graph)
    if folded:
        fold(record)
    record.recompile()
    record.graph.lint()
    found = record(*tensors)
    for one, other in zip(found, expected, strict=True):
        assert one.stride() == other.stride()
        assert torch.equal(one, other) and torch.equal(torch.signbit(one), torch.signbit(other))
    return operations(record)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: [x.mT.mT.exp()], ["aten::exp"]),
        (lambda x: [x.detach().exp()], ["aten::exp"]),
        (lambda x: [x.clone().exp()], ["aten::exp"]),
        (lambda x: [x.unsqueeze(0).squeeze(0).exp()], ["aten::exp"]),
        (lambda x: [x.mT.exp(), x.T.sin()], ["aten::transpose.int", "aten::exp", "aten::sin"]),
        (lambda x: [(x * 1).exp()], ["aten::exp"]),
        (lambda x: [(x / 1.0).exp()], ["aten::exp"]),
        (lambda x: [x.pow(1.0).exp()], ["aten::exp"]),
    ],
)
def test_what_gives_a_tensor_that_is_there_is_left_out(function, left):
    assert shortened(function, MATRIX) == left


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [x.T.clone(memory_format=torch.contiguous_format).exp()],  # another order in memory
        lambda x: [x[:1].expand(3, 4).clone().exp()],
        lambda x: [(x[:1].expand(3, 4) * 1).exp()],
        lambda x: [(x.long() * 1.0).exp()],  # another type
        lambda x: [x[:2].exp(), x[1:].exp()],  # other numbers of the same memory
        lambda x: [x.reshape(4, 3).exp(), x.T.exp()],
        lambda x: [x + 0.0],  # −0 + 0 is 0
    ],
)
def test_what_gives_another_tensor_stays(function):
    record = traced(function, MATRIX)
    assert len(shortened(function, MATRIX)) == len(operations(record))


def test_numbers_that_no_input_decides_are_computed_once():
    def weighted(x):
        return [x * (torch.ones_like(x.sum()).expand(3).unsqueeze(1) / 3), x * torch.zeros_like(x)]

    assert shortened(weighted, MATRIX, folded=True) == ["aten::mul.Tensor", "aten::mul.Tensor"]


def test_equal_constants_are_kept_once():
    record = traced(lambda x: [x + torch.zeros_like(x.exp()), x * torch.zeros_like(x.sin())], MATRIX)
    fold(record)
    assert len(list(record.buffers())) == 1


def test_what_is_computed_once_later_has_a_name_of_its_own():
    record = traced(lambda x: [x + torch.arange(4.0), x * torch.full((4,), 3.0)], MATRIX)
    expected = record(MATRIX)
    for late in (True, False):  # all but the last numbers at first, and then these
        kept = [node for node in record.graph.nodes if late and node.target == torch.ops.aten.full.default]
        for node in kept:
            node.target = torch.ops.aten.rand.default
        fold(record)
        for node in kept:
            node.target = torch.ops.aten.full.default
    record.recompile()
    assert all(map(torch.equal, record(MATRIX), expected))
    assert operations(record) == ["aten::add.Tensor", "aten::mul.Tensor"]


def test_large_constants_are_not_kept():
    large = torch.ones(200, 100)
    record = traced(lambda x: [x + torch.zeros_like(x)], large)
    fold(record)
    assert operations(record) == ["aten::zeros_like", "aten::add.Tensor"] and not list(record.buffers())


def test_random_numbers_are_drawn_anew():
    record = traced(lambda x: [torch.bernoulli(torch.ones_like(x) / 2)], MATRIX)
    fold(record)
    assert operations(record) == ["aten::bernoulli"]


def test_constants_held_by_reference_are_read_at_every_run():
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    record = make_fx(lambda x: [x * (weight * 2)], tracing_mode="fake", _allow_non_fake_inputs=True)(MATRIX)
    fold(record)
    record.recompile()
    weight.fill_(7)
    assert torch.equal(record(MATRIX)[0], MATRIX * 14)


STEPS = {
    "turn": lambda x: x.transpose(0, 1),
    "copy": lambda x: x.clone(),
    "one": lambda x: x * 1.0,
    "divide": lambda x: x / 1,
    "ones": lambda x: x * torch.ones_like(x),
    "zeros": lambda x: x + torch.zeros_like(x),
    "power": lambda x: x.pow(0.0) * x.pow(1.0),
    "product": lambda x: x @ x,
    "wider": lambda x: x[:, :1].expand(3, 3),
    "first": lambda x: x.unsqueeze(0).expand(2, 3, 3).sum(0),
}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=8))
def test_any_chain_of_operations_keeps_its_bits(names):
    def chain(x):
        found = [x]
        for name in names:
            found.append(STEPS[name](found[-1]))
        return [found[-1] + 0.5, found[len(found) // 2].sin()]

    shortened(chain, torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3), folded=True)


def bits(tensor):
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


COMPLEX = torch.tensor([complex(1, 2), complex(float("inf"), -1), complex(-0.0, -3), complex(-0.0, -0.0), 0j])


@pytest.mark.parametrize(
    ("function", "tensor"),
    [
        (lambda z: [z * 1.0], COMPLEX),  # of infinity, 0 · ∞ is no number
        (lambda z: [torch.view_as_real(z.conj().clone())], COMPLEX),  # no view of numbers that are to be conjugated
    ],
)
def test_complex_numbers_keep_their_bits(function, tensor):
    record = traced(function, tensor)
    expected = record(tensor)
    shorten(record.graph)
    fold(record)
    record.recompile()
    for one, other in zip(record(tensor), expected, strict=True):
        one, other = bits(one), bits(other)
        assert torch.equal(one.isnan(), other.isnan()) and torch.equal(torch.signbit(one), torch.signbit(other))
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


def test_constants_that_are_expanded_are_not_written_out():
    many = 2**20

    def weighted(x):
        return [x * (torch.ones_like(x.sum()) / 3).expand(many), x * torch.ones_like(x.sum()).expand(many)]

    record = traced(weighted, torch.empty(many))
    with Counted() as live:
        fold(record)
    assert live.peak < 1000
    assert operations(record) == ["aten::mul.Tensor"] * 2


def test_operations_that_take_tensors_by_name_are_computed_once():
    def placed(x):
        places = torch.zeros_like(x, dtype=torch.int64)
        return [x + torch.searchsorted(torch.zeros_like(x), torch.ones_like(x), sorter=places)]

    assert shortened(placed, MATRIX, folded=True) == ["aten::add.Tensor"]


X = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def translated(function, *tensors):
    record = make_fx(function, tracing_mode="fake")(*tensors)
    expected = record(*tensors)
    call_directly(record.graph)
    record.recompile()
    record.graph.lint()
    assert all(map(torch.equal, record(*tensors), expected))
    return [node.target for node in record.graph.nodes if node.op.startswith("call")]


@pytest.mark.parametrize(
    ("function", "called"),
    [
        (lambda x: [x + x], torch.add),
        (lambda x: [x * 2.0], torch.mul),
        (lambda x: [x / 3], torch.div),
        (lambda x: [x.sum([1], True)], torch.sum),
        (lambda x: [x.sum()], torch.sum),
        (lambda x: [x.mT], torch.transpose),
        (lambda x: [torch.bmm(x, x)], torch.bmm),
        (lambda x: [x.view(6, 3)], "view"),
        (lambda x: [x.expand(4, 2, 3, 3)], "expand"),
        (lambda x: [x.softmax(-1)], torch._softmax),
        (lambda x: [torch.stack([x, x])], torch.stack),
    ],
)
def test_operations_are_called_by_what_is_bound_to_them(function, called):
    assert translated(function, X) == [called]


def test_operations_without_such_a_function_stay_as_they_are():
    def slopes(x):
        return [torch.ops.aten.threshold_backward(x, x, 0)]

    assert translated(slopes, X) == [torch.ops.aten.threshold_backward.default]


def test_factors_that_are_numbers_are_made_once():
    for dtype, made in ((torch.float32, 2), (torch.float64, 2), (torch.bfloat16, 0)):
        matrix = MATRIX.to(dtype)
        record = traced(lambda x: [(0.1 * x).exp() * 0.1, x * 3, x * x, x + 0.1], matrix)
        expected = record(matrix)
        numbers_apart(record.graph)
        record.recompile()
        assert all(map(torch.equal, record(matrix), expected))
        assert operations(record).count("aten::scalar_tensor") == made


def test_results_of_several_tensors_and_their_parts():
    def spread(x):
        first, second = x.max(dim=1)
        return [first, second, *x.unbind(0)]

    translated(spread, X)


def test_a_function_that_calls_another_operation_is_not_taken(monkeypatch):
    monkeypatch.setattr(torch, "exp", torch.sin)
    assert translated(lambda x: [torch.ops.aten.exp(x)], X) == ["exp"]


def settled(function):
    """Return the record and whether it writes, after checking that its results are the same, bit by bit."""
    record, given = traced(function, MATRIX), MATRIX.clone()
    expected = [value.clone() for value in record(given)]
    settle(record.graph)
    record.recompile()
    given = MATRIX.clone()
    for one, other in zip(record(given), expected, strict=True):
        assert one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
    return writes(record)


def overwritten(made, x):
    made.as_strided((3, 4), (4, 1)).copy_(x)
    return made.as_strided((4, 3), (1, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [x.exp().addcmul_(x, x)],
        lambda x: [x.exp().add_(1).mul_(x).neg_()],
        lambda x: [x.T.exp().mul_(2)],
        lambda x: [x.double().add_(x)],
        lambda x: [torch.zeros(3, 4).add_(x)],
        lambda x: [overwritten(x.new_zeros(12), x).exp()],  # as derivatives of views do it
        lambda x: [(y := x.exp()).mul_(x), y + 1],  # what is read then is what the product gave
    ],
)
def test_what_is_written_into_a_tensor_made_for_it_is_given(function):
    assert not settled(function)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [x.mul_(2)],  # an input
        lambda x: [(y := x.exp())[0].mul_(2), y],  # a view
        lambda x: [(y := x.exp()) + 1, y.mul_(x)],  # read before
        lambda x: [x.exp().bfloat16().add_(x)],  # a sum of another type
        lambda x: [x.exp().T.contiguous().T.mul_(x)],  # a product in another order
        lambda x: [overwritten(x.new_zeros(13), x).exp()],  # not all of it
        lambda x: [(y := x.new_ones(12)) + 1, overwritten(y, x)],  # read before
    ],
)
def test_what_something_else_reads_is_written_as_it_was(function):
    assert settled(function)
