"""The schema's JSON form: the way back gives the same, and nothing else is taken."""

import json
import warnings
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from headstart.data.tables.read import Table, strings
from headstart.data.tables.schema import (
    Feature,
    Schema,
    Shown,
    UnseenValueWarning,
    copies,
    encode_features,
    encode_rows,
    encode_target,
    far_targets,
    learn_features,
    learn_target,
    schema_from_json,
    schema_to_json,
)
from headstart.errors import DataError, FileError

PIGS = Schema(
    "pig",
    "weight",
    "week",
    "regression",
    (
        Feature("week", "number", 6.5, 3.5, missing=True),
        Feature("food", "category", categories=("corn", "oats")),
        Feature("born", "date", 18321.0, 5.0, date_format="date"),
    ),
    60.0,
    25.0,
)
NAMES = st.text(max_size=5)
FINITE = st.floats(-1e30, 1e30)
POSITIVE = st.floats(1e-30, 1e30)


@st.composite
def features(draw: Any) -> Feature:
    column, missing = draw(NAMES), draw(st.booleans())
    if draw(st.booleans()):
        categories = draw(st.lists(NAMES, min_size=1, unique=True))
        return Feature(column, "category", categories=tuple(categories), missing=missing)
    kind = draw(st.sampled_from(["number", "boolean", "date"]))
    limits = draw(st.none() | st.tuples(FINITE, FINITE).map(lambda ends: (min(ends), max(ends))))
    more = "date" if kind == "date" else "", missing, draw(POSITIVE), limits
    return Feature(column, kind, draw(FINITE), draw(POSITIVE), (), *more)


@st.composite
def schemas(draw: Any) -> Schema:
    found = draw(st.lists(features(), min_size=1, unique_by=lambda feature: feature.column))
    taken = {feature.column for feature in found}
    task, target = (draw(NAMES.filter(lambda name: name not in taken)) for _ in range(2))
    classes = tuple(draw(st.lists(NAMES, min_size=2, unique=True))) if draw(st.booleans()) else ()
    time = draw(st.none() | NAMES)
    if classes:
        return Schema(task, target, time, "classification", tuple(found), classes=classes)
    return Schema(task, target, time, "regression", tuple(found), draw(FINITE), draw(POSITIVE))


@given(schemas())
def test_the_way_through_json_and_back_gives_the_same(schema: Schema) -> None:
    assert schema_from_json(json.loads(json.dumps(schema_to_json(schema))), "here") == schema


def test_inputs_have_names() -> None:
    assert PIGS.inputs == ("week", "week missing", "food=corn", "food=oats", "born")


def changed(path: tuple[Any, ...], value: Any) -> Any:
    made = deepcopy(schema_to_json(PIGS))
    within = made
    for key in path[:-1]:
        within = within[key]
    if value is KeyError:
        del within[path[-1]]
    else:
        within[path[-1]] = value
    return made


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("target",), KeyError, "target: Field required"),
        (("extra",), 1, "extra: Extra inputs are not permitted, got 1"),
        (("format",), "headstart-table-2", "its format is not 'headstart-table-1'"),
        (("target",), 3, "target: .* got 3"),
        (("kind",), "ranking", "kind: .* got 'ranking'"),
        (("scale",), 0.0, "scale: .* got 0.0"),
        (("mean",), float("nan"), "mean: .* got nan"),
        (("mean",), True, "mean: .* got True"),
        (("mean",), "60", "mean: .* got '60'"),
        (("features",), [], r"its columns are 'weight', 'pig' and \[\]"),
        (("features", 0), 3, "features.0: .* got 3"),
        (("features", 0, "scale"), KeyError, "features.0.scale is missing"),
        (("commas",), KeyError, "commas is missing"),
        (("features", 1), ["dose", "number"], "features.1.column is missing"),
        (("features", 0, "kind"), KeyError, "features.0.kind: Field required"),
        (("features", 0, "scale"), -1, "features.0.scale: .* got -1"),
        (("features", 1, "categories"), ["a", "a"], "are not different"),
        (("features", 1, "categories"), [], "'food' is a category of 0 categories"),
        (("features", 0, "categories"), ["a"], "'week' is a number of 1 categories"),
        (("features", 2, "date_format"), "", "'born' is a date of date format ''"),
        (("features", 0, "missing"), 1, "features.0.missing: .* got 1"),
        (("features", 0, "column"), "weight", "its columns are"),
        (("classes",), ["a", "b"], "2 classes in regression"),
        (("kind",), "classification", "0 classes in classification"),
    ],
)
def test_anything_else_is_refused(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(FileError, match=f"table.json does not describe a table: .*({message})"):
        schema_from_json(changed(path, value), "table.json")


@pytest.mark.parametrize("value", [None, [], 3, "text"])
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(FileError):
        schema_from_json(value, "table.json")


def learned(table: Table, target: str | None = None, **options: Any) -> Schema:
    columns = [name for name in table.header if name != target]
    features = learn_features(table, columns, strict=options.get("strict", True)).features
    aim = learn_target(table, target, options.get("kind", "auto")) if target else None
    if aim is None:
        return Schema("task", "y", None, "regression", features)
    return Schema("task", target or "", None, aim.kind, features, *aim[1:])


def test_every_kind_of_column_becomes_inputs(in_memory: Any) -> None:
    table = in_memory(
        {
            "number": ["1", "2", "3", ""],
            "flag": ["yes", "no", "no", "yes"],
            "colour": ["red", "blue", "", "red"],
            "day": ["2020-01-01", "2020-01-03", "2020-01-03", "2020-01-01"],
        }
    )
    schema = learned(table)
    assert [feature.kind for feature in schema.features] == ["number", "boolean", "category", "date"]
    assert schema.inputs == (
        "number", "number missing", "flag", "colour=blue", "colour=red", "colour missing", "day"
    )  # fmt: skip
    root = 1.5**0.5
    expected = [
        [-root, 0, 1, 0, 1, 0, -1],
        [0, 0, -1, 1, 0, 0, 1],
        [root, 0, -1, 0, 0, 1, 1],
        [0, 1, 1, 0, 1, 0, -1],
    ]
    assert torch.allclose(encode_features(schema.features, table), torch.tensor(expected))


NUMBERS = st.floats(-1e6, 1e6).map(lambda value: f"{value:.9g}")
COLUMNS = {
    "number": NUMBERS | st.just(""),
    "flag": st.sampled_from(["yes", "no", ""]),
    "colour": st.sampled_from(["red", "blue", "green", ""]),
    "day": st.dates().map(str) | st.just(""),
}


@given(st.lists(st.tuples(*COLUMNS.values()), min_size=4, max_size=30))
@settings(deadline=None, max_examples=80)
def test_inputs_can_be_turned_back_into_values(rows: list[tuple[str, ...]]) -> None:
    columns = {name: [row[place] for row in rows] for place, name in enumerate(COLUMNS)}
    columns = {name: texts for name, texts in columns.items() if any(texts)}
    if not columns:
        return
    texts = {name: strings(values) for name, values in columns.items()}
    table = Table("some.csv", tuple(columns), texts, np.arange(len(rows)))
    try:
        found = learn_features(table, list(columns), strict=False)
    except DataError as problem:
        assert "no feature left" in str(problem)  # all columns are constant
        return
    schema = Schema("task", "y", None, "regression", found.features)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what was seen in training is no news
        x = encode_features(schema.features, table).double()
    names = list(schema.inputs)
    for feature in schema.features:
        own = x[:, [names.index(name) for name in feature.inputs]]
        values = columns[feature.column]
        missing = own[:, -1].bool().tolist() if feature.missing else [False] * len(rows)
        assert missing == [not text for text in values]
        for row, text in enumerate(values):
            if feature.kind == "category":
                seen = [name for name, value in zip(feature.categories, own[row].tolist()) if value == 1]
                assert seen == ([text] if text else [])
            elif feature.kind == "number" and text:
                back = float(own[row, 0]) * feature.scale + feature.mean
                assert back == pytest.approx(float(text), abs=1e-5 * (abs(feature.mean) + 20 * feature.scale))


def test_unseen_categories_are_zero_with_one_warning(in_memory: Any) -> None:
    schema = learned(in_memory({"colour": ["red", "blue"], "x": ["1", "2"]}))
    table = in_memory({"colour": ["green", "red", "green"], "x": ["1", "1", "1"]})
    message = "some.csv, column 'colour': 'green' in lines 2, 4 is in no training task"
    with pytest.warns(UnseenValueWarning, match=message) as caught:
        x = encode_features(schema.features, table)
    assert len(caught) == 1
    assert x[:, :2].tolist() == [[0, 0], [0, 1], [0, 0]]


def test_a_value_missing_for_the_first_time_is_the_mean_with_a_warning(in_memory: Any) -> None:
    schema = learned(in_memory({"x": ["1", "3"]}))
    with pytest.warns(UnseenValueWarning, match="column 'x': missing in line 3, but never in the training tasks"):
        assert encode_features(schema.features, in_memory({"x": ["3", ""]})).tolist() == [[1], [0]]


def test_a_value_of_another_kind_is_named(in_memory: Any) -> None:
    schema = learned(in_memory({"x": ["1", "3"], "day": ["2020-01-01", "2020-01-02"]}))
    with pytest.raises(DataError, match="line 3, column 'x': 'many' is not a number; the column's other values are"):
        encode_features(schema.features, in_memory({"x": ["3", "many"], "day": ["2020-01-01", "2020-01-02"]}))
    with pytest.raises(DataError, match="line 2, column 'day': '2020-01-01T00:00' is not a date, as"):
        encode_features(schema.features, in_memory({"x": ["3"], "day": ["2020-01-01T00:00"]}))
    points = schema._replace(features=tuple(f._replace(limits=None) for f in schema.features))
    for value in ("1e300", "-1e30"):
        with pytest.raises(DataError, match="line 2, column 'x': .* is too far .* from -1e\\+18 to 1e\\+18"):
            encode_features(points.features, in_memory({"x": [value], "day": ["2020-01-01"]}))


@pytest.mark.parametrize("value", ["1e300", "-1e300", "1e25", "-1e25"])
def test_a_target_too_large_to_compute_with_is_named(in_memory: Any, value: str) -> None:
    schema = learned(in_memory({"x": ["1", "3"], "weight": ["1e-9", "3e-9"]}), target="weight")
    with pytest.raises(DataError, match="line 3, column 'weight': .* a number from -1e\\+09 to 1e\\+09"):
        encode_target(schema, in_memory({"weight": ["1e-9", value]}))
    with pytest.warns(UnseenValueWarning):
        assert encode_target(schema, in_memory({"weight": ["1e8"]})).square().isfinite().all()


def test_far_away_values_are_bounded_in_their_order_and_warned_of(in_memory: Any) -> None:
    schema = learned(in_memory({"x": ["1", "3"], "day": ["2020-01-01", "2020-01-02"]}))
    far = in_memory({"x": ["1", "4", "5", "1e6", "1e300", "-9"], "day": ["2020-01-01"] * 6})
    with pytest.warns(UnseenValueWarning, match="column 'x': lines 4, 5, 6, 7: far from the 1 to 3 of training tasks"):
        x = encode_features(schema.features, far)[:, 0].tolist()
    assert x[:2] == [-1, 2] and 2 < x[2] < x[3] <= x[4] <= 3 and -3 < x[5] < -2


def test_what_no_training_task_has_is_told_by_row(in_memory: Any) -> None:
    schema = learned(in_memory({"x": ["1", "3"], "food": ["hay", "corn"], "sex": ["m", "f"], "z": ["1", ""]}))
    asked = in_memory(
        {"x": ["1", "1e6", "", "2"], "food": ["hay", "algae", "hay", ""], "sex": ["m"] * 4, "z": [""] * 4}
    )
    with pytest.warns(UnseenValueWarning) as caught:
        found = encode_rows(schema.features, asked)
    assert found.unseen == [[], ["x", "food"], ["x"], ["food"]] and len(caught) == 4
    with pytest.warns(UnseenValueWarning):
        assert torch.equal(found.x, encode_features(schema.features, asked))


def test_targets_that_no_prediction_comes_near_are_warned_of(in_memory: Any) -> None:
    schema = learned(in_memory({"weight": ["1", "2", "3"], "x": ["1", "2", "3"]}), "weight")
    with pytest.warns(UnseenValueWarning, match="'weight': line 3: far from the 1 to 3 of training tasks, near which"):
        y = encode_target(schema, in_memory({"weight": ["3.9", "1e12"], "x": ["1", "2"]}))
    assert y[1] > 1e12


def skewed(in_memory: Any, law: Any) -> Feature:
    draw = np.random.default_rng(0)
    x = np.exp(1.5 * draw.standard_normal(300))
    y = law(x) + 0.1 * draw.standard_normal(300)
    shown = Shown(y[:, None], np.arange(300) // 10)
    return learn_features(in_memory({"x": [str(value) for value in x]}), ["x"], True, shown).features[0]


def test_a_skewed_column_is_taken_by_its_logarithm_where_training_tasks_show_no_line(in_memory: Any) -> None:
    assert skewed(in_memory, lambda x: x).unit == 0
    found = skewed(in_memory, np.log)
    assert found.unit > 0
    values = np.array([-3.0, 0.0, 0.5, 40.0])
    assert np.allclose(found._replace(limits=None).decode(found._replace(limits=None).encode(values)), values)


def test_a_feature_that_is_the_target_is_found(in_memory: Any) -> None:
    draw = np.random.default_rng(0).permutation(30)
    texts = {"copy": 2 * draw, "log": -np.log(1 + draw), "near": draw + (draw == 3) * 9, "code": draw % 3}
    table = in_memory({name: list(map(str, column)) for name, column in texts.items()} | {"word": [*"abc"] * 10})
    features = learn_features(table, [*texts, "word"], True).features
    told = copies(table, features, Shown(draw[:, None].astype(float), draw))
    assert ["'copy'" in told[0], "'log'" in told[1], len(told)] == [True, True, 2]
    classes = np.eye(3)[draw % 3]
    [one] = copies(table, features, Shown(classes, draw))
    assert "column 'code'" in one and "in all 30 rows" in one


def test_constant_columns_are_left_out_and_empty_ones_refused(in_memory: Any) -> None:
    found = learn_features(in_memory({"a": ["7", "7"], "b": ["1", "1.0"], "x": ["1", "2"]}), ["a", "b", "x"], True)
    assert [feature.column for feature in found.features] == ["x"]
    assert found.left_out == {
        name: f"constant: always {v}, to rounding, in the training tasks" for name, v in (("a", 7), ("b", 1))
    }
    with pytest.raises(DataError, match="column 'a': it has no value in the training tasks; leave it out"):
        learn_features(in_memory({"a": ["", ""], "x": ["1", "2"]}), ["a", "x"], False)
    with pytest.raises(DataError, match=r"some.csv has no feature left \('a': constant"):
        learn_features(in_memory({"a": ["7", "7"]}), ["a"], True)
    with pytest.raises(DataError, match=r"no feature left \(no other columns\)"):
        learn_features(in_memory({"a": ["7", "7"]}), [], True)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([f"n{row % 60}" for row in range(300)], "text with 60 different values, more than 50"),
        ([f"n{row}" for row in range(30)], "text with 30 different values in 30 rows, nearly one a row"),
    ],
)
def test_too_many_categories_are_refused_or_left_out(in_memory: Any, texts: list[str], reason: str) -> None:
    table = in_memory({"name": texts, "x": [str(row) for row in range(len(texts))]})
    with pytest.raises(DataError, match=rf"column 'name': {reason}; leave it out \(--columns\)"):
        learn_features(table, ["name", "x"], True)
    found = learn_features(table, ["name", "x"], False)
    assert found.left_out == {"name": reason}
    assert found.warnings == (f"some.csv, column 'name': left out: {reason}",)


def test_regression_targets_are_standardised(in_memory: Any) -> None:
    table = in_memory({"x": ["1", "2", "3"], "y": ["10", "20", "60"]})
    schema = learned(table, "y")
    assert schema.kind == "regression" and schema.mean == 30
    y = encode_target(schema, table)
    assert y.shape == (3, 1) and y.dtype == torch.float32
    assert torch.allclose(y * schema.scale + schema.mean, torch.tensor([[10.0], [20.0], [60.0]]))


@pytest.mark.parametrize(
    ("texts", "asked", "classes"),
    [
        (["b", "a", "b"], "auto", ("a", "b")),
        (["0", "1", "1"], "auto", ("0", "1")),
        (["yes", "no", "yes"], "auto", ("no", "yes")),
        (["10", "9", "100"], "classification", ("9", "10", "100")),
    ],
)
def test_classes_are_sorted(in_memory: Any, texts: list[str], asked: str, classes: tuple[str, ...]) -> None:
    table = in_memory({"x": ["1", "2", "3"], "y": texts})
    schema = learned(table, "y", kind=asked)
    assert schema.kind == "classification" and schema.classes == classes and schema.scale == 1
    y = encode_target(schema, table)
    assert y.dtype == torch.int64 and [classes[number] for number in y.tolist()] == texts


def test_two_numbers_that_are_not_whole_are_regression(in_memory: Any) -> None:
    assert learned(in_memory({"x": ["1", "2"], "y": ["0.5", "1"]}), "y").kind == "regression"
    assert learned(in_memory({"x": ["1", "2"], "y": ["0", "1"]}), "y", kind="regression").kind == "regression"


def test_targets_that_do_not_fit_are_named(in_memory: Any) -> None:
    x = ["1", "2", "3"]
    with pytest.raises(DataError, match="line 3, column 'y': 'ten' is not a number; .*--target-kind classification"):
        learned(in_memory({"x": x, "y": ["1", "ten", "3"]}), "y")
    with pytest.raises(DataError, match="line 2, column 'y': 'a' is not a number"):
        learned(in_memory({"x": x, "y": ["a", "b", "c"]}), "y", kind="regression")
    with pytest.raises(DataError, match="column 'y': the target is always 5, to rounding, in the training tasks"):
        learned(in_memory({"x": x, "y": ["5", "5", "5"]}), "y")
    with pytest.raises(DataError, match="column 'y': the target has one class only in the training tasks, 'a'"):
        learned(in_memory({"x": x, "y": ["a", "a", "a"]}), "y")
    schema = learned(in_memory({"x": x, "y": ["a", "b", "a"]}), "y")
    with pytest.raises(DataError, match="line 4, column 'y': class 'c' is not among those learned: a, b"):
        encode_target(schema, in_memory({"x": x, "y": ["a", "b", "c"]}))
    with pytest.raises(DataError, match=r"line 3, column 'y': the target is missing \(2 of 3 rows\)"):
        encode_target(schema, in_memory({"x": x, "y": ["a", "", ""]}))


def test_text_that_is_nearly_another_one_in_each_row_is_no_class_unless_somebody_says_so(in_memory: Any) -> None:
    table = in_memory({"born": [f"2020-01-{day:02}" for day in range(1, 25)]})
    with pytest.raises(
        DataError, match="24 different texts in 24 rows, such as '2020-01-01', are too many for classes"
    ):
        learn_target(table, "born", "auto")
    assert len(learn_target(table, "born", "classification").classes) == 24


def test_numbers_that_have_no_standard_deviation_are_refused(in_memory: Any) -> None:
    table = in_memory({"x": ["1e300", "-1e300", "2"], "y": ["1", "2", "3"]})
    with pytest.raises(DataError, match="column 'x': its values are too large to have a standard deviation"):
        learn_features(table, ["x"], False)
    with pytest.raises(DataError, match="column 'x': its values are too large"):
        learn_target(table, "x", "regression")


def test_decimal_commas_are_refused_and_not_taken_for_text(in_memory: Any) -> None:
    table = in_memory({"x": ["3", "1,5", ""], "y": ["0,1", "0,2", "0,3"], "list": ["1,2,3", "a,b", "4,5"]})
    with pytest.raises(DataError, match="line 3, column 'x': '1,5' is not a number; a decimal comma is read in files"):
        learn_features(table, ["x"], False)
    with pytest.raises(DataError, match="line 2, column 'y': '0,1' is not a number .3 such values.*; a decimal comma"):
        learn_target(table, "y", "auto")
    assert learn_features(table, ["list"], False).features[0].kind == "category"


def test_a_column_that_is_a_number_but_for_a_value_is_warned_of(in_memory: Any) -> None:
    table = in_memory({"dose": ["1", "2.5", "<1", "4"], "stage": ["1", "2a", "2b", "3a"]})
    found = learn_features(table, ["dose", "stage"], False)
    [warning] = found.warnings
    assert warning.startswith("some.csv, column 'dose': taken for categories: '<1' in line 4 is not a number, though")
    many = in_memory({"dose": [*map(str, range(60)), "n.d."], "x": [*map(str, range(61))]})
    with pytest.raises(DataError, match="'n.d.' in line 62 is not a number, though most .* leave the column out"):
        learn_features(many, ["dose", "x"], False)
    marked = in_memory({"dose": [*map(str, range(60)), "-"], "x": [*map(str, range(61))]})
    [dose, _] = learn_features(marked, ["dose", "x"], False).features
    assert dose[:3] == ("dose", "number", 29.5) and dose.missing
    with pytest.raises(DataError, match=r"line 62, column 'dose': the target is missing \(1 rows\)"):
        learn_target(marked, "dose", "regression")
    weighed = in_memory({"weight": [f"{60 + place / 4} kg" for place in range(80)], "x": [*map(str, range(80))]})
    with pytest.raises(DataError, match=r"'60.0 kg' in line 2 .*\(80 such values\), but one with a unit \(kg\)"):
        learn_features(weighed, ["weight", "x"], False)
    with pytest.raises(DataError, match="'60.0 kg' is not a number .*; write it without 'kg'; a regression target"):
        learn_target(weighed, "weight", "auto")
    signs = in_memory({"sign": ["+", "-", "-"]})
    assert learn_features(signs, ["sign"], False).features[0].categories == ("+", "-")
    assert learn_target(signs, "sign", "auto").classes == ("+", "-")


def test_a_target_far_from_all_others_is_told() -> None:
    def told(values: list[float]) -> list[str]:
        table = Table("t", ("y",), {"y": strings([str(value) for value in values])}, np.arange(len(values)), "row")
        return far_targets(table, "y", np.array(values))

    values = [float(row) for row in range(40)]
    assert told(values) == told([1.0] * 40) == []
    (message,) = told([*values, -5e8])
    assert "column 'y'" in message and "-500000000.0 is more than 100 times as far from the median" in message
