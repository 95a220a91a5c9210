import pytest
import torch
from torch.autograd import forward_ad

from headstart.forward.transforms import plain


def test_tensors_of_one_type_are_plain():
    x = torch.zeros(2)
    assert plain(x) and plain(x, None, torch.ones(3, requires_grad=True))
    assert not plain(x, torch.zeros(2, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_a_tangent_a_batch_axis_and_autocast_are_not_plain():
    x, seen = torch.zeros(2), []
    with forward_ad.dual_level():
        assert plain(x) and not plain(x, forward_ad.make_dual(x, x))
    torch.func.vmap(lambda part: seen.append(plain(part)) or part)(x)
    torch.func.grad(lambda part: seen.append(plain(part)) or part.sum())(x)
    torch.func.vmap(lambda part: seen.append(plain(torch.ones(3))) or part)(x)
    assert seen == [False, False, False], "nor is what goes beside a transform, which no custom function may"
    with torch.autocast("cpu", torch.bfloat16):
        assert not plain(x)
    assert plain(x)


def test_nothing_is_plain_and_shapes_alone_are_not():
    assert plain(None) and not plain(torch.zeros(2, device="meta"))


def test_slopes_that_come_in_batches_are_not_plain():
    x, seen = torch.zeros(3, requires_grad=True), []
    out = x.clone()
    out.register_hook(lambda slopes: seen.append(plain(slopes)))
    torch.autograd.grad(out, x, torch.eye(3), is_grads_batched=True)
    assert seen == [False]
