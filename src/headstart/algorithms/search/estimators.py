"""Estimators of scikit-learn by name, and the spaces that their hyper-parameters are searched in."""

import math
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias

from headstart.errors import UsageError, unknown_name


class LogUniform(NamedTuple):
    """A positive number, searched on a logarithmic scale. In M it is its natural logarithm."""

    low: float
    high: float
    start: float | None = None
    """Where a search begins; by default the geometric mean of the ends."""

    def first(self) -> float:
        return math.sqrt(self.low * self.high) if self.start is None else self.start

    def suggest(self, trial: Any, name: str) -> float:
        return float(trial.suggest_float(name, self.low, self.high, log=True))

    def encode(self, value: float) -> float:
        return math.log(value)

    def decode(self, code: float) -> float:
        code = min(max(code, math.log(self.low)), math.log(self.high))
        return min(max(math.exp(code), self.low), self.high)


class Uniform(NamedTuple):
    """A number. In M it is itself."""

    low: float
    high: float
    start: float | None = None
    """Where a search begins; by default in the middle."""

    def first(self) -> float:
        return (self.low + self.high) / 2 if self.start is None else self.start

    def suggest(self, trial: Any, name: str) -> float:
        return float(trial.suggest_float(name, self.low, self.high))

    def encode(self, value: float) -> float:
        return value

    def decode(self, code: float) -> float:
        return min(max(code, self.low), self.high)


class Integer(NamedTuple):
    """A whole number, both ends included. In M it is itself; it is rounded where it acts."""

    low: int
    high: int
    start: int | None = None
    """Where a search begins; by default in the middle."""

    def first(self) -> int:
        return (self.low + self.high) // 2 if self.start is None else self.start

    def suggest(self, trial: Any, name: str) -> int:
        return int(trial.suggest_int(name, self.low, self.high))

    def encode(self, value: int) -> float:
        return float(value)

    def decode(self, code: float) -> int:
        return min(max(round(code), self.low), self.high)


class Choice:
    """One of some options, of any type; a search begins at the first. In M it is the option's place, from 0.

    >>> Choice("rbf", "linear").decode(0.9)
    'linear'
    """

    def __init__(self, *options: Any) -> None:
        if not options:
            raise UsageError("a Choice needs one option or more")
        self.options = options

    def __repr__(self) -> str:
        return f"Choice{self.options!r}"

    def first(self) -> Any:
        return self.options[0]

    def suggest(self, trial: Any, name: str) -> Any:
        # by place: Optuna keeps only numbers and text
        return self.options[trial.suggest_categorical(name, range(len(self.options)))]

    def encode(self, value: Any) -> float:
        return float(self.options.index(value))

    def decode(self, code: float) -> Any:
        return self.options[min(max(round(code), 0), len(self.options) - 1)]

    @property
    def numbers(self) -> bool:
        """Whether all options are numbers."""
        return all(isinstance(option, (int, float)) and not isinstance(option, bool) for option in self.options)


Range: TypeAlias = LogUniform | Uniform | Integer | Choice
Space: TypeAlias = Mapping[str, Range]
"""What is searched, by name: parameters of the estimator, and of what is done around it (`AROUND`)."""

AROUND = {
    "inputs.scale": "'none', 'task' (mean and deviation of the task's support rows) or 'tasks' (of training tasks)",
    "inputs.components": "None, or how many principal components of the task's support rows to keep, where there are",
    "targets.scale": "of regression; as inputs.scale",
}
"""What a space may name besides the estimator's own parameters; what it does not name is not done."""


class Kind(NamedTuple):
    """A named estimator."""

    target: str
    """``module:attribute`` of its class, or of what makes it."""
    space: Space
    fixed: Mapping[str, Any] = {}
    """Parameters that are not searched."""
    per_output: bool = False
    """Whether it predicts one target value alone, so that each gets an estimator of its own."""
    at_most_rows: tuple[str, ...] = ()
    """Parameters that no task may have larger than its number of support rows."""


_SCALE = Choice("none", "task", "tasks")
_INPUTS: Space = {"inputs.scale": _SCALE, "inputs.components": Choice(None, 2, 4, 8, 16)}
_TARGETS: Space = {"targets.scale": _SCALE}
_GAMMA = Choice("scale", "auto", *(10.0**power for power in range(-4, 2)))
_FOREST: Space = {
    "min_samples_leaf": Integer(1, 5, 1),
    "max_depth": Choice(None, 1, 2, 4, 8),
    "bootstrap": Choice(True, False),
}
_NEIGHBORS: Space = {
    "n_neighbors": Integer(1, 15, 5),
    "weights": Choice("uniform", "distance"),
    "p": Choice(2, 1),
}

KINDS: dict[str, dict[str, Kind]] = {
    "cross_entropy": {
        "svm": Kind(
            "sklearn.svm:SVC",
            {
                "C": LogUniform(1e-2, 1e3, 1.0),
                "kernel": Choice("rbf", "linear", "poly"),
                "gamma": _GAMMA,
                **_INPUTS,
            },
        ),
        "random_forest": Kind(
            "sklearn.ensemble:RandomForestClassifier",
            {
                "max_features": Choice("sqrt", 1.0, 0.5, 0.1, "log2"),
                **_FOREST,
                "criterion": Choice("gini", "entropy"),
                **_INPUTS,
            },
        ),
        "logistic": Kind(
            "sklearn.linear_model:LogisticRegression",
            {"C": LogUniform(1e-3, 1e3, 1.0), **_INPUTS},
            {"max_iter": 1000},
        ),
        "neighbors": Kind(
            "sklearn.neighbors:KNeighborsClassifier",
            {**_NEIGHBORS, **_INPUTS},
            at_most_rows=("n_neighbors",),
        ),
    },
    "mse": {
        "svm": Kind(
            "sklearn.svm:SVR",
            {
                "C": LogUniform(1e-2, 1e3, 1.0),
                "epsilon": LogUniform(1e-3, 1.0, 0.1),
                "kernel": Choice("rbf", "linear", "poly"),
                "gamma": _GAMMA,
                **_INPUTS,
                **_TARGETS,
            },
            per_output=True,
        ),
        "random_forest": Kind(
            "sklearn.ensemble:RandomForestRegressor",
            {"max_features": Choice(1.0, "sqrt", 0.5, 0.25), **_FOREST, **_INPUTS},
        ),
        "ridge": Kind("sklearn.linear_model:Ridge", {"alpha": LogUniform(1e-4, 1e3, 1.0), **_INPUTS, **_TARGETS}),
        "kernel_ridge": Kind(
            "sklearn.kernel_ridge:KernelRidge",
            {
                "alpha": LogUniform(1e-4, 1e2, 1.0),
                "kernel": Choice("linear", "rbf", "laplacian", "poly"),
                "gamma": LogUniform(1e-4, 1e2),
                **_INPUTS,
                **_TARGETS,
            },
        ),
        "gaussian_process": Kind(
            "headstart.algorithms.search.estimators:gaussian_process",
            {
                "length_scale": LogUniform(1e-2, 1e2, 1.0),
                "noise": LogUniform(1e-4, 1e1, 0.1),
                "amplitude": LogUniform(1e-1, 1e1, 1.0),
                **_INPUTS,
                **_TARGETS,
            },
        ),
        "neighbors": Kind(
            "sklearn.neighbors:KNeighborsRegressor", {**_NEIGHBORS, **_INPUTS}, at_most_rows=("n_neighbors",)
        ),
    },
}
"""The named estimators, by loss."""


def gaussian_process(length_scale: float = 1.0, noise: float = 0.1, amplitude: float = 1.0) -> Any:
    """Return scikit-learn's Gaussian process regressor with a squared exponential kernel, which fitting leaves as is.

    Args:
        length_scale: of the kernel.
        noise: variance of the noise.
        amplitude: standard deviation of the function.
    """
    kernels = required("sklearn.gaussian_process.kernels")
    kernel = kernels.ConstantKernel(amplitude**2) * kernels.RBF(length_scale)
    return required("sklearn.gaussian_process").GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)


def kind_of(name: str, loss: str) -> Kind:
    """Return the estimator called ``name`` for a loss.

    Raises:
        UnknownNameError: there is none of that name; the message names the nearest.
    """
    if loss not in KINDS:
        raise unknown_name("loss", loss, KINDS)
    if name not in KINDS[loss]:
        raise unknown_name(f"estimator for the loss {loss!r}", name, KINDS[loss])
    return KINDS[loss][name]


def loaded(kind: Kind) -> Callable[..., Any]:
    """Import and return what makes a named estimator."""
    module, attribute = kind.target.split(":")
    made: Callable[..., Any] = getattr(required(module), attribute)
    return made


def required(module: str) -> Any:
    """Import and return a module of the extra ``search``.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{module.partition('.')[0]} is not installed, which searching needs: pip install headstart[search]"
        ) from error


def check_space(space: Space) -> None:
    """Raise `UsageError` for a space with a range that is empty, or is not one."""
    if not space:
        raise UsageError("the space names nothing to search; give it a range or more, such as C=LogUniform(0.01, 100)")
    for name, within in space.items():
        if not isinstance(within, (LogUniform, Uniform, Integer, Choice)):
            raise UsageError(
                f"the space gives {within!r} for {name!r}; expected LogUniform(low, high), Uniform(low, high), "
                "Integer(low, high) or Choice(option, option, ...)"
            )
        if isinstance(within, Choice):
            continue
        if not within.low <= within.first() <= within.high or (isinstance(within, LogUniform) and not within.low > 0):
            least = "0 < low <= start <= high" if isinstance(within, LogUniform) else "low <= start <= high"
            raise UsageError(f"the range {within} of {name!r} must have {least}")
