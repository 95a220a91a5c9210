import pytest
import torch

from headstart.data.images.store import image_store, rotated, scaled, shuffled
from headstart.errors import DataError, ShapeError


def pictures(count, value=0, side=3):
    return torch.full((count, 1, side, side), value, dtype=torch.uint8)


def test_classes_are_sorted_by_name_and_keep_their_images():
    store = image_store({"b": pictures(2, 20), "a": pictures(3, 10), "c": pictures(0)})
    assert store.names == ("a", "b", "c")
    assert store.starts.tolist() == [0, 3, 5]
    assert store.sizes.tolist() == [3, 2, 0]
    assert store.images[:, 0, 0, 0].tolist() == [10, 10, 10, 20, 20]


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="no class"):
        image_store({})
    with pytest.raises(ShapeError, match=r"class 'b' are torch.uint8 \(1, 1, 4, 4\)"):
        image_store({"a": pictures(1), "b": pictures(1, side=4)})
    with pytest.raises(ShapeError, match="class 'a' are torch.float32"):
        image_store({"a": pictures(1).float()})


def test_rotations_are_new_classes_after_the_originals():
    store = image_store({"a": torch.arange(18, dtype=torch.uint8).view(2, 1, 3, 3), "b": pictures(3, 7)})
    turned = rotated(store, keep=[True, False])
    assert turned.names == ("a", "b", "a@90", "a@180", "a@270")
    assert turned.sizes.tolist() == [2, 3, 2, 2, 2]
    assert turned.starts.tolist() == [0, 2, 5, 7, 9]
    assert torch.equal(turned.images[:5], store.images)
    for quarter, start in ((1, 5), (2, 7), (3, 9)):
        expected = torch.rot90(store.images[:2], quarter, (2, 3))
        assert torch.equal(turned.images[start : start + 2], expected)


def test_rotating_all_or_no_classes():
    store = image_store({"a": pictures(1), "b": pictures(2)})
    assert rotated(store).names == ("a", "b", "a@90", "b@90", "a@180", "b@180", "a@270", "b@270")
    assert rotated(store).sizes.tolist() == [1, 2] * 4
    assert rotated(store, [False, False]) is store


def test_rotation_needs_square_images_and_one_choice_a_class():
    wide = image_store({"a": torch.zeros(1, 1, 2, 3, dtype=torch.uint8)})
    with pytest.raises(ShapeError, match="2 x 3; only square"):
        rotated(wide)
    with pytest.raises(ShapeError, match="keep has 2 values for 1 classes"):
        rotated(image_store({"a": pictures(1)}), [True, True])


def test_scaled_maps_bytes_to_zero_to_one():
    assert scaled(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])


def test_the_shuffle_is_fixed_for_ever():
    names = ["ant", "bee", "cat", "dog", "eel", "fox"]
    assert shuffled(names) == shuffled(reversed(names)) == ["bee", "ant", "eel", "fox", "cat", "dog"]
