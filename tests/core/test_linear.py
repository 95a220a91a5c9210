import pytest
import torch
from hypothesis import given, settings, strategies as st

from headstart.core.linear import ConjugateGradient, Neumann

TASKS, SIZE = 4, 6


def matrices(generator, tasks=TASKS):
    """Return symmetric positive definite matrices, of other condition for each task."""
    draw = torch.randn(tasks, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return draw @ draw.mT + torch.logspace(-1, 1, tasks, dtype=torch.float64).view(-1, 1, 1) * torch.eye(SIZE)


def split(flat):
    return {"a": flat[:, :2].reshape(-1, 2, 1), "b": flat[:, 2:].reshape(-1, 2, 2)}


def joined(params):
    return torch.cat([params["a"].flatten(1), params["b"].flatten(1)], 1)


def product_of(matrix):
    return lambda v: split((matrix @ joined(v).unsqueeze(-1)).squeeze(-1))


def residual_of(matrix, right, value):
    left = joined(right) - joined(product_of(matrix)(value))
    return left.norm(dim=1) / joined(right).norm(dim=1)


@pytest.fixture
def right(generator):
    return split(torch.randn(TASKS, SIZE, generator=generator, dtype=torch.float64))


def test_as_many_iterations_as_unknowns_solve_exactly(generator, right):
    matrix = matrices(generator)
    found = ConjugateGradient(iterations=SIZE)(product_of(matrix), right)
    torch.testing.assert_close(joined(found.value), torch.linalg.solve(matrix, joined(right)), rtol=1e-7, atol=1e-9)
    assert found.residual.shape == (TASKS,) and found.residual.max() < 1e-7


def test_damping_adds_to_the_diagonal(generator, right):
    matrix = matrices(generator)
    found = ConjugateGradient(iterations=SIZE, damping=3.0)(product_of(matrix), right)
    expected = torch.linalg.solve(matrix + 3 * torch.eye(SIZE), joined(right))
    torch.testing.assert_close(joined(found.value), expected, rtol=1e-7, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9))
def test_the_residual_is_that_of_the_value(seed, iterations):
    generator = torch.Generator().manual_seed(seed)
    matrix = matrices(generator)
    right = split(torch.randn(TASKS, SIZE, generator=generator, dtype=torch.float64))
    series = matrix / torch.linalg.matrix_norm(matrix, 2).view(-1, 1, 1)
    for solver, own in (
        (lambda a: ConjugateGradient(iterations=iterations)(product_of(a), right), matrix),
        (lambda a: Neumann(terms=iterations)(product_of(a), right), series),
    ):
        found = solver(own)
        torch.testing.assert_close(found.residual, residual_of(own, right, found.value), rtol=1e-6, atol=1e-9)


def test_every_task_is_solved_as_if_it_were_alone(generator, right):
    matrix = matrices(generator)
    together = ConjugateGradient(iterations=4, tolerance=0.05)(product_of(matrix), right)
    for task in range(TASKS):
        own = {name: value[task : task + 1] for name, value in right.items()}
        alone = ConjugateGradient(iterations=4, tolerance=0.05)(product_of(matrix[task : task + 1]), own)
        torch.testing.assert_close(joined(alone.value)[0], joined(together.value)[task], rtol=1e-12, atol=1e-12)


def test_a_task_that_is_done_stands_still(generator, right):
    matrix = matrices(generator)
    matrix[1] = torch.eye(SIZE)  # done after one iteration
    matrix[0] = torch.diag_embed(torch.linspace(1, 9, SIZE))
    once, often = (ConjugateGradient(iterations=n, tolerance=1e-1)(product_of(matrix), right) for n in (1, SIZE))
    assert torch.equal(joined(once.value)[1], joined(often.value)[1])
    # with a lower tolerance the others go further than they need
    further = ConjugateGradient(iterations=SIZE, tolerance=1e-7)(product_of(matrix), right)
    assert further.residual[0] < 1e-7 < often.residual[0] <= 1e-1


@pytest.mark.parametrize("bad", [-1.0, 0.0, float("nan"), float("inf")])
def test_a_task_that_breaks_down_stops_and_disturbs_no_other(generator, right, bad):
    matrix = matrices(generator)
    expected = ConjugateGradient(iterations=SIZE)(product_of(matrix), right)
    matrix[2] = bad * torch.eye(SIZE)
    found = ConjugateGradient(iterations=SIZE)(product_of(matrix), right)
    others = [0, 1, 3]
    torch.testing.assert_close(joined(found.value)[others], joined(expected.value)[others])
    assert torch.equal(joined(found.value)[2], torch.zeros(SIZE, dtype=torch.float64)) and found.residual[2] == 1


def test_a_task_stops_at_the_first_direction_of_negative_curvature(right):
    diagonal = torch.tensor([[4.0, 3, 2, 1, 1, -0.5]], dtype=torch.float64)
    one = {name: torch.ones_like(value[:1]) for name, value in right.items()}
    states = [ConjugateGradient(iterations=n)(product_of(torch.diag_embed(diagonal)), one) for n in range(1, 9)]
    values = torch.cat([joined(state.value) for state in states])
    assert values.isfinite().all() and torch.equal(values[-1], values[-2]) and values[0].any()


def test_a_right_side_that_is_no_number_has_no_residual(generator, right):
    right["a"][1, 0] = float("nan")
    for solver in (ConjugateGradient(iterations=9), Neumann(terms=9)):
        found = solver(product_of(matrices(generator) / 100), right)
        assert found.residual.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("solver", [ConjugateGradient(iterations=9), Neumann(terms=9)], ids=str)
def test_a_right_side_of_zeros_has_zeros_as_its_solution(generator, right, solver):
    right = {name: value * (torch.arange(TASKS) != 1).view(-1, 1, 1) for name, value in right.items()}
    found = solver(product_of(matrices(generator) / 100), right)
    assert not joined(found.value)[1].any() and found.residual[1] == 0
    assert all(bool(value.isfinite().all()) for value in (*found.value.values(), found.residual))


def test_the_series_is_a_series(generator, right):
    matrix = 0.7 * (torch.eye(SIZE) - 0.1 * torch.randn(TASKS, SIZE, SIZE, generator=generator, dtype=torch.float64))
    expected, power = 0, joined(right).unsqueeze(-1)
    for _ in range(4):
        expected, power = expected + power, (torch.eye(SIZE) - matrix) @ power
    found = Neumann(terms=3)(product_of(matrix), right)
    torch.testing.assert_close(joined(found.value), expected.squeeze(-1))
    far = Neumann(terms=60)(product_of(matrix), right)
    # not symmetric, and solved all the same
    torch.testing.assert_close(joined(far.value), torch.linalg.solve(matrix, joined(right)))


def test_a_series_that_diverges_gives_its_best_partial_sum(generator, right):
    matrix = torch.eye(SIZE, dtype=torch.float64).repeat(TASKS, 1, 1)
    matrix[0], matrix[1, 0, 0] = 3 * matrix[0], 2.5
    found = Neumann(terms=2000)(product_of(matrix), right)
    # from the start away: the first term
    assert torch.equal(joined(found.value)[0], joined(right)[0])
    assert found.residual[1] <= 1.5 and joined(found.value).isfinite().all()
    torch.testing.assert_close(joined(found.value)[2:], joined(right)[2:])


def test_no_value_is_read_back_from_the_device():
    # tensors of the meta device have no values to read
    right = {"a": torch.zeros(TASKS, SIZE, device="meta")}
    assert ConjugateGradient(iterations=3, tolerance=0.1)(lambda v: v, right).residual.shape == (TASKS,)
    assert Neumann(terms=3)(lambda v: v, right).residual.shape == (TASKS,)
