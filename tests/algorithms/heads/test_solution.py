import pytest
import torch

from headstart.algorithms.heads.solution import implicit
from headstart.errors import DifferentiationError


def cube_root(cube):
    root = cube.detach() ** (1 / 3)
    return implicit(root, root**3 - cube, lambda v: v / (3 * root**2))


def test_the_derivative_is_that_of_the_solution():
    cube = torch.tensor([8.0, 27.0], dtype=torch.float64, requires_grad=True)
    value = cube_root(cube)
    torch.testing.assert_close(value, torch.tensor([2.0, 3.0], dtype=torch.float64))
    (slope,) = torch.autograd.grad(value.sum(), cube)
    torch.testing.assert_close(slope, torch.tensor([1 / 12, 1 / 27], dtype=torch.float64))
    assert not cube_root(cube.detach()).requires_grad


def test_a_second_derivative_is_refused_and_not_wrong():
    cube = torch.tensor([8.0], requires_grad=True)
    with pytest.raises(DifferentiationError, match="first derivative only"):
        torch.autograd.grad(cube_root(cube).sum(), cube, create_graph=True)
