"""The two estimators: scikit-learn's ways around what is learned from values."""

import copy
from collections.abc import Callable
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from headstart.data.tables.read import Table
from headstart.errors import DataError, UsageError
from headstart.integrations.sklearn.data import Array, Examples
from headstart.integrations.sklearn.files import read_estimator, write_estimator
from headstart.integrations.sklearn.frames import is_frame, is_missing, names_of, number_table, value_table
from headstart.integrations.sklearn.learning import Fitted, few_shot, learned, one_task
from headstart.integrations.sklearn.options import options_of
from headstart.registry import Target

try:
    from scipy.sparse import issparse
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.utils import check_random_state, check_X_y
    from sklearn.utils.multiclass import check_classification_targets

    # pyrefly: ignore [missing-module-attribute]
    from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise UsageError("this needs scikit-learn 1.6 or newer; pip install headstart[sklearn]") from error


_NUMBERS = {"dtype": np.float64, "ensure_all_finite": "allow-nan"}


def _as_table(X: Any) -> bool:
    """Return whether ``X`` is a frame, or an array of what are not all numbers."""
    if is_frame(X):
        return True
    if issparse(X) or (array := np.asarray(X)).ndim != 2 or array.dtype.kind not in "OUTMm":
        return False
    try:
        array.astype(np.float64)
    except (TypeError, ValueError):
        return True
    return array.dtype.kind in "Mm"


def _typed(y: Any) -> Any:
    """Return targets as an array of what they are, also where pandas allows missing ones, of which none may be."""
    array = np.asarray(y)
    if not array.ndim or array.dtype != object:
        return y if y is None or issparse(y) else array
    values = array.ravel().tolist()
    missing = [row for row, value in enumerate(values) if is_missing(value)]
    if missing:
        raise DataError(f"y is missing in row {missing[0]} ({len(missing)} such rows); leave them out")
    for kind in (bool, int, float):
        if values and all(type(value) is kind for value in values):
            with suppress(OverflowError):
                return array.astype(kind)
    return array


class FewShot(BaseEstimator):
    """Parameters, fitting, adapting and files; what is predicted is left to the two estimators."""

    _kind: ClassVar[Target]
    fitted_: Fitted
    n_features_in_: int
    feature_names_in_: Array
    classes_: Array

    def __init__(
        self,
        method: str = "auto",
        *,
        hidden: tuple[int, ...] | None = None,
        support: int | tuple[int, int] = 5,
        order: str = "random",
        steps: int | None = None,
        tasks_per_step: int = 16,
        outer_rate: float | None = None,
        inner_steps: int = 5,
        inner_rate: float = 0.05,
        validation_fraction: float = 0.0,
        on_short: str = "error",
        pooled_rows: int = 1000,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.method = method
        self.hidden = hidden
        self.support = support
        self.order = order
        self.steps = steps
        self.tasks_per_step = tasks_per_step
        self.outer_rate = outer_rate
        self.inner_steps = inner_steps
        self.inner_rate = inner_rate
        self.validation_fraction = validation_fraction
        self.on_short = on_short
        self.pooled_rows = pooled_rows
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Meta-train on the tasks that ``groups`` names; then learn from all rows pooled what `predict` answers.

        Args:
            X: features ``(n, features)``, a frame or an array; see the class.
            y: targets or class labels, none missing.
            groups: the name of each row's task ``(n,)``. Without it the rows are dealt out at random to parts of about
                twice ``support`` rows (a class), which are learned from as if they were tasks.

        Raises:
            DataError: groups that do not fit the rows, a task with too few of them, or a column that is no feature.
            ConfigError: a parameter out of range.
        """
        options = options_of(self.get_params(deep=False), self._kind)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        examples, plain = self._read(X, y, reset=True)
        return self._know(learned(examples, plain, groups, options, self._kind, seed))

    def adapt(self, X: ArrayLike | None = None, y: ArrayLike | None = None) -> Self:
        """Return a fitted estimator that has learned one new task from a few rows; this one stays as it is.

        Without rows, it predicts a task of which nothing is known yet, as the training tasks say.

        Args:
            X: features ``(n, features)``, as in `fit`; a frame's columns are told by their names, in any order.
            y: targets; or class labels, which must be among `classes_` unless ``method`` learns a head for each task
                (prototypes, ridge, svm, logistic).
        """
        check_is_fitted(self, "fitted_")
        if (X is None) != (y is None):
            raise DataError("adapt takes features and targets, or neither")
        examples = None if X is None or y is None else self._read(X, y, reset=False)[0]
        return copy.copy(self)._know(one_task(self.fitted_, examples))

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the estimator to a new or empty folder: safetensors and JSON, nothing that is ever unpickled.

        A ``random_state`` that is no number is kept as None.
        """
        check_is_fitted(self, "fitted_")
        names, params = getattr(self, "feature_names_in_", None), self.get_params(deep=False)
        write_estimator(Path(folder), type(self).__name__, params, self.fitted_, names)

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Self:
        """Read what `save` wrote; a file that is missing, damaged or of another estimator is a `FileError`."""
        params, fitted, names = read_estimator(Path(folder), cls.__name__, cls._kind, cls().get_params(deep=False))
        estimator = cls(**params)._know(fitted)
        estimator.n_features_in_ = len(fitted.encoding.columns)
        if names is not None:
            estimator.feature_names_in_ = np.asarray(names, dtype=object)
        return estimator

    def _know(self, fitted: Fitted) -> Self:
        self.fitted_, self.method_, self.n_iter_ = fitted, fitted.spec.method, len(fitted.losses)
        self.loss_curve_, self.validation_curve_ = fitted.losses, fitted.validation
        if fitted.classes is not None:
            self.classes_ = fitted.classes
        return self

    def _read(self, X: ArrayLike, y: ArrayLike, reset: bool) -> tuple[Examples, bool]:
        """Check rows as scikit-learn does; ``reset``: they say what features there are, and if they are plain."""
        table, y = self._table(X, reset), _typed(y)
        if table is None:
            x, y = validate_data(self, X, y, **_NUMBERS, **self._targets, reset=reset)
            return self._examples(number_table(x, self._columns(x.shape[1])), y), True
        _, y = check_X_y(np.zeros((table.size, 1)), y, estimator=self, **self._targets)
        return self._examples(table, y), False

    def _features(self, X: ArrayLike) -> Table:
        check_is_fitted(self, "fitted_")
        table = self._table(X, reset=False)
        if table is not None:
            return table
        x = validate_data(self, X, **_NUMBERS, reset=False)
        return number_table(x, self.fitted_.encoding.columns)

    def _table(self, X: Any, reset: bool) -> Table | None:
        """Return a frame's columns, by name where they have names; or an array of texts; ``None`` for plain numbers."""
        frame, known = is_frame(X), None if reset else self.fitted_.encoding
        if not frame and hasattr(type(X), "columns"):  # as an array, it would lose its names
            raise DataError(
                f"X is a {type(X).__name__}; give X.collect(), or X.to_pandas(), a frame that holds its rows"
            )
        if not _as_table(X) if known is None else known.plain:
            return None
        if not frame:
            # pyrefly: ignore [unexpected-keyword]
            X = check_array(X, dtype=None, ensure_all_finite=False, input_name="X", estimator=self)
        names, own = names_of(X) if frame else None, getattr(self, "feature_names_in_", None)
        if known is not None and names is not None and own is not None and sorted(names) == sorted(own):
            X = X[own.tolist()]  # names say which column is which, whatever their order
        validate_data(self, X, skip_check_array=True, reset=reset)
        if not len(X):
            raise DataError("X has no rows; at least one is needed")
        if known is not None:
            return value_table(X, known.columns, known.features)
        return value_table(X, names or self._columns(X.shape[1]))

    def _columns(self, count: int) -> list[str]:
        names = getattr(self, "feature_names_in_", None)
        return [f"x{place}" for place in range(count)] if names is None else names.tolist()

    _targets: ClassVar[dict[str, Any]]
    """How `check_X_y` is to read y."""

    def _examples(self, x: Table, y: Array) -> Examples:
        raise NotImplementedError

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # pyrefly: ignore [missing-attribute]
        tags.input_tags.allow_nan = tags.input_tags.string = tags.input_tags.categorical = True
        return tags

    _measure: ClassVar[Callable[..., float]]

    def score(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> float:
        """Return R², or the accuracy, of `predict`; or with ``groups``, after adapting to each group's support rows.

        Args:
            X, y: rows.
            sample_weight: how much each row counts.
            groups: the name of each row's task: of each, ``support`` rows (the most of a range) are adapted to and the
                others predicted. The score is over those of all tasks.
        """
        measure, weights = type(self)._measure, sample_weight
        if groups is None:
            return float(measure(_typed(y), self.predict(X), sample_weight=weights))  # pyrefly: ignore [missing-attribute]
        check_is_fitted(self, "fitted_")
        (examples, _), options = self._read(X, y, reset=False), options_of(self.get_params(deep=False), self._kind)
        rows, truth, predicted = few_shot(self.fitted_, examples, groups, options)
        if weights is not None:
            weights = np.asarray(weights, dtype=np.float64)
            if weights.ndim != 1 or len(weights) <= rows.max():
                raise DataError(f"sample_weight must have one number a row, got shape {weights.shape}")
            weights = weights[rows]
        return float(measure(truth, predicted, sample_weight=weights))


class FewShotRegressor(RegressorMixin, FewShot):
    """Regression learned across tasks, such that a few rows of a new task are enough.

    `fit` learns across the tasks that ``groups`` names, `adapt` learns a new one. Without `adapt`, `predict` answers
    by all training rows pooled. y may have several columns. Fitting takes no sample weights: all rows count alike.

    A frame of pandas or polars, or an array that holds texts, is read as `headstart train` reads a file: numbers, texts
    and categories, booleans, dates and missing values, skewed numbers by their logarithm where that tells more, and
    what is far from the training rows drawn near. Later frames must have the same columns, in any order. An array of
    numbers is standardised and no more; NaN is a missing value there too.

    Args:
        method: ``"auto"`` (a Gaussian process with a learned prior: the first of the methods of which `headstart train`
            keeps the best on validation tasks, while here it is the only one) or the name of another that regresses,
            such as ``"ridge"``, ``"maml"``, ``"reptile"``; `headstart list methods` names them.
        hidden: widths of the network's hidden layers, ``()`` for none; by default the method's own, else (32, 32).
        support: rows from which a task is learned in training and in `score`: a number, or the least and the most,
            drawn anew for each training step. The others are its query rows.
        order: draw the support rows at ``"random"``, or take a task's ``"first"`` rows.
        steps: outer steps; by default 5 for each training task, from 20 to 200.
        tasks_per_step: tasks of an outer step.
        outer_rate: step size of the outer optimiser; by default 0.02 (Adam; for reptile 1.0, plain SGD).
        inner_steps, inner_rate: gradient steps of an adaptation, for methods that take any.
        validation_fraction: share of the tasks held out to choose the weights by, and to calibrate probabilities;
            0: the last weights are kept.
        on_short: for tasks of no more than ``support`` rows, in `fit` and `score`: ``"error"`` or ``"skip"``.
        pooled_rows: at most so many training rows, drawn at random, are learned from for `predict` without `adapt`.
        random_state: decides all that is random.
        verbose: 1 prints the loss now and then.

    Attributes:
        fitted_: what was learned; `method_`, `n_iter_` (outer steps taken), `loss_curve_`, `validation_curve_`,
        `n_features_in_`, `feature_names_in_` as usual.

    >>> import numpy as np
    >>> x = np.linspace(0, 1, 80).reshape(-1, 1)
    >>> line = np.arange(80) % 8
    >>> regressor = FewShotRegressor(steps=20, random_state=0).fit(x, line * x.ravel(), groups=line)
    >>> regressor.adapt(x[:3], -x[:3].ravel()).predict(x).shape
    (80,)
    """

    _kind, _measure = "regression", r2_score
    score = FewShot.score  # not that of the mixin

    def predict(self, X: ArrayLike, return_std: bool = False) -> Array | tuple[Array, Array]:
        """Predict targets, of the task that `adapt` learned, or by all training rows pooled.

        Args:
            X: features ``(n, features)``.
            return_std: return the standard deviation of an observation as well, noise included, where the method
                tells one, such as ``"gaussian_process"``.

        Raises:
            UsageError: the method tells no standard deviation.
        """
        x = self._features(X)
        if not return_std:
            return self.fitted_.in_units(self.fitted_.outputs(x))
        found = self.fitted_.distribution(x)
        if found is None:
            raise UsageError(
                f"method {self.fitted_.spec.method!r} does not say how sure it is; take one that does "
                "(gaussian_process), or leave out return_std"
            )
        return self.fitted_.in_units(found.mean), self.fitted_.in_units(found.variance.sqrt(), mean=0.0)

    _targets = {"multi_output": True}

    def _examples(self, x: Table, y: Array) -> Examples:
        try:
            if y.dtype.kind in "mM":
                raise ValueError
            return Examples(x, y.astype(np.float64), None)
        except (TypeError, ValueError):
            fix = "write it as numbers, or take FewShotClassifier for labels"
            raise DataError(f"y holds {y.ravel()[0]!s}, but FewShotRegressor predicts numbers; {fix}") from None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class FewShotClassifier(ClassifierMixin, FewShot):
    """Classification learned across tasks, such that a few rows of a new task, or of new classes, are enough.

    Parameters and attributes are those of `FewShotRegressor`, but ``support`` counts rows of each class (with
    ``order="first"``, of a task), ``method="auto"`` is the nearest class mean in a learned embedding
    (``"prototypes"``), and `classes_` holds the labels. Tasks may differ in classes: after `adapt` these are the new
    task's where one of them is new, else those of `fit`, of which one that the rows lack is as likely as in training.
    Labels are texts, whole numbers or booleans, also of pandas and polars, and keep their type; one column of them.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(80, 2))
    >>> y = np.where(x[:, 0] > 0, "right", "left")
    >>> classifier = FewShotClassifier(steps=20, random_state=0).fit(x, y, groups=np.arange(80) % 2)
    >>> classifier.adapt(x[:4], ["high", "low", "high", "low"]).classes_.tolist()
    ['high', 'low']
    """

    _kind, _measure = "classification", accuracy_score
    score = FewShot.score  # not that of the mixin

    def predict(self, X: ArrayLike) -> Array:
        """Predict the labels of rows ``(n, features)``: the most probable classes."""
        x = self._features(X)
        return self.classes_[self.fitted_.outputs(x).argmax(1).numpy()]

    def predict_proba(self, X: ArrayLike) -> Array:
        """Return the probability of each of `classes_`, ``(n, classes)``.

        After `adapt` to rows of every class they are calibrated where there were validation tasks
        (``validation_fraction``): divided by the temperature under which these are likeliest. Else they are the
        model's own.
        """
        x = self._features(X)
        return self.fitted_.chances(x).numpy()

    _targets = {"multi_output": True}

    def _examples(self, x: Table, y: Array) -> Examples:
        if y.ndim == 2 and y.shape[1] > 1:
            fix = "fit one a column, as sklearn.multioutput.MultiOutputClassifier does; of one-hot labels, y.argmax(1)"
            raise DataError(f"y has {y.shape[1]} columns, but FewShotClassifier predicts one label a row; {fix}")
        y = column_or_1d(y, warn=True)
        kinds = sorted({"str" if isinstance(label, str) else type(label).__name__ for label in y.tolist()})
        if len(kinds) > 1:
            raise DataError(f"y mixes labels of types {' and '.join(kinds)}; make them all texts, numbers or booleans")
        check_classification_targets(y)
        classes, numbers = np.unique(y, return_inverse=True)
        return Examples(x, numbers.astype(np.int64), classes)
