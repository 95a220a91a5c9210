import math
import warnings

import pytest
import torch
from torch import nn

import headstart
from headstart.algorithms.heads.kernel_machines import logistic, svm
from headstart.errors import ShapeError, UnknownNameError, UsageError
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


def with_values(learner, **values):
    """Return the learner's meta value with numbers of M set."""
    meta = learner.init(None)
    return meta._replace(structure={**meta.structure, **{name: torch.tensor(v) for name, v in values.items()}})


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


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_the_contract_of_a_learner(machine, kernel):
    module = net()
    check_learner(lambda taskmap: machine(module, kernel=kernel, taskmap=taskmap), random_episodes((3,)), module=module)
    check_learner(machine(kernel=kernel), random_episodes((3,), support=9), order=True)


@pytest.mark.parametrize("C", [1e-3, 100.0])
def test_the_contract_of_a_soft_and_a_hard_margin(C):
    check_learner(svm(net(), C=C), random_episodes((3,), support=12, seed=3), directions=2)


@pytest.mark.parametrize(
    ("machine", "name"),
    [(svm, "log_C"), (svm, "log_width"), (svm, "log_scale"), (logistic, "log_regularisation"), (logistic, "log_width")],
)
def test_the_derivative_of_each_number_of_the_structure(machine, name):
    learner = machine(net(), kernel="rbf")
    episodes = random_episodes((3,), support=7, seed=5)
    meta = learner.init(None)
    gradient, _ = headstart.meta_gradient(learner, meta, episodes)

    def loss(value):
        with torch.no_grad():
            return headstart.meta_loss(learner, with_values(learner, **{name: value}), episodes)[0].item()

    at, h = meta.structure[name].item(), 1e-5
    difference = (loss(at + h) - loss(at - h)) / (2 * h)
    assert difference != 0
    assert gradient.structure[name].item() == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_class_without_a_support_example_is_never_predicted_and_changes_nothing(machine, kernel):
    support, query = random_episodes((3,), support=6)
    few = support._replace(y=support.y % 2), query._replace(y=query.y % 2)
    module = net()
    many, two = machine(module, kernel=kernel, ways=5), machine(module, kernel=kernel, ways=2)
    meta = many.init(None)
    logits = many.predict(many.adapt(meta, few[0])[0], few[1].x)
    assert (logits[..., 2:] == -torch.inf).all()
    torch.testing.assert_close(logits[..., :2], two.predict(two.adapt(meta, few[0])[0], few[1].x))
    gradients = [headstart.meta_gradient(one, meta, Episodes(*few))[0] for one in (many, two)]
    for part, like in zip(*gradients):
        torch.testing.assert_close(part, like)


@pytest.mark.parametrize("machine", MACHINES)
def test_tasks_with_other_classes_and_numbers_of_examples_share_a_batch(machine):
    support, query = random_episodes((3,), support=6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0]]).bool()
    nan = Batch(support.x.masked_fill(~mask[..., None], torch.nan), support.y, mask)
    learner = machine(net(), ways=3)
    meta = learner.init(None)
    logits = learner.predict(learner.adapt(meta, nan)[0], query.x)
    for task in range(3):
        alone = Batch(support.x[task : task + 1, mask[task]], support.y[task : task + 1, mask[task]])
        expected = learner.predict(learner.adapt(meta, alone)[0], query.x[task : task + 1])
        torch.testing.assert_close(logits[task : task + 1], expected)
    # a single class: nothing to tell apart
    assert set(logits[2].flatten().tolist()) == {0.0, -math.inf}


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
