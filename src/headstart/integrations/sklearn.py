"""Meta-learning as scikit-learn estimators: ``fit`` learns across tasks, ``adapt`` learns a new one from a few rows.

::

    estimator = FewShotRegressor().fit(X, y, groups=subject)    # every subject's rows are a task
    adapted = estimator.adapt(X_few, y_few)                     # a new subject, from a few rows
    adapted.predict(X_rest)
"""

import copy
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import DataError, UsageError
from headstart.integrations.sklearn_files import read_estimator, write_estimator
from headstart.integrations.sklearn_fitted import Fitted, Table, few_shot, learned, one_task
from headstart.integrations.sklearn_options import Kind, options_of
from headstart.integrations.sklearn_training import distribution, outputs

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.utils import Tags, check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise UsageError("this needs scikit-learn 1.6 or newer; pip install headstart[sklearn]") from error

Rows = NDArray[Any]


class _FewShot(BaseEstimator):
    """What both estimators do."""

    _kind: ClassVar[Kind]

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

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:  # noqa: N803
        """Meta-train on the tasks that ``groups`` names; then learn from all rows pooled what `predict` answers.

        Args:
            X: features ``(n, features)``.
            y: targets or class labels.
            groups: the name of each row's task ``(n,)``. Without it the rows are one task, and are dealt out at random
                to parts of about twice ``support`` rows (a class), which are learned from as if they were tasks.

        Raises:
            DataError: groups that do not fit the rows, or a task with too few of them.
            ConfigError: a parameter out of range.
        """
        options = options_of(self.get_params(deep=False), self._kind)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        table = self._read(X, y, reset=True)
        trained, fitted = learned(table, groups, options, self._kind, seed)
        self.method_, self.n_iter_ = options.method, len(trained.losses)
        self.loss_curve_, self.validation_curve_ = list(trained.losses), list(trained.validation)
        self._know(fitted, table.classes)
        return self

    def adapt(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803
        """Return a fitted estimator that has learned one new task from a few rows; this one stays as it is.

        Args:
            X: features ``(n, features)``, as in `fit`.
            y: targets; or class labels, which may be new ones where ``method`` learns a head for each task
                (prototypes, ridge, svm, logistic), and else must be among `classes_`.
        """
        check_is_fitted(self, "fitted_")
        table = self._read(X, y, reset=False)
        fitted, classes = one_task(self.fitted_, table, self._known_classes())
        adapted = copy.copy(self)
        adapted._know(fitted, classes)
        return adapted

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the estimator to a new or empty folder: safetensors and JSON, nothing that is ever unpickled.

        Whatever ``random_state`` is, but a number, is kept as None.
        """
        check_is_fitted(self, "fitted_")
        curves = {"losses": self.loss_curve_, "validation": self.validation_curve_}
        features = getattr(self, "feature_names_in_", None)
        params = self.get_params(deep=False)
        write_estimator(
            Path(folder), type(self).__name__, self.fitted_, params, self._known_classes(), features, curves
        )

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            FileError: a file that is missing, damaged, or not of such an estimator.
        """
        found = read_estimator(Path(folder), cls.__name__, cls._kind, cls().get_params(deep=False))
        estimator = cls(**found.params)
        estimator.method_, estimator.n_iter_ = found.fitted.spec.method, len(found.losses)
        estimator.loss_curve_, estimator.validation_curve_ = found.losses, found.validation
        estimator.n_features_in_ = found.fitted.spec.inputs
        if found.features is not None:
            estimator.feature_names_in_ = np.asarray(found.features, dtype=object)
        estimator._know(found.fitted, found.classes)
        return estimator

    def _know(self, fitted: Fitted, classes: Rows | None) -> None:
        self.fitted_ = fitted
        if classes is not None:
            self.classes_ = classes

    def _known_classes(self) -> Rows | None:
        return getattr(self, "classes_", None)

    def _read(self, X: ArrayLike, y: ArrayLike, reset: bool) -> Table:  # noqa: N803
        raise NotImplementedError

    def _features(self, X: ArrayLike) -> Rows:  # noqa: N803
        check_is_fitted(self, "fitted_")
        return validate_data(self, X, dtype=np.float64, reset=False)

    def _few_shot(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike) -> tuple[Rows, Rows, Rows]:  # noqa: N803
        """Return which rows are query rows, their targets, and what is predicted after adapting to the support."""
        check_is_fitted(self, "fitted_")
        table = self._read(X, y, reset=False)
        options = options_of(self.get_params(deep=False), self._kind)
        return few_shot(self.fitted_, table, groups, options, self._known_classes())


class FewShotRegressor(RegressorMixin, _FewShot):
    """Regression learned across tasks, such that a few rows of a new task are enough.

    `fit` learns across the tasks that ``groups`` names, `adapt` learns a new one. Without `adapt`, `predict` answers
    by what all training rows pooled say. X and y are standardised by the training rows; sample weights are not
    supported in fitting.

    Args:
        method: ``"auto"`` (a Gaussian process with a learned prior) or the name of another method that regresses,
            such as ``"ridge"``, ``"maml"``, ``"reptile"``; `headstart list methods` names them.
        hidden: widths of the network's hidden layers, ``()`` for none; by default the method's own, else (32, 32).
        support: rows from which a task is learned in training and in `score`: a number, or the least and the most, in
            training drawn anew for each step. What is left of a task are its query rows.
        order: draw the support rows at ``"random"``, or take a task's ``"first"`` rows.
        steps: outer steps; by default 10 for each training task, from 20 to 300.
        tasks_per_step: tasks of an outer step.
        outer_rate: step size of the outer optimiser; by default 0.01 (Adam; for reptile 1.0, plain SGD).
        inner_steps, inner_rate: gradient steps of an adaptation, for methods that take any.
        validation_fraction: share of the tasks held out to choose the weights by; 0: the last weights are kept.
        on_short: what to do with a task that has no more than ``support`` rows, in `fit` and `score`: ``"error"`` or
            ``"skip"``.
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

    _kind = "regression"

    def predict(self, X: ArrayLike, return_std: bool = False) -> Rows | tuple[Rows, Rows]:  # noqa: N803
        """Predict targets, of the task that `adapt` learned, or by all training rows pooled.

        Args:
            X: features ``(n, features)``.
            return_std: return the standard deviation of an observation as well, noise included, where the method
                tells one; such a method is ``"gaussian_process"``.

        Raises:
            UsageError: the method tells no standard deviation.
        """
        x = self._features(X)
        known: Fitted = self.fitted_
        features = known.scaling.features(x)
        if not return_std:
            return known.in_units(outputs(known.spec, known.adapted, features))
        found = distribution(known.spec, known.adapted, features)
        if found is None:
            raise UsageError(
                f"method {known.spec.method!r} does not say how sure it is; take one that does (gaussian_process), "
                "or leave out return_std"
            )
        return known.in_units(found.mean), known.deviations(found.variance)

    def score(
        self,
        X: ArrayLike,  # noqa: N803
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> float:
        """Return R² of `predict`; or with ``groups``, of predictions after adapting to each group's support rows.

        Args:
            X, y: rows.
            sample_weight: how much each row's error counts.
            groups: the name of each row's task: of each, ``support`` rows (the most of a range) are adapted to and the
                others predicted. R² is over those of all tasks.
        """
        if groups is None:
            return float(super().score(X, y, sample_weight))
        rows, truth, predicted = self._few_shot(X, y, groups)
        return float(r2_score(truth, predicted, sample_weight=_chosen(sample_weight, rows)))

    def _read(self, X: ArrayLike, y: ArrayLike, reset: bool) -> Table:  # noqa: N803
        x, targets = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, reset=reset)
        return Table(x, targets.astype(np.float64), None)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class FewShotClassifier(ClassifierMixin, _FewShot):
    """Classification learned across tasks, such that a few rows of a new task, or of new classes, are enough.

    Parameters and attributes are those of `FewShotRegressor`, but ``support`` is the number of rows of each class (with
    ``order="first"``, of a task), ``method="auto"`` is the nearest class mean in a learned embedding
    (``"prototypes"``), and `classes_` holds the labels. Tasks may have different classes. After `adapt`, `classes_` are
    the new task's. Sample weights are not supported in fitting.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(80, 2))
    >>> y = np.where(x[:, 0] > 0, "right", "left")
    >>> classifier = FewShotClassifier(steps=20, random_state=0).fit(x, y, groups=np.arange(80) % 2)
    >>> classifier.adapt(x[:4], ["high", "low", "high", "low"]).classes_.tolist()
    ['high', 'low']
    """

    _kind = "classification"

    def predict(self, X: ArrayLike) -> Rows:  # noqa: N803
        """Predict the labels of rows ``(n, features)``: the most probable classes."""
        places = self._logits(X).argmax(1)
        return self.classes_[places]

    def predict_proba(self, X: ArrayLike) -> Rows:  # noqa: N803
        """Return the probability of each of `classes_`, ``(n, classes)``; they were not calibrated."""
        logits = self._logits(X)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    def score(
        self,
        X: ArrayLike,  # noqa: N803
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> float:
        """Return the accuracy of `predict`; or with ``groups``, after adapting to each group's support rows.

        Arguments are those of `FewShotRegressor.score`.
        """
        if groups is None:
            return float(super().score(X, y, sample_weight))
        rows, truth, predicted = self._few_shot(X, y, groups)
        return float(accuracy_score(truth, predicted, sample_weight=_chosen(sample_weight, rows)))

    def _logits(self, X: ArrayLike) -> Rows:  # noqa: N803
        x = self._features(X)
        known: Fitted = self.fitted_
        return outputs(known.spec, known.adapted, known.scaling.features(x)).numpy()

    def _read(self, X: ArrayLike, y: ArrayLike, reset: bool) -> Table:  # noqa: N803
        x, labels = validate_data(self, X, y, dtype=np.float64, reset=reset)
        check_classification_targets(labels)
        classes, numbers = np.unique(labels, return_inverse=True)
        return Table(x, numbers.astype(np.int64), classes)


def _chosen(weights: ArrayLike | None, rows: Rows) -> Rows | None:
    """Return the weights of the rows that were predicted."""
    if weights is None:
        return None
    found = np.asarray(weights, dtype=np.float64)
    if found.ndim != 1 or len(found) <= rows.max():
        raise DataError(f"sample_weight must have one number a row, got shape {found.shape}")
    return found[rows]
