"""Tasks made of rows."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from headstart.data.rows import Rows, row_tasks
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.testing import check_tasks
from headstart.types import Episodes

SPLITS = {"train": (0, 1, 2), "validation": (3, 4), "test": (5, 6)}


def made(sizes: tuple[int, ...] = (9, 7, 12, 8, 8, 10, 11), classes: int = 0) -> Rows:
    """Every input is its own, and tells its task and its place in it."""
    task = torch.cat([torch.full((size,), number) for number, size in enumerate(sizes)])
    place = torch.cat([torch.arange(size) for size in sizes])
    x = torch.stack([task.float(), place.float()], 1)
    y = place % classes if classes else (100.0 * task + place).unsqueeze(1)
    mixed = torch.randperm(len(x), generator=torch.Generator().manual_seed(3)).argsort(stable=True)
    order = mixed[place[mixed].argsort(stable=True)]  # tasks stand interleaved, each in its own order
    return Rows(x[order], y[order], task[order], tuple(f"task {number}" for number in range(len(sizes))))


def there(tasks: Episodes, part: str, number: int) -> Tensor:
    batch = getattr(tasks, part)
    return batch.x[number] if batch.mask is None else batch.x[number][batch.mask[number]]


@pytest.mark.parametrize("order", ["random", "first"])
@pytest.mark.parametrize("classes", [0, 3])
def test_the_contract_is_kept(order: Any, classes: int) -> None:
    support = 4 if order == "first" or not classes else 1
    numbers = range(3) if order == "random" else range(2)  # in order, a split has no more tasks than it has
    tasks = row_tasks(made(classes=classes), SPLITS, support=support, order=order)
    check_tasks(tasks, numbers=numbers)
    assert tasks.kind == ("classification" if classes else "regression")
    assert tasks.output_size == (classes or 1)
    assert tasks.input_shape == (2,)
    assert tasks.counts == {"train": 3, "validation": 2, "test": 2}


def test_seeds_draw_other_support_rows() -> None:
    check_tasks(lambda seed: row_tasks(made(), SPLITS, support=3, seed=seed), numbers=range(3))


def test_the_first_rows_are_the_support_and_the_others_the_query_set() -> None:
    tasks = row_tasks(made(), SPLITS, support=3, order="first")
    episodes = tasks.sample("test", [0, 1])
    for number, (task, size) in enumerate(((5, 10), (6, 11))):
        assert there(episodes, "support", number).tolist() == [[task, place] for place in range(3)]
        assert there(episodes, "query", number).tolist() == [[task, place] for place in range(3, size)]


def test_every_row_is_support_or_query() -> None:
    episodes = row_tasks(made(), SPLITS, support=3).sample("train", range(9))
    for number in range(9):
        rows = torch.cat([there(episodes, part, number) for part in ("support", "query")])
        assert len({row[0] for row in rows.tolist()}) == 1
        assert sorted(row[1] for row in rows.tolist()) == list(range(len(rows)))


def test_training_goes_through_all_its_tasks_in_changing_order() -> None:
    tasks = row_tasks(made(), SPLITS, support=3)
    orders = [there(tasks.sample("train", [number]), "support", 0)[0, 0].item() for number in range(30)]
    rounds = [tuple(orders[place : place + 3]) for place in range(0, 30, 3)]
    assert all(sorted(one) == [0, 1, 2] for one in rounds)
    assert len(set(rounds)) > 1
    assert [there(tasks.sample("test", [n]), "support", 0)[0, 0].item() for n in range(4)] == [5, 6, 5, 6]


def test_queries_are_the_first_that_are_left() -> None:
    tasks = row_tasks(made(), SPLITS, support=3, order="first", queries=2)
    assert there(tasks.sample("test", [0]), "query", 0).tolist() == [[5, 3], [5, 4]]


def test_what_is_not_there_is_zero() -> None:
    query = row_tasks(made(), SPLITS, support=3, order="first").sample("train", range(3)).query
    assert query.mask is not None and not query.mask.all()
    assert not query.x[~query.mask].any() and not query.y[~query.mask].any()


def test_random_classification_draws_support_rows_of_every_class() -> None:
    episodes = row_tasks(made(classes=3), SPLITS, support=2).sample("test", range(20))
    support = episodes.support
    for number in range(20):
        y = support.y[number] if support.mask is None else support.y[number][support.mask[number]]
        assert y.bincount(minlength=3).tolist() == [2, 2, 2]


@pytest.mark.parametrize(("few", "learned", "judged"), [(1, 1, 0), (2, 1, 1), (3, 2, 1), (5, 3, 2)])
def test_of_a_small_class_one_row_is_left_to_judge_by(few: int, learned: int, judged: int) -> None:
    rows = made((9,) * 7)
    y = (rows.x[:, 1] < few).long()  # class 1 has so many rows a task
    support, query = row_tasks(rows._replace(y=y), SPLITS, support=3).sample("test", range(4))
    assert (support.y.sum(1) == learned).all() and (query.y.sum(1) == judged).all()


def test_in_order_every_later_row_is_judged_whatever_its_class() -> None:
    rows = made((6,) * 7)
    y = torch.tensor([0, 1, 1, 2, 0, 1])[rows.x[:, 1].long()]
    episodes = row_tasks(rows._replace(y=y), SPLITS, support=3, order="first").sample("test", [0])
    assert episodes.support.y.tolist() == [[0, 1, 1]]
    assert there(episodes, "query", 0)[:, 1].tolist() == [3, 4, 5]


@given(st.lists(st.integers(2, 9), min_size=3, max_size=6), st.integers(1, 3), st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_ranks_within_classes_are_those_of_counting(sizes: list[int], support: int, first: bool, seed: int) -> None:
    rows = made(tuple(sizes))
    y = torch.randint(0, 3, (len(rows.x),), generator=torch.Generator().manual_seed(seed))
    splits = {"train": tuple(range(len(sizes) - 2)), "validation": (len(sizes) - 2,), "test": (len(sizes) - 1,)}
    try:
        tasks = row_tasks(rows._replace(y=y), splits, support=support, order="first" if first else "random", seed=seed)
    except DataError:
        return
    labels = {tuple(x): label for x, label in zip(rows.x.tolist(), y.tolist())}
    episodes = tasks.sample("train", range(len(splits["train"])))
    for number in range(len(splits["train"])):
        taken = [labels[tuple(x)] for x in there(episodes, "support", number).tolist()]
        asked = [labels[tuple(x)] for x in there(episodes, "query", number).tolist()]
        task = int(there(episodes, "support", number)[0, 0])
        own = [label for (place, _), label in labels.items() if place == task]
        assert sorted(taken + asked) == sorted(own)
        if first:
            assert len(taken) == support
        else:
            for label in set(own):
                assert taken.count(label) == min(support, max(1, own.count(label) - 1))


def test_small_tasks_are_refused_or_skipped() -> None:
    rows = made((9, 3, 9, 9, 9, 9, 9))
    with pytest.raises(DataError, match="task 'task 1' has 3 rows, too few for 3 support rows and a query row"):
        row_tasks(rows, SPLITS, support=3)
    tasks = row_tasks(rows, SPLITS, support=3, on_short="skip")
    assert tasks.details["skipped"] == {"train": 1, "validation": 0, "test": 0}
    assert {int(x) for x in tasks.sample("train", range(8)).support.x[:, 0, 0]} == {0, 2}
    with pytest.raises(DataError, match="split 'train' has no task left"):
        row_tasks(made((2, 2, 2, 9, 9, 9, 9)), SPLITS, support=3, on_short="skip")


def test_what_is_too_small_in_classification_is_said() -> None:
    rows = made((6,) * 7, classes=6)
    with pytest.raises(DataError, match="no class with two"):
        row_tasks(rows, SPLITS, support=2)
    with pytest.raises(DataError, match="has 6 rows, too few for 6 support rows"):
        row_tasks(rows, SPLITS, support=6, order="first")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"support": 0}, "support must be at least 1, got 0"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"order": "last"}, "unknown order of rows 'last'. Known: first, random"),
        ({"on_short": "keep"}, "unknown on_short 'keep'"),
        ({"splits": {"train": (0, 1), "test": (1,)}}, "task 'task 1' is in split 'train' and in 'test'"),
        ({"splits": {"train": (0, 9)}}, "split 'train' names task 9, but there are 7"),
        ({"splits": {"traim": (0,)}}, "unknown split 'traim'"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_wrong_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        row_tasks(made(), **{"splits": SPLITS, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: {"x": rows.x[1:]}, "one row an example"),
        (lambda rows: {"x": rows.x > 0}, "got x .* of torch.bool"),
        (lambda rows: {"y": rows.y[:, 0]}, "expected x of numbers, y"),
        (lambda rows: {"y": rows.y.long()}, "expected x of numbers, y"),
        (lambda rows: {"task": rows.task + 1}, "task numbers go from 1 to 7, but there are 7 tasks"),
        (lambda rows: {"y": rows.y[:, 0].long() - 1}, "class ids go from -1"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    rows = made()
    with pytest.raises(UsageError, match=message):
        row_tasks(rows._replace(**change(rows)), SPLITS)


def test_class_ids_beyond_the_classes_and_infinite_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="class ids go from 0 to 2; expected 0 to 1"):
        row_tasks(made(classes=3), SPLITS, support=1, classes=2)
    rows = made()
    rows.x[4, 1] = torch.nan
    with pytest.raises(
        DataError, match=f"row 4, of task 'task {int(rows.task[4])}', holds a number that is not finite"
    ):
        row_tasks(rows, SPLITS)


def test_an_unknown_split_is_refused_when_sampled() -> None:
    tasks = row_tasks(made(), {"train": (0, 1, 2)}, support=3)
    with pytest.raises(UnknownNameError, match="unknown split 'test'"):
        tasks.sample("test", [0])


def test_large_tasks_take_no_square_of_memory() -> None:
    size = 60_000  # squared, that would be gigabytes
    rows = made((size, size), classes=3)
    episodes = row_tasks(rows, {"train": (0, 1)}, support=2).sample("train", [0])
    assert episodes.support.y.shape == (1, 6) and episodes.query.y.shape == (1, size - 6)
