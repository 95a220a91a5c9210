import torch

from headstart.algorithms.heads.coupled import coupled


def test_it_solves_the_whole_system():
    generator = torch.Generator().manual_seed(0)
    root, weights, right = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 4, 3), (2, 5, 4), (2, 5, 4))
    )
    shared, weights = root @ root.mT, weights.exp()
    sums = torch.arange(8.0, dtype=torch.float64).view(2, 4)
    for wanted in (None, sums):
        x, shift = coupled(shared, weights).solve(right, wanted)
        left = x @ shared + x / weights - shift.unsqueeze(1)
        torch.testing.assert_close(left, right)
        torch.testing.assert_close(x.sum(1), torch.zeros_like(sums) if wanted is None else sums)


def test_what_has_no_weight_is_zero():
    shared = torch.eye(3, dtype=torch.float64).expand(1, 3, 3)
    weights = torch.tensor([[[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]]], dtype=torch.float64)
    x, _ = coupled(shared, weights).solve(torch.ones(1, 2, 3, dtype=torch.float64) * torch.tensor([[[1.0], [2.0]]]))
    assert x.isfinite().all() and not x[weights == 0].any()
    # with a single class, the sum leaves nothing to move
    torch.testing.assert_close(x[0, 0, 1], torch.zeros((), dtype=torch.float64))
