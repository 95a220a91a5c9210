"""Systems of equations, written out, against LAPACK's."""

import pytest
import torch

from headstart.exporting.graph import ByValuesError, Input, recorded
from headstart.exporting.linear import MOST, WRITTEN_OUT, TooLargeError, cholesky, solve_lower, solve_upper


@pytest.fixture
def matrix() -> torch.Tensor:
    half = torch.randn(2, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return half @ half.mT


def test_factors_and_solutions_are_lapack_s(matrix: torch.Tensor) -> None:
    right = torch.randn(2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    lower = cholesky(matrix)
    torch.testing.assert_close(lower, torch.linalg.cholesky(matrix), rtol=1e-12, atol=1e-12)
    expected = torch.linalg.solve_triangular(lower, right, upper=False)
    torch.testing.assert_close(solve_lower(lower, right), expected, rtol=1e-12, atol=1e-12)
    expected = torch.linalg.solve_triangular(lower.mT, right, upper=True)
    torch.testing.assert_close(solve_upper(lower.mT, right), expected, rtol=1e-12, atol=1e-12)


def test_what_is_not_positive_definite_has_no_factor() -> None:
    assert cholesky(torch.tensor([[1.0, 2.0], [2.0, 1.0]])).isnan().any()


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("upper", [True, False])
def test_a_record_has_none_of_the_operations_that_are_written_out(
    matrix: torch.Tensor, upper: bool, left: bool
) -> None:
    right = torch.ones(2, 7, 7, dtype=torch.float64)

    def function(weights: dict[str, torch.Tensor], given: torch.Tensor) -> dict[str, torch.Tensor]:
        factor = torch.linalg.cholesky_ex(given)[0]
        whole = torch.cholesky_solve(right, factor)
        part = torch.linalg.solve_triangular(factor.mT if upper else factor, right, upper=upper, left=left)
        return {"whole": whole, "part": part}

    graph = recorded(function, {}, [Input("given", matrix, ())])
    assert not {node.target for node in graph.module.graph.nodes} & set(WRITTEN_OUT)
    for name, value in function({}, matrix).items():
        torch.testing.assert_close(graph(matrix)[name], value, rtol=1e-10, atol=1e-10)


def test_systems_of_unknown_or_large_size_are_refused(matrix: torch.Tensor) -> None:
    with pytest.raises(TooLargeError, match=f"at most {MOST}"):
        cholesky(torch.eye(MOST + 1))

    def function(weights: dict[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"found": torch.linalg.cholesky_ex(rows @ rows.mT)[0]}

    with pytest.raises(ByValuesError, match="a linear system of"):
        recorded(function, {}, [Input("rows", torch.eye(5, 9).double() + 1e-3, (0,))])
