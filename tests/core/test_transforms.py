import pytest
import torch
from torch.autograd import forward_ad

from headstart.core.transforms import plain


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
    assert seen == [False, False]
    with torch.autocast("cpu", torch.bfloat16):
        assert not plain(x)
    assert plain(x)
