"""Meta-learning for anything with fit and predict: M is its hyper-parameters, and they are searched for."""

import inspect
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from headstart.algorithms.estimators import Array, Task, array, flat, learner_of, required
from headstart.core.losses import present, there
from headstart.errors import ConfigError, FileError, HeadstartError, UsageError, pick, unknown_name
from headstart.schema import Size
from headstart.types import Adapted, Episodes, Learner, Meta, Params, Tasks, Tree


@dataclass(frozen=True)
class Uniform:
    """A number. In M it is itself."""

    low: float
    high: float
    start: float | None = None
    """Where a search begins; by default in the middle."""

    def first(self) -> float:
        return (self.low + self.high) / 2 if self.start is None else self.start

    def suggest(self, trial: Any, name: str) -> float:
        return float(trial.suggest_float(name, self.low, self.high, log=isinstance(self, LogUniform)))

    def encode(self, value: float) -> float:
        return float(value)

    def decode(self, code: float) -> float:
        return min(max(code, self.low), self.high)


@dataclass(frozen=True)
class LogUniform(Uniform):
    """A positive number, searched on a logarithmic scale from the geometric mean. In M it is its natural logarithm."""

    def first(self) -> float:
        return math.sqrt(self.low * self.high) if self.start is None else self.start

    def encode(self, value: float) -> float:
        return math.log(value)

    def decode(self, code: float) -> float:
        code = min(max(code, math.log(self.low)), math.log(self.high))
        return super().decode(math.exp(code))


@dataclass(frozen=True)
class Integer(Uniform):
    """A whole number, both ends included. In M it is itself; it is rounded where it acts."""

    def first(self) -> int:
        return int(super().first())

    def suggest(self, trial: Any, name: str) -> int:
        return int(trial.suggest_int(name, self.low, self.high))

    def decode(self, code: float) -> int:
        return int(super().decode(round(code)))


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


Space: TypeAlias = Mapping[str, Uniform | Choice]
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


_INPUTS: Space = {"inputs.scale": Choice("none", "task", "tasks"), "inputs.components": Choice(None, 2, 4, 8, 16)}
_BOTH: Space = {**_INPUTS, "targets.scale": Choice("none", "task", "tasks")}
_C, _KERNEL = LogUniform(1e-2, 1e3, 1.0), Choice("rbf", "linear", "poly")
_KERNELS = Choice("linear", "rbf", "laplacian", "poly")
_GAMMA = Choice("scale", "auto", *(10.0**power for power in range(-4, 2)))
_LEAF, _DEPTH, _CRITERION = Integer(1, 5, 1), Choice(None, 1, 2, 4, 8), Choice("gini", "entropy")
_FOREST: Space = {"min_samples_leaf": _LEAF, "max_depth": _DEPTH, "bootstrap": Choice(True, False)}
_WEIGHTS = Choice("uniform", "distance")
_NEIGHBORS: Space = {"n_neighbors": Integer(1, 15, 5), "weights": _WEIGHTS, "p": Choice(2, 1), **_INPUTS}

KINDS: dict[str, dict[str, Kind]] = {
    "cross_entropy": {
        "svm": Kind("sklearn.svm:SVC", {"C": _C, "kernel": _KERNEL, "gamma": _GAMMA, **_INPUTS}),
        "random_forest": Kind(
            "sklearn.ensemble:RandomForestClassifier",
            {"max_features": Choice("sqrt", 1.0, 0.5, 0.1, "log2"), **_FOREST, "criterion": _CRITERION, **_INPUTS},
        ),
        "logistic": Kind(
            "sklearn.linear_model:LogisticRegression", {"C": LogUniform(1e-3, 1e3, 1.0), **_INPUTS}, {"max_iter": 1000}
        ),
        "neighbors": Kind("sklearn.neighbors:KNeighborsClassifier", _NEIGHBORS, at_most_rows=("n_neighbors",)),
    },
    "mse": {
        "svm": Kind(
            "sklearn.svm:SVR",
            {"C": _C, "epsilon": LogUniform(1e-3, 1.0, 0.1), "kernel": _KERNEL, "gamma": _GAMMA, **_BOTH},
            per_output=True,
        ),
        "random_forest": Kind(
            "sklearn.ensemble:RandomForestRegressor",
            {"max_features": Choice(1.0, "sqrt", 0.5, 0.25), **_FOREST, **_INPUTS},
        ),
        "ridge": Kind("sklearn.linear_model:Ridge", {"alpha": LogUniform(1e-4, 1e3, 1.0), **_BOTH}),
        "kernel_ridge": Kind(
            "sklearn.kernel_ridge:KernelRidge",
            {"alpha": LogUniform(1e-4, 1e2, 1.0), "kernel": _KERNELS, "gamma": LogUniform(1e-4, 1e2), **_BOTH},
        ),
        "gaussian_process": Kind(
            "headstart.algorithms.search:gaussian_process",
            {
                "length_scale": LogUniform(1e-2, 1e2, 1.0),
                "noise": LogUniform(1e-4, 1e1, 0.1),
                "amplitude": LogUniform(1e-1, 1e1, 1.0),
                **_BOTH,
            },
        ),
        "neighbors": Kind("sklearn.neighbors:KNeighborsRegressor", _NEIGHBORS, at_most_rows=("n_neighbors",)),
    },
}
"""The named estimators, by loss."""


def gaussian_process(length_scale: float = 1.0, noise: float = 0.1, amplitude: float = 1.0) -> Any:
    """Return scikit-learn's Gaussian process regressor with a squared exponential kernel, which fitting leaves as is.

    ``noise`` is the variance of the noise, ``amplitude`` the standard deviation of the function.
    """
    kernels = required("sklearn.gaussian_process.kernels", "search")
    kernel = kernels.ConstantKernel(amplitude**2) * kernels.RBF(length_scale)
    return required("sklearn.gaussian_process", "search").GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)


def kind_of(name: str, loss: str) -> Kind:
    """Return the estimator called ``name`` for a loss.

    Raises:
        UnknownNameError: there is none of that name; the message names the nearest.
    """
    return pick(f"estimator for the loss {loss!r}", name, pick("loss", loss, KINDS))


def loaded(kind: Kind) -> Callable[..., Any]:
    """Import and return what makes a named estimator."""
    module, attribute = kind.target.split(":")
    made: Callable[..., Any] = getattr(required(module, "search"), attribute)
    return made


EstimatorName = Literal["svm", "random_forest", "logistic", "neighbors", "ridge", "kernel_ridge", "gaussian_process"]
Loss = Literal["cross_entropy", "mse"]

#: τ and δ to begin with, and what they are chosen from.
CALIBRATION = {"outputs.power": 1.0, "outputs.smoothing": 0.01}
_POWERS = [10 ** (step / 6) for step in range(-8, 10)]
_SMOOTHINGS = [10 ** (step / 4) for step in range(-12, 0)]


def search(
    estimator: EstimatorName | Callable[..., Any] | None = None,
    *,
    inputs: int,
    outputs: int = 1,
    loss: Loss = "mse",
    space: Space | None = None,
    trials: Size = 50,
    tasks_per_trial: Size = 32,
    dtype: torch.dtype | None = None,
) -> Learner:
    """Choose an estimator's hyper-parameters M for a family of tasks: the least Σᵢ loss on Qᵢ after fitting on Sᵢ.

    An estimator is anything with ``fit(x, y)`` and ``predict(x)``, such as scikit-learn's: no derivative is needed.
    Adapting keeps the support set; predicting fits, on the task's support rows alone. M has a number for each name in
    the space (`Uniform` and the like say how it is coded), and ``inputs.mean``, ``inputs.deviation`` (and of
    ``targets``) of the training tasks' rows. `Learner.shown` tells M decoded, options that are no numbers as 0 or 1.

    `Learner.prepare` searches M on a fixed set of training tasks, by the tree-structured Parzen estimator of Optuna. It
    begins with the estimator's own defaults, so on those tasks the result is never worse than they are. With a
    ``folder``, a search that was cut off goes on from its finished trials, to the same end. There is no outer gradient.

    In classification the outputs are log-probabilities, log((1 − δ) p^τ / Σ p^τ + δ / ways), where p is
    ``predict_proba``, else softmax(``decision_function``), else 1 for what ``predict`` says; a class that is not in the
    support set has p = 0. τ and δ (``outputs.power`` and ``outputs.smoothing`` in M) are for each trial the best for
    its training tasks. One class alone, or no support row, is answered without fitting.

    A query row without any finite number is answered by NaN; what missing numbers mean is else up to the estimator.

    Args:
        estimator: whose hyper-parameters are chosen, by default ``"svm"``: for classes ``"svm"``, ``"random_forest"``,
            ``"logistic"`` or ``"neighbors"``; for numbers ``"svm"``, ``"random_forest"``, ``"ridge"``,
            ``"kernel_ridge"``, ``"gaussian_process"`` or ``"neighbors"``; or a class of your own, or a function, that
            makes one from keyword arguments (one that takes ``random_state`` gets 0).
        inputs: numbers in one input; inputs are flattened.
        outputs: number of ways, or of target values.
        loss: ``"cross_entropy"`` classifies, ``"mse"`` regresses.
        space: what to search, by the parameters' names; by default the named estimator's own space. It may also name
            what is done around it (`headstart.algorithms.search.AROUND`).
        trials: how many choices are tried, the defaults included.
        tasks_per_trial: training tasks that each choice is tried on.
        dtype: of M; by default torch's own.

    Raises:
        UnknownNameError: an estimator, or a parameter in the space, that there is none of.
        UsageError: an estimator without fit or predict, a space that is none, or an extra that is not installed.

    Reference: Bergstra, Bardenet, Bengio, Kégl 2011, "Algorithms for hyper-parameter optimization" (the search);
    Akiba, Sano, Yanase, Ohta, Koyama 2019, arXiv:1907.10902 (Optuna).

    >>> learner = search("svm", inputs=4, outputs=3, loss="cross_entropy")
    >>> sorted(learner.init(None).structure)[:3]
    ['C', 'gamma', 'inputs.components']
    """
    if trials < 1 or tasks_per_trial < 1:
        raise UsageError(f"trials and tasks_per_trial must be at least 1, got {trials} and {tasks_per_trial}")
    kind, make = _resolve("svm" if estimator is None else estimator, loss, space)
    classifies = loss == "cross_entropy"
    dtype = dtype or torch.get_default_dtype()

    def encoded(values: Mapping[str, Any]) -> Params:
        codes = {name: kind.space[name].encode(value) for name, value in values.items()}
        return {name: torch.tensor(code, dtype=dtype) for name, code in codes.items()}

    def decoded(structure: Params) -> dict[str, Any]:
        return {name: within.decode(structure[name].item()) for name, within in kind.space.items()}

    def structure() -> Params:
        start = encoded({name: within.first() for name, within in kind.space.items()})
        start |= {"inputs.mean": torch.zeros(inputs, dtype=dtype), "inputs.deviation": torch.ones(inputs, dtype=dtype)}
        if classifies:
            return start | {name: torch.tensor(value, dtype=dtype) for name, value in CALIBRATION.items()}
        zeros = torch.zeros(outputs, dtype=dtype)
        return start | {"targets.mean": zeros, "targets.deviation": zeros + 1}

    def answer(known: Params, task: Task) -> tuple[Array, None]:
        values = decoded(known)
        own = {name: value for name, value in values.items() if name not in AROUND}
        own |= {name: max(1, min(own[name], len(task.y))) for name in kind.at_most_rows if name in own}
        fresh = partial(make, **{**kind.fixed, **own})
        if classifies:
            return _classified(fresh, task, values, known, outputs), None
        return _regressed(fresh, task, values, known, kind.per_output), None

    fitting = learner_of(answer, structure, None, inputs=inputs, outputs=outputs, loss=loss, incomplete=True)

    def predict(adapted: Adapted, x: Tree) -> Tensor:
        raw = fitting.predict(adapted, x)
        if not classifies:
            return raw
        return _calibrated(raw, *(adapted.meta.structure[name].item() for name in CALIBRATION))

    def prepare(meta: Meta, tasks: Tasks, seed: int, folder: PathLike[str] | None = None, /) -> Meta:
        groups = [range(n, min(n + 16, tasks_per_trial)) for n in range(0, tasks_per_trial, 16)]
        drawn = [Episodes(*map(present, tasks.sample("train", group))) for group in groups]
        batches = [batch for episodes in drawn for batch in episodes]
        rows = {"inputs": [flat(batch.x, inputs)[there(batch)] for batch in batches]}
        if not classifies:
            rows["targets"] = [batch.y[there(batch)].view(-1, outputs) for batch in batches]
        known = dict(meta.structure)
        for name, parts in rows.items():
            values = torch.cat(parts).detach().cpu().double().numpy()
            known[f"{name}.mean"] = torch.tensor(values.mean(0), dtype=dtype)
            known[f"{name}.deviation"] = torch.tensor(_deviation(values), dtype=dtype)

        def mean(said: Sequence[Tensor]) -> float:
            found = [fitting.loss(outputs, query) for outputs, (_, query) in zip(said, drawn)]
            return float(torch.cat(found).double().mean())

        def judged(values: dict[str, Any]) -> tuple[float, dict[str, float]]:
            """Return the mean loss on the training tasks, and in classification the calibration for which it is."""
            start = Meta(meta.params, known | encoded(values))
            raw = [fitting.predict(fitting.adapt(start, support)[0], query.x) for support, query in drawn]
            if not classifies:
                return mean(raw), {}
            grid = list(product(_POWERS, _SMOOTHINGS))
            found = [mean([_calibrated(logs, *point) for logs in raw]) for point in grid]
            best = min(range(len(grid)), key=found.__getitem__)
            return found[best], dict(zip(CALIBRATION, grid[best]))

        told = f"{_name(make)} for {loss} on {tasks.name}, {tasks_per_trial} tasks a trial"
        best = best_of(lambda values: judged(values)[0], kind.space, trials, seed, folder, told)
        tuned = judged(best)[1] if classifies else {}
        chosen = {name: torch.tensor(value, dtype=dtype) for name, value in tuned.items()}
        return Meta(meta.params, known | encoded(best) | chosen)

    def shown(meta: Meta) -> Params:
        seen: dict[str, float] = {}
        for name, value in decoded(meta.structure).items():
            options = getattr(kind.space[name], "options", ())
            if all(isinstance(option, (int, float)) and not isinstance(option, bool) for option in options):
                seen[name] = float(value)
            else:
                seen |= {f"{name}={option}": float(option is value or option == value) for option in options}
        found = {name: torch.tensor(value, dtype=dtype) for name, value in seen.items()}
        return found | {name: meta.structure[name] for name in CALIBRATION if classifies}

    return fitting._replace(predict=predict, prepare=prepare, shown=shown)


def _resolve(estimator: str | Callable[..., Any], loss: str, space: Space | None) -> tuple[Kind, Callable[..., Any]]:
    """Return what is known of an estimator, and what makes it, both checked."""
    if isinstance(estimator, str):
        kind = kind_of(estimator, loss)
        make = loaded(kind)
        kind = kind if space is None else kind._replace(space=space)
    elif not callable(estimator):
        raise UsageError(
            f"estimator is {estimator!r}; expected a name, or a class or function that makes an estimator from keyword "
            f"arguments (where it is an estimator itself, give its class: {type(estimator).__name__})"
        )
    elif space is None:
        raise UsageError("an estimator of your own needs a space to search: space={'name': LogUniform(low, high)}")
    else:
        kind_of("svm", loss)  # refuses a loss that is none
        kind, make = Kind("", space), estimator
    _check_space(kind.space)
    own = [name for name in kind.space if name not in AROUND]
    parameters = inspect.signature(make).parameters.values()
    known = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    for name in own:
        if name not in known and not takes_any:
            raise unknown_name(f"parameter of {_name(make)}", name, {*known, *AROUND})
    made = make(**kind.fixed, **{name: kind.space[name].first() for name in own})
    for method in ("fit", "predict"):
        if not callable(getattr(made, method, None)):
            raise UsageError(
                f"{_name(make)} makes a {type(made).__name__}, which has no {method}; it needs fit, predict"
            )
    if "random_state" in known and not takes_any and "random_state" not in kind.space:
        # random forests and the like draw from it, so that the same support set gives the same model
        kind = kind._replace(fixed={"random_state": 0, **kind.fixed})
    return kind, make


def _check_space(space: Space) -> None:
    if not space:
        raise UsageError("the space names nothing to search; give it a range or more, such as C=LogUniform(0.01, 100)")
    for name, within in space.items():
        if isinstance(within, Choice):
            continue
        if not isinstance(within, Uniform):
            raise UsageError(
                f"the space gives {within!r} for {name!r}; expected LogUniform(low, high), Uniform(low, high), "
                "Integer(low, high) or Choice(option, option, ...)"
            )
        positive = isinstance(within, LogUniform)
        if (positive and not within.low > 0) or not within.low <= within.first() <= within.high:
            least = "0 < low <= start <= high" if positive else "low <= start <= high"
            raise UsageError(f"the range {within} of {name!r} must have {least}")


def _name(make: Callable[..., Any]) -> str:
    return getattr(make, "__name__", type(make).__name__)


def _classified(make: Callable[[], Any], task: Task, values: Mapping[str, Any], known: Params, ways: int) -> Array:
    """Return log p ``(m, ways)``, −∞ for classes that the support rows lack."""
    classes = np.unique(task.y)
    found = np.full((len(task.query), ways), -np.inf if len(classes) else -math.log(ways))
    if len(classes) < 2 or not len(task.query):
        found[:, classes] = 0
        return found
    x, query = _around(task, values, known)
    estimator = make()
    _asked(estimator, "fit", x, task.y)
    columns = np.asarray(getattr(estimator, "classes_", classes)).astype(int)
    if hasattr(estimator, "predict_proba"):
        logs = _tensor(_asked(estimator, "predict_proba", query)).log()
    elif hasattr(estimator, "decision_function"):
        decisions = _tensor(_asked(estimator, "decision_function", query))
        decisions = decisions if decisions.ndim == 2 else torch.stack((torch.zeros_like(decisions), decisions), 1)
        logs = decisions.log_softmax(1)
    else:
        said = np.asarray(_asked(estimator, "predict", query)).astype(int)
        logs = _tensor(np.equal.outer(said, columns)).log()
    found[:, columns] = logs
    return found


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64))


def _calibrated(logs: Tensor, power: float, smoothing: float) -> Tensor:
    """Return log((1 − δ) p^τ / Σ p^τ + δ / ways) for log p ``(..., ways)``, with τ = ``power``, δ = ``smoothing``."""
    return ((1 - smoothing) * (power * logs).softmax(-1) + smoothing / logs.shape[-1]).log()


def _regressed(
    make: Callable[[], Any], task: Task, values: Mapping[str, Any], known: Params, per_output: bool
) -> Array:
    """Return target values ``(m, outputs)``; ``per_output``: by an estimator for each."""
    if not len(task.y) or not len(task.query):
        return np.broadcast_to(array(known["targets.mean"]), (len(task.query), task.y.shape[1]))
    x, query = _around(task, values, known)
    mean, deviation = _location(values, task.y, known, "targets")
    y = (task.y - mean) / deviation
    found = []
    for part in y.T if per_output or y.shape[1] == 1 else [y]:
        estimator = make()
        _asked(estimator, "fit", x, part)
        found.append(np.asarray(_asked(estimator, "predict", query), dtype=float).reshape(len(query), -1))
    said: Array = np.hstack(found) * deviation + mean
    return said


def _around(task: Task, values: Mapping[str, Any], known: Params) -> tuple[Array, Array]:
    """Return support and query inputs scaled and reduced."""
    mean, deviation = _location(values, task.x, known, "inputs")
    x, query = (task.x - mean) / deviation, (task.query - mean) / deviation
    count = min(values.get("inputs.components") or x.shape[1], len(x) - 1)
    if values.get("inputs.components") and 0 < count < x.shape[1]:
        centre = x.mean(0)
        directions = np.linalg.svd(x - centre, full_matrices=False)[2][:count].T
        x, query = (x - centre) @ directions, (query - centre) @ directions
    return x, query


def _location(values: Mapping[str, Any], rows: Array, known: Params, name: str) -> tuple[Any, Any]:
    """Return the mean and deviation by which to scale."""
    how = values.get(f"{name}.scale", "none")
    if how == "task":
        return rows.mean(0), _deviation(rows)
    return (array(known[f"{name}.mean"]), array(known[f"{name}.deviation"])) if how == "tasks" else (0.0, 1.0)


def _deviation(rows: Array) -> Array:
    deviation = rows.std(0)
    return np.where(deviation > 1e-12 * np.abs(rows).max(0), deviation, 1.0)


def _asked(estimator: Any, method: str, *arrays: Array) -> Any:
    """Return what the estimator's method does; of thousands of small fits none may fill the screen with warnings."""
    with warnings.catch_warnings(action="ignore"):
        try:
            return getattr(estimator, method)(*arrays)
        except (ValueError, TypeError, ArithmeticError, np.linalg.LinAlgError) as error:
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise UsageError(
                f"{estimator!r}.{method} fails on arrays of shape {shapes}: {error}; search a space that suits it"
            ) from error


logger = logging.getLogger("headstart")

JOURNAL = "search.journal"


def best_of(
    objective: Callable[[dict[str, Any]], float],
    space: Space,
    trials: int,
    seed: int,
    folder: PathLike[str] | None = None,
    told: str = "",
) -> dict[str, Any]:
    """Return the values with the least ``objective`` of ``trials`` that are tried, the first where several are.

    The first trial is where the space begins. What a trial is depends on the finished trials before it and on the
    seed alone, by the tree-structured Parzen estimator (Bergstra et al. 2011).

    Args:
        objective: ``values by name -> number``.
        trials: those that are finished in ``folder`` included.
        folder: where to keep finished trials, in ``search.journal``; made where it does not exist.
        told: what is searched, to see that ``folder`` keeps this search and no other.

    Raises:
        ConfigError: the folder keeps another search.
        FileError: the journal is damaged.
    """
    optuna = required("optuna", "search")
    with _quiet(optuna):
        states, journal, storage = optuna.trial.TrialState, optuna.storages.journal, None
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            _cut(Path(folder) / JOURNAL)
        try:
            if folder is not None:
                storage = journal.JournalStorage(journal.JournalFileBackend(str(Path(folder) / JOURNAL)))
            study = optuna.create_study(storage=storage, study_name="search", load_if_exists=True)
            _refuse_other(study, {"what": told, "space": repr(dict(space)), "seed": seed})
            for left in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
                study.tell(left.number, state=states.FAIL)  # cut off
            done = len(finished := study.get_trials(deepcopy=False, states=(states.COMPLETE,)))
            if not all(_of(space, trial) for trial in finished):
                raise ValueError("a trial of another space")
        except (HeadstartError, KeyboardInterrupt):
            raise
        except Exception as error:  # Optuna takes the journal for one that it has written
            raise FileError(
                f"{folder and Path(folder) / JOURNAL} is damaged ({type(error).__name__}); remove it to search anew"
            ) from error
        if done:
            logger.info("search: going on from %d finished trials", done)
        for count in range(done, trials):
            # a sampler of its own, since how far a sampler's generator is does not outlive a kill
            study.sampler = optuna.samplers.TPESampler(seed=(seed * 1_000_003 + count) % 2**32, constant_liar=False)
            if count == 0:  # an option is known to Optuna by its place
                starts = {name: 0 if isinstance(within, Choice) else within.first() for name, within in space.items()}
                study.enqueue_trial(starts)
            trial = study.ask()
            value = objective({name: within.suggest(trial, name) for name, within in space.items()})
            study.tell(trial, math.inf if math.isnan(value) else value)
            logger.info("search: trial %d of %d, loss %.4g, best %.4g", count + 1, trials, value, study.best_value)
        finished = study.get_trials(deepcopy=False, states=(states.COMPLETE,))[:trials]
        best = min(finished, key=lambda trial: trial.value)
        fixed = optuna.trial.FixedTrial(best.params)
        return {name: within.suggest(fixed, name) for name, within in space.items()}


def _cut(path: Path) -> None:
    """Leave out what a journal's last line has come to where it was not ended: Optuna would write on behind it."""
    if not path.exists():
        return
    if not path.is_file():  # a pipe would be waited for
        raise FileError(f"{path} is not a file; remove it to search anew")
    data = path.read_bytes()
    if (end := data.rfind(b"\n") + 1) < len(data):
        os.truncate(path, end)


def _of(space: Space, trial: Any) -> bool:
    """Return whether a finished trial is one of this space."""

    def within(part: Uniform | Choice, value: Any) -> bool:
        if isinstance(part, Choice):
            return type(value) is int and 0 <= value < len(part.options)
        return type(value) in (int, float) and part.low <= value <= part.high

    told = trial.params
    return (
        told.keys() == space.keys()
        and all(within(space[name], told[name]) for name in space)
        and trial.value > -math.inf
    )


def _refuse_other(study: Any, told: dict[str, Any]) -> None:
    """Keep what is searched with a new study, and raise `ConfigError` where an old one has searched another thing."""
    if not study.user_attrs:
        study.set_user_attr("search", told)
    before = study.user_attrs["search"]
    if before != told:
        changed = [f"{name}: {before.get(name)} -> {told[name]}" for name in told if before.get(name) != told[name]]
        raise ConfigError(
            f"the folder keeps the {JOURNAL} of another search ({'; '.join(changed)}); "
            "choose another folder, or remove the file"
        )


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
