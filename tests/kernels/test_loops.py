"""Views, copies and look-ups are counted through memory as PyTorch does."""

import pytest
import torch
from torch import nan

from headstart.kernels.operations import ATEN
from headstart.kernels.translated import translated
from tests.kernels.same import check, kernels_of, record_of

VIEWS = {
    "turned": lambda x: x.transpose(0, 2),
    "in another order": lambda x: x.permute(2, 0, 1),
    "a slice": lambda x: x[1:, :3],
    "steps": lambda x: x[::2, 1::3],
    "from the end": lambda x: x[-100:, -2:, :-1],
    "one": lambda x: x[2],
    "one inside": lambda x: x[:, 1, -1],
    "one number": lambda x: x[1, 2, 3],
    "expanded": lambda x: x[:, :1].expand(4, 5, 6),
    "expanded before": lambda x: x.expand(2, 4, 5, 6),
    "windows": lambda x: x.unfold(1, 3, 2),
    "overlapping windows": lambda x: x.unfold(2, 4, 1).sum(-1) + x.unfold(2, 4, 1)[..., 0],
    "flat": lambda x: x.flatten(),
    "flat and turned": lambda x: x.transpose(0, 1).flatten(1),
    "all turned and flat": lambda x: x.permute(2, 1, 0).reshape(-1),
    "other sizes": lambda x: x.view(2, 10, 6).transpose(0, 1).reshape(5, 24),
    "more dimensions": lambda x: x.unsqueeze(1).unsqueeze(-1),
    "fewer dimensions": lambda x: x[:, :1].squeeze(),
    "the diagonal": lambda x: x.diagonal(0, 1, 2),
    "strided by hand": lambda x: x.as_strided((3, 4), (7, 2), 5),
    "moved": lambda x: x.movedim(0, -1).swapaxes(0, 1),
    "the same": lambda x: x.view_as(x),
    "known as": lambda x: ATEN.alias(x).detach(),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name, generator):
    """Of inputs, of what a kernel gives, into kernels and out of them."""
    view = VIEWS[name]
    x = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)

    def function(x):
        inside = x * 2 + 1
        again = view(inside) * 3 - view(x)
        return [view(x), view(inside), again, view(inside).sum(), (again * 2).sum(0), inside]

    check(function, x)


PARTS = {
    "unbind": lambda x: x.unbind(0),
    "unbind inside": lambda x: x.unbind(1),
    "split": lambda x: x.split(2),
    "split unevenly": lambda x: x.split([1, 3], 1),
    "chunk": lambda x: x.chunk(2, -1),
}


@pytest.mark.parametrize("name", PARTS)
def test_several_views_at_once(name, generator):
    def function(x):
        first, *_, last = PARTS[name](x)
        again, *_ = PARTS[name](x.sin() * 2)
        return [(first * 2 + 1).sin(), (last * 2 + 1).sin(), (again * 2 + again).cos()]

    check(function, torch.randn(4, 4, 4, generator=generator))


def test_inputs_that_lie_otherwise_in_memory(generator):
    function = lambda x, y: [(x * 2 + y).sin(), x.t() * 2, x[1:] + 1]  # noqa: E731
    x, y = torch.randn(4, 4, generator=generator), torch.randn(4, 4, generator=generator)
    module = translated(record_of(function, x, y))
    wide = torch.randn(100, generator=generator)
    for one in (x.t(), wide[7:23].view(4, 4), wide.as_strided((4, 4), (3, 17), 2), x[:1].expand(4, 4)):
        for found, expected in zip(module(one, y), function(one, y)):
            torch.testing.assert_close(found, expected)


def test_inputs_recorded_with_an_offset_and_strides(generator):
    wide = torch.randn(100, generator=generator)
    inputs = wide.as_strided((4, 5), (3, 17), 2), wide[50:70].view(5, 4).t(), wide[99], wide[3:4].expand(4, 5)
    check(lambda a, b, c, d: [(a * b + c).sin() * d, a[1:, ::2] + c, b.flatten() * 2, d.sum() + a[2]], *inputs)


def test_outputs_that_are_views_of_each_other_and_of_inputs(generator):
    def function(x, y):
        one = (x * 2 + y).sin()
        return [one, one.t(), one[1:], one, x, x.t(), x[1], one.t()[1:], one.flatten()[3:], y.expand(2, 4, 3), x]

    inputs = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)
    module = check(function, *inputs)
    found = module(*inputs)
    shared = [one.untyped_storage().data_ptr() for one in found]
    assert shared[0] == shared[1] == shared[2] == shared[7] and found[4].data_ptr() == inputs[0].data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.bool])
def test_tensors_put_together(dtype, generator):
    x, y = (torch.randn(4, 3, 2, generator=generator).mul(3).to(dtype) for _ in range(2))

    def function(x, y):
        z = torch.where(x > 0, x, y)
        found = [torch.cat([x, z, y], dim) for dim in (0, 1, 2, -1)] + [
            torch.stack([z, y], dim) for dim in (0, 1, 3, -1)
        ]
        found += [torch.cat([z[:1], y[2:], z.transpose(0, 1)[:1, :3].expand(3, 3, 2)])]
        found += [torch.cat([z[:, :1], y], 1), torch.stack([z.sum(), y.sum()]), torch.cat([z])]
        found += [torch.stack([z.transpose(0, 1), y.transpose(0, 1)], 1), torch.cat([z[:4], z[:4]])[2:6]]
        return found + [torch.cat([z, y], 1)[:, 2:5], torch.stack([z, y, z])[1:].transpose(0, 1)]

    check(function, x, y)


def test_tensors_of_several_types_put_together(generator):
    x = torch.randn(3, 4, generator=generator)
    check(lambda x: [torch.cat([x, x.double()]), torch.cat([x > 0, x.long()], 1), torch.cat([x.long(), x])], x)


def test_tensors_with_the_channels_last_put_together(generator):
    x = torch.randn(3, 4, 5, 5, generator=generator).to(memory_format=torch.channels_last)
    check(lambda x: [torch.cat([x * 2, x], dim).sin() for dim in range(4)] + [torch.stack([x, x * 2])], x)


def test_parts_with_zeros_around(generator):
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)

    def function(x):
        y, pad = x.sin(), ATEN.constant_pad_nd
        found = [ATEN.select_backward(y, [4, 6, 3], 1, place) for place in (0, 5, -1)]
        found += [ATEN.select_backward(y, [4, 4, 3], 0, 2), ATEN.select_backward(y[0], [5, 3], 0, -2)]
        for size, *places in ((9, 0, 4, 1), (9, 2, 9, 2), (11, 1, 100, 3), (9, -4, 100, 1), (9, 5, 9, 1)):
            found.append(ATEN.slice_backward(y, [size, 3], 0, *places))
        found += [ATEN.slice_backward(y, [4, 8], 1, 1, 6, 2), ATEN.slice_backward(y.t(), [3, 9], -1, 0, 8, 2)[:, ::2]]
        found += [ATEN.slice_backward(y, [7, 3], 0, -100, 4, 1)]
        found += [pad(y, padding) for padding in ([1, 0], [0, 2], [1, 2, 3, 0], [0, 0, 0, 1], [0, 0], [0, 0, 2, 0])]
        return found + [pad(y, [1, 1]) * pad(y * 2, [0, 2]), pad(y.t(), [1, 0, 0, 1]) + 1, pad(y, [1, 1])[:, 1:-1]]

    check(function, x)


@pytest.mark.parametrize("padding, value", [([1, -1], 0), ([-1, -1, 0, 1], 0), ([1, 1], 2.5), ([1, 1], nan)])
def test_other_margins_are_left_to_pytorch(padding, value, generator):
    x = torch.randn(4, 5, generator=generator)
    check(lambda x: ATEN.constant_pad_nd((x * 2 + 1).sin(), padding, value).sin(), x)


def test_lookups(generator):
    x = torch.randn(5, 4, 3, generator=generator)
    along = torch.randint(0, 3, (5, 2, 3), generator=generator)
    few, rows = torch.randint(0, 3, (2, 4), generator=generator), torch.tensor([[4, 0], [2, 2], [1, 3]])

    def function(x, along, few, rows):
        y, (one, other) = x * 2, (along + 1, rows.t()[0])
        found = [y.gather(dim, along) for dim in (0, 1, -1)] + [y.gather(1, one), y[:, :, 0].gather(0, few)]
        found += [
            y.gather(0, along.transpose(0, 2)[:, :, :3].transpose(0, 1)) + 1,
            y.transpose(0, 1).gather(2, along[:4]),
        ]
        found += [y.index_select(0, other), y.index_select(2, few[0, :3]), y.transpose(0, 2).index_select(-1, other)]
        table = y.flatten(1)
        found += [
            torch.embedding(table, rows),
            torch.embedding(table[:, ::3], rows),
            torch.embedding(table.t()[:5], few),
        ]
        found += [torch.embedding(table, rows[0, 0]), y.long().gather(0, along), (y > 0).gather(0, along)]
        return found + [torch.embedding(table, rows).sum(1), y.gather(2, along)[1:] * 2, y.gather(0, along).sum(0)]

    check(function, x, along, few, rows)


@pytest.mark.parametrize("place", [-1, 7, -(2**40), 2**40, 2**62])
def test_places_that_are_not_there(place, generator):
    """No memory is read there."""
    x = torch.randn(7, 3, generator=generator)

    def function(x, at):
        y = x * 2 + 1
        return [y.index_select(0, at), torch.embedding(y, at), y.gather(0, at[:, None].expand(3, 3)), y.long()[0] + at]

    module = translated(record_of(function, x, torch.tensor([0, 1, 2])))
    assert kernels_of(module)
    at = torch.tensor([1, place, 6])
    for found in module(x, at)[:3]:
        assert found[1].isnan().all()
        torch.testing.assert_close(found[[0, 2]], (x * 2 + 1)[[1, 6]])


@pytest.mark.parametrize("which", ["gather", "index_select"])
def test_lookups_of_one_number(which, generator):
    if which == "gather":
        check(lambda x, at: ((x * 2).gather(0, at) + 1).sin() * 2, torch.tensor(0.5), torch.tensor(0))
    else:
        x = torch.randn(4, 3, generator=generator)
        check(lambda x, at: ((x * 2).index_select(0, at) + 1).sin() * 2, x, torch.tensor(2))


def test_tensors_of_no_numbers_are_left_to_pytorch():
    x, none = torch.randn(3, 4), torch.randn(0, 4)
    check(
        lambda x, none: [(x * 2 + 1).sin(), none * 2, torch.cat([x, none * 2]), x @ none.t(), none.sum(0) + x], x, none
    )
