"""How well new classes are told apart is judged by examples that were not learned from."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import headstart
from headstart.training.cross_validation import FOLDS, Told, cross_validated, interval, left_out, told_text
from headstart.types import Batch, Meta


def told(x: list[list[float]], y: list[int], classes: int) -> tuple[Told, list[Batch]]:
    learner, given = headstart.nearest(ways=classes), list[Batch]()

    def learned(parts: Sequence[Batch]) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        given.extend(parts)
        adapted = [learner.adapt(Meta({}, {}), others)[0] for others in parts]
        return lambda asked: [learner.predict(one, own)[0] for one, own in zip(adapted, asked)]

    return cross_validated(learned, Batch(torch.tensor([x]), torch.tensor([y])), classes), given


def test_each_example_is_told_by_others():
    # the odd one of each class lies with the other class, so that only what has learned from it tells it right
    x = [[0.0], [0.1], [0.2], [9.0], [9.1], [9.2], [9.3], [0.3]]
    found, given = told(x, [0, 0, 0, 0, 1, 1, 1, 1], 2)
    assert found == Told((4, 4), (3, 3))
    assert [batch.x.shape[1] for batch in given] == [6, 6, 6, 6]  # of four a class, one each is kept back


def test_the_same_example_is_not_told_by_itself_and_one_alone_is_not_judged():
    found, given = told([[0.0], [0.0], [5.0], [5.1], [9.0]], [0, 0, 1, 1, 2], 3)
    assert found == Told((0, 2, 0), (0, 2, 0))
    assert all({0, 2} <= set(batch.y[0].tolist()) for batch in given)


def test_what_is_there_by_chance_is_told_by_chance():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator)
    found, given = told(x.tolist(), [number % 4 for number in range(400)], 4)
    assert len(given) == FOLDS and sum(found.judged) == 400 and 60 < sum(found.right) < 140
    many, given = told(x.repeat(8, 1).add(torch.arange(3200)[:, None]).tolist(), [0, 1] * 1600, 2)
    assert len(given) == 2 and many.judged == (640, 640), "of many examples so many are judged as are enough"


def test_leaving_out_each_in_one_batch_is_leaving_them_out_one_by_one():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(1, 11, 3, generator=generator), torch.tensor([[0] * 4 + [1] * 3 + [2] * 3 + [3]])
    x[0, :, 0] += y[0]
    learner, batches = headstart.ridge(ways=4), list[int]()
    meta = learner.init(None)

    def answer(others: Batch, asked: Tensor) -> Tensor:
        batches.append(len(others.y))
        return learner.predict(learner.adapt(meta, others)[0], asked)

    found = left_out(answer, Batch(x, y), 4, together=4)
    right = [0, 0, 0, 0]
    for place in range(10):
        kept = torch.arange(11) != place
        adapted, _ = learner.adapt(meta, Batch(x[:, kept], y[:, kept]))
        right[int(y[0, place])] += int(learner.predict(adapted, x[:, place : place + 1]).argmax()) == int(y[0, place])
    assert found == Told((4, 3, 3, 0), tuple(right), "leave-one-out") and batches == [4, 4, 2]
    assert left_out(answer, Batch(x[:, [0, 0, 1]], y[:, [0, 0, 1]]), 4, 4) is None, "one would be told by itself"


def test_the_words_have_the_interval():
    assert interval(0, 4)[0] == 0 and interval(4, 4)[1] == 1
    assert interval(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    words = told_text([Told((50, 0), (45, 0)), Told((50,), (45,))], "texts")
    assert "90 of 100 texts" in words and "90.0 % (95 % interval 83 to 94 %)" in words
    assert "two of a class" in told_text([Told((0, 0), (0, 0))], "texts")
