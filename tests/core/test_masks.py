import torch

from headstart.core.masks import present
from headstart.types import Batch

MASK = torch.tensor([[True, False], [True, True]])


def test_what_is_not_there_becomes_zero_and_the_rest_stays():
    x = torch.tensor([[[1.0, 2.0], [torch.nan, torch.inf]], [[3.0, 4.0], [torch.nan, 6.0]]])
    batch = present(Batch({"x": x, "tokens": torch.full((2, 2), 7)}, torch.tensor([[3, -1], [1, 2]]), MASK))
    torch.testing.assert_close(
        batch.x["x"], torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[3.0, 4.0], [torch.nan, 6.0]]]), equal_nan=True
    )
    assert batch.x["tokens"].tolist() == [[7, 0], [7, 7]] and batch.x["tokens"].dtype == torch.int64
    assert batch.y.tolist() == [[3, 0], [1, 2]] and batch.mask is MASK


def test_without_a_mask_nothing_is_copied():
    batch = Batch(torch.ones(1, 2), torch.ones(1, 2))
    assert present(batch) is batch
