"""Meta-learning as scikit-learn estimators: ``fit`` learns across tasks, ``adapt`` learns a new one from a few rows.

::

    estimator = FewShotRegressor().fit(X, y, groups=subject)    # every subject's rows are a task
    adapted = estimator.adapt(X_few, y_few)                     # a new subject, from a few rows
    adapted.predict(X_rest)
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# checks that scikit-learn is there
from headstart.integrations.sklearn.base import FewShot  # isort: skip

from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data  # pyrefly: ignore [missing-module-attribute]

from headstart.errors import DataError, UsageError
from headstart.integrations.sklearn.fitted import Fitted, Rows, Table
from headstart.integrations.sklearn.training import distribution, outputs


class FewShotRegressor(RegressorMixin, FewShot):
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
        steps: outer steps; by default 5 for each training task, from 20 to 200.
        tasks_per_step: tasks of an outer step.
        outer_rate: step size of the outer optimiser; by default 0.02 (Adam; for reptile 1.0, plain SGD).
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

    def predict(self, X: ArrayLike, return_std: bool = False) -> Rows | tuple[Rows, Rows]:
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
        X: ArrayLike,
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

    def _read(self, X: ArrayLike, y: ArrayLike, reset: bool) -> Table:
        x, targets = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, reset=reset)
        return Table(x, targets.astype(np.float64), None)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # pyrefly: ignore [missing-attribute]
        tags.target_tags.multi_output = True
        return tags


class FewShotClassifier(ClassifierMixin, FewShot):
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

    def predict(self, X: ArrayLike) -> Rows:
        """Predict the labels of rows ``(n, features)``: the most probable classes."""
        places = self._logits(X).argmax(1)
        return self.classes_[places]

    def predict_proba(self, X: ArrayLike) -> Rows:
        """Return the probability of each of `classes_`, ``(n, classes)``; they were not calibrated."""
        logits = self._logits(X)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    def score(
        self,
        X: ArrayLike,
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

    def _logits(self, X: ArrayLike) -> Rows:
        x = self._features(X)
        known: Fitted = self.fitted_
        return outputs(known.spec, known.adapted, known.scaling.features(x)).numpy()

    def _read(self, X: ArrayLike, y: ArrayLike, reset: bool) -> Table:
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
