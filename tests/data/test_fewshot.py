import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from headstart.core.counting import Counted
from headstart.data.fewshot import class_splits, class_store, drawn_ahead, few_shot, rotated, scaled, shuffled
from headstart.errors import (
    DataError,
    LeakageError,
    ShapeError,
    ShortClassError,
    UnknownNameError,
    UsageError,
)
from headstart.testing import check_tasks


def store(sizes, prefix="c", first=0):
    """Images that say what they are: channel 0 holds the class, channel 1 the place in the class."""
    classes = {}
    for k, size in enumerate(sizes, start=first):
        images = torch.empty(size, 2, 1, 1, dtype=torch.uint8)
        images[:, 0] = k
        images[:, 1] = torch.arange(size, dtype=torch.uint8).view(-1, 1, 1)
        classes[f"{prefix}{k:03}"] = images
    return class_store(classes)


def read(batch):
    """Return the class and the place of every example."""
    return (batch.x[..., 0, 0] * 255).round().long().unbind(-1)


def same(a, b):
    return all(
        torch.equal(x, y) for one, other in zip(a, b) for x, y in zip(one, other) if x is not None or y is not None
    )


settings_of_tasks = st.fixed_dictionaries(
    {
        "ways": st.integers(2, 6),
        "shots": st.one_of(st.integers(1, 4), st.tuples(st.integers(1, 3), st.integers(3, 5))),
        "queries": st.integers(1, 5),
        "seed": st.integers(0, 2**32 - 1),
    }
)


@settings(deadline=None)
@given(settings_of_tasks, st.lists(st.integers(10, 30), min_size=6, max_size=12), st.integers(0, 2**40))
def test_every_task_is_a_sound_episode(options, sizes, number):
    tasks = few_shot("t", {"train": store(sizes)}, **options)
    support, query = tasks.sample("train", [number, number + 1, 3])
    ways, queries, shots = options["ways"], options["queries"], options["shots"]
    low, high = (shots, shots) if isinstance(shots, int) else shots
    assert support.x.shape == (3, ways * high, 2, 1, 1) and support.x.dtype == torch.float32
    assert query.x.shape == (3, ways * queries, 2, 1, 1)
    assert support.y.dtype == query.y.dtype == torch.int64
    assert query.mask is None and (support.mask is None) == (low == high)
    mask = torch.ones_like(support.y, dtype=torch.bool) if support.mask is None else support.mask
    for b in range(3):
        counts = torch.bincount(support.y[b][mask[b]], minlength=ways).tolist()
        assert len(set(counts)) == 1 and low <= counts[0] <= high
        assert torch.bincount(query.y[b]).tolist() == [queries] * ways
        examples, of_label = [], {}
        for batch, there in ((support, mask[b]), (query, torch.ones(ways * queries, dtype=torch.bool))):
            classes, places = (values[b] for values in read(batch))
            examples += list(zip(classes[there].tolist(), places[there].tolist()))
            for label, found in zip(batch.y[b][there].tolist(), classes[there].tolist()):
                of_label.setdefault(label, set()).add(found)
        assert len(set(examples)) == len(examples), "an image came twice in one task"
        assert all(len(found) == 1 for found in of_label.values()), "a label stands for two classes"
        names = tasks.names("train", (number, number + 1, 3)[b])
        assert [{int(name[1:])} for name in names] == [of_label[label] for label in range(ways)]
        assert len(set.union(*of_label.values())) == ways, "a class has two labels"
        assert all(place < sizes[k] for k, place in examples)
        assert (support.x[b][~mask[b]] == 0).all()


@pytest.mark.parametrize("shots", [2, (1, 3)])
def test_the_contract_is_kept(shots):
    stores = {
        split: store([30] * 20, split[0], first) for split, first in (("train", 0), ("validation", 20), ("test", 40))
    }
    check_tasks(
        lambda seed: few_shot("t", stores, shots=shots, queries=3, seed=seed),
        numbers=[0, 1, 7, 2**32, 2**63 - 1],
    )


def test_no_task_numbers_give_an_empty_batch():
    episodes = few_shot("t", {"train": store([20] * 5)}).sample("train", [])
    assert episodes.support.x.shape == (0, 5, 2, 1, 1)
    assert episodes.query.y.shape == (0, 75)


def test_classes_labels_and_images_are_drawn_evenly():
    trials, classes, size, ways = 4000, 10, 8, 4
    tasks = few_shot("t", {"train": store([size] * classes)}, ways=ways, shots=2, queries=3)
    support, query = tasks.sample("train", range(trials))

    def even(counts, chance):
        expected = trials * chance
        return (counts - expected).abs().max() < 4.5 * (expected * (1 - chance)) ** 0.5

    drawn, places = read(support)
    for label in range(ways):  # a class is as likely under every label
        first = drawn[:, 2 * label]
        assert even(torch.bincount(first, minlength=classes), 1 / classes)
    for position in (places[:, 0], places[:, 1], read(query)[1][:, 0]):
        assert even(torch.bincount(position, minlength=size), 1 / size)


def test_numbers_of_shots_are_drawn_evenly():
    tasks = few_shot("t", {"train": store([10] * 5)}, shots=(2, 5), queries=1)
    drawn = tasks.sample("train", range(4000)).support.mask.sum(1) // 5
    counts = torch.bincount(drawn, minlength=6)
    assert counts[:2].tolist() == [0, 0]
    assert (counts[2:] - 1000).abs().max() < 4.5 * (4000 * 0.25 * 0.75) ** 0.5


def test_the_card_counts_classes_and_images():
    tasks = few_shot("t", {"train": rotated(store([16, 20, 17]))}, ways=3, seed=9, details={"licence": "MIT"})
    assert tasks.kind == "classification"
    assert tasks.input_shape == (2, 1, 1)
    assert tasks.output_size == 3
    assert tasks.details == {
        "ways": 3,
        "shots": 1,
        "queries": 15,
        "sampler": "balanced",
        "seed": 9,
        "class_names": {"train": tuple(f"c00{n}{turn}" for turn in ("", "@90", "@180", "@270") for n in range(3))},
        "classes": {"train": 12},
        "images": {"train": 4 * 53},
        "skipped_classes": 0,
        "licence": "MIT",
    }


def test_short_classes_are_an_error_that_names_one_and_the_fix():
    with pytest.raises(ShortClassError) as caught:
        few_shot("t", {"train": store([20, 9, 20, 20, 20, 3])}, shots=(1, 4), queries=6)
    for part in ("'c001'", "'train'", "9 images", "need 10", "1 other", "--on-short skip"):
        assert part in str(caught.value)


def test_short_classes_can_be_skipped_and_are_never_drawn():
    tasks = few_shot("t", {"train": store([20, 9, 20, 10, 0])}, ways=3, queries=9, on_short="skip")
    assert tasks.details["skipped_classes"] == 2
    assert tasks.details["classes"] == {"train": 3}
    support, query = tasks.sample("train", range(50))
    assert set(read(query)[0].flatten().tolist()) == {0, 2, 3}


def test_a_class_that_just_fits_uses_all_of_its_images():
    query = few_shot("t", {"train": store([4, 4])}, ways=2, queries=3).sample("train", range(20)).query
    assert query.x.shape[1] == 6


def test_too_few_classes_say_where_and_how_many():
    splits = {"train": store([20] * 6), "test": store([20] * 4, "d")}
    with pytest.raises(ShortClassError, match=r"split 'test' of t has 4 classes, but 5 ways need 5"):
        few_shot("t", splits)
    with pytest.raises(ShortClassError, match=r"has 4 classes \(1 more were skipped: fewer than 16 images\)"):
        few_shot("t", {"train": store([20, 20, 3, 20, 20])}, on_short="skip")


def test_splits_that_share_a_class_are_refused():
    with pytest.raises(LeakageError, match="'train' and 'test' of t share class 'c003'"):
        few_shot("t", {"train": store([20] * 4), "test": store([20] * 4, first=3)}, ways=2)
    with pytest.raises(LeakageError, match="share class 'c000' and 5 more"):
        few_shot("t", {"train": store([20] * 6), "validation": store([20] * 6)}, ways=2)


def test_a_rotated_copy_is_the_same_class():
    train, held_out = store([20] * 5), store([20] * 5, "d")
    copy = held_out._replace(names=("c004@270", *held_out.names[1:]))
    with pytest.raises(LeakageError, match="share class 'c004'"):
        few_shot("t", {"train": train, "test": copy})
    few_shot("t", {"train": rotated(train), "test": rotated(held_out)})


def test_malformed_stores_are_refused():
    good = store([20] * 5)
    with pytest.raises(DataError, match="class 'x' is twice in split 'train'"):
        few_shot("t", {"train": good._replace(names=("x", "x", "a", "b", "c"))})
    for examples in (good.examples[:, :1], good.examples.float()):
        with pytest.raises(ShapeError, match="different types or shapes"):
            few_shot("t", {"train": good, "test": good._replace(examples=examples, names=tuple("vwxyz"))})
    with pytest.raises(UnknownNameError, match="did you mean 'validation'"):
        few_shot("t", {"validate": good})
    with pytest.raises(DataError, match="no split"):
        few_shot("t", {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 1}, "ways must be at least 2"),
        ({"train_ways": 0}, "ways must be at least 2"),
        ({"shots": 0}, "shots must be"),
        ({"shots": (3, 2)}, "shots must be"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"seed": 2**32}, "seed must be"),
        ({"on_short": "drop"}, "unknown on_short 'drop'"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        few_shot("t", {"train": store([20] * 5)}, **options)


def test_asking_for_a_split_that_is_not_there_names_those_that_are():
    with pytest.raises(UnknownNameError, match="Known: train"):
        few_shot("t", {"train": store([20] * 5)}).sample("test", [0])


@pytest.mark.parametrize("shots", [1, (1, 3)])
def test_episodes_are_made_on_the_device_without_reading_from_it(shots):
    # The meta device holds no values, so any read-back (a synchronisation on a GPU) would raise here.
    tasks = few_shot("t", {"train": store([20] * 5)}, shots=shots, device="meta")
    for batch in tasks.sample("train", range(4)):
        assert all(value.device.type == "meta" for value in batch if value is not None)


def test_training_tasks_may_have_more_ways():
    tasks = few_shot("t", {"train": store([9] * 20), "test": store([9] * 6, first=100)}, queries=2, train_ways=12)
    assert tasks.sample("train", [0]).query.y.unique().tolist() == list(range(12))
    assert tasks.sample("test", [0]).query.y.unique().tolist() == list(range(5))
    with pytest.raises(ShortClassError, match="'train' .* has 20 classes, but 21 ways"):
        few_shot("t", {"train": store([9] * 20)}, queries=2, train_ways=21)


def test_the_episodes_of_a_number_never_change():
    """What was drawn when the first version was written: results are only comparable while this holds."""
    tasks = few_shot("t", {"validation": store([12, 7, 9, 30, 8, 11])}, ways=3, shots=(1, 2), queries=3, seed=7)
    support, query = tasks.sample("validation", [0, 2**40 + 3])
    classes, places = (values.tolist() for values in read(support))
    assert classes == [[4, 0, 1, 0, 2, 0], [1, 1, 0, 0, 3, 3]]
    assert places == [[6, 0, 3, 0, 7, 0], [2, 3, 10, 9, 13, 17]]
    assert support.mask.int().tolist() == [[1, 0, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1]]
    classes, places = (values.tolist() for values in read(query))
    assert classes == [[4, 4, 4, 1, 1, 1, 2, 2, 2], [1, 1, 1, 0, 0, 0, 3, 3, 3]]
    assert places == [[2, 3, 4, 1, 0, 2, 2, 5, 1], [0, 6, 1, 2, 1, 5, 11, 2, 14]]


def test_a_tasks_tensors_share_no_memory():
    """Writing into one task, as augmentations do, must not change another."""
    tasks = few_shot("t", {"train": store([20] * 5)}, shots=2)
    support, query = tasks.sample("train", [0, 1])
    again = tasks.sample("train", [0, 1])
    for batch, other in ((support, again.query), (query, again.support)):
        batch.x[0].fill_(7)
        batch.y[0].fill_(7)
        assert same([batch], [batch]) and not (batch.x[1] == 7).any() and not (batch.y[1] == 7).any()
        assert not (other.x == 7).any() and not (other.y == 7).any()


@pytest.mark.parametrize("width", [7, 8])
def test_images_whose_channels_lie_last_are_not_moved_at_every_batch(width):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 256, (3, 200, 8, width, 3), dtype=torch.uint8, generator=generator)
    last = {f"c{k}": images.permute(0, 3, 1, 2) for k, images in enumerate(drawn)}
    options = {"ways": 2, "shots": 1, "queries": 1}
    ours = few_shot("last", {"train": class_store(last)}, **options)
    first = {name: images.contiguous() for name, images in last.items()}
    theirs = few_shot("first", {"train": class_store(first)}, **options)
    assert same(ours.sample("train", range(3)), theirs.sample("train", range(3)))
    with Counted() as live:
        ours.sample("train", range(3, 6))
    assert live.peak < drawn.numel() / 2


def pictures(count, value=0, side=3):
    return torch.full((count, 1, side, side), value, dtype=torch.uint8)


def test_classes_are_sorted_by_name_and_keep_their_images():
    store = class_store({"b": pictures(2, 20), "a": pictures(3, 10), "c": pictures(0)})
    assert store.names == ("a", "b", "c")
    assert store.starts.tolist() == [0, 3, 5]
    assert store.sizes.tolist() == [3, 2, 0]
    assert store.examples[:, 0, 0, 0].tolist() == [10, 10, 10, 20, 20]


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="no class"):
        class_store({})
    with pytest.raises(ShapeError, match=r"class 'b' are torch.uint8 \(1, 1, 4, 4\)"):
        class_store({"a": pictures(1), "b": pictures(1, side=4)})
    with pytest.raises(ShapeError, match="class 'b' are torch.float32"):
        class_store({"a": pictures(1), "b": pictures(1).float()})


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
def test_examples_that_are_no_images_are_seen_as_they_are_or_as_told(dtype):
    kept = {name: torch.arange(12).view(4, 3).to(dtype) + 20 * place for place, name in enumerate("ab")}
    view = Tensor.long if dtype == torch.uint8 else None
    found = few_shot("t", {"test": class_store(kept)}, ways=2, shots=(1, 2), queries=1, view=view, noun="texts")
    support, query = found.sample("test", range(5))
    assert found.input_shape == (3,) and found.details["texts"] == {"test": 8}
    assert support.x.dtype == query.x.dtype == (torch.int64 if dtype == torch.uint8 else dtype)
    rows = {tuple(row) for rows in kept.values() for row in rows.tolist()}
    assert {tuple(row) for row in query.x.flatten(0, 1).tolist()} <= rows
    assert not support.x[~support.mask].any() and {tuple(row) for row in support.x[support.mask].tolist()} <= rows


def test_rotations_are_new_classes_after_the_originals():
    store = class_store({"a": torch.arange(18, dtype=torch.uint8).view(2, 1, 3, 3), "b": pictures(3, 7)})
    turned = rotated(store, keep=[True, False])
    assert turned.names == ("a", "b", "a@90", "a@180", "a@270")
    assert turned.sizes.tolist() == [2, 3, 2, 2, 2]
    assert turned.starts.tolist() == [0, 2, 5, 7, 9]
    assert torch.equal(turned.examples[:5], store.examples)
    for quarter, start in ((1, 5), (2, 7), (3, 9)):
        expected = torch.rot90(store.examples[:2], quarter, (2, 3))
        assert torch.equal(turned.examples[start : start + 2], expected)


def test_rotating_all_or_no_classes():
    store = class_store({"a": pictures(1), "b": pictures(2)})
    assert rotated(store).names == ("a", "b", "a@90", "b@90", "a@180", "b@180", "a@270", "b@270")
    assert rotated(store).sizes.tolist() == [1, 2] * 4
    assert rotated(store, [False, False]) is store


def test_rotation_needs_square_images_and_one_choice_a_class():
    wide = class_store({"a": torch.zeros(1, 1, 2, 3, dtype=torch.uint8)})
    with pytest.raises(ShapeError, match="2 x 3; only square"):
        rotated(wide)
    with pytest.raises(ShapeError, match="keep has 2 values for 1 classes"):
        rotated(class_store({"a": pictures(1)}), [True, True])


def test_scaled_maps_bytes_to_zero_to_one():
    assert scaled(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])


def test_names_of_classes_that_no_file_can_hold_are_refused():
    with pytest.raises(DataError, match="a class whose name 'caf.udce9' is no text that UTF-8 can write"):
        class_splits("here", ["caf\udce9", "b", "c", "d", "e", "f"], 2, "")


def test_the_shuffle_is_fixed_for_ever():
    names = ["ant", "bee", "cat", "dog", "eel", "fox"]
    assert shuffled(names) == shuffled(reversed(names)) == ["bee", "ant", "eel", "fox", "cat", "dog"]


LAST = 2**63 - 1


def counted(words=1):
    """Return a draw of two tensors a task, what is drawn ahead of it, and the numbers that were asked of the draw."""
    asked = []

    def draw(split, numbers):
        asked.append((split, list(numbers)))
        values = torch.tensor(list(numbers), dtype=torch.int64)
        return values[:, None] * len(split) + torch.arange(3), values % 7

    return draw, drawn_ahead(draw, words), asked


def all_equal(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


_runs = st.tuples(st.integers(0, 700), st.integers(0, 600)).map(lambda pair: list(range(pair[0], sum(pair))))
_scattered = st.lists(st.integers(0, LAST), max_size=6)


@given(st.lists(st.tuples(st.sampled_from(["train", "test"]), _runs | _scattered), max_size=8), st.integers(1, 2**18))
def test_it_returns_what_the_draw_does_whatever_the_order(requests, words):
    draw, ahead, _ = counted(words)
    for split, numbers in requests:
        assert all_equal(ahead(split, numbers), draw(split, numbers))


def test_following_numbers_are_drawn_once_a_block():
    _, ahead, asked = counted()
    for first in range(0, 512, 32):
        ahead("train", list(range(first, first + 32)))
    assert [(split, numbers[0], len(numbers)) for split, numbers in asked] == [("train", 0, 256), ("train", 256, 256)]


def test_other_splits_in_between_do_not_draw_it_again():
    _, ahead, asked = counted()
    for first in range(0, 256, 64):
        ahead("train", list(range(first, first + 64)))
        ahead("validation", list(range(64)))
    assert len(asked) == 2


@pytest.mark.parametrize("numbers", [[5, 9], [4, 3], [3, 3], list(range(256)), [-1, 0], [2**63], []])
def test_other_requests_are_drawn_as_they_are(numbers):
    asked = []
    ahead = drawn_ahead(lambda split, numbers: asked.append(numbers) or (), 1)
    ahead("train", numbers)
    assert asked == [numbers]


def test_the_last_numbers_stay_in_range():
    draw, ahead, asked = counted()
    assert all_equal(ahead("train", [LAST - 2, LAST - 1]), draw("train", [LAST - 2, LAST - 1]))
    assert asked[0][1][-1] == LAST and len(asked[0][1]) == 256
    assert all_equal(ahead("train", [LAST - 1, LAST]), draw("train", [LAST - 1, LAST]))


def test_large_tasks_are_drawn_in_small_blocks():
    _, ahead, asked = counted(words=2**15)
    ahead("train", [6])
    assert asked == [("train", [4, 5, 6, 7])]
    _, ahead, asked = counted(words=2**18)
    ahead("train", [6])
    assert asked == [("train", [6])]


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.int64, np.uint64, torch.tensor])
def test_integers_of_other_kinds_are_task_numbers(kind):
    draw, ahead, _ = counted()
    assert all_equal(ahead("train", [kind(5), kind(6)]), draw("train", [5, 6]))


def test_numpys_last_numbers_stay_in_range():
    draw, ahead, _ = counted()
    assert all_equal(ahead("train", [np.int64(LAST - 2), np.int64(LAST - 1)]), draw("train", [LAST - 2, LAST - 1]))
