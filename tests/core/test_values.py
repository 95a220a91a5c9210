import pytest
import torch

from headstart.core.values import all_true, conditions, demand, in_range, one_hot, readable
from headstart.errors import ShapeError


def test_labels_in_range_come_back_as_int64():
    y = torch.tensor([[0, 2], [1, 0]], dtype=torch.int32)
    assert torch.equal(in_range(y, 3, "there are 3 ways"), y.long())
    assert in_range(y[:0], 3, "there are 3 ways").shape == (0, 2)


@pytest.mark.parametrize("label", [-1, 3])
def test_others_are_refused(label):
    with pytest.raises(ShapeError, match=r"labels go from .*, but there are 3 ways; labels must be 0 to 2"):
        in_range(torch.tensor([[0, label]]), 3, "there are 3 ways")


def test_one_hot():
    found = one_hot(torch.tensor([[0, 2]]), 3, torch.zeros(1, dtype=torch.float64))
    assert torch.equal(found, torch.tensor([[[1, 0, 0], [0, 0, 1]]]).double())


def test_on_an_accelerator_a_label_out_of_range_gives_nan():
    meta = torch.device("meta")  # it has no values, and takes the way of accelerators
    assert not readable(torch.zeros(2, device=meta))
    assert one_hot(torch.zeros(2, dtype=torch.int64, device=meta), 3, torch.zeros(1, device=meta)).shape == (2, 3)


def test_while_recording_a_mask_is_demanded_to_be_full():
    assert not all_true(torch.tensor([True, False]))
    with conditions() as noted:
        assert all_true(torch.tensor([True, False]))
        all_true(torch.ones(2).bool())
    assert [bool(holds) for *_, holds in noted.values()] == [False, True]
    assert not all_true(torch.tensor([True, False]))


def test_while_recording_labels_are_demanded_to_be_in_range_where_the_mask_has_them():
    y, mask = torch.tensor([[0, 9]]), torch.tensor([[True, False]])
    with conditions() as noted:
        demand(y, 3, mask)
        demand(y, 3)
        demand(y, 3)
    assert [bool(holds) for *_, holds in noted.values()] == [True, False]
    assert torch.equal(in_range(y, 3, "there are 3", mask), torch.tensor([[0, 0]]))
    with pytest.raises(ShapeError, match="labels go from 0 to 9, but there are 3"):
        in_range(y, 3, "there are 3")
