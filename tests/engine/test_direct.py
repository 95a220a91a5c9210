import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from headstart.engine.direct import direct

X = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def translated(function, *tensors):
    record = make_fx(function, tracing_mode="fake")(*tensors)
    expected = record(*tensors)
    direct(record.graph)
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


def test_results_of_several_tensors_and_their_parts():
    def spread(x):
        first, second = x.max(dim=1)
        return [first, second, *x.unbind(0)]

    translated(spread, X)


def test_a_function_that_calls_another_operation_is_not_taken(monkeypatch):
    monkeypatch.setattr(torch, "exp", torch.sin)
    assert translated(lambda x: [torch.ops.aten.exp(x)], X) == ["exp"]
