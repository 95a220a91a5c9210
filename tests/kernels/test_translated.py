"""Kernels, and what is called between them, give together what the record does."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from headstart.engine.compiled import compiled
from headstart.kernels.operations import ATEN
from headstart.kernels.translated import translated
from tests.kernels.same import as_kernels, assert_same, check, kernels_of, record_of

BETWEEN = {
    "sort": lambda x: x.sort(1)[0],
    "places of sort": lambda x: x.sort(0)[1].double(),
    "cumsum": lambda x: x.cumsum(0),
    "topk": lambda x: x.topk(4, 1)[0],
    "inverse": lambda x: torch.linalg.inv(x @ x.t() + 4 * torch.eye(4, dtype=x.dtype)),
    "complex": lambda x: torch.fft.fft(x).abs(),
    "nothing": lambda x: x.roll(1, 0),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_other_operations_between_kernels(name, generator):
    """They take views of what kernels give, and kernels views of what they give."""
    between = BETWEEN[name]

    def function(x, y):
        one = ((x * 2 + y).sin() * y).t()
        other = between(one)
        two = ((other.t() + one) * 2).cos() + x
        three = between(two[:, [0, 1, 3, 2]].t())
        four = (three[1:, ::2] * 2 + one[:3, 1::2]).sin().sum(0)
        return [four, two.t(), other, three.t()[1:], one[1:], between((one * one + 1).t()) * 2]

    x, y = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    check(function, x, y, kernels=2)


def test_few_operations_are_called_as_they_are():
    module = as_kernels(lambda x: (x * 2).sin(), torch.ones(3))
    assert not kernels_of(module)
    torch.testing.assert_close(module(torch.ones(3)), torch.full((3,), 2.0).sin())


def test_inputs_that_are_given_back(generator):
    x = torch.randn(3, 4, generator=generator)
    module = check(lambda x, y: [x, ((y * 2 + 1).sin() + x).t(), y, x.t(), None, [y[0], (x,)]], x, x + 1)
    found = module(x, x + 1)
    assert found[0] is x


def test_records_of_views_alone(generator):
    check(lambda x: [x.t(), x[1:].flatten(), x], torch.randn(3, 4, generator=generator), kernels=0)


def test_constants_of_a_record(generator):
    table = torch.randn(3, 4, generator=generator, dtype=torch.float64)

    def function(x):
        places = torch.arange(4) * 2 + 1
        return [(x + places).sin() * torch.tensor([1.0, 2.0, 3.0, 4.0]), x.t() * 2 + places[:, None]]

    check(function, table, parts=True)


def test_no_output_changes_with_the_next_call(generator):
    x, y = torch.randn(5, 4, 4, generator=generator), torch.randn(5, 4, 4, generator=generator)
    function = lambda x: [torch.bmm((x * 2).sin(), x).tanh(), x.sum(1) * 2, (x + 1).t() if x.ndim == 2 else x + 1]  # noqa: E731
    module = as_kernels(function, x)
    first = module(x)
    kept = [one.clone() for one in first]
    module(y)
    assert_same(first, kept, 0)


def test_what_writes_into_tensors_is_not_compiled():
    record = make_fx(lambda x: ATEN.add_.Tensor(x * 2, 1), tracing_mode="fake")(torch.ones(3))
    with pytest.raises(RuntimeError, match="writes"):
        compiled(record)


def test_a_compiled_record_is_a_function_of_its_inputs(generator):
    x, w = torch.randn(6, 4, generator=generator), torch.randn(4, 3, generator=generator)
    function = lambda x, w: [torch.softmax(x @ w, 1).log().mean(), (x @ w).relu().sum(0)]  # noqa: E731
    run = compiled(record_of(function, x, w))
    assert_same(run(x, w), function(x, w))
    assert_same(run(x * 2, w + 1), function(x * 2, w + 1))


def test_a_record_stays_as_it_is(generator):
    x = torch.randn(3, 4, generator=generator)
    record = record_of(lambda x: ((x * 2).sin() + 1).t()[1:] * 2, x)
    before = str(record.graph)
    translated(record)
    assert str(record.graph) == before


@settings(deadline=None, max_examples=15, derandomize=True, database=None)
@given(st.data())
def test_rounds_of_all_sorts(data):
    """Kernels and other operations that need each other's in random order."""
    generator = torch.Generator().manual_seed(0)
    kinds = ["kernel", "kernel", "other", "view"]
    steps = []
    for place in range(24):
        kind = data.draw(st.sampled_from(kinds))
        steps.append((kind, *(data.draw(st.integers(max(0, place - 6), place + 1)) for _ in range(2))))

    def function(x, y):
        values = [x, y]
        for kind, one, other in steps:
            a, b = values[one], values[other]
            if kind == "kernel":
                values.append((a + b).sin())
            elif kind == "other":
                values.append(a.sort(one % 2)[0] if other % 2 else a.cumsum(0) * 0.1)
            else:
                values.append(
                    [a.t(), a.flip(1), a[:1].expand(4, 4), a.t().view(4, 4) if a.t().is_contiguous() else a][one % 4]
                )
        return [*values[-6:], values[4].t()[1:]]

    x, y = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    check(function, x, y, kernels=0)
