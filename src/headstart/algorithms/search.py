"""Meta-learning for anything with fit and predict: M is its hyper-parameters, and they are searched for."""

import inspect
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor

from headstart.core import losses
from headstart.core.losses import present
from headstart.errors import ConfigError, ShapeError, UsageError, unknown_name
from headstart.schema import Size
from headstart.types import Adapted, Batch, Episodes, Info, Learner, Meta, Params, Tasks, Tree


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
        return float(trial.suggest_float(name, self.low, self.high))

    def encode(self, value: float) -> float:
        return float(value)

    def decode(self, code: float) -> float:
        return min(max(code, self.low), self.high)


@dataclass(frozen=True)
class LogUniform(Uniform):
    """A positive number, searched on a logarithmic scale from the geometric mean. In M it is its natural logarithm."""

    def first(self) -> float:
        return math.sqrt(self.low * self.high) if self.start is None else self.start

    def suggest(self, trial: Any, name: str) -> float:
        return float(trial.suggest_float(name, self.low, self.high, log=True))

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

    @property
    def numbers(self) -> bool:
        """Whether all options are numbers."""
        return all(isinstance(option, (int, float)) and not isinstance(option, bool) for option in self.options)


Range: TypeAlias = Uniform | Choice
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
            "headstart.algorithms.search:gaussian_process",
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
        if not isinstance(within, (Uniform, Choice)):
            raise UsageError(
                f"the space gives {within!r} for {name!r}; expected LogUniform(low, high), Uniform(low, high), "
                "Integer(low, high) or Choice(option, option, ...)"
            )
        if isinstance(within, Choice):
            continue
        if not within.low <= within.first() <= within.high or (isinstance(within, LogUniform) and not within.low > 0):
            least = "0 < low <= start <= high" if isinstance(within, LogUniform) else "low <= start <= high"
            raise UsageError(f"the range {within} of {name!r} must have {least}")


Make = Callable[..., Any]

CALIBRATION = {"outputs.power": 1.0, "outputs.smoothing": 0.01}
"""τ and δ to begin with."""
_POWERS = [10 ** (step / 6) for step in range(-8, 10)]
_SMOOTHINGS = [10 ** (step / 4) for step in range(-12, 0)]


class Rows(NamedTuple):
    """A task, without padding, on the CPU."""

    x: Tensor
    """``(n, inputs)`` float64."""
    y: Tensor
    """``(n,)`` class ids, or ``(n, outputs)`` float64."""
    query: Tensor
    """``(m, inputs)`` float64."""


def answered(answer: Callable[[Rows], Tensor], task: Rows) -> Tensor:
    """Return what ``answer`` says of the query rows, and NaN for those without one finite number."""
    there = task.query.isfinite().any(1)
    found = answer(task._replace(query=task.query[there]))
    outputs = found.new_full((len(there), found.shape[1]), torch.nan)
    outputs[there] = found
    return outputs


def classified(make: Make, task: Rows, values: Mapping[str, Any], known: Params, ways: int) -> Tensor:
    """Return log p ``(m, ways)``, −∞ for classes that the support rows lack.

    Args:
        make: returns the estimator.
        task: its rows.
        values: what is done before, by the names of `headstart.algorithms.search.AROUND`.
        known: means and deviations of the rows of training tasks.
        ways: number of classes.
    """
    present = task.y.unique()
    found = torch.full((len(task.query), ways), -torch.inf, dtype=torch.float64)
    if len(present) == 0:
        return torch.zeros_like(found) - math.log(ways)
    if len(present) == 1 or len(task.query) == 0:
        found[:, present] = 0
        return found
    x, query = _around(task, values, known)
    columns, logs = _log_probabilities(_fitted(make, x, task.y.numpy()), query, present)
    found[:, columns] = logs
    return found


def calibrated(logs: Tensor, power: float, smoothing: float) -> Tensor:
    """Return log((1 − δ) p^τ / Σ p^τ + δ / ways) for log p ``(..., ways)``, with τ = ``power``, δ = ``smoothing``."""
    return ((1 - smoothing) * (power * logs).softmax(-1) + smoothing / logs.shape[-1]).log()


def calibration(logs: Sequence[Tensor], loss: Callable[[int, Tensor], Tensor]) -> tuple[float, dict[str, float]]:
    """Return the least mean loss over τ and δ on a grid, and these by name.

    Args:
        logs: log p of the query rows of batches of tasks, each ``(B, m, ways)``.
        loss: ``(number of the batch, calibrated log-probabilities) -> (B,)``.
    """
    best = (math.inf, dict(CALIBRATION))
    for power in _POWERS:
        for smoothing in _SMOOTHINGS:
            losses = [loss(number, calibrated(batch, power, smoothing)) for number, batch in enumerate(logs)]
            value = float(torch.cat(losses).double().mean())
            if value < best[0]:
                best = value, dict(zip(CALIBRATION, (power, smoothing)))
    return best


def regressed(make: Make, task: Rows, values: Mapping[str, Any], known: Params, per_output: bool) -> Tensor:
    """Return target values ``(m, outputs)``; ``per_output``: by an estimator for each."""
    if not len(task.y) or not len(task.query):
        return known["targets.mean"].expand(len(task.query), -1)
    x, query = _around(task, values, known)
    mean, deviation = _location(values.get("targets.scale", "none"), task.y, known, "targets")
    y = ((task.y - mean) / deviation).numpy()
    parts = y.T if per_output or y.shape[1] == 1 else [y]
    found = []
    for part in parts:
        said = _asked(_fitted(make, x, part), "predict", query)
        found.append(_tensor(said).reshape(len(query), -1))
    return torch.cat(found, 1) * deviation + mean


def deviation_of(values: Tensor) -> Tensor:
    """Return the standard deviation ``(d,)`` of rows ``(n, d)``, 1 where they are all alike."""
    deviation = values.std(0, correction=0)
    return torch.where(deviation > 1e-12 * values.abs().amax(0), deviation, 1)


def _around(task: Rows, values: Mapping[str, Any], known: Params) -> tuple[Any, Any]:
    """Return support and query inputs scaled and reduced, as arrays."""
    mean, deviation = _location(values.get("inputs.scale", "none"), task.x, known, "inputs")
    x, query = (task.x - mean) / deviation, (task.query - mean) / deviation
    count = min(values.get("inputs.components") or x.shape[1], len(x) - 1)
    if 0 < count < x.shape[1] and values.get("inputs.components"):
        centre = x.mean(0)
        directions = torch.linalg.svd(x - centre, full_matrices=False)[2][:count].T
        x, query = (x - centre) @ directions, (query - centre) @ directions
    return x.numpy(), query.numpy()


def _location(how: str, rows: Tensor, known: Params, name: str) -> tuple[Tensor, Tensor]:
    """Return the mean and deviation by which to scale."""
    if how == "task":
        return rows.mean(0), deviation_of(rows)
    if how == "tasks":
        return known[f"{name}.mean"], known[f"{name}.deviation"]
    return torch.zeros((), dtype=rows.dtype), torch.ones((), dtype=rows.dtype)


def _log_probabilities(estimator: Any, query: Any, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes that the estimator tells apart and log p of each, ``(m, classes)``."""
    columns = torch.as_tensor(np.asarray(getattr(estimator, "classes_", present))).long()
    if hasattr(estimator, "predict_proba"):
        return columns, _tensor(_asked(estimator, "predict_proba", query)).log()
    if hasattr(estimator, "decision_function"):
        decisions = _tensor(_asked(estimator, "decision_function", query))
        if decisions.ndim == 1:
            decisions = torch.stack((torch.zeros_like(decisions), decisions), 1)
        return columns, decisions.log_softmax(1)
    said = torch.as_tensor(np.asarray(_asked(estimator, "predict", query))).long()
    return columns, (said.unsqueeze(1) == columns).double().log()


def _fitted(make: Make, x: Any, y: Any) -> Any:
    estimator = make()
    _asked(estimator, "fit", x, y)
    return estimator


def _asked(estimator: Any, method: str, *arrays: Any) -> Any:
    """Return what the estimator's method does; of thousands of small fits none may fill the screen with warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return getattr(estimator, method)(*arrays)
        except (ValueError, TypeError, ArithmeticError, np.linalg.LinAlgError) as error:
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise UsageError(
                f"{estimator!r}.{method} fails on arrays of shape {shapes}: {error}; search a space that suits it"
            ) from error


def _tensor(array: Any) -> Tensor:
    return torch.as_tensor(np.array(array, dtype=np.float64))


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
        space: ranges by name.
        trials: how many, those that are finished in ``folder`` included.
        seed: of the sampler.
        folder: where to keep finished trials, in ``search.journal``; made where it does not exist.
        told: what is searched, to see that ``folder`` keeps this search and no other.

    Raises:
        ConfigError: the folder keeps another search.
    """
    optuna = required("optuna")
    with _quiet(optuna):
        study = optuna.create_study(storage=_storage(optuna, folder), study_name="search", load_if_exists=True)
        _refuse_other(study, {"what": told, "space": repr(dict(space)), "seed": seed})
        states = optuna.trial.TrialState
        for left in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            study.tell(left.number, state=states.FAIL)  # cut off
        done = len(study.get_trials(deepcopy=False, states=(states.COMPLETE,)))
        if done:
            logger.info("search: going on from %d finished trials", done)
        for count in range(done, trials):
            # a sampler of its own, since how far a sampler's generator is does not outlive a kill
            study.sampler = optuna.samplers.TPESampler(seed=(seed * 1_000_003 + count) % 2**32, constant_liar=False)
            if count == 0:
                study.enqueue_trial({name: _first(within) for name, within in space.items()})
            trial = study.ask()
            value = objective({name: within.suggest(trial, name) for name, within in space.items()})
            study.tell(trial, math.inf if math.isnan(value) else value)
            logger.info("search: trial %d of %d, loss %.4g, best %.4g", count + 1, trials, value, study.best_value)
        finished = study.get_trials(deepcopy=False, states=(states.COMPLETE,))[:trials]
        best = min(finished, key=lambda trial: trial.value)
        fixed = optuna.trial.FixedTrial(best.params)
        return {name: within.suggest(fixed, name) for name, within in space.items()}


def _first(within: Range) -> Any:
    """Return where a range begins, as Optuna knows it."""
    return 0 if isinstance(within, Choice) else within.first()


def _storage(optuna: Any, folder: PathLike[str] | None) -> Any:
    if folder is None:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    journal = optuna.storages.journal
    return journal.JournalStorage(journal.JournalFileBackend(str(Path(folder) / JOURNAL)))


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
    """Leave it to our own log to say how a search goes."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


EstimatorName = Literal["svm", "random_forest", "logistic", "neighbors", "ridge", "kernel_ridge", "gaussian_process"]
Loss = Literal["cross_entropy", "mse"]

#: Random forests and the like draw from this, so that the same support set gives the same model.
RANDOM_STATE = 0


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
    A new task's model is fitted on its support rows alone, with the M that is best for the training tasks. M holds
    also what is done around it: scaling, principal components, the calibration of probabilities.

    `Learner.prepare` searches M, by the tree-structured Parzen estimator of Optuna, on a fixed set of training tasks;
    it begins with the estimator's own defaults, so on those tasks the result is never worse than they are. With a
    ``folder``, a search that was cut off goes on from its finished trials, and ends as if it had not been.
    There is no outer gradient.

    M has a number for each name in the space (see `LogUniform`, `Uniform`, `Integer`, `Choice` for how it is coded),
    and ``inputs.mean``, ``inputs.deviation`` (and of ``targets``) of the rows of the training tasks. Adapting keeps
    the support set; predicting fits. `Learner.shown` tells M decoded, an option that is no number as 0 or 1.

    In classification the outputs are log-probabilities, log((1 − δ) p^τ / Σ p^τ + δ / ways), where p is
    ``predict_proba``, else softmax(``decision_function``), else 1 for what ``predict`` says; a class that is not in the
    support set has p = 0. τ and δ (``outputs.power`` and ``outputs.smoothing`` in M) are for each trial the best for
    its training tasks, so that trials are judged by what they can tell, not by how sure they are of it. One class
    alone, or no support row, is answered without fitting.

    A query row without one finite number, as padding may be, is answered by NaN; else it is the estimator's business
    what it makes of numbers that are missing.

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
    if trials < 1 or tasks_per_trial < 1 or inputs < 1 or outputs < 1:
        raise UsageError(
            f"inputs, outputs, trials and tasks_per_trial must be at least 1, "
            f"got {inputs}, {outputs}, {trials} and {tasks_per_trial}"
        )
    kind, make = _resolve("svm" if estimator is None else estimator, loss, space)
    fitting = _Fitting(kind, make, inputs, outputs, loss == "cross_entropy", dtype or torch.get_default_dtype())
    task_loss = losses.resolve(loss)

    def prepare(meta: Meta, tasks: Tasks, seed: int, folder: PathLike[str] | None = None, /) -> Meta:
        groups = [range(n, min(n + 16, tasks_per_trial)) for n in range(0, tasks_per_trial, 16)]
        drawn = [Episodes(*map(present, tasks.sample("train", group))) for group in groups]
        known = {**meta.structure, **fitting.statistics(drawn)}

        def coded(values: dict[str, Any]) -> Meta:
            return Meta(meta.params, {**known, **fitting.encoded(values)})

        def loss_of(number: int, outputs: Tensor) -> Tensor:
            return task_loss(outputs, drawn[number].query)

        def judged(values: dict[str, Any]) -> tuple[float, dict[str, float]]:
            """Return the mean loss on the training tasks, and in classification the calibration for which it is."""
            outputs = [fitting.raw(fitting.adapt(coded(values), support)[0], query.x) for support, query in drawn]
            if fitting.classifies:
                return calibration(outputs, loss_of)
            found = [loss_of(number, batch) for number, batch in enumerate(outputs)]
            return float(torch.cat(found).double().mean()), {}

        told = f"{_name(make)} for {loss} on {tasks.name}, {tasks_per_trial} tasks a trial"
        best = best_of(lambda values: judged(values)[0], kind.space, trials, seed, folder, told)
        tuned = judged(best)[1] if fitting.classifies else {}
        structure = {name: torch.tensor(value, dtype=fitting.dtype) for name, value in tuned.items()}
        return Meta(meta.params, {**coded(best).structure, **structure})

    return Learner(
        fitting.init, fitting.adapt, fitting.predict, task_loss, None, exact=False, shown=fitting.shown, prepare=prepare
    )


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
    check_space(kind.space)
    own = [name for name in kind.space if name not in AROUND]
    known = _parameters(make)
    for name in own:
        if known is not None and name not in known:
            raise unknown_name(f"parameter of {_name(make)}", name, {*known, *AROUND})
    made = make(**kind.fixed, **{name: kind.space[name].first() for name in own})
    for method in ("fit", "predict"):
        if not callable(getattr(made, method, None)):
            raise UsageError(
                f"{_name(make)} makes a {type(made).__name__}, which has no {method}; it needs fit, predict"
            )
    if known is not None and "random_state" in known and "random_state" not in kind.space:
        kind = kind._replace(fixed={"random_state": RANDOM_STATE, **kind.fixed})
    return kind, make


def _parameters(make: Callable[..., Any]) -> set[str] | None:
    """Return the names of the keyword arguments that ``make`` takes; ``None`` where it takes any."""
    found = inspect.signature(make).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in found):
        return None
    return {parameter.name for parameter in found if parameter.kind is not parameter.POSITIONAL_ONLY}


def _name(make: Callable[..., Any]) -> str:
    return getattr(make, "__name__", type(make).__name__)


@dataclass(frozen=True)
class _Fitting:
    """The parts of a learner, and its functions."""

    kind: Kind
    make: Callable[..., Any]
    inputs: int
    outputs: int
    classifies: bool
    dtype: torch.dtype

    def init(self, generator: Generator | None = None) -> Meta:
        """Return the estimator's defaults, or where the space begins."""
        known = {"inputs.mean": torch.zeros(self.inputs), "inputs.deviation": torch.ones(self.inputs)}
        if not self.classifies:
            known |= {"targets.mean": torch.zeros(self.outputs), "targets.deviation": torch.ones(self.outputs)}
        else:
            known |= {name: torch.tensor(value) for name, value in CALIBRATION.items()}
        first = {name: within.first() for name, within in self.kind.space.items()}
        return Meta({}, {**self.encoded(first), **{name: value.to(self.dtype) for name, value in known.items()}})

    def encoded(self, values: dict[str, Any]) -> Params:
        """Return hyper-parameters as M has them."""
        codes = {name: self.kind.space[name].encode(value) for name, value in values.items()}
        return {name: torch.tensor(code, dtype=self.dtype) for name, code in codes.items()}

    def decoded(self, structure: Params) -> dict[str, Any]:
        """Return hyper-parameters as the estimator takes them."""
        return {name: within.decode(structure[name].item()) for name, within in self.kind.space.items()}

    def shown(self, meta: Meta) -> Params:
        """Return the hyper-parameters, an option that is no number as 0 or 1."""
        seen: Params = {}
        for name, value in self.decoded(meta.structure).items():
            within = self.kind.space[name]
            if isinstance(within, Choice) and not within.numbers:
                found = {f"{name}={option}": float(option is value or option == value) for option in within.options}
            else:
                found = {name: float(value)}
            seen |= {key: torch.tensor(number, dtype=self.dtype) for key, number in found.items()}
        return seen | {name: meta.structure[name] for name in CALIBRATION if self.classifies}

    def statistics(self, drawn: list[Episodes]) -> Params:
        """Return the mean and deviation of inputs and targets over all rows of training tasks."""
        batches = [present(batch) for episodes in drawn for batch in episodes]
        rows = {"inputs": torch.cat([self._rows(batch)[_there(batch)] for batch in batches])}
        if not self.classifies:
            rows["targets"] = torch.cat([batch.y.reshape(*batch.y.shape[:2], -1)[_there(batch)] for batch in batches])
        found = {}
        for name, leaf in rows.items():
            values = leaf.detach().double().cpu()
            found |= {f"{name}.mean": values.mean(0), f"{name}.deviation": deviation_of(values)}
        return {name: value.to(self.dtype) for name, value in found.items()}

    def adapt(self, meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        """Keep the support set; rows that no task has are left out."""
        support = present(support)
        if self.classifies == support.y.is_floating_point():
            wanted = "integer class ids" if self.classifies else "floating targets"
            raise ShapeError(f"this search needs {wanted}; got y {tuple(support.y.shape)} of {support.y.dtype}")
        x, mask = self._rows(support), _there(support)
        order = (~mask).to(torch.int8).argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]
        tasks = torch.arange(len(mask), device=mask.device).unsqueeze(1)
        kept = {"x": x[tasks, order], "y": support.y[tasks, order], "mask": mask[tasks, order]}
        empty = torch.zeros(0, len(mask), dtype=x.dtype, device=x.device)
        return Adapted(meta, {n: v.detach() for n, v in kept.items()}, {}, support.seed), Info(empty)

    def predict(self, adapted: Adapted, x: Tree) -> Tensor:
        """Fit every task's estimator on its support rows, and return what they say of ``x``."""
        raw = self.raw(adapted, x)
        if not self.classifies:
            return raw
        return calibrated(raw, *(adapted.meta.structure[name].item() for name in CALIBRATION))

    def raw(self, adapted: Adapted, x: Tree) -> Tensor:
        """Return the target values, or log p before calibration."""
        queries = self._rows(Batch(x, adapted.params["y"]))
        values = self.decoded(adapted.meta.structure)
        known = {n: v.detach().double().cpu() for n, v in adapted.meta.structure.items() if v.ndim}
        answers = []
        for rows, y, mask, query in zip(*(adapted.params[name].cpu() for name in ("x", "y", "mask")), queries.cpu()):
            y = y[mask] if self.classifies else y[mask].double().view(-1, self.outputs)
            task = Rows(rows[mask].double(), y, query.detach().double())
            answers.append(answered(partial(self._answer, values, known), task))
        found = torch.stack(answers).to(queries)
        return found if self.classifies or adapted.params["y"].ndim > 2 else found.squeeze(-1)

    def _answer(self, values: dict[str, Any], known: Params, task: Rows) -> Tensor:
        make = partial(self.make, **self._arguments(values, len(task.y)))
        if self.classifies:
            return classified(make, task, values, known, self.outputs)
        return regressed(make, task, values, known, self.kind.per_output)

    def _arguments(self, values: dict[str, Any], rows: int) -> dict[str, Any]:
        """Return what the estimator of a task of so many support rows is made with."""
        own = {name: value for name, value in values.items() if name not in AROUND}
        fewer = {name: max(1, min(own[name], rows)) for name in self.kind.at_most_rows if name in own}
        return {**self.kind.fixed, **own, **fewer}

    def _rows(self, batch: Batch) -> Tensor:
        """Return the inputs ``(B, n, inputs)``, flattened."""
        x = batch.x
        if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[2:].numel() != self.inputs:
            got = f"{tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(
                f"this search needs inputs (tasks, rows, *features) of {self.inputs} numbers each; got {got}"
            )
        return x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)


def _there(batch: Batch) -> Tensor:
    """Return which rows are there, ``(B, n)``."""
    return torch.ones(batch.y.shape[:2], dtype=torch.bool, device=batch.y.device) if batch.mask is None else batch.mask
