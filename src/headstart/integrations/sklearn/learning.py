"""What an estimator learns, across tasks and of one of them: functions from values to values."""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from headstart.core.inference import out_of_inference_mode
from headstart.core.losses import there
from headstart.core.objective import meta_loss, predicted
from headstart.data.kind import nothing, unsound
from headstart.data.rows import Rows
from headstart.data.tables.read import Table
from headstart.errors import DataError, DivergenceError
from headstart.integrations.sklearn import data
from headstart.integrations.sklearn.data import Array, Encoding, Examples, Families
from headstart.integrations.sklearn.options import Options, Spec, learner_of, like_of
from headstart.registry import Target, find
from headstart.training.calibration import near
from headstart.training.fit_best import first, fit_best
from headstart.training.loop import start
from headstart.training.trials import Trial
from headstart.training.trust import Trust, among_classes
from headstart.training.trust_fitting import fitted
from headstart.types import Adapted, Batch, Episodes, Gaussian, Learner, Meta

_CHUNK, _TASKS = 4096, 64
#: Adam's step size where nobody gives one.
_OUTER_RATE = 0.02


class Fitted(NamedTuple):
    """All that predictions depend on."""

    spec: Spec
    seed: int
    meta: Meta
    """What was learned across tasks."""
    encoding: Encoding
    adapted: Adapted
    """What was learned of one task, or of all training rows pooled."""
    rows: int
    """The number of rows that `adapted` was learned from."""
    flat: bool
    """Whether targets are one number a row, not a vector."""
    classes: Array | None
    """The labels that are told apart; ``None`` in regression."""
    trained: Array | None
    """Those of `fit`."""
    losses: list[float]
    """The mean query loss of each outer step's tasks."""
    validation: list[float]
    """The mean meta-loss of the validation tasks, each time that it was looked at."""
    trust: Trust | None
    """How far probabilities of a task can be believed, by validation tasks; ``None`` where there are none."""
    complete: bool
    """Whether `adapted` is of one task, of each of whose classes there were rows."""

    @property
    def learner(self) -> Learner:
        """Return the learner of tasks with these classes."""
        learner = learner_of(self.spec, own_ways(self.classes, self.trained))
        return near(learner, like_of(self.spec)._replace(limits=self.encoding.limits))

    def outputs(self, x: Table) -> Tensor:
        """Return logits or standardised predictions ``(n, outputs)``."""
        predict = self.learner.predict
        with torch.no_grad():
            found = torch.cat([predict(self.adapted, part)[0] for part in self._parts(x)])
        self._refuse_unsound(found, self.spec.kind == "classification")
        return found

    def chances(self, x: Table) -> Tensor:
        """Return the probability of each class ``(n, classes)``, calibrated where validation tasks say how."""
        logits = self.outputs(x)
        if self.trust is None or self.classes is None or not self.complete:
            return logits.softmax(-1)
        return among_classes(self.trust, logits, self.rows / len(self.classes))

    def distribution(self, x: Table) -> Gaussian | None:
        """Return the distribution of standardised targets ``(n, outputs)``, where the learner has one."""
        tell = self.learner.distribution
        if tell is None:
            return None
        with torch.no_grad():
            parts = [tell(self.adapted, part) for part in self._parts(x)]
        found = Gaussian(*(torch.cat(values, 1)[0] for values in zip(*parts)))
        self._refuse_unsound(torch.cat([found.mean, found.variance], -1), False)
        return found

    def _refuse_unsound(self, outputs: Tensor, classes: bool) -> None:
        bad = unsound(outputs, classes)
        if bad.any():
            raise DivergenceError(
                f"the prediction of row {int(bad.int().argmax())} is not finite; fit with a lower rate"
            )

    def _parts(self, x: Table) -> list[Tensor]:
        return [part.unsqueeze(0) for part in self.encoding.encode(x).split(_CHUNK)]

    def in_units(self, values: Tensor, mean: Tensor | float | None = None) -> Array:
        """Return standardised targets ``(n, outputs)`` in the units of the data; with mean 0, their deviations."""
        values = values * self.encoding.y_scale + (self.encoding.y_mean if mean is None else mean)
        return values.squeeze(-1).numpy() if self.flat else values.numpy()


@out_of_inference_mode
def learned(examples: Examples, plain: bool, groups: object, options: Options, kind: Target, seed: int) -> Fitted:
    """Meta-train on the tasks that ``groups`` names (``None``: rows are dealt out), then learn from all rows pooled."""
    flat, named, count = examples.y.ndim == 1, groups is not None, examples.x.size
    size = len(examples.classes) if examples.classes is not None else 1 if flat else examples.y.shape[1]
    inner = options.inner_steps, options.inner_rate
    tasks = data.grouped(groups, count) if named else data.dealt(examples.labels, count, options.supports[1], seed)
    encoding = data.encoding(examples, plain, tasks.task)
    spec = Spec(options.method, kind, encoding.inputs, size, options.hidden, *inner)
    x, y = encoding.encode(examples.x), encoding.targets(examples)
    families = data.families(Rows(x, y, *tasks), options, named, seed)
    meta, losses, scores = _meta_train(spec, families, options, seed)
    judges = [] if families is None or examples.classes is None else families.validation()
    trust = fitted([_trial(learner_of(spec), meta, one, size) for one in judges])
    chosen = data.spread(examples.labels, count, seed)[: max(options.pooled_rows, size)].sort().values
    adapted = _adapt(learner_of(spec), meta, Batch(x[chosen].unsqueeze(0), y[chosen].unsqueeze(0)))
    told = {"losses": losses, "validation": scores, "trust": trust, "complete": False}
    return Fitted(
        spec,
        seed,
        meta,
        encoding,
        adapted,
        len(chosen),
        flat,
        classes=examples.classes,
        trained=examples.classes,
        **told,
    )


def _trial(learner: Learner, meta: Meta, episodes: Episodes, ways: int) -> Trial:
    """Return what is answered of the query rows of validation tasks, which have equally many support rows."""
    with torch.no_grad():
        adapted, _ = learner.adapt(meta, episodes.support)
        logits = predicted(learner, adapted, episodes.query.x, episodes.query.mask)
    kept, rows = there(episodes.query), there(episodes.support)
    task = torch.arange(len(kept)).unsqueeze(1).expand(kept.shape)
    shots = max(1, round(float(rows.sum()) / len(rows) / ways))
    return Trial(ways, shots, logits[kept], episodes.query.y[kept], task[kept], logits.new_zeros(0, ways))


def own_ways(classes: Array | None, trained: Array | None) -> int | None:
    """Return how many classes a task has of its own; ``None`` where they are those that were trained with."""
    return None if classes is None or trained is None or np.array_equal(classes, trained) else len(classes)


def _meta_train(
    spec: Spec, tasks: Families | None, options: Options, seed: int
) -> tuple[Meta, list[float], list[float]]:
    """Learn across tasks, with validation tasks the weights that did best on them; return training and their losses."""
    learner = learner_of(spec, seed=seed)
    meta = double(learner.init(Generator().manual_seed(seed)))
    if tasks is None:
        return meta, [], []
    training, judges = tasks.train(), tasks.validation()
    if learner.prepare is not None:
        meta = double(learner.prepare(meta, training, seed))
    steps = min(max(5 * (training.counts or {})["train"], 20), 200) if options.steps is None else options.steps
    if learner.gradient is None or not steps:
        return meta, [], []
    own, optimizer = find("method", spec.method).defaults.get("", {}), torch.optim.Adam
    rate = options.outer_rate or _OUTER_RATE
    if own.get("outer.optimizer") == "sgd":
        optimizer, rate = torch.optim.SGD, options.outer_rate or own["outer.rate"]
    state = start(learner, optimizer=partial(optimizer, lr=rate), meta=meta)
    losses, scores = list[float](), list[float]()

    def judge(meta: Meta) -> float:
        with torch.no_grad():
            scores.append(sum(float(meta_loss(learner, meta, episodes)[0]) for episodes in judges) / len(judges))
        return scores[-1]

    chosen = judge if judges else None
    best, size, every = first(state.meta, chosen), options.tasks_per_step, max(1, steps // 20)
    for look in fit_best(
        learner, training, state=state, best=best, judge=chosen, steps=steps, every=every, tasks_per_step=size,
        schedule="cosine", seed=seed,
    ):  # fmt: skip
        best, record = look.best, look.record
        losses.append(record.loss)
        if options.verbose and record.step % every == 0:
            told = f", validation {scores[-1]:.4f}" if judges else ""
            print(f"step {record.step} of {steps}: query loss {record.loss:.4f}{told}", flush=True)
    return best.meta, losses, scores


def double(meta: Meta) -> Meta:
    """Return the values in float64, in which all is computed here: tables are small, and closed forms exact."""
    return tree_map(Tensor.double, meta)


def _adapt(learner: Learner, meta: Meta, support: Batch) -> Adapted:
    with torch.no_grad():
        adapted, _ = learner.adapt(meta, support)
    # as they come back from a file, so that no view keeps the rows alive
    whole = partial(torch.clone, memory_format=torch.contiguous_format)
    params, buffers = tree_map(whole, (adapted.params, adapted.buffers))
    return Adapted(meta, params, buffers, adapted.seed, adapted.step)


def one_task(known: Fitted, examples: Examples | None) -> Fitted:
    """Return what is known after learning one task from its rows, or of a task without any."""
    if examples is None:
        known = known._replace(rows=0, classes=known.trained, complete=False)
        return known._replace(adapted=_adapt(known.learner, known.meta, nothing(like_of(known.spec), torch.float64)))
    examples = _fitting(known, examples)
    complete = examples.classes is not None and len(np.unique(examples.y)) == len(examples.classes)
    known = known._replace(rows=examples.x.size, classes=examples.classes, complete=complete)
    x, y = known.encoding.encode(examples.x), known.encoding.targets(examples)
    return known._replace(adapted=_adapt(known.learner, known.meta, Batch(x.unsqueeze(0), y.unsqueeze(0))))


def few_shot(known: Fitted, examples: Examples, groups: object, options: Options) -> tuple[Array, Array, Array]:
    """Adapt to the support rows of each task and predict its query rows.

    Returns:
        The numbers of the query rows, their targets (in the units of the data, or numbers of classes), and predictions.
    """
    examples = _fitting(known, examples)
    known = known._replace(classes=examples.classes)
    tasks = data.grouped(groups, examples.x.size)
    places = torch.arange(examples.x.size, dtype=torch.float64).unsqueeze(1)
    x = torch.cat([known.encoding.encode(examples.x), places], 1)
    test = data.judged(Rows(x, known.encoding.targets(examples), *tasks), options, known.seed)
    numbers = range((test.counts or {})["test"])
    parts = [_judged(known, test.sample("test", numbers[begin : begin + _TASKS])) for begin in numbers[::_TASKS]]
    rows, truth, predicted = (torch.cat(values) for values in zip(*parts))
    if examples.classes is not None:
        return rows.numpy(), truth.numpy(), predicted.argmax(-1).numpy()
    return rows.numpy(), examples.y[rows.numpy()], known.in_units(predicted)


def _judged(known: Fitted, episodes: Episodes) -> tuple[Tensor, Tensor, Tensor]:
    """Return numbers, targets and outputs of the query rows; the last feature is the row's number."""
    learner, query = known.learner, episodes.query
    with torch.no_grad():
        adapted, _ = learner.adapt(known.meta, episodes.support._replace(x=episodes.support.x[..., :-1]))
        found = predicted(learner, adapted, query.x[..., :-1], query.mask)
    kept = there(query)
    return query.x[..., -1][kept].long(), query.y[kept], found[kept]


def _fitting(known: Fitted, examples: Examples) -> Examples:
    shape = 1 if examples.y.ndim == 1 else examples.y.shape[1]
    if examples.classes is None and (known.flat != (examples.y.ndim == 1) or shape != known.spec.outputs):
        expected = "(n,)" if known.flat else f"(n, {known.spec.outputs})"
        raise DataError(
            f"y has shape {examples.y.shape}, but the estimator was fitted with targets of shape {expected}"
        )
    if examples.classes is None or known.trained is None:
        return examples
    # not by numpy, which takes the text "1" for the number
    if known.spec.any_classes and not set(examples.classes.tolist()) <= set(known.trained.tolist()):
        return examples
    return examples.among(known.trained)
