"""What is computed task by task, and what shares memory, comes out as PyTorch computes it."""

import threading

import pytest
import torch
from hypothesis import given, settings, strategies as st

from tests.kernels.same import as_kernels, check, kernels_of

#: Shapes that can be made wider to each other in many ways.
SHAPES = [
    (5, 4, 3),
    (5, 1, 3),
    (5, 4, 1),
    (1, 4, 3),
    (4, 3),
    (5, 12),
    (5, 1),
    (5,),
    (3,),
    (),
    (5, 5),
    (12, 5),
    (5, 3, 4),
]


def drawn(generator, dtype, *shapes):
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


OTHER_TASKS = {
    "turned round": lambda x, y: x.flip(0) * y + x,
    "rolled": lambda x, y: x.roll(1, 0) * y + x,
    "rolled inside": lambda x, y: x.roll(2, 1) * y + x,
    "less the mean": lambda x, y: (x - x.mean(0)).sin() + y,
    "less what is first": lambda x, y: x[:1].expand_as(x) * y + x,
    "less what is last": lambda x, y: x[-1].sin() + y * x,
    "turned": lambda x, y: x.transpose(0, 1) * y + x,
    "turned and summed up": lambda x, y: (x.t() @ y).sin() + x,
    "multiplied": lambda x, y: x @ (x * y) + x,
    "looked up": lambda x, y: x.index_select(0, torch.tensor([4, 0, 0, 2, 1])) * y + x,
    "beside": lambda x, y: torch.cat([x[1:], y[:1]]) * x + 1,
    "apart": lambda x, y: x.diagonal() * y + x.diagonal().sum(),
    "a column": lambda x, y: x[:, 1] * y + x[:, 2:3],
    "a row": lambda x, y: (x[1] * y + x[2:3] * x[:, :1]).sum(0) + x,
    "unrolled": lambda x, y: x.reshape(25)[:5].sin() * y + x,
    "windows": lambda x, y: x.unfold(0, 1, 1)[:, :, 0] * y + x.unfold(1, 2, 3).sum(),
    "steps": lambda x, y: x[::2].sum(0) * y + x[1::3].sum(1).sum(),
    "summed up and read again": lambda x, y: x.sum(1, keepdim=True).sum(0) * y + x.sum(1)[2] * x,
}


@pytest.mark.parametrize("name", OTHER_TASKS)
def test_tasks_that_read_what_others_left(name, generator):
    """The first dimension is as long as that of a loop over tasks, and what is read is of another one."""

    def function(x, y):
        one, other = (x * 2).sin(), (y - 1).cos()
        found = OTHER_TASKS[name](one, other)
        again = OTHER_TASKS[name](found.sin(), other * found) if found.shape == (5, 5) else found * 2
        return [again.sin() + one]

    check(function, *drawn(generator, torch.float64, (5, 5), (5, 5)), parts=True)


def test_tasks_of_their_own_share_memory(generator):
    """What one task alone needs has room for one, however many there are."""
    x, w = drawn(generator, torch.float64, (40, 6, 6), (40, 6, 6))

    def function(x, w):
        for _ in range(6):
            x = torch.bmm(x, w).tanh()
            x = x - x.mean((1, 2), keepdim=True)
        return x

    module = check(function, x, w)
    (kernel,) = kernels_of(module)
    assert kernel.scratch < x.numel() * 8
    check(function, x, w)


def test_a_part_of_what_is_put_together(generator):
    """Only the rows of the first part are read, task by task; the others are written nevertheless."""
    a, b = drawn(generator, torch.float64, (50, 30), (50, 30))
    check(lambda a, b: (torch.cat([a * 2, b * 3])[:50] * 2).sin() * a, a, b)


def test_long_chains_take_the_memory_of_few(generator):
    x, y = drawn(generator, torch.float64, (7, 9), (9, 7))

    def function(x, y):
        for _ in range(30):
            x = (x @ y @ x).tanh() + x.sum(0)
        return x

    check(function, x, y)
    (kernel,) = kernels_of(as_kernels(function, x, y))
    assert kernel.scratch < 8 * 63 * 8 * 4


def test_two_threads_at_once(generator):
    function = lambda x, w: torch.bmm((x * 2).sin(), w).tanh().sum(1) + x[:, 0]  # noqa: E731
    inputs = [drawn(generator, torch.float64, (64, 8, 8), (64, 8, 8)) for _ in range(2)]
    module = as_kernels(function, *inputs[0])
    expected, wrong = [function(*each) for each in inputs], []

    def run(place):
        for _ in range(200):
            if not torch.allclose(module(*inputs[place]), expected[place], rtol=1e-12, atol=1e-12):
                wrong.append(place)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Random:
    """A computation of random operations, drawn once and run as often as is asked for."""

    def __init__(self, draw, count):
        self.draw, self.count, self.steps = draw, count, None

    def step(self, values):
        draw = self.draw
        kinds = ["unary", "binary", "binary", "binary", "sum", "sum", "view", "view", "product", "added product"]
        kind = draw(st.sampled_from([*kinds, "cat", "stack", "where", "margin", "lookup", "softmax"]))
        pick = lambda: draw(st.integers(0, len(values) - 1))  # noqa: E731
        one = pick()
        x = values[one]
        if kind == "unary":
            name = draw(st.sampled_from(["sin", "tanh", "relu", "sigmoid", "neg", "square"]))
            return lambda v: getattr(torch, name)(v[one])
        if kind == "binary":
            other, name = pick(), draw(st.sampled_from(["add", "mul", "sub", "maximum"]))
            if self.wider(x, values[other]):
                return lambda v: getattr(torch, name)(v[one], v[other])
        if kind == "sum" and x.ndim:
            dims = draw(st.lists(st.integers(0, x.ndim - 1), min_size=1, max_size=x.ndim, unique=True))
            keep, name = draw(st.booleans()), draw(st.sampled_from(["sum", "mean", "amax"]))
            return lambda v: getattr(v[one], name)(dims, keep).sin()
        if kind == "view" and x.ndim:
            return self.view(one, x)
        if kind == "product" and x.ndim >= 2:
            return lambda v: (v[one] @ v[one].transpose(-1, -2)).tanh()
        if kind == "added product" and x.ndim >= 2:
            shape = (*x.shape[:-1], x.shape[-2])
            fitting = [place for place, each in enumerate(values) if self.wider(each, x.new_empty(shape), shape)]
            other = draw(st.sampled_from(fitting))
            return lambda v: v[one] @ v[one].transpose(-1, -2) * 0.1 + (v[one].sin() @ v[one].mT + v[other])
        if kind == "where":
            other = pick()
            if self.wider(x, values[other]):
                return lambda v: torch.where(v[one] > v[other], v[other], v[one].abs())
        if kind == "margin" and x.ndim and x.numel() < 500:
            padding = draw(st.lists(st.integers(0, 2), min_size=2, max_size=2))
            return lambda v: torch.nn.functional.pad(v[one], padding)
        if kind == "lookup" and x.ndim:
            dim, chosen = draw(st.integers(0, x.ndim - 1)), draw(st.lists(st.integers(0, 99), min_size=5, max_size=5))
            return lambda v: v[one].index_select(dim, torch.tensor(chosen) % x.shape[dim])
        if kind == "softmax" and x.ndim:
            dim = draw(st.integers(0, x.ndim - 1))
            return lambda v: v[one].softmax(dim)
        if kind in ("cat", "stack") and x.ndim:
            others = [place for place, each in enumerate(values) if each.shape == x.shape]
            other, dim = draw(st.sampled_from(others)), draw(st.integers(0, x.ndim - 1))
            return lambda v: getattr(torch, kind)([v[one], v[other]], dim)
        return lambda v: v[one] * 0.5

    @staticmethod
    def wider(one, other, shape=None):
        try:
            found = torch.broadcast_shapes(one.shape, other.shape)
            return found.numel() < 4000 and shape in (None, found)
        except RuntimeError:
            return False

    def view(self, one, x):
        draw, dim = self.draw, self.draw(st.integers(0, x.ndim - 1))
        size, other = x.shape[dim], self.draw(st.integers(0, x.ndim - 1))
        kind = draw(
            st.sampled_from(["turned", "slice", "select", "flat", "more", "fewer", "round", "expand", "unfold"])
        )
        if kind == "turned":
            return lambda v: v[one].transpose(dim, other)
        if kind == "slice":
            start, step = draw(st.integers(0, size - 1)), draw(st.integers(1, 3))
            return lambda v: v[one][(slice(None),) * dim + (slice(start, None, step),)]
        if kind == "select":
            place = draw(st.integers(0, size - 1))
            return lambda v: v[one].select(dim, place)
        if kind == "flat":
            return lambda v: v[one].flatten(min(dim, other), max(dim, other))
        if kind == "more":
            return lambda v: v[one].unsqueeze(dim)
        if kind == "fewer":
            return lambda v: v[one].squeeze()
        if kind == "round":
            return lambda v: v[one].flip(dim)
        if kind == "expand" and x.numel() < 500:
            return lambda v: v[one].unsqueeze(0).expand(5, *x.shape)
        if kind == "unfold":
            return lambda v: v[one].unfold(dim, min(size, 2), 1)
        return lambda v: v[one]

    def __call__(self, *inputs):
        values = [*inputs]
        if self.steps is None:
            self.steps = []
            for _ in range(self.count):
                self.steps.append(self.step(values))
                values.append(self.steps[-1](values))
            made = range(len(inputs), len(values))
            chosen = self.draw(st.lists(st.sampled_from(made), min_size=1, max_size=5))
            self.outputs = [*chosen, len(values) - 1]
            return None
        for step in self.steps:
            values.append(step(values))
        return [values[place] for place in self.outputs]


@settings(deadline=None, max_examples=40, derandomize=True, database=None)
@given(st.data())
def test_random_computations(data):
    generator = torch.Generator().manual_seed(0)
    inputs = drawn(generator, torch.float64, *SHAPES)
    function = Random(data.draw, 30)
    function(*inputs)
    check(function, *inputs, parts=True, kernels=0, tolerance=1e-9)
