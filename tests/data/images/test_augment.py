"""Augmentation: a task's own, of training tasks alone, and what each change does."""

import pytest
import torch

from headstart import Batch, Episodes, Tasks
from headstart.data.images.augment import augmented
from headstart.errors import UnknownNameError, UsageError
from headstart.tasks import emoji


def pictures(shots=3, channels=3, mask=None):
    """Tasks of smooth pictures, of which task t is a function of t."""

    def sample(split, numbers):
        ramp = torch.linspace(0.1, 0.9, 16)
        x = torch.stack([(ramp[:, None] * ramp * (1 + t) / 8).expand(2 * shots, channels, 16, 16) for t in numbers])
        y = torch.arange(2).repeat_interleave(shots).expand(len(numbers), -1)
        support = x if mask is None else x * mask[..., None, None, None]
        return Episodes(Batch(support.clone(), y, mask), Batch(x.clone(), y))

    return Tasks("pictures", sample, "classification", (channels, 16, 16), 2, {})


@pytest.mark.parametrize("changes", [["crop"], ["flip"], ["colour"], ["crop", "flip", "colour"]])
def test_a_training_task_is_changed_by_its_number_alone(changes):
    plain, shaken = pictures(), augmented(pictures(), changes, seed=3)
    together, alone = shaken.sample("train", [4, 1, 7]), shaken.sample("train", [1])
    for batch, own, was in zip(together, alone, plain.sample("train", [1])):
        assert torch.equal(batch.x[1], own.x[0]) and not torch.equal(own.x, was.x)
        assert len({image.numpy().tobytes() for image in own.x[0]}) > 1  # each image its own
        assert 0 <= float(own.x.min()) and float(own.x.max()) <= 1
    assert not torch.equal(augmented(pictures(), changes, seed=4).sample("train", [1]).query.x, alone.query.x)
    for split in ("validation", "test"):
        assert torch.equal(shaken.sample(split, [1]).query.x, plain.sample(split, [1]).query.x)


def test_flip_mirrors_about_half_and_nothing_else():
    x, was = (tasks.sample("train", range(50)).query.x for tasks in (augmented(pictures(), ["flip"]), pictures()))
    flipped = (x == was.flip(-1)).flatten(2).all(2)
    assert ((x == was).flatten(2).all(2) ^ flipped).all()
    assert 0.4 < float(flipped.float().mean()) < 0.6


def test_crop_shifts_by_up_to_an_eighth_and_repeats_the_edge():
    x, was = (tasks.sample("train", range(40)).query.x for tasks in (augmented(pictures(), ["crop"]), pictures()))
    places = torch.arange(16)
    shifts = [
        torch.stack([was[..., (places + down).clamp(0, 15), :][..., (places + across).clamp(0, 15)]])
        for down in range(-2, 3)
        for across in range(-2, 3)
    ]
    matched = torch.stack([(x == one[0]).flatten(2).all(2) for one in shifts])
    assert matched.any(0).all()
    assert matched.any((1, 2)).sum() == 25  # every shift comes up


def test_colour_of_grey_pictures_stays_grey_and_of_coloured_ones_does_not_move_edges():
    x = augmented(pictures(channels=1), ["colour"]).sample("train", range(10)).query.x
    assert x.shape[2] == 1 and (x.diff(dim=-1) >= -1e-6).all()  # still a ramp
    same = augmented(pictures(), ["colour"]).sample("train", range(10)).query.x
    assert torch.allclose(same[:, :, 0], same[:, :, 2], atol=1e-6)  # what is grey has no colour to saturate


def test_what_is_masked_stays_zero():
    mask = torch.tensor([[True, False, True, True, True, False]])
    x = augmented(pictures(mask=mask), ["crop", "flip", "colour"]).sample("train", [0]).support.x
    assert not x[~mask].any() and x[mask].any()


def test_another_change_is_refused_and_none_is_none():
    with pytest.raises(UnknownNameError, match="unknown change 'rotate'"):
        augmented(pictures(), ["rotate"])
    tasks = pictures()
    assert augmented(tasks, []) is tasks


def test_features_are_no_images():
    features = emoji()._replace(input_shape=(5,))
    assert augmented(features, []) is features
    with pytest.raises(UsageError, match="--augment changes images, but the tasks of emoji are features"):
        augmented(features, ["flip"])


def test_tasks_of_many_sizes_do_not_go_by_what_they_are_sampled_with():
    shaken = emoji(ways=8, shots=5, queries=2, sampler="meta_dataset", augment=("crop", "colour"))
    for number in range(4):
        for together, alone in zip(shaken.sample("train", range(4)), shaken.sample("train", [number])):
            n = alone.x.shape[1]
            assert torch.equal(together.x[number, :n], alone.x[0])
