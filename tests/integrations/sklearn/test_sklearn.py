"""The estimators learn across tasks, adapt, and work inside scikit-learn's own tools."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, GroupKFold, LeaveOneGroupOut, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headstart.errors import ConfigError, DataError, UnknownNameError, UsageError
from headstart.integrations.sklearn import FewShotClassifier, FewShotRegressor
from headstart.training.reliability import reliability


@pytest.fixture(scope="module")
def regressor(lines):
    return FewShotRegressor(support=4, steps=60, random_state=0).fit(lines.x, lines.y, groups=lines.groups)


@pytest.fixture(scope="module")
def classifier(sides):
    return FewShotClassifier(support=3, steps=60, random_state=0).fit(sides.x, sides.y, groups=sides.groups)


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def new_line(slope, rows=30):
    x = np.random.default_rng(7).uniform(-1, 1, size=(rows, 2))
    return x, slope * x[:, 0]


def new_sides(labels, rows=60):
    x = np.random.default_rng(7).normal(size=(rows, 4))
    return x, np.asarray(labels)[(x[:, 0] > 0).astype(int)]


def test_a_new_task_is_learned_from_a_few_rows(regressor):
    for slope in (-2.0, 1.5):
        x, y = new_line(slope)
        adapted = regressor.adapt(x[:4], y[:4])
        assert adapted.score(x[4:], y[4:]) > 0.9
        assert regressor.score(x[4:], y[4:]) < 0.5


def test_what_was_learned_across_tasks_helps(lines):
    untrained, trained = (FewShotRegressor("maml", support=4, steps=n, random_state=0).fit(*lines) for n in (0, 60))
    scores = [one.score(lines.x, lines.y, groups=lines.groups) for one in (untrained, trained)]
    assert scores[1] > scores[0] + 0.1


def test_adapting_leaves_the_estimator_as_it_is(regressor):
    x, y = new_line(2.0)
    before = regressor.predict(x)
    first = regressor.adapt(x[:4], y[:4])
    second = first.adapt(x[:4], -y[:4])
    np.testing.assert_array_equal(regressor.predict(x), before)
    assert first.score(x, y) > 0.9 and second.score(x, -y) > 0.9


def test_the_regressor_says_how_sure_it_is(regressor):
    x, y = new_line(2.0)
    few, many = regressor.adapt(x[:1], y[:1]), regressor.adapt(x, y)
    (mean, wide), (_, narrow) = few.predict(x, return_std=True), many.predict(x, return_std=True)
    np.testing.assert_allclose(mean, few.predict(x))
    assert wide.shape == y.shape and (narrow > 0).all() and narrow.mean() < wide.mean()


def test_deviations_are_in_the_units_of_the_targets(lines):
    def fitted(unit):
        estimator = FewShotRegressor(steps=5, random_state=0)
        return estimator.fit(lines.x, unit * lines.y, groups=lines.groups).predict(lines.x, return_std=True)

    (mean, deviation), (larger_mean, larger) = fitted(1), fitted(1000)
    np.testing.assert_allclose(larger, 1000 * deviation, rtol=1e-6)
    np.testing.assert_allclose(larger_mean, 1000 * mean, rtol=1e-6, atol=1e-6)


def test_a_method_without_a_distribution_says_so(lines):
    estimator = FewShotRegressor(method="maml", steps=0, random_state=0).fit(lines.x, lines.y)
    with pytest.raises(UsageError, match="'maml' does not say how sure it is"):
        estimator.predict(lines.x, return_std=True)


def test_several_targets(lines):
    targets = np.stack([lines.y, -lines.y], 1)
    estimator = FewShotRegressor(steps=10, random_state=0).fit(lines.x, targets, groups=lines.groups)
    mean, deviation = estimator.adapt(lines.x[:8], targets[:8]).predict(lines.x, return_std=True)
    assert mean.shape == deviation.shape == targets.shape
    with pytest.raises(DataError, match=r"shape \(8,\), but .* shape \(n, 2\)"):
        estimator.adapt(lines.x[:8], lines.y[:8])


@pytest.mark.parametrize("method", ["maml", "reptile", "ridge"])
def test_other_methods_regress(lines, method):
    estimator = FewShotRegressor(method, support=4, steps=30, tasks_per_step=8, random_state=0).fit(*lines)
    assert estimator.method_ == method
    assert estimator.adapt(lines.x[:8], lines.y[:8]).score(lines.x[:8], lines.y[:8]) > 0


def test_new_classes_are_learned_from_a_few_rows(classifier):
    for labels in (["no", "yes"], ["yes", "no"], [10, 3]):
        x, y = new_sides(labels)
        adapted = classifier.adapt(x[:12], y[:12])
        assert adapted.classes_.tolist() == sorted(labels) and classifier.classes_.tolist() == ["no", "yes"]
        assert adapted.score(x[12:], y[12:]) > 0.8
        proba = adapted.predict_proba(x)
        np.testing.assert_allclose(proba.sum(1), 1)
        np.testing.assert_array_equal(adapted.classes_[proba.argmax(1)], adapted.predict(x))


def test_probabilities_are_calibrated_where_there_are_validation_tasks(tmp_path):
    generator = np.random.default_rng(0)

    def drawn(tasks):
        """Return rows around two centres of each task, near to each other in 20 dimensions."""
        groups, y = np.arange(tasks * 40) // 40, np.arange(tasks * 40) % 2
        centres = 0.35 * generator.normal(size=(tasks, 2, 20))
        return centres[groups, y] + generator.normal(size=(len(y), 20)), y, groups

    told = {"support": 5, "random_state": 0, "tasks_per_step": 2}
    own, calibrated = (
        FewShotClassifier("nearest", validation_fraction=share, **told).fit(*drawn(40)) for share in (0, 0.5)
    )
    x, y, groups = drawn(30)
    chances = []
    for estimator in (own, calibrated):
        rows = []
        for task in range(30):
            shown, asked = (groups == task).nonzero()[0][:10], (groups == task).nonzero()[0][10:]
            adapted = estimator.adapt(x[shown], y[shown])
            rows.append((adapted.predict_proba(x[asked]), y[asked]))
        chances.append(tuple(np.concatenate(parts) for parts in zip(*rows)))
    errors = [
        reliability(torch.tensor(found.max(1)), torch.tensor(found.argmax(1) == truth)).ece for found, truth in chances
    ]
    assert errors[1] < 0.05 < 0.15 < errors[0], errors
    adapted.save(tmp_path / "adapted")
    again = FewShotClassifier.load(tmp_path / "adapted")
    np.testing.assert_array_equal(again.predict_proba(x), adapted.predict_proba(x))


def test_tasks_may_have_different_classes(sides):
    names = np.array([f"{label} of {group % 5}" for label, group in zip(sides.y, sides.groups)])
    estimator = FewShotClassifier(support=3, steps=20, random_state=0).fit(sides.x, names, groups=sides.groups)
    assert len(estimator.classes_) == 10
    x, _ = new_sides([0, 1])
    y = np.digitize(x[:, 0], [-0.5, 0.5])
    adapted = estimator.adapt(x[:20], y[:20])
    assert adapted.predict_proba(x).shape == (60, 3) and adapted.score(x, y) > 0.6


def test_one_class_is_all_that_can_be_said(classifier):
    x, _ = new_sides([0, 1])
    assert (classifier.adapt(x[:2], ["only", "only"]).predict(x) == "only").all()


def test_a_method_with_one_output_a_class_refuses_new_classes(sides):
    estimator = FewShotClassifier("maml", support=3, steps=3, tasks_per_step=4, random_state=0).fit(*sides)
    adapted = estimator.adapt(sides.x[:6], np.repeat("yes", 6))
    assert adapted.classes_.tolist() == ["no", "yes"]
    with pytest.raises(DataError, match="label 'maybe' is not among the 2 classes.*method='prototypes'"):
        estimator.adapt(sides.x[:6], np.repeat("maybe", 6))


@pytest.mark.parametrize("method", ["ridge", "logistic", "svm"])
def test_other_heads_classify(sides, method):
    estimator = FewShotClassifier(method, support=3, steps=20, tasks_per_step=8, random_state=0).fit(*sides)
    x, y = new_sides(["new", "newer"])
    assert estimator.adapt(x[:20], y[:20]).score(x[20:], y[20:]) > 0.75


def test_the_score_with_groups_adapts_to_each_task(lines, regressor, sides, classifier):
    assert regressor.score(lines.x, lines.y, groups=lines.groups) > 0.8 > 0.5 > regressor.score(lines.x, lines.y)
    assert classifier.score(sides.x, sides.y, groups=sides.groups) > 0.8 > 0.75 > classifier.score(sides.x, sides.y)


def test_the_score_with_groups_is_that_of_adapting_by_hand(lines, regressor):
    estimator = clone(regressor).set_params(order="first", steps=5).fit(*lines)
    truth, predicted = [], []
    for group in np.unique(lines.groups):
        x, y = lines.x[lines.groups == group], lines.y[lines.groups == group]
        truth.append(y[4:])
        predicted.append(estimator.adapt(x[:4], y[:4]).predict(x[4:]))
    assert estimator.score(lines.x, lines.y, groups=lines.groups) == pytest.approx(
        r2_score(np.concatenate(truth), np.concatenate(predicted))
    )
    weights = np.zeros(len(lines.y))
    weights[lines.groups == "line 3"] = 1
    alone = estimator.score(lines.x, lines.y, sample_weight=weights, groups=lines.groups)
    place = np.unique(lines.groups).tolist().index("line 3")
    assert alone == pytest.approx(r2_score(truth[place], predicted[place]))


@pytest.mark.parametrize("maker", [FewShotRegressor, FewShotClassifier])
def test_the_same_seed_gives_the_same_estimator(maker, lines, sides):
    table = lines if maker is FewShotRegressor else sides
    one, two, other = (maker(support=(2, 4), steps=8, random_state=seed).fit(*table) for seed in (1, 1, 2))
    assert one.loss_curve_ == two.loss_curve_ != other.loss_curve_
    np.testing.assert_array_equal(one.predict(table.x), two.predict(table.x))


def test_the_global_generators_are_left_alone(lines):
    import torch

    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    FewShotRegressor("maml", steps=3, random_state=0).fit(*lines)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])


def test_without_groups_parts_of_the_rows_are_tasks():
    random = np.random.default_rng(0)
    x = random.normal(size=(120, 3))
    y = np.sin(2 * x[:, 0])
    estimator = FewShotRegressor(random_state=0).fit(x, y)
    assert estimator.n_iter_ == 5 * (120 // 10)
    assert FewShotRegressor(random_state=0, support=100).fit(x, y).n_iter_ == 20
    assert FewShotRegressor(random_state=0, support=120).fit(x, y).n_iter_ == 0


def test_validation_tasks_choose_the_weights(lines):
    estimator = FewShotRegressor("maml", steps=40, validation_fraction=0.25, random_state=0).fit(*lines)
    curve = estimator.validation_curve_
    assert len(curve) == 21 and min(curve) < curve[0]
    assert FewShotRegressor(steps=4, random_state=0).fit(*lines).validation_curve_ == []


def test_tasks_with_too_few_rows_are_refused_or_skipped(lines):
    keep = ~((lines.groups == "line 3") & (np.cumsum(lines.groups == "line 3") > 2))
    rows = [part[keep] for part in lines]
    with pytest.raises(DataError, match=r"task 'line 3' has 2 rows.*on_short='skip'"):
        FewShotRegressor(support=4, steps=1).fit(*rows)
    estimator = FewShotRegressor(support=4, steps=1, on_short="skip").fit(*rows)
    assert estimator.score(rows[0], rows[1], groups=rows[2]) < 1
    with pytest.raises(DataError, match="no task left"):
        FewShotRegressor(support=9, steps=1, on_short="skip").fit(*rows)
    FewShotRegressor(support=(1, 9), steps=1).fit(*rows)


def test_verbose_prints_the_loss(lines, capsys):
    FewShotRegressor(steps=2, verbose=1, validation_fraction=0.2, random_state=0).fit(*lines)
    assert "step 2 of 2: query loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"method": "mamal"}, UnknownNameError, "unknown method 'mamal'; did you mean 'maml'"),
        ({"method": 3}, ConfigError, "method is 3, but must be a text"),
        ({"method": "prototypes"}, ConfigError, "'prototypes' classifies"),
        ({"hidden": 3}, ConfigError, "hidden is 3, but must be values"),
        ({"hidden": (0,)}, ConfigError, r"hidden is \(0,\), but must be values"),
        ({"support": 0}, ConfigError, "support is 0, but must be a whole number from 1 up or a range"),
        ({"support": (5, 2)}, ConfigError, r"support is \(5, 2\), but must be a whole number from 1 up or a range"),
        ({"order": "last"}, ConfigError, "order is 'last', but must be one of random, first"),
        ({"steps": -1}, ConfigError, "steps is -1, but must be a whole number from 0 up"),
        ({"steps": True}, ConfigError, "steps is True, but must be a whole number"),
        ({"tasks_per_step": 1.5}, ConfigError, "tasks_per_step is 1.5, but must be a whole number"),
        ({"outer_rate": 0}, ConfigError, "outer_rate is 0, but must be a number above 0"),
        ({"inner_rate": "fast"}, ConfigError, "inner_rate is 'fast', but must be a number above 0"),
        ({"validation_fraction": 1.0}, ConfigError, "validation_fraction is 1.0, but must be a number from 0 and"),
        ({"on_short": "drop"}, ConfigError, "on_short is 'drop', but must be one of"),
        ({"pooled_rows": 0}, ConfigError, "pooled_rows is 0, but must be a whole number"),
        ({"method": "cnp", "hidden": (8, 8)}, ConfigError, "one width for all layers"),
    ],
)
def test_wrong_parameters_are_refused(lines, wrong, error, message):
    with pytest.raises(error, match=message):
        FewShotRegressor(**wrong).fit(lines.x, lines.y, groups=lines.groups)


def test_methods_that_do_not_classify_are_refused_and_those_without_a_network_learn_the_rest(sides):
    with pytest.raises(ConfigError, match="'gaussian_process' regresses"):
        FewShotClassifier("gaussian_process").fit(sides.x, sides.y)
    ridge = FewShotClassifier("ridge", hidden=(), steps=2, random_state=0).fit(sides.x, sides.y)
    assert ridge.fitted_.meta.params == {}


@pytest.mark.parametrize(
    "groups, message",
    [
        (np.zeros(3), r"shape \(160,\); got shape \(3,\)"),
        (np.zeros((160, 1)), r"got shape \(160, 1\)"),
        ([None, *["a"] * 159], "no task for row 0"),
        ([float("nan"), *[1.0] * 159], "no task for row 0"),
        (np.array([1, *["a"] * 159], dtype=object), "all numbers or all strings"),
    ],
)
def test_wrong_groups_are_refused(lines, groups, message):
    with pytest.raises(DataError, match=message):
        FewShotRegressor(steps=1).fit(lines.x, lines.y, groups=groups)


def test_nothing_works_before_fit(lines):
    for call in ("adapt", "score"):
        with pytest.raises(NotFittedError):
            getattr(FewShotRegressor(), call)(lines.x, lines.y)
    with pytest.raises(NotFittedError):
        FewShotClassifier().predict(lines.x)


def test_clone_and_pickle(regressor, lines):
    adapted = regressor.adapt(lines.x[:8], lines.y[:8])
    again = pickle.loads(pickle.dumps(adapted))
    np.testing.assert_array_equal(again.predict(lines.x), adapted.predict(lines.x))
    copy = clone(adapted)
    assert copy.get_params() == regressor.get_params() and not hasattr(copy, "fitted_")


def test_names_of_features_are_kept_and_checked(lines):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(lines.x, columns=["first", "second"])
    estimator = FewShotRegressor(steps=1, random_state=0).fit(table, pandas.Series(lines.y), groups=lines.groups)
    assert estimator.feature_names_in_.tolist() == ["first", "second"] and estimator.n_features_in_ == 2
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.adapt(table.rename(columns={"first": "other"}), lines.y)


def test_pipeline_without_routing(lines):
    pipeline = make_pipeline(StandardScaler(), FewShotRegressor(support=4, steps=60, random_state=0))
    pipeline.fit(lines.x, lines.y, fewshotregressor__groups=lines.groups)
    x, y = new_line(2.0)
    adapted = pipeline[-1].adapt(pipeline[:-1].transform(x[:4]), y[:4])
    assert adapted.score(pipeline[:-1].transform(x), y) > 0.9


def test_a_search_without_routing_splits_by_groups_but_fits_without(lines):
    search = GridSearchCV(FewShotRegressor(steps=1, random_state=0), {"support": [2, 3]}, cv=GroupKFold(2), refit=False)
    search.fit(lines.x, lines.y, groups=lines.groups)
    assert (search.cv_results_["mean_test_score"] < 0.5).all()  # nothing is adapted


@pytest.mark.parametrize("cv", [GroupKFold(3), LeaveOneGroupOut()], ids=["k folds", "leave one out"])
def test_a_search_with_routing_scores_adaptation(lines, routing, cv):
    table = [part[: 8 * 6] for part in lines]
    estimator = FewShotRegressor(random_state=0, support=4).set_fit_request(groups=True).set_score_request(groups=True)
    search = GridSearchCV(estimator, {"steps": [0, 30]}, cv=cv)
    search.fit(table[0], table[1], groups=table[2])
    x, y = new_line(2.0)
    assert search.best_score_ > 0.5
    assert search.best_estimator_.adapt(x[:4], y[:4]).score(x, y) > 0.8


def test_a_pipeline_in_a_search_with_routing(sides, routing):
    model = FewShotClassifier(random_state=0, steps=30).set_fit_request(groups=True).set_score_request(groups=True)
    pipeline = make_pipeline(StandardScaler(), model)
    found = cross_validate(pipeline, sides.x, sides.y, params={"groups": sides.groups}, cv=GroupKFold(3))
    assert found["test_score"].mean() > 0.7


def test_three_rows_of_an_unseen_person_beat_the_pooled_ridge(shared_data):
    file = shared_data / "panel" / "sleepstudy.csv"
    if not file.exists():
        pytest.skip("the shared data hold no sleepstudy.csv")
    subject, days, reaction = np.loadtxt(file, delimiter=",", skiprows=1, usecols=(3, 2, 1), unpack=True, quotechar='"')
    x, people = days.reshape(-1, 1), np.unique(subject)
    adapted_errors, pooled_errors = [], []
    for split in range(3):
        unseen = np.random.default_rng(split).permutation(people)[:6]
        known = ~np.isin(subject, unseen)
        estimator = FewShotRegressor(support=3, order="first", random_state=0)
        estimator.fit(x[known], reaction[known], groups=subject[known])
        pooled = Ridge().fit(x[known], reaction[known])
        for person in unseen:
            few, rest = np.split(np.flatnonzero(subject == person), [3])
            adapted = estimator.adapt(x[few], reaction[few])
            adapted_errors.append(adapted.predict(x[rest]) - reaction[rest])
            pooled_errors.append(pooled.predict(x[rest]) - reaction[rest])
    ours, theirs = (np.sqrt(np.mean(np.square(errors))) for errors in (adapted_errors, pooled_errors))
    assert ours < 0.95 * theirs


def test_importing_headstart_does_not_import_scikit_learn():
    code = "import sys, headstart; headstart.maml; print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_without_scikit_learn_the_error_says_what_to_install():
    code = "import sys; sys.modules['sklearn'] = None; import headstart.integrations.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UsageError: " in done.stderr and "pip install headstart[sklearn]" in done.stderr


def test_values_without_a_standard_deviation_are_refused() -> None:
    x, task = np.linspace(0, 1, 40).reshape(-1, 1), np.repeat(np.arange(4), 10)
    with pytest.raises(DataError, match="y, column 'y0': its values are too large"):
        FewShotRegressor(steps=1).fit(x, 1e250 * x.ravel(), groups=task)
    with pytest.raises(DataError, match="X, column 'x0': its values are too large"):
        FewShotRegressor(steps=1).fit(1e250 * x, x.ravel(), groups=task)


def test_first_rows_of_one_class_do_not_flatter_the_score():
    # of coin flips; with later rows of the other class left out, the accuracy was 1
    generator = np.random.default_rng(0)
    x, y, shop = generator.normal(size=(960, 1)), generator.choice(["a", "b"], 960), np.arange(960) // 8
    classifier = FewShotClassifier(support=1, order="first", steps=5, random_state=0).fit(x, y, groups=shop)
    assert abs(classifier.score(x, y, groups=shop) - 0.5) < 0.05
    adapted = classifier.adapt(x[:1], ["b"])
    assert adapted.classes_.tolist() == ["a", "b"]
    assert abs(adapted.predict_proba(x) - 0.5).max() < 0.1


def test_a_task_without_rows_is_predicted_as_training_says(tmp_path):
    x, line = np.tile(np.linspace(0, 1, 10), 8).reshape(-1, 1), np.arange(80) // 10
    regressor = FewShotRegressor(steps=20, random_state=0).fit(x, 5 + (line - 3.5) * 0.1 + x.ravel(), groups=line)
    unknown = regressor.adapt()
    assert np.abs(unknown.predict(x) - 5 - x.ravel()).max() < 0.2
    assert (unknown.predict(x, return_std=True)[1] > regressor.adapt(x[:5], x[:5].ravel()).predict(x, True)[1]).all()
    unknown.save(tmp_path / "unknown")
    assert (FewShotRegressor.load(tmp_path / "unknown").predict(x) == unknown.predict(x)).all()
    with pytest.raises(DataError, match="or neither"):
        regressor.adapt(x)
    classes = FewShotClassifier("ridge", support=1, order="first", steps=5, random_state=0)
    told = classes.fit(x, np.where(np.arange(80) % 4, "no", "yes"), groups=line).adapt().predict_proba(x)
    assert np.abs(told - [0.75, 0.25]).max() < 0.1
