import pytest
import torch
from torch.nn import functional as F

from headstart.core import losses
from headstart.core.losses import present
from headstart.errors import ShapeError, UnknownNameError, UsageError
from headstart.types import Batch


def classes(tasks=3, n=4, ways=5):
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(tasks, n, ways, generator=generator, dtype=torch.float64)
    return logits, Batch(torch.zeros(tasks, n, 1), torch.randint(ways, (tasks, n), generator=generator))


def targets(shape):
    generator = torch.Generator().manual_seed(0)
    out, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return out, Batch(torch.zeros(*shape[:2], 1), y)


def test_cross_entropy_is_torchs_for_each_task():
    logits, batch = classes()
    expected = torch.stack([F.cross_entropy(out, y) for out, y in zip(logits, batch.y)])
    torch.testing.assert_close(losses.cross_entropy(logits, batch), expected)
    huge, _ = 1e4 * logits, batch
    assert losses.cross_entropy(huge, batch).isfinite().all()


def test_squared_hinge_is_that_of_one_class_against_the_rest():
    scores, batch = classes()
    for task, loss in enumerate(losses.squared_hinge(scores, batch)):
        expected = 0.0
        for row, label in zip(scores[task].tolist(), batch.y[task].tolist()):
            expected += sum(max(0.0, 1 - (1 if k == label else -1) * score) ** 2 for k, score in enumerate(row))
        assert loss.item() == pytest.approx(expected / 4)


@pytest.mark.parametrize("shape", [(3, 4, 1), (3, 4, 2), (2, 5, 2, 3), (2, 5)])
def test_mse_is_torchs_for_each_task(shape):
    out, batch = targets(shape)
    expected = torch.stack([F.mse_loss(o, y) for o, y in zip(out, batch.y)])
    torch.testing.assert_close(losses.mse(out, batch), expected)


@pytest.mark.parametrize("name", ["cross_entropy", "squared_hinge", "mse"])
def test_masked_examples_count_for_nothing_in_loss_and_gradient(name):
    out, batch = targets((3, 4, 2)) if name == "mse" else classes()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]]).bool()
    y = batch.y.masked_fill(~mask.view(3, 4, *(1,) * (batch.y.ndim - 2)), torch.nan if name == "mse" else -1)
    out = out.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    loss = losses.resolve(name)(out, Batch(batch.x, y, mask))
    for task in range(3):
        here = mask[task]
        alone = losses.resolve(name)(out[task : task + 1, here], Batch(batch.x, batch.y[task : task + 1, here]))
        torch.testing.assert_close(loss[task : task + 1], alone)
    (slope,) = torch.autograd.grad(loss.sum(), out)
    assert slope[mask].isfinite().all() and slope[mask].any()
    if name == "mse":
        assert not slope[~mask].nan_to_num(0).any()


def test_a_task_without_examples_has_loss_zero():
    out, batch = classes()
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    assert losses.cross_entropy(out, batch._replace(mask=mask))[1] == 0


def test_an_ordinary_loss_can_be_lifted():
    out, batch = targets((3, 4, 2))
    expected = torch.stack([F.l1_loss(o, y) for o, y in zip(out, batch.y)])
    torch.testing.assert_close(losses.per_task(F.l1_loss)(out, batch), expected)
    with pytest.raises(UsageError, match="cannot leave out masked examples"):
        losses.per_task(F.l1_loss)(out, batch._replace(mask=torch.ones(3, 4).bool()))


def test_a_hinge_needs_labels_too():
    scores, batch = classes()
    with pytest.raises(
        ShapeError, match=r"squared_hinge needs .* got outputs \(3, 4, 5\) and y \(3, 4\) of torch.float32"
    ):
        losses.squared_hinge(scores, batch._replace(y=batch.y.float()))


def test_what_does_not_fit_is_refused_with_shapes():
    logits, batch = classes()
    with pytest.raises(ShapeError, match=r"got outputs \(3, 4, 5\) and y \(3, 4\) of torch.float32"):
        losses.cross_entropy(logits, batch._replace(y=batch.y.float()))
    with pytest.raises(ShapeError, match=r"got outputs \(3, 4, 5\) and y \(3, 3\)"):
        losses.cross_entropy(logits, batch._replace(y=batch.y[:, :3]))
    with pytest.raises(ShapeError, match="labels go from 0 to 5, but the model has 5 outputs; labels must be 0 to 4"):
        losses.cross_entropy(logits, batch._replace(y=torch.tensor([[0, 5, 1, 2]] * 3)))
    with pytest.raises(ShapeError, match="labels go from -1"):
        losses.cross_entropy(logits, batch._replace(y=torch.tensor([[0, -1, 1, 2]] * 3)))
    out, batch = targets((3, 4, 1))
    with pytest.raises(ShapeError, match=r"got outputs \(3, 4, 1\) and y \(3, 4\)"):
        losses.mse(out, batch._replace(y=batch.y[..., 0]))
    with pytest.raises(ShapeError, match="floating"):
        losses.mse(out, batch._replace(y=batch.y.long()))


def test_losses_by_name():
    assert losses.resolve("mse") is losses.mse and losses.resolve(losses.mse) is losses.mse
    with pytest.raises(UnknownNameError, match="unknown loss 'mes'; did you mean 'mse'"):
        losses.resolve("mes")


THERE = torch.tensor([[True, False], [True, True]])


def test_what_is_not_there_becomes_zero_and_the_rest_stays():
    x = torch.tensor([[[1.0, 2.0], [torch.nan, torch.inf]], [[3.0, 4.0], [torch.nan, 6.0]]])
    batch = present(Batch({"x": x, "tokens": torch.full((2, 2), 7)}, torch.tensor([[3, -1], [1, 2]]), THERE))
    torch.testing.assert_close(
        batch.x["x"], torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[3.0, 4.0], [torch.nan, 6.0]]]), equal_nan=True
    )
    assert batch.x["tokens"].tolist() == [[7, 0], [7, 7]] and batch.x["tokens"].dtype == torch.int64
    assert batch.y.tolist() == [[3, 0], [1, 2]] and batch.mask is THERE


def test_without_a_mask_nothing_is_copied():
    batch = Batch(torch.ones(1, 2), torch.ones(1, 2))
    assert present(batch) is batch
