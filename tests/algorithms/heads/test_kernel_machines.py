import logging
import math
import warnings

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import headstart
from headstart.algorithms.heads.kernel_machines import (
    coupled,
    implicit,
    logistic,
    margin_gap,
    maximum_entropy,
    maximum_margin,
    svm,
)
from headstart.errors import DifferentiationError, ShapeError, UnknownNameError, UsageError
from headstart.testing import check_learner, random_episodes
from headstart.types import Batch, Episodes

MACHINES = [svm, logistic]


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def net(features=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, features))


def problems(number, ways=None):
    """Return ``number`` random problems (classes, x, y, query, C), each class there at least twice."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(number):
        classes = ways or int(torch.randint(2, 6, (), generator=generator))
        examples = int(torch.randint(2 * classes, 41, (), generator=generator))
        features = int(torch.randint(1, 31, (), generator=generator))
        y = torch.arange(examples) % classes
        centres = torch.randn(classes, features, generator=generator)
        x = torch.randn(examples, features, generator=generator) + centres[y]
        query = torch.randn(20, features, generator=generator) + centres[torch.arange(20) % classes]
        yield classes, x, y, query, 10 ** (3 * float(torch.rand((), generator=generator)) - 2)


def scores(learner, meta, x, y, query):
    with torch.no_grad():
        adapted, _ = learner.adapt(meta, Batch(x[None], y[None]))
        return learner.predict(adapted, query[None])[0]


def fitted(estimator, x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a solver that stopped short is seen in the comparison
        return estimator.fit(x.numpy(), y.numpy())


def gap(ours, theirs):
    """Return the largest difference, relative to the largest value."""
    theirs = torch.as_tensor(theirs)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


class TestAgainstScikitLearn:
    def test_several_classes_are_linear_svcs_crammer_singer(self):
        svc = pytest.importorskip("sklearn.svm")
        gaps = []
        for number, (classes, x, y, query, C) in enumerate(problems(50)):
            reference = svc.LinearSVC(
                multi_class="crammer_singer", fit_intercept=False, C=C, tol=1e-6, max_iter=20_000, random_state=0
            )
            learner = svm(C=C, intercept=0.0)
            ours = scores(learner, learner.init(None), x, y, query)
            if classes == 2:
                # it gives the difference
                ours = ours[:, 1] - ours[:, 0]
            gaps.append((gap(ours, fitted(reference, x, y).decision_function(query.numpy())), number))
        assert max(gaps)[0] < 1e-3, max(gaps)

    def test_two_classes_are_linear_svcs_hinge(self):
        """Halved, the two classes' weights are one; its ½‖w‖² is twice theirs, so C is half."""
        svc = pytest.importorskip("sklearn.svm")
        for _, x, y, query, C in problems(50, ways=2):
            reference = svc.LinearSVC(loss="hinge", fit_intercept=False, C=C, tol=1e-6, max_iter=20_000, random_state=0)
            learner = svm(C=C / 2, intercept=0.0)
            ours = scores(learner, learner.init(None), x, y, query)
            assert gap(ours[:, 1] - ours[:, 0], fitted(reference, x, y).decision_function(query.numpy())) < 1e-3

    @pytest.mark.parametrize("kernel", ["linear", "rbf"])
    def test_two_classes_with_a_large_constant_feature_are_svcs(self, kernel):
        """SVC does not penalise its intercept; neither, in the limit, does a large constant feature."""
        svc = pytest.importorskip("sklearn.svm")
        for _, x, y, query, C in problems(50, ways=2):
            width = 0.8
            gamma = 1 / (2 * x.shape[1] * width**2)
            reference = fitted(svc.SVC(kernel=kernel, C=C, gamma=gamma, tol=1e-9), x, y)
            learner = svm(C=C / 2, kernel=kernel, width=width, intercept=1000.0)
            ours = scores(learner, learner.init(None), x, y, query)
            ours, theirs = ours[:, 1] - ours[:, 0], torch.as_tensor(reference.decision_function(query.numpy()))
            if (abs(reference.dual_coef_) > 0.9999 * C).all():
                # without a support vector on the margin, any intercept of an interval is optimal; it takes the middle
                ours, theirs = ours - ours.mean(), theirs - theirs.mean()
            assert gap(ours, theirs) < 1e-3

    def test_logistic_is_logistic_regression(self):
        linear_model = pytest.importorskip("sklearn.linear_model")
        for classes, x, y, query, C in problems(50):
            reference = linear_model.LogisticRegression(
                C=C, fit_intercept=False, solver="newton-cg", tol=1e-12, max_iter=10_000
            )
            expected = torch.as_tensor(fitted(reference, x, y).predict_log_proba(query.numpy()))
            learner = logistic(regularisation=1 / C if classes > 2 else 2 / C, intercept=0.0)
            ours = scores(learner, learner.init(None), x, y, query).log_softmax(1)
            assert gap(ours, expected) < 1e-5


@pytest.mark.parametrize("C", [1e-3, 100.0])
def test_the_contract_of_a_soft_and_a_hard_margin(C):
    check_learner(svm(net(), C=C), random_episodes((3,), support=12, seed=3), directions=2)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_repeated_examples_and_features_of_zero_do_no_harm(machine, kernel):
    support, query = random_episodes((3,), support=6)
    twice = Batch(support.x.repeat(1, 2, 1), support.y.repeat(1, 2))
    zero = Batch(torch.zeros_like(support.x), support.y)
    learner = machine(net(), kernel=kernel)
    half = machine(net(), kernel=kernel, **({"C": 0.2} if machine is svm else {"regularisation": 0.5}))
    meta = learner.init(None)
    logits = learner.predict(learner.adapt(meta, twice)[0], query.x)
    torch.testing.assert_close(logits, half.predict(half.adapt(half.init(None), support)[0], query.x))
    for batch in (twice, zero):
        gradient, info = headstart.meta_gradient(learner, meta, Episodes(batch, query))
        assert info.query_loss.isfinite().all()
        assert all(value.isfinite().all() for part in gradient for value in part.values())


@pytest.mark.parametrize("machine", MACHINES)
def test_one_example_a_class_and_many_features(machine):
    episodes = random_episodes((50,), outputs=5, support=5)
    learner = machine()
    adapted, _ = learner.adapt(learner.init(None), episodes.support)
    assert adapted.params["weights"].shape == (3, 50, 5)
    assert torch.equal(learner.predict(adapted, episodes.support.x).argmax(-1), episodes.support.y)


def test_images_of_one_number_a_task_in_single_precision():
    torch.set_default_dtype(torch.float32)
    support, query = (batch._replace(x=batch.x.float()) for batch in random_episodes((1, 8, 8), support=6))
    learner = svm(nn.Conv2d(1, 2, 3))
    gradient, info = headstart.meta_gradient(learner, learner.init(None), Episodes(support, query))
    assert {value.dtype for part in gradient for value in part.values()} == {torch.float32}
    assert info.query_loss.dtype == torch.float32
    flat = svm()
    scalars = Batch(support.x[:, :, 0, 0, 0], support.y)
    assert flat.predict(flat.adapt(flat.init(None), scalars)[0], scalars.x).shape == (3, 6, 3)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_structure_is_shown_in_its_own_units(machine):
    number = {"C": 3.0} if machine is svm else {"regularisation": 3.0}
    learner = machine(net(), kernel="rbf", width=2.0, scale=5.0, **number)
    values = {name: value.item() for name, value in learner.shown(learner.init(None)).items()}
    assert values == pytest.approx({**number, "width": 2.0, "scale": 5.0})


def test_meta_training_learns_the_features_and_the_structure():
    """Two of three inputs are noise: the embedding and C must find the one that tells classes apart."""
    generator = torch.Generator().manual_seed(0)

    def sample():
        y = torch.stack([torch.randperm(6, generator=generator) % 2 for _ in range(8)])
        sign = torch.randint(0, 2, (8, 1), generator=generator) * 2 - 1
        x = 3 * torch.randn(8, 6, 3, generator=generator)
        x[..., 0] = sign * (2 * y - 1) + 0.3 * torch.randn(8, 6, generator=generator)
        return Episodes(Batch(x[:, :4], y[:, :4]), Batch(x[:, 4:], y[:, 4:]))

    torch.manual_seed(0)
    learner = svm(nn.Linear(3, 3), ways=2, taskmap="vmap")
    meta = learner.init(None)
    tensors = [value.requires_grad_() for part in meta for value in part.values()]
    optimizer = torch.optim.Adam(tensors, 0.05)
    losses = []
    for _ in range(40):
        loss, _ = headstart.meta_loss(learner, meta, sample())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert meta.structure["log_C"].item() != pytest.approx(math.log(0.1))


@pytest.mark.parametrize("machine", MACHINES)
def test_what_does_not_fit_is_refused(machine):
    learner = machine(net())
    meta, (support, _) = learner.init(None), random_episodes((3,))
    with pytest.raises(ShapeError, match="needs integer labels"):
        learner.adapt(meta, support._replace(y=support.y.double()))
    with pytest.raises(ShapeError, match="labels go from 0 to 2, but there are 2 ways"):
        machine(net(), ways=2).adapt(meta, support)
    with pytest.raises(ShapeError, match="one tensor; got a tuple"):
        machine().adapt(machine().init(None), support._replace(x=(support.x, support.x)))
    with pytest.raises(UnknownNameError, match="unknown kernel 'rfb'; did you mean 'rbf'"):
        machine(kernel="rfb")
    with pytest.raises(UsageError, match="width must be above 0, got 0"):
        machine(width=0)
    with pytest.raises(UsageError, match="scale must be above 0, got -1"):
        machine(scale=-1)


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
    monkeypatch.setattr("headstart.algorithms.heads.kernel_machines._STEPS", 1)
    monkeypatch.setattr("headstart.algorithms.heads.kernel_machines._SWEEPS", 1)
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


def cube_root(cube):
    root = cube.detach() ** (1 / 3)
    return implicit(root, root**3 - cube, lambda v: v / (3 * root**2))


def test_the_derivative_of_a_root():
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
