"""From cells to tables."""

import math

import pytest

from headstart.bench.cells import Cell, Key
from headstart.bench.summary import mean_of, overall, table


def cells(method: str, *values: float | None, nll: float | None = None) -> list[Cell]:
    return [Cell(Key("a", 3, method, seed, "x"), value, nll, None, 1.0, {"n": 1}) for seed, value in enumerate(values)]


def test_the_interval_is_students() -> None:
    assert mean_of([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.3027 / math.sqrt(3), rel=1e-4))
    assert mean_of([5.0]) == (5.0, None)


def test_rows_are_sorted_marked_and_compared_with_the_best_baseline_split_by_split() -> None:
    found = table(
        "a", 3, "ms", {
            "mixed": cells("mixed", 4.0, 5.0, nll=1.5),
            "last_value": cells("last_value", 9.0, 7.0),
            "maml": cells("maml", 3.0, 4.5),
            "anil": cells("anil", 5.0, 5.0),
        },
    )  # fmt: skip
    assert [row.method for row in found.rows] == ["maml", "mixed", "anil", "last_value"]
    assert [row.method for row in found.rows if row.best] == ["maml", "mixed"]
    maml, mixed, *_ = found.rows
    assert maml.difference is not None and maml.difference.mean == pytest.approx(-0.75)
    assert maml.difference.ci95 == pytest.approx(12.7062 * 0.25, rel=1e-4)
    assert mixed.nll == (1.5, 0.0) and maml.nll is None and mixed.counts == {"n": 2}
    assert (mixed.baseline, maml.baseline, maml.splits) == (True, False, 2)


def test_a_method_that_diverged_has_no_mean_and_comes_last() -> None:
    found = table("a", 3, "", {"maml": cells("maml", None, 1.0), "mixed": cells("mixed", 2.0, 2.0)})
    assert [row.method for row in found.rows] == ["mixed", "maml"]
    last = found.rows[-1]
    assert last.rmse is None and last.diverged == 1 and last.difference is None and not last.best
    assert [row.method for row in overall([found])] == ["mixed"]


def test_over_all_tables_ratios_are_to_each_tables_best_baseline() -> None:
    mixed, maml = cells("mixed", 2.0, 2.0), cells("maml", 1.0, 1.01)
    one = table("a", 3, "", {"mixed": mixed, "maml": maml})
    others = {"mixed": cells("mixed", 4.0, 4.0), "boosted": mixed, "maml": cells("maml", 4.0, 4.01)}
    two = table("b", 3, "", others)
    first, second = overall([one, two])
    assert (first.method, second.method) == ("maml", "mixed")  # boosted is not in every table
    assert first.ratio == pytest.approx(math.sqrt(1.005 / 2 * 4.005 / 2)) and second.ratio == pytest.approx(
        math.sqrt(2)
    )
    assert (first.better, first.worse, first.tables) == (1, 1, 2)
