"""What the scikit-learn estimators have in common."""

import copy
from os import PathLike
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from headstart.errors import UsageError
from headstart.integrations.sklearn.files import read_estimator, write_estimator
from headstart.integrations.sklearn.fitted import Fitted, Rows, Table, few_shot, learned, one_task
from headstart.integrations.sklearn.options import Kind, options_of

try:
    from sklearn.base import BaseEstimator
    from sklearn.utils import check_random_state

    # pyrefly: ignore [missing-module-attribute]
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise UsageError("this needs scikit-learn 1.6 or newer; pip install headstart[sklearn]") from error


class FewShot(BaseEstimator):
    """Parameters, fitting, adapting and files; what is predicted is left to the two estimators."""

    _kind: ClassVar[Kind]
    n_features_in_: int
    feature_names_in_: Rows
    classes_: Rows

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

    def adapt(self, X: ArrayLike, y: ArrayLike) -> Self:
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

    def _read(self, X: ArrayLike, y: ArrayLike, reset: bool) -> Table:
        """Check rows as scikit-learn does; ``reset``: they say what features there are."""
        raise NotImplementedError

    def _features(self, X: ArrayLike) -> Rows:
        check_is_fitted(self, "fitted_")
        return validate_data(self, X, dtype=np.float64, reset=False)

    def _few_shot(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike) -> tuple[Rows, Rows, Rows]:
        """Return which rows are query rows, their targets, and what is predicted after adapting to the support."""
        check_is_fitted(self, "fitted_")
        table = self._read(X, y, reset=False)
        options = options_of(self.get_params(deep=False), self._kind)
        return few_shot(self.fitted_, table, groups, options, self._known_classes())
