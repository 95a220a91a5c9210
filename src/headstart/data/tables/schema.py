"""How columns become numbers: a schema, learned from training tasks alone, that encodes any rows; JSON in and out."""

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from headstart.core.values import bounded
from headstart.data.tables import prose, read
from headstart.data.tables.read import Table, Texts
from headstart.data.text.read import CutTextWarning
from headstart.errors import DataError, FileError
from headstart.schema import NotNegative, Positive

FeatureKind = Literal["number", "boolean", "date", "category", "text"]
TargetKind = Literal["regression", "classification"]

FORMAT = "headstart-table-1"
#: Of a column of texts.
MOST_NUMBERS = 64


class Feature(NamedTuple):
    """How one column becomes inputs."""

    column: str
    kind: FeatureKind
    mean: float = 0.0
    """Of the training tasks' values; a missing value takes its place. 0 for a category."""
    scale: Positive = 1.0
    """Their standard deviation. 1 for a category."""
    categories: tuple[str, ...] = ()
    """Those of the training tasks, sorted; one input each."""
    date_format: str = ""
    """Which of the formats of `headstart.data.tables.read.date_format` dates are in."""
    missing: bool = False
    """Whether an input tells where the value is missing: if it is so in some row of the training tasks."""
    unit: NotNegative = 0.0
    """s, where a value v is taken as sign(v) log(1 + |v| / s), which mean and scale are then of; 0: as it is."""
    limits: tuple[float, float] | None = None
    """The least and the largest input of training tasks, near which `bounded` keeps all others; none of a category."""
    numbers: Annotated[int, Ge(0), Le(MOST_NUMBERS)] = 0
    """How many numbers a text becomes."""
    components: str = ""
    """By what it becomes them (`headstart.data.tables.prose`)."""
    network: prose.Network | None = None
    """The pretrained network whose features they are of; ``None``: none is."""

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the inputs of values."""
        inputs = (_logged(values, self.unit) - self.mean) / self.scale
        return inputs if self.limits is None else bounded(inputs, self.limits)

    def decode(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values of inputs that are near those of training tasks."""
        values = inputs * self.scale + self.mean
        return np.sign(values) * self.unit * np.expm1(np.abs(values)) if self.unit else values

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs."""
        values = tuple(f"{self.column}={name}" for name in self.categories)
        values = values or tuple(f"{self.column} {place + 1}" for place in range(self.numbers)) or (self.column,)
        return (*values, f"{self.column} missing") if self.missing else values


class Schema(NamedTuple):
    """How a table's rows become examples of tasks."""

    task_column: str
    target: str
    time_column: str | None
    kind: TargetKind
    features: tuple[Feature, ...]
    mean: float = 0.0
    """Of the training tasks' targets; 0 in classification."""
    scale: Positive = 1.0
    """Their standard deviation; 1 in classification."""
    classes: tuple[str, ...] = ()
    """Those of the training tasks, sorted, then those that only other tasks have; empty in regression."""
    limits: tuple[float, float] | None = None
    """The least and the largest standardised target of training tasks, near which predictions are kept."""
    missing: tuple[str, ...] = ()
    """Texts that mean that a value is missing, besides the usual ones."""
    commas: tuple[str, ...] = ()
    """The columns whose numbers have a decimal comma."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of all inputs."""
        return tuple(name for feature in self.features for name in feature.inputs)


_SCHEMA = TypeAdapter(Schema, config=ConfigDict(strict=True, allow_inf_nan=False))


def schema_to_json(schema: Schema) -> dict[str, Any]:
    """Return a schema as a JSON object.

    >>> schema = Schema("pig", "weight", None, "regression", (Feature("week", "number", 6.5, 3.5),), 60.0, 25.0)
    >>> schema_from_json(schema_to_json(schema), "here") == schema
    True
    """

    def plain(part: Feature | Schema) -> dict[str, Any]:
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in part._asdict().items()}
        return values | ({"network": part.network and part.network._asdict()} if isinstance(part, Feature) else {})

    return {"format": FORMAT, **plain(schema), "features": [plain(feature) for feature in schema.features]}


def schema_from_json(value: Any, where: str) -> Schema:
    """Return the schema that a JSON object holds; what is missing, unknown or of another type is a `FileError`."""
    try:
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        fields = json.dumps({key: part for key, part in value.items() if key != "format"})
        schema = _SCHEMA.validate_json(fields)
        _check_whole(schema)
        if lacking := _lacking(schema_to_json(schema), value):
            raise ValueError(f"{lacking} is missing")
        return schema
    except ValidationError as problem:
        wrong = problem.errors()[0]
        place, got = ".".join(map(str, wrong["loc"])), repr(wrong["input"])[:80]
        raise FileError(f"{where} does not describe a table: {place}: {wrong['msg']}, got {got}") from problem
    except ValueError as problem:
        raise FileError(f"{where} does not describe a table: {problem}") from problem


def _lacking(whole: Mapping[str, Any], value: Mapping[str, Any]) -> str:
    """Return the place of the first field that a schema has, and its JSON has not; empty where there is none."""
    places = [(name, whole, value) for name in whole]
    for number, pair in enumerate(zip(whole["features"], value["features"])):
        places += [(f"features.{number}.{name}", *pair) for name in pair[0]]
    return next((place for place, own, given in places if place.rpartition(".")[2] not in given), "")


def _check_whole(schema: Schema) -> None:
    columns = [feature.column for feature in schema.features]
    if not columns or {schema.target, schema.task_column} & set(columns):
        raise ValueError(f"its columns are {schema.target!r}, {schema.task_column!r} and {columns}")
    check_features(schema.features)
    if len(set(schema.classes)) < len(schema.classes):
        raise ValueError(f"{schema.classes} are not different")
    if (schema.kind == "classification") != (len(schema.classes) >= 2):
        raise ValueError(f"{len(schema.classes)} classes in {schema.kind}")
    check_limits(schema.limits)


def check_features(features: Sequence[Feature]) -> None:
    """Raise ValueError where the parts of features are well-formed, but do not fit each other."""
    columns = [feature.column for feature in features]
    if not columns or len(set(columns)) < len(columns):
        raise ValueError(f"its columns are {columns}")
    for feature in features:
        check_limits(feature.limits)
        if len(set(feature.categories)) < len(feature.categories):
            raise ValueError(f"{feature.categories} are not different")
        if (feature.kind == "category") != bool(feature.categories):
            raise ValueError(f"column {feature.column!r} is a {feature.kind} of {len(feature.categories)} categories")
        if (feature.kind == "date") != bool(feature.date_format):
            raise ValueError(f"column {feature.column!r} is a {feature.kind} of date format {feature.date_format!r}")
        if (feature.kind == "text") != bool(feature.numbers) or feature.numbers < bool(feature.components):
            raise ValueError(f"column {feature.column!r} is a {feature.kind} of {feature.numbers} numbers")
        if feature.kind == "text":
            size = len(prose.from_text(feature.components, feature.numbers).weights)
            if feature.network is None and size != prose.HASHES:
                raise ValueError(f"column {feature.column!r} has components of {size} n-grams")


def check_limits(limits: tuple[float, float] | None) -> None:
    """Raise ValueError where the first is above the second."""
    if limits is not None and limits[0] > limits[1]:
        raise ValueError(f"limits {limits} are not in order")


def _logged(values: NDArray[np.float64], unit: float) -> NDArray[np.float64]:
    return np.sign(values) * np.log1p(np.abs(values) / unit) if unit else values


#: A number column is skewed from this third standardised moment on.
_SKEWED = 1.0
_FOLDS = 5


class Shown(NamedTuple):
    """What rows of training tasks show beside features: how to take a skewed column is judged by it."""

    y: NDArray[np.float64]
    """``(N, targets)``: numbers, or 1 in the column of the row's class."""
    task: NDArray[np.int64]


def _unit(values: NDArray[np.float64], shown: Shown) -> float:
    """Return the unit of a column's logarithm; 0 where it is not skewed, or tells other tasks' targets better as it is.

    Judged by a line through the rows of four fifths of the tasks, on the rows of the others.
    """
    sizes = np.abs(values[values != 0])
    units = [float(unit) for unit in np.quantile(sizes, (0.05, 0.5)) if unit > 0] if len(sizes) else []
    skews = {unit: abs(_skewness(_logged(values, unit))) for unit in (0.0, *units)}
    best = min(skews, key=skews.__getitem__)
    if skews[0.0] < _SKEWED or skews[best] > skews[0.0] / 2:
        return 0.0
    plain, logged = (_foretold(_logged(values, unit), shown) for unit in (0.0, best))
    return 0.0 if plain < logged else best


def _skewness(values: NDArray[np.float64]) -> float:
    scale = values.std()
    return float((((values - values.mean()) / scale) ** 3).mean()) if scale > 0 else 0.0


def _foretold(values: NDArray[np.float64], shown: Shown) -> float:
    """Return the squared error of a line through some tasks' rows on those of others."""
    numbers = np.unique(shown.task, return_inverse=True)[1] % _FOLDS
    x, total = np.stack([np.ones_like(values), (values - values.mean()) / (values.std() or 1.0)], 1), 0.0
    for fold in range(_FOLDS):
        out = numbers == fold
        line = np.linalg.lstsq(x[~out], shown.y[~out], rcond=None)[0]
        total += float(((shown.y[out] - x[out] @ line) ** 2).sum())
    return total


MOST_CATEGORIES = 50
#: From so many rows on, a category column is refused that has a new value in every second row.
_ROWS_TO_TELL = 20
#: So many categories are codes, even where most of them are numbers.
_FEW = 12
#: A spread of less than this share of the values is rounding.
_CONSTANT = 1e-12


class Learned(NamedTuple):
    """The features of a table, why other columns are none, and what of that may surprise."""

    features: tuple[Feature, ...]
    left_out: dict[str, str]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was done to columns of texts."""


def learn_features(
    table: Table,
    columns: Sequence[str],
    strict: bool,
    shown: Shown | None = None,
    text_numbers: int = 8,
    network: prose.Network | None = None,
) -> Learned:
    """Return how ``columns`` become inputs, from the rows of training tasks.

    A column whose values are all numbers is a number; all true or false, a boolean; mostly dates, a date; anything else
    is a category, or, of too many values that are sentences mostly, a text, which becomes ``text_numbers`` numbers, of
    the features of a ``network``, if there is one.
    Columns of one value are left out; so are other texts of too many (refused if ``strict``), with a warning.
    A skewed number is taken by its logarithm, unless a line through it as it is tells the targets of other tasks better
    (by ``shown``, without which all are taken as they are).

    Raises:
        DataError: a column without any value, dates in several formats, numbers that are not finite, too many
            categories, decimal commas, or nothing left.
    """
    features, left_out, warnings, notes = [], {}, [], []
    for column in columns:
        texts = table.columns[column]
        there = ~read.is_missing(texts)
        if not there.any():
            raise read.error(table, column, None, "it has no value in the training tasks; leave it out (--columns)")
        feature = _feature(table, column, there, shown)
        if there.all() and (feature.scale == 0 or len(feature.categories) == 1):
            near = "" if feature.categories else ", to rounding,"
            left_out[column] = f"constant: always {texts[0]!s}{near} in the training tasks"
            continue
        crowd = _crowd(feature, int(there.sum()))
        spoilt = "" if column in table.labels else _spoilt(table, feature)
        if spoilt:
            fix = "correct it, leave it empty for missing or say that it means that (--na-values)"
            if crowd or len(feature.categories) > _FEW:
                raise read.error(table, column, None, f"{spoilt}; {fix}, or leave the column out (--columns)")
            where = "where the column is to be a number"
            warnings.append(str(read.error(table, column, None, f"taken for categories: {spoilt}; {fix}, {where}")))
        if crowd and text_numbers and column not in table.labels and prose.is_prose(feature.categories):
            feature, note = _text(feature, texts[there].tolist(), text_numbers, network)
            notes.append(note)
            crowd = ""
        if crowd and strict:
            raise read.error(table, column, None, f"{crowd}; leave it out (--columns), or join categories")
        if crowd:
            left_out[column] = crowd
            warnings.append(str(read.error(table, column, None, f"left out: {crowd}")))
        else:
            features.append(feature._replace(scale=feature.scale or 1.0))
    if not features:
        why = "; ".join(f"{column!r}: {reason}" for column, reason in left_out.items())
        raise DataError(f"{table.path} has no feature left ({why or 'no other columns'})")
    return Learned(tuple(features), left_out, tuple(warnings), tuple(notes))


def _text(feature: Feature, texts: Sequence[str], count: int, network: prose.Network | None) -> tuple[Feature, str]:
    """Return a column of texts as a feature, and what there is to say of it."""
    found, share = prose.learn_components(texts, count, network)
    size, what = len(found.centre), "TF-IDF of n-grams" if network is None else f"features of {network.source}"
    more = "" if network else "; --text-encoder hf:FOLDER reads them by a pretrained network"
    note = (
        f"column {feature.column!r} is of texts, {len(feature.categories)} different ones in {len(texts)} training"
        f" rows, which become {size} numbers ({what}, {100 * share:.0f} % of whose variance these tell){more}"
    )
    return feature._replace(
        kind="text", categories=(), numbers=size, components=prose.to_text(found), network=network
    ), note


def _feature(table: Table, column: str, there: NDArray[np.bool_], shown: Shown | None) -> Feature:
    texts, missing, kind, date_format = table.columns[column], not bool(there.all()), "number", ""
    names = tuple(name for name in read.distinct(texts)[0] if name)
    told = set(names) - set(read.MARKS)
    if column in table.labels:
        return Feature(column, "category", categories=names, missing=missing)
    if read.as_numbers(texts, column in table.commas) is None or not told:
        kind = "boolean" if told and read.are_booleans(told) else "date"
        date_format = (kind == "date" and read.common_date_format(table, column)) or ""
        if kind == "date" and not date_format:
            commas = [name for name in names if read.is_decimal_comma(name)]
            if commas and all(name in commas or read.is_number(name) for name in names):
                read.numbers(table, column, "or leave the column out (--columns)")  # refuses them
            return Feature(column, "category", categories=names, missing=missing)
    values = column_values(table, column, kind, date_format)
    there = ~np.isnan(values)
    missing, values = not bool(there.all()), values[there]
    mean, scale = moments(table, column, values)
    found = Feature(column, kind, mean, scale, date_format=date_format, missing=missing)
    if not found.scale:
        return found
    if kind == "number" and shown is not None:
        unit = _unit(values, Shown(shown.y[there], shown.task[there]))
        found = found._replace(unit=unit)
        if unit:
            found = found._replace(mean=float((logged := _logged(values, unit)).mean()), scale=float(logged.std()))
    inputs = found.encode(values)
    return found._replace(limits=(float(inputs.min()), float(inputs.max())))


def _spoilt(table: Table, feature: Feature) -> str:
    """Say which value keeps a column from being a number, where most are, maybe with a unit; else nothing."""
    if not feature.categories:
        return ""
    comma = feature.column in table.commas
    odd = [name for name in feature.categories if read.to_number(name, comma) is None]
    units = _units(feature.categories, comma)
    if not set(odd) - set(read.MARKS) or len(odd) > len(feature.categories) // 2 and not units:
        return ""
    row, others = read.odd(table, feature.column)
    where = f"{str(table.columns[feature.column][row])!r} in {table.unit} {int(table.lines[row])} is not a number"
    return f"{where}{others}" + (
        f", but one with a unit ({units}): write it without" if units else ", though most values are"
    )


def _units(names: Sequence[str], comma: bool) -> str:
    """Return the units of what are measures, mostly, of few units; codes such as 2a and 3b have many, or are few."""
    units = Counter(unit for name in names if (unit := read.measured(name, comma)))
    return ", ".join(sorted(units)) if len(names) > _FEW and len(units) <= 3 and 2 * units.total() > len(names) else ""


def column_values(table: Table, column: str, kind: FeatureKind, date_format: str) -> NDArray[np.float64]:
    """Return the numbers of a column that is no category, NaN where missing; the error names what does not fit."""
    if kind == "number":
        return read.numbers(table, column, "the column's other values are; correct it, or leave it empty for missing")
    return read.booleans(table, column) if kind == "boolean" else read.dates(table, column, date_format)


def moments(table: Table, column: str, values: NDArray[np.float64]) -> tuple[float, float]:
    """Return mean and standard deviation, 0 where nothing varies but by rounding."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = float(values.mean()), float(values.std())
    if not (math.isfinite(mean) and math.isfinite(scale)):
        reason = "its values are too large to have a standard deviation; write them in a larger unit"
        raise read.error(table, column, None, reason)
    return mean, scale if scale > _CONSTANT * abs(mean) else 0.0


def _crowd(feature: Feature, count: int) -> str:
    """Say why a category column has too many categories; empty where it has not."""
    found = len(feature.categories)
    if found > MOST_CATEGORIES:
        return f"text with {found} different values, more than {MOST_CATEGORIES}"
    if count >= _ROWS_TO_TELL and 2 * found > count:
        return f"text with {found} different values in {count} rows, nearly one a row"
    return ""


class Target(NamedTuple):
    """What is predicted."""

    kind: TargetKind
    mean: float = 0.0
    scale: float = 1.0
    classes: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None


def learn_target(table: Table, column: str, asked: Literal["auto", "regression", "classification"]) -> Target:
    """Return what kind of target a column is, from the rows of training tasks.

    ``"auto"`` takes text, booleans, and whole numbers of two different values as classes, other numbers as regression.
    A regression target that has text in it or never changes, or fewer than two classes, is a `DataError`.
    """
    if told := asked == "auto":
        asked = _kind_of_target(table.columns[column], column in table.commas)
    if asked == "regression":
        values = regression_target(table, column)
        mean, scale = moments(table, column, values)
        if not scale:
            reason = f"the target is always {table.columns[column][0]!s}, to rounding, in the training tasks"
            raise read.error(table, column, None, reason)
        ends = float((values.min() - mean) / scale), float((values.max() - mean) / scale)
        return Target("regression", mean, scale, (), ends)
    names = read.distinct(table.columns[column])[0]
    if told and table.size >= _ROWS_TO_TELL and 2 * len(names) > table.size:
        many = f"{len(names)} different texts in {table.size} rows, such as {names[0]!r}, are too many for classes"
        fix = "name another target, write numbers as numbers, or say --target-kind classification"
        raise read.error(table, column, None, f"{many}; {fix}")
    if len(names) < 2:
        raise read.error(table, column, None, f"the target has one class only in the training tasks, {names[0]!r}")
    return Target("classification", classes=read.in_order(names))


def _kind_of_target(texts: Texts, comma: bool) -> TargetKind:
    values = read.as_numbers(texts, comma)
    if values is None:
        names = read.distinct(texts)[0]
        meant = sum(read.to_number(name, comma) is not None or read.is_decimal_comma(name) for name in names)
        return "regression" if 2 * meant >= len(names) or _units(names, comma) else "classification"
    different = np.unique(values)
    return "classification" if len(different) == 2 and not np.mod(different, 1).any() else "regression"


def regression_target(table: Table, column: str) -> NDArray[np.float64]:
    """Return the target's numbers; the error names a value that is none, and says how to predict classes."""
    fix = "a regression target is a number in every row; for classes take --target-kind classification"
    found = read.numbers(table, column, fix)
    row = read.first(np.isnan(found))
    if row is not None:
        raise read.error(table, column, row, f"the target is missing ({int(np.isnan(found).sum())} rows); leave it out")
    return found


#: So many rows of training tasks are enough to see that a feature tells the target exactly.
_ROWS_TO_COPY = 20


def copies(table: Table, features: Sequence[Feature], shown: Shown) -> list[str]:
    """Return a warning for each feature that is the target itself, in another form: from rows of training tasks.

    A number that rises, or falls, with the target in all rows, whatever their task; or a feature that has as many
    values as there are classes, one for each.
    """
    found, classes = [], shown.y.shape[1]
    target = np.unique(shown.y @ np.arange(1, classes + 1) if classes > 1 else shown.y[:, 0], return_inverse=True)[1]
    for feature in features if len(target) >= _ROWS_TO_COPY else ():
        texts = table.columns[feature.column]
        there = ~read.is_missing(texts)
        if feature.kind in ("category", "boolean", "text") or classes > 1:
            own = read.distinct(texts[there])[1]
        else:
            own = column_values(table, feature.column, feature.kind, feature.date_format)[there]
        own, aim = np.unique(own, return_inverse=True)[1], target[there]
        count = int(own.max()) + 1
        same = count == int(aim.max()) + 1 == len(np.unique(own * len(aim) + aim)) and len(aim) >= _ROWS_TO_COPY
        if classes == 1 and same:
            same = count > 2 and (bool((own == aim).all()) or bool((own == count - 1 - aim).all()))
        if same:
            reason = f"it tells the target exactly, in all {len(aim)} rows of training tasks that have it"
            fix = "if it is the target in another form, scores mean nothing: leave it out (--columns)"
            found.append(str(read.error(table, feature.column, None, f"{reason}; {fix}")))
    return found


#: In distances between the first and the last tenth of the targets.
_FAR = 100


def far_targets(table: Table, column: str, values: NDArray[np.float64]) -> list[str]:
    """Return a warning where a few targets of training tasks are so far from the others that all else is lost."""
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    far = np.abs(values - middle) > _FAR * (high - low) if high > low else np.zeros(len(values), dtype=bool)
    row = read.first(far)
    if row is None:
        return []
    told = f"{table.columns[column][row]!s} is more than {_FAR} times as far from the median as most others are"
    more = f" ({int(far.sum())} such rows)" if far.sum() > 1 else ""
    fix = "by such a number all are scaled, and errors mean little; correct it, or leave the row out"
    return [str(read.error(table, column, row, f"{told}{more}; {fix}"))]


class FarTargetWarning(UserWarning):
    """A target of a training task that is far from all others."""


class UnseenValueWarning(UserWarning):
    """A value of a column that no training task has."""


def encode_features(
    features: Sequence[Feature], table: Table, dtype: torch.dtype = torch.float32, *, kept: bool = False
) -> Tensor:
    """Return the inputs ``(N, inputs)`` of a table's rows.

    Numbers, booleans and dates are standardised by the training tasks, and a missing one is 0, their mean. A category
    is 1 in its own input; one that no training task has is 0 in all, with an `UnseenValueWarning`. A value that is not
    of its column's kind, or too large to compute with, is a `DataError`. Texts that are not read to their ends are told
    of by a `CutTextWarning`; what a network says of texts is ``kept`` on disk, or not.
    """
    return encode_rows(features, table, dtype, kept=kept).x


class Encoded(NamedTuple):
    """Rows as inputs."""

    x: Tensor
    """``(N, inputs)``."""
    unseen: list[list[str]]
    """Of each row, the columns of which there is an `UnseenValueWarning`."""


def encode_rows(
    features: Sequence[Feature], table: Table, dtype: torch.dtype = torch.float32, *, kept: bool = False
) -> Encoded:
    """Return the inputs of a table's rows, as `encode_features` does, and what of them no training task has."""
    sizes = [len(feature.inputs) for feature in features]
    x, unseen = torch.empty(table.size, sum(sizes), dtype=dtype), [list[str]() for _ in range(table.size)]
    for part, feature in zip(x.split(sizes, 1), features):
        for row in np.flatnonzero(_fill(part.numpy(), feature, table, kept)):
            unseen[row].append(feature.column)
    return Encoded(x, unseen)


def _fill(x: NDArray[Any], feature: Feature, table: Table, kept: bool) -> NDArray[np.bool_]:
    """Write the inputs of a column, and return in which rows its value is like none of training tasks."""
    texts = table.columns[feature.column]
    missing = read.is_missing(texts)
    unseen = np.zeros(table.size, dtype=bool)
    if feature.kind == "category":
        names, places = _places(texts, feature.categories)
        unseen = ~missing & (places < 0)
        x[:, : len(feature.categories)] = places[:, None] == np.arange(len(feature.categories))
        for name in names:
            if name and name not in feature.categories:
                where = read.listed(table, np.asarray(texts == name))
                _warn(table, feature.column, f"{name!r} in {where} is in no training task")
    elif feature.kind == "text":
        if told := prose.cut(texts.tolist(), feature.network):
            warnings.warn(str(read.error(table, feature.column, None, told)), CutTextWarning, stacklevel=4)
        found = prose.from_text(feature.components, feature.numbers)
        x[:, : feature.numbers] = found.numbers(texts.tolist(), feature.network, kept=kept).numpy()
        x[missing] = 0
    else:
        values = column_values(table, feature.column, feature.kind, feature.date_format)
        missing = np.isnan(values)
        with np.errstate(over="ignore", invalid="ignore"):  # what cannot be computed with is refused
            inputs = np.where(missing, 0.0, feature.encode(values))
            _refuse_larger(table, feature.column, values, inputs, feature.decode)
        x[:, 0] = inputs
        unseen = _far(table, feature, values, missing)
    if feature.missing:
        x[:, -1] = missing
        return unseen
    if missing.any():
        _warn(table, feature.column, f"missing in {read.listed(table, missing)}, but never in the training tasks")
    return unseen | missing


#: |input| and |standardised target| at most: products of two are numbers of 32 bits still.
_LARGEST = 1e18


def _refuse_larger(
    table: Table,
    column: str,
    values: NDArray[np.float64],
    standardised: NDArray[np.float64],
    decode: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> None:
    row = read.first(~(np.abs(standardised) <= _LARGEST))
    if row is not None:
        low, high = decode(np.array((-_LARGEST, _LARGEST)))
        raise read.error(
            table,
            column,
            row,
            f"{values[row]:.6g} is too far from the training tasks' values to compute with; expected a number from"
            f" {low:.3g} to {high:.3g}",
        )


def _far(table: Table, feature: Feature, values: NDArray[np.float64], missing: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which values are far from those of training tasks, and warn of them."""
    if feature.limits is None:
        return np.zeros(len(values), dtype=bool)
    plain = feature._replace(limits=None)
    far = ~missing & (feature.encode(values) != plain.encode(values))
    if far.any():
        ends = "to".join(f" {value:.6g} " for value in plain.decode(np.array(feature.limits)))
        reason = f"far from the{ends}of training tasks, so the value is taken for one that is nearer"
        _warn(table, feature.column, f"{read.listed(table, far)}: {reason}")
    return far


def _places(texts: Texts, known: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the different texts, and the place of each text among the ``known`` ones, -1 where it is none."""
    names, numbers = read.distinct(texts)
    places = {name: place for place, name in enumerate(known)}
    return names, np.array([places.get(name, -1) for name in names], dtype=np.int64)[numbers]


def _warn(table: Table, column: str, message: str) -> None:
    warnings.warn(str(read.error(table, column, None, message)), UnseenValueWarning, stacklevel=5)


def encode_target(schema: Schema, table: Table) -> Tensor:
    """Return the targets of a table's rows: standardised numbers ``(N, 1)`` float32, or class ids ``(N,)`` int64.

    A missing target, one that is no number in regression or too large a one, or a class that the schema does not have
    is a `DataError`.
    One so far from those of training tasks that no prediction comes near is an `UnseenValueWarning`.
    """
    read.refuse_missing(table, schema.target, "target")
    if schema.kind == "regression":
        found = regression_target(table, schema.target)
        with np.errstate(over="ignore"):
            values = (found - schema.mean) / schema.scale
            _refuse_larger(table, schema.target, found, values, lambda ends: ends * schema.scale + schema.mean)
        far = values != (values if schema.limits is None else bounded(values, schema.limits))
        if schema.limits is not None and far.any():
            low, high = (end * schema.scale + schema.mean for end in schema.limits)
            reason = f"far from the {low:.6g} to {high:.6g} of training tasks, near which predictions are kept"
            _warn(table, schema.target, f"{read.listed(table, far)}: {reason}")
        return torch.from_numpy(values.astype(np.float32)).unsqueeze(1)
    _, ids = _places(table.columns[schema.target], schema.classes)
    row = read.first(ids < 0)
    if row is not None:
        text, classes = str(table.columns[schema.target][row]), ", ".join(schema.classes[:20])
        raise read.error(table, schema.target, row, f"class {text!r} is not among those learned: {classes}")
    return torch.from_numpy(ids)
