"""Meta-learning for anything with fit and predict: M is its hyper-parameters."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from headstart.algorithms.search.estimators import AROUND, Choice, Kind, Space, check_space, kind_of, loaded
from headstart.algorithms.search.fitting import (
    CALIBRATION,
    Rows,
    answered,
    calibrated,
    calibration,
    classified,
    deviation_of,
    regressed,
)
from headstart.algorithms.search.study import best_of
from headstart.core import losses
from headstart.core.masks import present
from headstart.errors import ShapeError, UsageError, unknown_name
from headstart.types import Adapted, Batch, Episodes, Info, Learner, Meta, Params, Tasks, Tree

Loss = Literal["cross_entropy", "mse"]

#: Random forests and the like draw from this, so that the same support set gives the same model.
RANDOM_STATE = 0


def search(
    estimator: str | Callable[..., Any] | None = None,
    *,
    inputs: int,
    outputs: int = 1,
    loss: Loss = "mse",
    space: Space | None = None,
    trials: int = 50,
    tasks_per_trial: int = 32,
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
        estimator: a name, by default ``"svm"``: for classification ``"svm"``, ``"random_forest"``, ``"logistic"`` or
            ``"neighbors"``; for regression ``"svm"``, ``"random_forest"``, ``"ridge"``, ``"kernel_ridge"``,
            ``"gaussian_process"`` or ``"neighbors"``. Or a class of your own, or a function, that makes one from
            keyword arguments; one that takes ``random_state`` gets 0.
        inputs: numbers in one input; inputs are flattened.
        outputs: number of ways, or of target values.
        loss: ``"cross_entropy"`` classifies, ``"mse"`` regresses.
        space: what to search, by the parameters' names; by default the named estimator's own space. It may also name
            what is done around it (`headstart.algorithms.search.estimators.AROUND`).
        trials: values of M to try, the defaults included.
        tasks_per_trial: training tasks that each is tried on.
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
