"""Every row of the table of operations gives what PyTorch does."""

import pytest
import torch
from torch import nan

from headstart.kernels.operations import ATEN
from tests.kernels.same import check

PRIMS = torch.ops.prims
inf = float("inf")
TYPES = (torch.float64, torch.float32)

#: Where operations turn, and what is no number.
SPECIAL = [nan, inf, -inf, 0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1e-3, -2.0, 2.0, 3.0, -3.0, 700.0, 1e-30]


def special(dtype, times=1):
    return torch.tensor(SPECIAL * times, dtype=dtype)


def pairs(dtype):
    """Every two of the special numbers."""
    one = special(dtype)
    return one.repeat_interleave(len(one)), one.repeat(len(one))


UNARY = (
    "neg reciprocal exp log expm1 log1p sqrt tanh sin cos erf floor ceil atan sinh rsqrt abs square sigmoid sign sgn"
)
UNARY += " relu isnan logical_not clone alias lift_fresh_copy zeros_like ones_like _to_copy"
COMPARED = "lt le gt ge eq ne"


def _called(names, *inputs, **options):
    return [getattr(ATEN, name).default(*inputs, **options) for name in names.split()]


@pytest.mark.parametrize("dtype", TYPES)
class TestNumbers:
    def test_of_one_number(self, dtype):
        check(lambda x: _called(UNARY, x), special(dtype))

    @pytest.mark.parametrize("power", [0, 1, 2, 3, -1, -2, 0.5, -0.5, 2.0, -3, 1.5, -0.25, inf, nan])
    def test_of_powers(self, dtype, power):
        check(lambda x: [ATEN.pow.Tensor_Scalar(x, power), x + 1, x * 2], special(dtype))

    def test_of_two_numbers(self, dtype):
        def function(a, b):
            found = [ATEN.add.Tensor(a, b), ATEN.sub.Tensor(a, b), ATEN.mul.Tensor(a, b), ATEN.div.Tensor(a, b)]
            found += [ATEN.rsub.Tensor(a, b), ATEN.rsub.Tensor(a, b, alpha=0.5), ATEN.add.Tensor(a, b, alpha=-2)]
            found += [ATEN.sub.Tensor(a, b, alpha=0.1), ATEN.pow.Tensor_Tensor(a, b), ATEN.maximum(a, b)]
            found += [ATEN.minimum(a, b), ATEN.logical_and(a, b), ATEN.logical_or(a, b), PRIMS.div(a, b)]
            found += [ATEN.tanh_backward(a, b), ATEN.sigmoid_backward(a, b), ATEN.threshold_backward(a, b, 0)]
            found += [ATEN.threshold_backward(a, b, -0.5), ATEN.leaky_relu_backward(a, b, 0.1, False)]
            found += [getattr(ATEN, name).Tensor(a, b) for name in COMPARED.split()]
            return found + [ATEN.clamp.Tensor(a, b), ATEN.clamp_min.Tensor(a, b)]

        check(function, *pairs(dtype))

    def test_of_numbers_of_python(self, dtype):
        def function(x):
            found = [ATEN.leaky_relu(x), ATEN.leaky_relu(x, 0.3), ATEN.leaky_relu(x, -2)]
            for number in (2, -0.1, 0, inf, -inf, 2**40):
                found += [ATEN.add.Scalar(x, number), ATEN.sub.Scalar(x, number), ATEN.mul.Scalar(x, number)]
                found += [ATEN.add.Tensor(x, number), ATEN.mul.Tensor(x, number), ATEN.rsub.Scalar(x, number)]
                found += [ATEN.add.Scalar(x, number, 3), ATEN.sub.Scalar(x, number, -0.5)]
                found += [ATEN.rsub.Scalar(x, number, 0.5), ATEN.clamp(x, number), ATEN.clamp(x, None, number)]
                found += [ATEN.clamp_min(x, number), ATEN.clamp_max(x, number), ATEN.full_like(x, number)]
                found += [getattr(ATEN, name).Scalar(x, number) for name in COMPARED.split()]
                found += [ATEN.div.Scalar(x, number)] if number else []
            return found + [ATEN.clamp(x, -1, 1), ATEN.clamp(x, 1, -1), ATEN.clamp(x, -0.5, inf)]

        check(function, special(dtype))

    def test_of_three_numbers(self, dtype, generator):
        def function(a, b, c):
            found = [ATEN.addcmul(a, b, c), ATEN.addcmul(a, b, c, value=-0.5), ATEN.addcdiv(a, b, c)]
            found += [
                ATEN.addcdiv(a, b, c, value=2),
                ATEN.where.self(a > 0, b, c),
                ATEN.where.ScalarOther(a == b, b, 0.5),
            ]
            found += [torch.where(a > b, 1.5, c), torch.where(a > b, c, -1), torch.where(a > b, 1.0, 2.0)]
            found += [ATEN.masked_fill.Scalar(a, b > c, inf), ATEN.masked_fill.Tensor(a, b > c, c.sum())]
            return found

        a, b = pairs(dtype)
        check(function, a, b, torch.rand(len(a), generator=generator, dtype=dtype) + 0.5)

    def test_of_shapes_made_wider(self, dtype, generator):
        shapes = [(2, 1, 3), (4, 1), (), (1,), (2, 4, 3), (1, 1, 1), (3,)]
        inputs = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]

        def function(*all):
            return [one * other + one for one in all for other in all] + [torch.where(all[0] > 0, all[1], all[2])]

        check(function, *inputs)


def test_clamp_by_what_is_no_number():
    check(lambda x: [x.clamp(nan), x.clamp(max=nan), x.clamp_min(nan), x.clamp_max(nan)], torch.ones(3))


def test_numbers_made_of_nothing_but_themselves():
    def function(x):
        found = [x.new_full((2, 3), 0.5), x.new_zeros(2, 3), x.new_ones(3), x.new_ones(3, dtype=torch.int64)]
        found += [torch.full((2, 3), 2.5), torch.full((2,), 7), torch.full((2,), True), torch.full((2,), -inf)]
        found += [torch.zeros(2, dtype=torch.bool), torch.ones(3, dtype=torch.int32), torch.scalar_tensor(2.5)]
        found += [torch.full_like(x, 2.7, dtype=torch.int64), torch.full((), 3, dtype=torch.float64), x + 1]
        return found + [torch.full((2,), 1e38), torch.full((2,), -(2**63)), torch.full((2,), 2**63 - 1)]

    check(function, torch.ones(2, 2))


def mixture(generator):
    whole = torch.randint(-3, 4, (5,), generator=generator)
    truths = torch.tensor([True, False, True, True, False])
    small = torch.tensor([0, 255, 200, 3, 4], dtype=torch.uint8)
    short = torch.tensor([0, -7, 2**31 - 1, 3, 4], dtype=torch.int32)
    single, double = torch.tensor([nan, -0.0, 2.5, -1.5, inf]), torch.tensor([0.1, -0.1, 3.0, nan, -inf]).double()
    alone = [torch.tensor(0.1, dtype=torch.float64), torch.tensor(2), torch.tensor(True), torch.tensor(0.1)]
    return [whole, truths, small, short, single, double, *alone]


def test_mixtures_of_types(generator):
    def function(*all):
        found = []
        for one in all:
            for other in all:
                found += [one * other, one + other, one / other, torch.where(one > other, one, other)]
                found += [torch.logical_and(one, other), one == other, one < other, torch.maximum(one + 0, other + 0)]
                found += [torch.add(one, other, alpha=2)]
            found += [one + 2, one * 0.5, one / 2, one > 1.5, one == 1, one.double(), one.float(), one.bool()]
            found += [one.masked_fill(one > 1, 1), one.sum(), one.logical_not(), one.isnan(), one.square()]
        return found

    check(function, *mixture(generator))


def test_numbers_that_are_whole(generator):
    a, b = (torch.randint(-9, 9, (7,), generator=generator) for _ in range(2))

    def function(a, b, c):
        found = [a - b, torch.sub(a, b, alpha=3), -a, a.sign(), a.clamp(-2, 3), a.clamp_min(0)]
        found += [a & b, a | b, c & (a > 0), c | (a > 0), a.relu(), a.exp(), a.sqrt(), a.sigmoid(), a.reciprocal()]
        found += [a.int() * b.int(), a.int() + 1, (-a).to(torch.uint8), a.to(torch.uint8) - 3, a**2, a.float() ** b]
        return found + [torch.rsub(a, 3), torch.rsub(a, b), c.int(), c.double(), torch.addcmul(a, a, b, value=2)]

    check(function, a, b, a > b)


def test_a_large_whole_number_is_compared_as_pytorch_does():
    x = torch.tensor([2**24, 2**24 + 1, 2**53 + 1, -(2**24) - 1])
    check(lambda x, y: [x > 2.0**24, x == 2.0**24, x.lt(y), x.eq(y), x + 0.5], x, x.float())


DIMS = [0, 1, 2, -1, [0, 1], [1, 2], [0, 2], [2, 0], [0, 1, 2], [-1, -3]]


def reduced(x, dims, keep):
    listed = [dims] if isinstance(dims, int) else dims
    return [x.sum(listed, keep), x.mean(listed, keep), x.amax(listed, keep), x.amin(listed, keep)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 1, 9), (1, 1, 1), (17, 3, 2)])
def test_sums_over_every_choice_of_dimensions(dtype, shape, generator):
    def function(x, y):
        found = [x.sum(), x.mean(), x.amax(), x.amin(), x.any(), (y > 0).all(), x.sum([]), x.amax([])]
        for dims in DIMS:
            for keep in (False, True):
                found += [*reduced(x, dims, keep), *reduced(y * 2, dims, keep)]
                found += [(x * y + 1).sum(dims, keep), (x.transpose(0, 2) * 2).sum(dims, keep)]
        return found

    x, y = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    y.view(-1)[-1] = nan
    check(function, x, y)


def test_sums_of_other_types(generator):
    whole = torch.randint(-5, 5, (4, 3), generator=generator)

    def function(x, b, u):
        found = [one for dim in (0, 1) for each in (x, b, u) for one in (each.sum(dim), each.any(dim), each.all(dim))]
        found += [x.sum(), b.sum(), u.sum(), x.sum(0, dtype=torch.float64), b.float().mean(0), x.any(), u.all()]
        found += [x.mean(0, dtype=torch.float32), x.double().mean(), x.amax(0), x.amin(1), u.amax(0), u.amin(1)]
        return found + [x.float().any(0), x.float().all(1), (x > 0).sum(1), (x > 0).all(1, True)]

    check(function, whole, whole > 0, (whole + 5).to(torch.uint8))


def test_largest_truth_values(generator):
    x = torch.zeros(4, 3, dtype=torch.bool)
    x[0, 1] = True
    check(lambda b: [b.amax(0), b.amax(1), b.amin(0), b.logical_not()], x, kernels=0)


def test_a_primitive_sum_over_no_dimension(generator):
    x = torch.randn(3, 4, generator=generator)
    check(lambda x: (PRIMS.sum(x * 2, []) + 1).sin(), x, kernels=0)


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin", "any", "all"])
def test_sums_of_one_number(name):
    check(lambda x: (getattr(x, name)() + 1) * 2 - x * 3, torch.tensor(0.5))


def test_sums_that_share_a_loop(generator):
    x, y = (torch.randn(6, 35, generator=generator) for _ in range(2))

    def function(x, y):
        more = (x.exp() * y).sum(1, keepdim=True)
        found = [x.sum(1), (x * x).sum(1), (x - y).amax(1), (x * y).mean(1), (x > y).any(1), (x < y).all(1), more]
        return found + [(x / more).sum(1), (x / more).amin(1), x.sum(0), (x * y).sum(0), (y.sin()).amax(0)]

    check(function, x, y)
    check(function, x.t().contiguous().t(), y)


def test_largest_numbers_of_infinite_ones():
    x = torch.tensor([[-inf, -inf], [inf, -inf], [nan, 1.0], [1.0, nan]])
    check(lambda x: [x.amax(0), x.amax(1), x.amin(0), x.amin(1), x.amax(), x.sum(1), x.mean(1)], x)
