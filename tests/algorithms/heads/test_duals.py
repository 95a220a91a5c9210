import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.algorithms.heads.duals import margin_gap, maximum_entropy, maximum_margin


def problem(seed, classes, examples, features, kernel="linear", log_cost=0.0, repeated=False, hidden=0):
    """Return Q, Y and what is allowed, for two tasks."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (2, examples), generator=generator)
    x = torch.randn(2, examples, features, generator=generator, dtype=torch.float64)
    if repeated:
        x = x.sign()
    gram = x @ x.mT if kernel == "linear" else torch.exp(-torch.cdist(x, x).square() / (2 * features))
    there = torch.ones(2, examples, dtype=torch.bool)
    there[0, :hidden] = False
    targets = torch.nn.functional.one_hot(y, classes).double().mT * there.unsqueeze(1)
    shared = 10**log_cost * gram * (there.unsqueeze(1) & there.unsqueeze(2))
    allowed = (targets.sum(1, keepdim=True) > 0) & (targets.sum(2, keepdim=True) > 0)
    return shared, targets, allowed


PROBLEMS = st.builds(
    problem,
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.integers(1, 25),
    st.integers(1, 30),
    st.sampled_from(["linear", "rbf"]),
    st.floats(-3, 3),
    st.booleans(),
    st.integers(0, 3),
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(PROBLEMS)
def test_the_support_vector_machine_is_at_its_optimum(problem):
    spread = maximum_margin(*problem).spread
    assert (margin_gap(problem[0], problem[1], spread, problem[2]) <= 1e-7).all()
    assert not spread[~problem[2].expand_as(spread)].any()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(PROBLEMS)
def test_logistic_regression_is_at_its_optimum(problem):
    shared, targets, allowed = problem
    spread = maximum_entropy(*problem).spread
    scores = ((targets - spread) @ shared).masked_fill(~allowed, -torch.inf)
    torch.testing.assert_close(spread, torch.where(allowed, scores.softmax(1), 0), atol=1e-9, rtol=1e-9)


def test_the_gap_is_that_of_the_duality():
    """The primal's value less the dual's, summed over examples, both written out."""
    shared, targets, allowed = problem(0, 3, 7, 4)
    spread = torch.where(allowed, 1 / 3, 0.0).double()
    spread = spread / spread.sum(1, keepdim=True)
    dual = targets - spread
    scores = dual @ shared  # at C = 1
    slacks = (scores + 1 - targets).amax(1) - (scores * targets).sum(1)
    primal = 0.5 * (scores * dual).sum((1, 2)) + slacks.sum(1)
    value = 0.5 * (scores * dual).sum((1, 2)) + (spread * targets).sum((1, 2)) - targets.sum((1, 2))
    per_example = ((spread - targets) @ shared + targets) * spread
    lowest = ((spread - targets) @ shared + targets).masked_fill(~allowed, torch.inf).amin(1)
    torch.testing.assert_close(primal + value, (per_example.sum(1) - lowest).sum(1))
    assert (margin_gap(shared, targets, spread, allowed) >= (primal + value) / 7 - 1e-12).all()
    assert (margin_gap(shared, targets, spread, allowed) > 1e-3).all()


@pytest.mark.parametrize("solver", [maximum_margin, maximum_entropy])
def test_the_derivative_is_that_of_the_solution(solver):
    shared, targets, allowed = problem(2, 3, 8, 20)
    change = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    change = change @ change.mT
    solved = solver(shared, targets, allowed)
    slope = -solved.solve((solved.spread - targets) @ change)
    h = 1e-6
    ahead, behind = (solver(shared + way * h * change, targets, allowed).spread for way in (1, -1))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * h), atol=1e-7, rtol=1e-6)


def test_a_task_is_solved_the_same_beside_a_harder_one():
    easy, hard = problem(3, 3, 8, 20, log_cost=-2), problem(4, 3, 8, 2, log_cost=3)
    for solver in (maximum_margin, maximum_entropy):
        alone = solver(*easy).spread
        beside = solver(*(torch.cat(pair) for pair in zip(easy, hard))).spread
        torch.testing.assert_close(beside[:2], alone, atol=1e-12, rtol=0)
    # one that is done long before the others takes no part in their last sweeps
    many = problem(1, 5, 20, 6)
    scale = torch.logspace(-3, 4, 12, dtype=torch.float64).view(-1, 1, 1)
    shared, targets, allowed = scale * many[0][:1], *(part[:1].expand(12, -1, -1) for part in many[1:])
    together = maximum_margin(shared, targets, allowed).spread
    for task in range(12):
        alone = maximum_margin(*(part[task : task + 1] for part in (shared, targets, allowed))).spread
        torch.testing.assert_close(together[task], alone[0], atol=0, rtol=0)


def test_it_says_when_it_could_not_solve(caplog, monkeypatch):
    monkeypatch.setattr("headstart.algorithms.heads.duals._STEPS", 1)
    monkeypatch.setattr("headstart.algorithms.heads.duals._SWEEPS", 1)
    with caplog.at_level(logging.WARNING, "headstart"):
        maximum_margin(*problem(0, 4, 20, 5, log_cost=1))
    assert "2 of 2 tasks' classifiers were solved to" in caplog.text


@pytest.mark.parametrize("features", [1e8, torch.nan])
@pytest.mark.parametrize("solver", [maximum_margin, maximum_entropy])
def test_it_says_so_where_features_are_too_large_or_no_numbers(solver, features, caplog):
    shared, targets, allowed = problem(0, 3, 30, 5)
    with caplog.at_level(logging.WARNING, "headstart"):
        solver(features**2 * shared, targets, allowed)
    assert "2 of 2 tasks' classifiers were solved to" in caplog.text


@pytest.mark.parametrize("log_cost", [-1, 0, 1])
def test_rows_that_repeat_with_other_labels_are_solved_to_rounding(log_cost):
    """Their dual has many solutions, among which the last sweeps go on for longer."""
    generator = torch.Generator().manual_seed(1)
    for values in (2, 3):
        x = torch.randint(values, (40, 20, 3), generator=generator).double()
        targets = torch.nn.functional.one_hot(torch.randint(3, (40, 20), generator=generator), 3).double().mT
        shared = 10**log_cost * (x @ x.mT + 1)
        allowed = targets.sum(2, keepdim=True).expand_as(targets) > 0
        assert margin_gap(shared, targets, maximum_margin(shared, targets, allowed).spread, allowed).max() < 1e-11
