"""Images made another shape, colour or polarity."""

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.data.fewshot import class_store, few_shot
from headstart.data.images.convert import converted, light_on_dark, resized
from headstart.types import Episodes


def test_grey_is_repeated_and_colour_is_as_pillow_makes_it_grey(generator):
    grey, colour = torch.rand(2, 3, 1, 8, 8), torch.randint(256, (5, 8, 8, 3), generator=generator, dtype=torch.uint8)
    assert torch.equal(resized(grey, 3, 8), grey.repeat(1, 1, 3, 1, 1))
    made = resized(colour.movedim(-1, 1) / 255, 1, 8)
    theirs = [np.asarray(Image.fromarray(one.numpy()).convert("L")) for one in colour]
    torch.testing.assert_close(made[:, 0] * 255, torch.tensor(np.stack(theirs)).float(), atol=1.0, rtol=0)


@pytest.mark.parametrize("size", [4, 8, 20])
def test_sizes_change_as_pillow_changes_them(size, generator):
    images = torch.randint(256, (4, 1, 8, 8), generator=generator, dtype=torch.uint8)
    bilinear = Image.Resampling.BILINEAR
    theirs = [np.asarray(Image.fromarray(one[0].numpy()).resize((size, size), bilinear)) for one in images]
    made = resized(images / 255, 1, size)[:, 0] * 255
    torch.testing.assert_close(made, torch.tensor(np.stack(theirs)).float(), atol=1.01, rtol=0)


def test_only_images_with_a_light_border_become_negatives():
    dark = torch.zeros(2, 3, 6, 6)
    dark[..., 2:4, 2:4] = 0.75
    both = torch.stack([dark, 1 - dark])
    assert torch.equal(light_on_dark(both), torch.stack([dark, dark]))


def test_tasks_are_converted_and_padding_stays_nothing():
    stores = {"test": class_store({f"c{n}": torch.full((9, 1, 8, 8), 255 - n, dtype=torch.uint8) for n in range(6)})}
    tasks = few_shot("t", stores, ways=3, shots=(1, 3), queries=2)
    made = converted(tasks, 3, 16, light=True)
    assert made.input_shape == (3, 16, 16) and made.details["light_on_dark"]
    support, query = made.sample("test", range(5))
    assert isinstance(made.sample("test", [0]), Episodes) and query.x.shape == (5, 6, 3, 16, 16)
    assert float(query.x.max()) < 0.1  # light all over, so turned
    assert not support.x[~support.mask].any() and not support.mask.all()
    assert converted(tasks, 1, 8) is tasks
