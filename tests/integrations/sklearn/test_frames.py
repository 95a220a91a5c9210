"""Frames, texts, missing values and labels of every type reach the estimators as they reach the command line."""

import datetime

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from headstart.data.tables.read import read_table
from headstart.data.tables.schema import UnseenValueWarning
from headstart.data.tables.table import LeftOutWarning, TargetAmongFeaturesWarning, table
from headstart.errors import DataError
from headstart.integrations.sklearn import FewShotClassifier, FewShotRegressor
from headstart.integrations.sklearn.frames import number_table, value_table

pandas = pytest.importorskip("pandas")

SHOP = np.repeat(np.arange(20), 8)
ROWS = len(SHOP)


@pytest.fixture(scope="module")
def frame():
    random = np.random.default_rng(0)
    day = [datetime.date(2020, 1, 1) + datetime.timedelta(days=int(n)) for n in random.integers(0, 900, ROWS)]
    found = pandas.DataFrame(
        {
            "city": random.choice(["oslo", "rome"], ROWS),
            "size": pandas.Categorical(random.choice(["s", "m", "l"], ROWS)),
            "open": pandas.array(random.random(ROWS) > 0.5, dtype="boolean"),
            "day": day,
            "income": np.exp(3 * random.normal(size=ROWS)),
            "visits": pandas.array(random.integers(1, 50, ROWS), dtype="Int64"),
        }
    )
    for place, name in enumerate(("city", "open", "day", "visits")):
        found.loc[place :: 7 + place, name] = None
    return found


@pytest.fixture(scope="module")
def y(frame):
    random = np.random.default_rng(1)
    return random.normal(size=20)[SHOP] + 2 * (frame["city"] == "rome").to_numpy() + 0.3 * np.log(frame["income"])


@pytest.fixture(scope="module")
def regressor(frame, y):
    return FewShotRegressor(support=4, steps=20, random_state=0).fit(frame, y, groups=SHOP)


def in_polars(frame):
    polars = pytest.importorskip("polars")
    columns = {name: [None if value is pandas.NA else value for value in frame[name]] for name in frame}
    columns = {name: [None if value != value else value for value in values] for name, values in columns.items()}
    return polars.DataFrame(columns).with_columns(polars.col("size").cast(polars.Categorical))


def test_a_frame_is_read_as_the_command_line_reads_its_file(frame, y, regressor, tmp_path):
    frame.assign(shop=SHOP, y=y).to_csv(tmp_path / "shops.csv", index=False)
    shares = {"validation_share": 0.05, "test_share": 0.05, "shots": 4}
    tasks = table(data=tmp_path / "shops.csv", task_column="shop", target="y", **shares)
    own = regressor.fitted_.encoding.features
    assert [feature.kind for feature in own] == ["category", "category", "boolean", "date", "number", "number"]
    assert tasks.details["features"] == [name for feature in own for name in feature.inputs]
    again = read_table(tmp_path / "shops.csv")
    numbers, texts = value_table(frame, list(frame), own), {name: again.columns[name] for name in frame}
    np.testing.assert_array_equal(
        regressor.fitted_.encoding.encode(numbers), regressor.fitted_.encoding.encode(again._replace(columns=texts))
    )
    assert own[4].unit > 0 and regressor.score(frame, y, groups=SHOP) > 0.8


def test_order_arrays_and_files_change_nothing(frame, y, regressor, tmp_path):
    expected = regressor.predict(frame)
    np.testing.assert_array_equal(regressor.predict(frame[frame.columns[::-1]]), expected)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        np.testing.assert_array_equal(regressor.predict(frame.to_numpy()), expected)
    for number, one in enumerate((regressor, regressor.adapt(frame.iloc[:5, ::-1], y[:5]), regressor.adapt())):
        one.save(tmp_path / str(number))
        loaded = FewShotRegressor.load(tmp_path / str(number))
        np.testing.assert_allclose(loaded.predict(frame), one.predict(frame), rtol=1e-10)
        assert loaded.feature_names_in_.tolist() == list(frame) and loaded.n_features_in_ == 6


def test_frames_of_polars_give_what_those_of_pandas_give(frame, y, regressor):
    same, expected = in_polars(frame), regressor.predict(frame)
    np.testing.assert_array_equal(regressor.predict(same.select(reversed(same.columns))), expected)
    again = FewShotRegressor(support=4, steps=20, random_state=0).fit(same, y, groups=SHOP)
    np.testing.assert_array_equal(again.predict(same), expected)
    for other in (same.lazy(), same.to_arrow()):
        with pytest.raises(DataError, match=r"give X.collect\(\), or X.to_pandas\(\)"):
            regressor.predict(other)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda f: f.drop(columns="day"), ValueError, "yet now missing:\n- day"),
        (lambda f: f.assign(extra=1), ValueError, "unseen at fit time:\n- extra"),
        (lambda f: pandas.concat([f, f[["day"]]], axis=1), DataError, "more than one column 'day'"),
        (lambda f: f.assign(income="lots"), DataError, "X, row 0, column 'income': 'lots' is not a number"),
        (lambda f: f.assign(open=3.0), DataError, "column 'open': '3' is not true or false"),
        (lambda f: f.assign(visits=np.inf), DataError, "column 'visits': 'inf' is not a finite number"),
        (lambda f: f.assign(city=[["oslo"]] * ROWS), DataError, r"'city', row 0: \['oslo'\] is a list, but a text"),
        (lambda f: f.assign(day=pandas.Timedelta("1D")), DataError, "is a Timedelta, but a text, number"),
        (lambda f: f.assign(visits=pandas.Series([10**400] * ROWS, dtype=object)), DataError, "too large"),
        (lambda f: f[:0], DataError, "X has no rows"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(frame, regressor, change, error, message):
    with pytest.raises(error, match=message):
        regressor.predict(change(frame))


def test_what_may_surprise_is_told_in_the_terms_of_an_estimator(frame, y, regressor):
    def fitted(**columns):
        FewShotRegressor("ridge", steps=0).fit(frame.assign(**columns), y, groups=SHOP)

    with pytest.warns(LeftOutWarning, match="column 'name': left out: text with 160 different values"):
        fitted(name=[f"n{row}" for row in range(ROWS)])
    with pytest.warns(TargetAmongFeaturesWarning, match="leave it out$"):
        fitted(double=2 * y)
    with pytest.raises(DataError, match="or leave the column out$"):
        fitted(price=["?!", *map(str, range(20)), *["7"] * (ROWS - 21)])
    with pytest.warns(UnseenValueWarning, match="'paris' in row 1 is in no training task"):
        regressor.predict(frame.assign(city=["oslo", "paris", *["rome"] * (ROWS - 2)]))
    with pytest.warns(UnseenValueWarning, match="column 'visits'.*far from"):
        far = regressor.predict(frame.assign(visits=1e9))
    assert np.abs(far - y.mean()).max() < 4 * np.ptp(y)


def test_categories_of_numbers_are_categories_whatever_type_they_come_in_later(y):
    code = np.random.default_rng(0).integers(1, 4, ROWS)
    typed = pandas.DataFrame({"code": pandas.Categorical(code)})
    estimator = FewShotRegressor("ridge", steps=0, random_state=0).fit(typed, y, groups=SHOP)
    assert estimator.fitted_.encoding.features[0].categories == ("1", "2", "3")
    for later in (code, code.astype(float), code.astype(str)):
        np.testing.assert_array_equal(estimator.predict(pandas.DataFrame({"code": later})), estimator.predict(typed))


def test_numbers_in_an_array_are_standardised_and_no_more(y):
    x = np.random.default_rng(0).normal(size=(ROWS, 3)) ** 3
    x[:, 2] = 7
    estimator = FewShotRegressor("ridge", steps=0, random_state=0).fit(x, y, groups=SHOP)
    found = estimator.fitted_.encoding.encode(number_table(100 * x, ("x0", "x1", "x2"))).numpy()
    varying = x[:, :2]
    np.testing.assert_allclose(found[:, :2], (100 * varying - varying.mean(0)) / varying.std(0))
    assert found.shape == (ROWS, 3)


def test_missing_numbers_and_texts_in_arrays(y, tmp_path):
    x = np.random.default_rng(0).normal(size=(ROWS, 2))
    x[::5, 1] = np.nan
    estimator = FewShotRegressor("ridge", steps=0, random_state=0).fit(x, y, groups=SHOP)
    estimator.save(tmp_path / "estimator")
    np.testing.assert_allclose(FewShotRegressor.load(tmp_path / "estimator").predict(x), estimator.predict(x))
    assert estimator.fitted_.spec.inputs == 3 and np.isfinite(estimator.predict([[1.0, None]])).all()
    with pytest.raises(ValueError, match="contains infinity"):
        estimator.predict([[1.0, np.inf]])
    texts = [["a", 1.5], ["b", None]] * (ROWS // 2)
    estimator = FewShotRegressor("ridge", steps=0, random_state=0).fit(np.array(texts, object), y, groups=SHOP)
    assert [feature.kind for feature in estimator.fitted_.encoding.features] == ["category", "number"]
    dates = (np.datetime64("2020-01-01", "ns") + np.arange(ROWS) * np.timedelta64(1, "D")).reshape(-1, 1)
    estimator.fit(dates, y, groups=SHOP)
    assert estimator.fitted_.encoding.features[0].kind == "date"
    with pytest.raises(DataError, match="is a timedelta"):
        estimator.fit(dates - dates[0], y, groups=SHOP)


def labels(kind):
    high = np.arange(ROWS) % 3 == 0
    if kind.startswith("polars"):
        polars = pytest.importorskip("polars")
        return (
            polars.Series(np.where(high, "a", "b")).cast(polars.Categorical) if "text" in kind else polars.Series(high)
        )
    values = {"boolean": high, "Int64": np.where(high, 3, 1), "string": np.where(high, "a", "b")}
    if kind.startswith("category of "):
        return pandas.Categorical(values[kind.removeprefix("category of ")])
    return pandas.array(values[kind], dtype=kind)


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("boolean", [False, True]),
        ("Int64", [1, 3]),
        ("string", ["a", "b"]),
        ("category of boolean", [False, True]),
        ("category of Int64", [1, 3]),
        ("category of string", ["a", "b"]),
        ("polars boolean", [False, True]),
        ("polars text", ["a", "b"]),
    ],
)
def test_labels_keep_their_type(frame, tmp_path, kind, expected):
    own = labels(kind)
    classifier = FewShotClassifier(support=1, steps=1, random_state=0).fit(frame, own, groups=SHOP)
    classifier.adapt(frame[:4], own[:4]).save(tmp_path / "saved")
    for one in (classifier, FewShotClassifier.load(tmp_path / "saved")):
        found = one.predict(frame)
        assert one.classes_.tolist() == expected and {*map(type, found.tolist())} == {type(expected[0])}
    assert classifier.score(frame, own, groups=SHOP) > 0.3


def test_texts_are_not_the_numbers_that_they_look_like(frame):
    classifier = FewShotClassifier(support=1, steps=1, random_state=0).fit(frame, np.arange(ROWS) % 2, groups=SHOP)
    assert classifier.adapt(frame[:4], ["0", "1"] * 2).classes_.tolist() == ["0", "1"]


@pytest.mark.parametrize(
    "maker, values, message",
    [
        (FewShotClassifier, np.eye(2, dtype=int)[np.arange(ROWS) % 2], "2 columns.*MultiOutputClassifier"),
        (FewShotClassifier, np.array([1, "a"] * (ROWS // 2), dtype=object), "labels of types int and str"),
        (FewShotClassifier, pandas.array([None, *[True, False] * 79, True], dtype="boolean"), "missing in row 0"),
        (FewShotRegressor, np.array(["low", "high"] * (ROWS // 2)), "holds low, but .* take FewShotClassifier"),
        (FewShotRegressor, pandas.Series(["low"] * ROWS), "holds low, but .* take FewShotClassifier"),
        (FewShotRegressor, np.arange(ROWS).astype("datetime64[D]"), "holds 1970-01-01, but"),
    ],
)
def test_targets_of_another_kind_are_refused(frame, maker, values, message):
    with pytest.raises(DataError, match=message):
        maker(steps=0).fit(frame, values, groups=SHOP)


def test_weights_of_rows_are_no_parameter_of_fit(frame, y):
    with pytest.raises(TypeError, match="unexpected keyword argument 'sample_weight'"):
        FewShotRegressor().fit(frame, y, sample_weight=np.ones(ROWS))


def test_a_search_over_frames(frame, y):
    with sklearn.config_context(enable_metadata_routing=True):
        model = (
            FewShotRegressor("ridge", steps=2, random_state=0)
            .set_fit_request(groups=True)
            .set_score_request(groups=True)
        )
        pipeline = make_pipeline(FunctionTransformer(lambda rows: rows.drop(columns="day")), model)
        search = GridSearchCV(pipeline, {"fewshotregressor__support": [4, 5]}, cv=GroupKFold(2))
        search.fit(frame, y, groups=SHOP)
    assert search.best_score_ > 0.2 and search.best_estimator_[-1].n_features_in_ == 5
