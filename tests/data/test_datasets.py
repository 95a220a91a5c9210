"""People's own data sets and loaders as tasks, and what is said of those that are none."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import headstart
from headstart import Batch, Episodes, evaluate, fit, nearest, prototypes
from headstart.data import from_dataset, from_episodes
from headstart.errors import DataError, LeakageError, ShapeError, ShortClassError, UsageError
from headstart.testing import random_episodes


def blobs(classes=12, each=6, kind="tensor"):
    """Pairs of (x, label), classes by turns: x of class c is about c."""
    generator = np.random.default_rng(0)
    pairs = []
    for place in range(classes * each):
        own = place % classes
        x = np.clip(generator.normal(20 * own, 1, (6, 6, 3)), 0, 255).astype(np.uint8)
        made = {
            "tensor": lambda x=x: torch.from_numpy(x).movedim(-1, 0) / 255,
            "pil": lambda x=x: Image.fromarray(x),
            "array": lambda x=x: x.astype(np.float32).ravel(),
        }
        pairs.append((made[kind](), own))
    return pairs


PAIRS = blobs()


class Named(Dataset):
    classes = [f"bird {place}" for place in range(12)]

    def __len__(self):
        return 72

    def __getitem__(self, place):
        return PAIRS[place] if place % 2 else (PAIRS[place][0], torch.tensor(place % 12))


@pytest.mark.parametrize(("kind", "shape"), [("tensor", (3, 6, 6)), ("pil", (3, 6, 6)), ("array", (108,))])
def test_a_data_set_becomes_tasks_that_classes_can_be_told_apart_in(kind, shape):
    tasks = from_dataset(blobs(kind=kind), ways=2, queries=2)
    assert tasks.input_shape == shape and tasks.details["classes"] == {"train": 8, "validation": 2, "test": 2}
    score = evaluate(learner := nearest(ways=2), learner.init(None), tasks, episodes=20)
    assert score.mean == 1
    if kind == "pil":
        assert float(tasks.sample("train", [0]).query.x.max()) <= 1  # of uint8, scaled


def test_names_are_the_data_sets_own_and_subsets_have_theirs():
    names = from_dataset(Named(), ways=2).details["class_names"]
    assert sorted(sum(names.values(), [])) == sorted(Named.classes)
    some = from_dataset(Subset(Named(), range(72)), ways=2).details["class_names"]
    assert sorted(sum(some.values(), []), key=int) == [str(place) for place in range(12)]


def test_splits_may_be_given_and_are_augmented_in_training_alone():
    pairs = blobs()
    parts = {
        split: [pair for pair in pairs if pair[1] % 3 == rest]
        for rest, split in enumerate(("train", "validation", "test"))
    }
    plain, shaken = (from_dataset(parts, ways=2, queries=2, augment=own) for own in ([], ["colour"]))
    assert plain.details["classes"] == {"train": 4, "validation": 4, "test": 4}
    same = [torch.equal(plain.sample(s, [0]).query.x, shaken.sample(s, [0]).query.x) for s in parts]
    assert same == [False, True, True]
    with pytest.raises(LeakageError, match="share class"):
        from_dataset({"train": pairs, "test": pairs}, ways=2)


class Endless(IterableDataset):
    def __iter__(self):
        yield from blobs()


@pytest.mark.parametrize(
    ("dataset", "error", "said"),
    [
        (Endless(), UsageError, "from_episodes"),
        ([], DataError, "empty"),
        ([torch.zeros(3)], DataError, "item 0 of the data set is a Tensor, expected a pair"),
        ([(torch.zeros(3), 0), (torch.zeros(4), 1)], ShapeError, "item 1 .*transform"),
        ([(torch.zeros(3), 0), (torch.tensor([0, float("nan"), 0]), 1)], DataError, "item 1 .* not finite"),
        ([(torch.zeros(3), 0.5)], DataError, "label of item 0"),
        ([(torch.zeros(3), torch.eye(3)[0])], DataError, "label of item 0"),
        ([(torch.zeros(3), np.eye(3)[0])], DataError, "label of item 0"),
        ([(torch.tensor(1.0), 0)], DataError, "x of item 0 .* one axis or more"),
        ([(torch.eye(3).to_sparse(), 0)], DataError, "x of item 0 .* dense"),
        ([(torch.zeros(3) * 1j, 0)], DataError, "x of item 0 .* real"),
        ([(Image.new("I;16", (3, 3), 9000), 0)], DataError, "image of mode I;16, whose numbers go beyond 255"),
        ([("words", 0)], DataError, "x of item 0 .* is a str"),
        ([(torch.zeros(3), place) for place in range(4)], ShortClassError, "4 classes"),
        ([(torch.zeros(3), min(place, 9)) for place in range(20)], ShortClassError, "has 1 examples"),
    ],
)
def test_what_is_no_data_set_is_refused(dataset, error, said):
    with pytest.raises(error, match=said):
        from_dataset(dataset, ways=2)


def episodes(first=0, count=6, at_once=1, outputs=3):
    """Items of ``at_once`` tasks each, whose inputs tell the tasks' numbers."""
    made = []
    for place in range(first, count, at_once):
        numbers = torch.arange(place, place + at_once).float()
        x = numbers[:, None, None].expand(at_once, 2 * outputs, 4)
        y = torch.arange(outputs).repeat(2).expand(at_once, -1)
        made.append(Episodes(Batch(x, y), Batch(x + 0.5, y)))
    return made


def numbers_of(tasks, numbers, split="train"):
    found = tasks.sample(split, numbers)
    assert torch.equal(found.query.x, found.support.x + 0.5) and len(found.support.y) == len(numbers)
    return found.support.x[:, 0, 0].tolist()


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_task_t_is_the_t_th_however_it_is_asked_for(at_once):
    tasks = from_episodes({"train": episodes(at_once=at_once), "validation": episodes(at_once=at_once)})
    for numbers in ([0, 1], [2, 3, 4], [1], [5], [0, 2, 4], [4, 1, 1]):
        assert numbers_of(tasks, numbers) == numbers
    assert numbers_of(tasks, [0, 1], "validation") == [0, 1]
    assert (tasks.kind, tasks.output_size, tasks.input_shape) == ("classification", 3, (4,))


def test_pairs_of_a_loader_train_and_are_evaluated():
    x, y = torch.randn(40, 6, 5), torch.arange(3).repeat(2).expand(40, -1)
    x = x + 4 * y.unsqueeze(-1)
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    source = [((one, own), (one + 0.1, own)) for one, own in loader]
    tasks = from_episodes({"train": source, "test": source}, name="mine")
    learner = prototypes(headstart.mlp(5, 4, hidden=(8,)), ways=3)
    *_, last = fit(learner, tasks, steps=3, tasks_per_step=8)
    assert evaluate(learner, last.state.meta, tasks, episodes=40).mean > 0.6
    with pytest.raises(DataError, match="'test' ended after 40 tasks"):
        evaluate(learner, last.state.meta, tasks, episodes=41)


def test_regression_and_a_generator_that_is_read_once():
    tasks = from_episodes({"train": (random_episodes((2,), regression=True, seed=place) for place in range(3))})
    assert tasks.kind == "regression" and tasks.input_shape == (2,)
    tasks.sample("train", [0, 1])
    tasks.sample("train", range(4, 6))
    with pytest.raises(DataError, match="iterated over once only"):
        tasks.sample("train", [0])


@pytest.mark.parametrize(
    ("sources", "error", "said"),
    [
        ({}, UsageError, "no source"),
        ({"trian": []}, UsageError, "did you mean 'train'"),
        ({"train": []}, DataError, "ended after 0 tasks"),
        ({"train": 3}, UsageError, "source of 'train' is a int"),
        ({"train": [((torch.full((1, 2, 3), torch.nan), torch.zeros(1, 2)),) * 2]}, DataError, "not finite"),
        ({"train": [torch.zeros(2)]}, DataError, "no episodes"),
        ({"train": [(torch.zeros(2, 3), torch.zeros(2, 3))]}, DataError, "no episodes"),
        (
            {"train": [((torch.zeros(2, 3), torch.zeros(2, 3)), (torch.zeros(1, 3), torch.zeros(1, 3)))]},
            DataError,
            "as many",
        ),
    ],
)
def test_what_gives_no_episodes_is_refused(sources, error, said):
    with pytest.raises(error, match=said):
        from_episodes(sources)


def test_labels_beyond_the_ways_and_tasks_of_other_sizes_are_refused():
    wide, narrow = episodes(outputs=4, count=1), episodes(outputs=3, count=1)
    tasks = from_episodes({"train": narrow + wide})
    with pytest.raises(DataError, match="labels from 0 to 3; expected 0 to 2"):
        tasks.sample("train", [1])
    with pytest.raises(DataError, match="different sizes"):
        from_episodes({"train": narrow + wide}, outputs=4).sample("train", [0, 1])
