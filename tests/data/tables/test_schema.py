"""The schema's JSON form: the way back gives the same, and nothing else is taken."""

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.data.tables.schema import Feature, Schema, schema_from_json, schema_to_json
from headstart.errors import FileError

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
    return Feature(column, kind, draw(FINITE), draw(POSITIVE), (), "date" if kind == "date" else "", missing)


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
        (("target",), KeyError, "target is missing"),
        (("extra",), 1, "extra is unknown"),
        (("format",), "headstart-table-2", "format is 'headstart-table-2'"),
        (("target",), 3, "target is 3"),
        (("kind",), "ranking", "kind is 'ranking'"),
        (("scale",), 0.0, "scale is 0.0"),
        (("mean",), float("nan"), "mean is nan"),
        (("mean",), True, "mean is True"),
        (("mean",), "60", "mean is '60'"),
        (("features",), [], r"features is \[\]"),
        (("features", 0), 3, "column is missing|categories is missing"),
        (("features", 0, "kind"), KeyError, r"features\[0\].kind is missing"),
        (("features", 0, "scale"), -1, r"features\[0\].scale is -1"),
        (("features", 1, "categories"), ["a", "a"], r"features\[1\].categories is"),
        (("features", 1, "categories"), [], "'food' is a category of 0 categories"),
        (("features", 0, "categories"), ["a"], "'week' is a number of 1 categories"),
        (("features", 2, "date_format"), "", "'born' is a date of date format ''"),
        (("features", 0, "missing"), 1, r"features\[0\].missing is 1"),
        (("features", 0, "column"), "weight", "a column is there twice"),
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
