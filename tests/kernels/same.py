"""Functions as kernels compute them, beside what PyTorch gives."""

import contextlib

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from headstart.engine.rewrite import fold
from headstart.kernels.parts import in_parts
from headstart.kernels.translated import _SCRATCH, Kernel, translated

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


def record_of(function, *inputs):
    record = make_fx(function, tracing_mode="fake")(*inputs)
    record.graph.eliminate_dead_code()  # as in the engine's records
    return record


def kernels_of(module):
    return [node.target for node in module.graph.nodes if isinstance(node.target, Kernel)]


def as_kernels(function, *inputs, parts=False):
    """Return the function's record, translated; with ``parts``, operations are taken apart before."""
    record = record_of(function, *inputs)
    if parts:
        in_parts(record)
        fold(record)
    return translated(record)


def assert_same(found, expected, tolerance=None):
    """Compare tensors one by one: how they lie in memory, and their numbers, NaN and the sign of zeros among them."""
    found, expected = tree_leaves(found), tree_leaves(expected)
    assert len(found) == len(expected)
    for place, (one, other) in enumerate(zip(found, expected)):
        if other is None:
            assert one is None
            continue
        assert (one.shape, one.dtype) == (other.shape, other.dtype), place
        # the step of a dimension of one place is never taken
        steps = [[step for size, step in zip(each.shape, each.stride()) if size > 1] for each in (one, other)]
        assert steps[0] == steps[1], (place, one.shape, one.stride(), other.stride())
        near = TOLERANCES.get(other.dtype, 0) if tolerance is None else tolerance
        message = f"output {place}: {{}}".format
        torch.testing.assert_close(one, other, rtol=near, atol=near, equal_nan=True, msg=message)
        zeros = (one == 0) & (other == 0)
        assert torch.equal(one.signbit() & zeros, other.signbit() & zeros), f"output {place}: the sign of a zero"


@contextlib.contextmanager
def guarded_memory(edge=2**14):
    """Let kernels' memory be full of what is no number, and find out what they write behind its end."""
    blocks = []

    def strided(shape, strides, dtype):
        numbers = 1 + sum((size - 1) * step for size, step in zip(shape, strides)) if 0 not in shape else 0
        block = torch.full((numbers * dtype.itemsize + edge,), 0xFF, dtype=torch.uint8)
        blocks.append(block[-edge:])
        return block[:-edge].view(dtype).as_strided(shape, strides)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_SCRATCH, "block", lambda: None)
        patch.setattr(torch, "empty_strided", strided)
        patch.setattr(torch, "empty", lambda count, dtype: strided((count,), (1,), dtype))
        yield
    assert blocks and all(bool((one == 0xFF).all()) for one in blocks), "a kernel writes behind its memory"


def check(function, *inputs, parts=False, kernels=1, tolerance=None):
    """Hold what kernels compute to the function itself, and return the translated record."""
    module = as_kernels(function, *inputs, parts=parts)
    assert len(kernels_of(module)) >= kernels, module.graph
    before = [one.clone() for one in inputs]
    expected = function(*inputs)
    with guarded_memory() if kernels_of(module) else contextlib.nullcontext():
        found = module(*inputs)
    for one, kept in zip(inputs, before):
        torch.testing.assert_close(one, kept, rtol=0, atol=0, equal_nan=True)
    assert_same(found, expected, tolerance)
    return module
