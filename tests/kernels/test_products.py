"""Products of matrices and convolutions, whatever their sizes and however their factors lie in memory."""

import functools

import pytest
import torch
from hypothesis import given, settings, strategies as st

from headstart.kernels.loops import can_be
from headstart.kernels.operations import ATEN
from tests.kernels.same import check, record_of

TYPES = (torch.float64, torch.float32)

#: How a matrix may lie in memory.
LAYOUTS = ("plain", "turned", "wide", "steps", "both steps", "one row", "one column")


def matrix(generator, rows, columns, layout, dtype, *before):
    draw = functools.partial(torch.randn, generator=generator, dtype=dtype)
    if layout == "plain":
        return draw(*before, rows, columns)
    if layout == "turned":
        return draw(*before, columns, rows).transpose(-1, -2)
    if layout == "wide":
        return draw(*before, rows + 2, columns + 3)[..., 1 : rows + 1, 2 : columns + 2]
    if layout == "steps":
        return draw(*before, columns, 2 * rows)[..., 1::2].transpose(-1, -2)
    if layout == "both steps":
        return draw(*before, 3 * rows, 2 * columns)[..., ::3, 1::2]
    if layout == "one row":
        return draw(*before, 1, columns).expand(*before, rows, columns)
    return draw(*before, rows, 1).expand(*before, rows, columns)


def expected(function, *inputs):
    """Hold kernels to PyTorch, whose sums of single numbers take another order."""
    tolerance = 1e-12 if inputs[0].dtype == torch.float64 else 1e-5
    check(function, *inputs, tolerance=tolerance * 20)


layouts, sizes = st.sampled_from(LAYOUTS), st.integers(1, 70)


@settings(deadline=None, max_examples=12, derandomize=True, database=None)
@given(st.tuples(sizes, sizes, sizes), st.tuples(layouts, layouts, layouts), st.sampled_from(TYPES))
def test_products_of_matrices(size, ways, dtype):
    generator, (m, k, n) = torch.Generator().manual_seed(0), size
    a, b = matrix(generator, m, k, ways[0], dtype), matrix(generator, k, n, ways[1], dtype)
    c, row = matrix(generator, m, n, ways[2], dtype), matrix(generator, 1, n, "plain", dtype)[0]

    def function(a, b, c, row):
        return [a @ b, torch.addmm(c, a, b), torch.addmm(row, a, b), (a @ b) + c, c + a @ b, (a @ b) * 2]

    expected(function, a, b, c, row)


@settings(deadline=None, max_examples=10, derandomize=True, database=None)
@given(
    st.integers(1, 5),
    st.tuples(*[st.integers(1, 20)] * 3),
    st.tuples(layouts, layouts, layouts),
    st.sampled_from(TYPES),
    st.booleans(),
)
def test_products_of_many_matrices(tasks, size, ways, dtype, shared):
    generator, (m, k, n) = torch.Generator().manual_seed(0), size
    a, b = matrix(generator, m, k, ways[0], dtype, tasks), matrix(generator, k, n, ways[1], dtype, tasks)
    c = matrix(generator, m, n, ways[2], dtype, tasks)
    if shared:
        b = b[:1].expand(tasks, k, n)

    def function(a, b, c):
        turned = torch.bmm(b.transpose(1, 2), a.transpose(1, 2)).transpose(1, 2)
        inside = torch.bmm((a * 2).transpose(1, 2), (torch.bmm(a, b) + c).sin())
        flat = torch.bmm(a.transpose(0, 1).contiguous().transpose(0, 1), b)
        return [torch.bmm(a, b), torch.baddbmm(c, a, b), torch.baddbmm(c[0], a, b), turned, inside, flat]

    expected(function, a, b, c)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_remainder_of_columns_and_rows(dtype, generator):
    """One kernel each of products with 1 to 19 rows and 1 to 90 columns, of which vectors are filled up."""
    pairs = [(1 + at % 19, 1 + (7 * at) % 90, 1 + at % 5) for at in range(38)]
    inputs = [torch.randn(each, generator=generator, dtype=dtype) for m, n, k in pairs for each in ((m, k), (k, n))]

    def function(*all):
        return [a @ b for a, b in zip(all[::2], all[1::2])]

    expected(function, *inputs)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 9, 1), (1, 9, 33), (33, 9, 1), (33, 1, 7), (1, 1, 40), (40, 1, 1)])
@pytest.mark.parametrize("dtype", TYPES)
def test_vectors(size, dtype, generator):
    m, k, n = size
    a, b = torch.randn(m, k, generator=generator, dtype=dtype), torch.randn(k, n, generator=generator, dtype=dtype)
    c = torch.randn(m, n, generator=generator, dtype=dtype)
    expected(lambda a, b, c: [a @ b, a @ b + c, b.t() @ a.t(), c.t() @ a, torch.addmm(c[0], a, b)], a, b, c)


def test_what_is_not_finite_stays_in_its_row_and_column(generator):
    a, b = torch.randn(5, 7, generator=generator), torch.randn(7, 19, generator=generator)
    a[1, 2], b[3, 18], b[0, 0] = float("inf"), float("nan"), float("-inf")
    check(lambda a, b: [a @ b, b.t() @ a.t(), a @ b + a[:, :1]], a, b)


def test_sums_of_two_products(generator):
    a, b, c, d = (torch.randn(6, 6, generator=generator) for _ in range(4))

    def function(a, b, c, d):
        once = a @ d
        return [a @ b + c @ d, once + once, once + a, (b @ c + 1.5), (a @ c).t() + b, (a @ b) + d[0], c + (d @ a) * 2]

    check(function, a, b, c, d)


@pytest.mark.parametrize("options", [{"beta": 0.5}, {"alpha": 2}, {"beta": 0, "alpha": 3}])
def test_products_with_factors_are_left_to_pytorch(options, generator):
    a, b, c = (torch.randn(4, 4, generator=generator) for _ in range(3))
    check(lambda a, b, c: (torch.addmm(c * 2, a + 1, b.sin(), **options) * 2).cos(), a, b, c)
    record = record_of(lambda a, b, c: torch.addmm(c, a, b, **options), a, b, c)
    assert not any(can_be(node) for node in record.graph.nodes)


def test_a_large_matrix_is_left_to_pytorch(generator):
    a, b = torch.randn(2, 300, generator=generator), torch.randn(300, 300, generator=generator)
    record = record_of(lambda a, b: a @ b, a, b)
    assert not any(can_be(node) for node in record.graph.nodes)


def images(generator, dtype, last, *shapes):
    drawn = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    return [one.to(memory_format=torch.channels_last) if last else one for one in drawn]


def convolved(x, weight, bias, padding, *others):
    stride, dilation, groups = others or ([1, 1], [1, 1], 1)
    return ATEN.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)


def slopes(out, x, weight, padding, mask):
    sizes = [weight.shape[0]]
    return ATEN.convolution_backward(out, x, weight, sizes, [1, 1], padding, [1, 1], False, [0, 0], 1, mask)


MASKS = [[bool(place & bit) for bit in (1, 2, 4)] for place in range(1, 8)]


@pytest.mark.parametrize("last, dtype", [(False, torch.float64), (False, torch.float32), (True, torch.float32)])
@pytest.mark.parametrize(
    "size, kernel, padding, channels",
    [
        ((5, 7), (3, 3), [1, 1], (3, 4)),
        ((7, 5), (3, 3), [0, 0], (1, 5)),
        ((6, 6), (1, 1), [0, 0], (4, 3)),
        ((5, 6), (5, 5), [2, 2], (2, 1)),
        ((8, 7), (3, 1), [1, 0], (1, 1)),
        ((4, 4), (2, 3), [1, 2], (2, 9)),
        ((3, 3), (3, 3), [0, 0], (2, 17)),
    ],
)
def test_convolutions_and_their_derivatives(last, size, kernel, padding, channels, dtype, generator):
    into, outof = channels
    x, weight = images(generator, dtype, last, (3, into, *size), (outof, into, *kernel))
    bias = torch.randn(outof, generator=generator, dtype=dtype)
    shape = convolved(x, weight, bias, padding).shape
    (out,) = images(generator, dtype, last, shape)

    def function(x, weight, bias, out):
        found = [convolved(x, weight, bias, padding), convolved(x * 2, weight, None, padding).relu()]
        for mask in MASKS if channels == (3, 4) else MASKS[-1:]:
            made = slopes(out * 2, x, weight, padding, mask)
            found += [one for one, asked in zip(made, mask) if asked]
        return found

    module = check(function, x, weight, bias, out, parts=True, tolerance=2e-11 if dtype == torch.float64 else 2e-4)
    assert not any(node.target == ATEN.convolution_backward.default for node in module.graph.nodes)


def test_layouts_that_differ(generator):
    x, weight = torch.randn(2, 3, 6, 5, generator=generator), torch.randn(4, 3, 3, 3, generator=generator)
    last = torch.channels_last
    for one, other in ((x.to(memory_format=last), weight), (x, weight.to(memory_format=last))):
        check(lambda x, w: convolved(x * 2, w * 2, None, [1, 1]).sin(), one, other, parts=True, tolerance=1e-4)
    wide = torch.randn(2, 6, 6, 10, generator=generator)[:, ::2, :, 5:]
    check(lambda x, w: convolved(x, w * 2, None, [1, 1]).sin() + 1, wide, weight, parts=True, tolerance=1e-4)


@pytest.mark.parametrize("others", [([2, 2], [1, 1], 1), ([1, 1], [2, 2], 1), ([1, 1], [1, 1], 2), ([1, 2], [1, 1], 1)])
def test_other_convolutions_are_left_to_pytorch(others, generator):
    x = torch.randn(2, 4, 7, 7, generator=generator)
    weight = torch.randn(4, 4 // others[2], 3, 3, generator=generator)

    def function(x, weight):
        stride, dilation, groups = others
        out = convolved(x * 2 - 1, (weight + 1).sin(), None, [1, 1], *others)
        mask = [True, True, False]
        found = ATEN.convolution_backward(
            out.sin(), x, weight, None, stride, [1, 1], dilation, False, [0, 0], groups, mask
        )
        return [out.relu(), *found[:2]]

    module = check(function, x, weight, parts=True, tolerance=1e-3)
    called = [node.target for node in module.graph.nodes]
    assert ATEN.convolution.default in called and ATEN.convolution_backward.default in called


def test_convolutions_in_one_and_three_dimensions(generator):
    one, three = torch.randn(2, 3, 9, generator=generator), torch.randn(2, 1, 4, 4, 4, generator=generator)
    line, cube = torch.randn(4, 3, 3, generator=generator), torch.randn(2, 1, 2, 2, 2, generator=generator)
    conv = torch.nn.functional

    def function(one, three, line, cube):
        found = conv.conv1d(one * 2, line, padding=1), conv.conv3d(three * 2, cube + 1)
        return [each.relu() for each in found]

    check(function, one, three, line, cube, parts=True, tolerance=1e-4)
