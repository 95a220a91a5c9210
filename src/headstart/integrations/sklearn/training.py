"""Meta-training of an estimator, and adaptation: functions from values to values."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from headstart.core.objective import meta_loss
from headstart.integrations.sklearn.options import Options, Spec, learner_of
from headstart.integrations.sklearn.tasks import Families
from headstart.training.loop import copied, fit, start
from headstart.types import Adapted, Batch, Episodes, Gaussian, Learner, Meta, Params

_CHUNK = 4096
#: Adam's step size where nobody gives one.
_OUTER_RATE = 0.02


class Trained(NamedTuple):
    """What meta-training gave."""

    meta: Meta
    losses: tuple[float, ...]
    """The mean query loss of each outer step's tasks."""
    validation: tuple[float, ...]
    """The mean meta-loss of the validation tasks, each time that it was looked at."""


def meta_train(spec: Spec, families: Families | None, options: Options, seed: int) -> Trained:
    """Learn across tasks; with validation tasks, keep the weights that did best on them."""
    learner = learner_of(spec, seed)
    meta = double(learner.init(Generator().manual_seed(seed)))
    if families is None:
        return Trained(meta, (), ())
    tasks, judges = families.train(), families.validation()
    if learner.prepare is not None:
        meta = double(learner.prepare(meta, tasks, seed))
    steps = min(max(5 * (tasks.counts or {})["train"], 20), 200) if options.steps is None else options.steps
    if learner.gradient is None or not steps:
        return Trained(meta, (), ())
    optimizer = partial(torch.optim.Adam, lr=options.outer_rate or _OUTER_RATE)
    if spec.method == "reptile":
        optimizer = partial(torch.optim.SGD, lr=options.outer_rate or 1.0)
    state = start(learner, optimizer=optimizer, meta=meta)
    best, losses, scores = copied(state.meta), [], [_validation(learner, state.meta, judges)] if judges else []
    size, every = options.tasks_per_step, max(1, steps // 20)
    records = fit(learner, tasks, steps=steps, tasks_per_step=size, state=state, schedule="cosine", seed=seed)
    for record in records:
        losses.append(record.loss)
        if judges and (record.step % every == 0 or record.step == steps):
            scores.append(_validation(learner, state.meta, judges))
            if scores[-1] == min(scores):
                best = copied(state.meta)
        if options.verbose and record.step % every == 0:
            judged = f", validation {scores[-1]:.4f}" if judges else ""
            print(f"step {record.step} of {steps}: query loss {record.loss:.4f}{judged}", flush=True)
    return Trained(best if judges else copied(state.meta), tuple(losses), tuple(scores))


def double(meta: Meta) -> Meta:
    """Return the values in float64, in which all is computed here: tables are small, and closed forms exact."""
    return Meta(*({name: value.double() for name, value in part.items()} for part in meta))


def _validation(learner: Learner, meta: Meta, judges: list[Episodes]) -> float:
    with torch.no_grad():
        return sum(float(meta_loss(learner, meta, episodes)[0]) for episodes in judges) / len(judges)


def adapt(spec: Spec, meta: Meta, x: Tensor, y: Tensor) -> Adapted:
    """Learn one task from its rows ``x`` ``(n, features)`` and ``y`` ``(n,)`` or ``(n, outputs)``."""
    with torch.no_grad():
        adapted, _ = learner_of(spec).adapt(meta, Batch(x.unsqueeze(0), y.unsqueeze(0)))
    # as they come back from a file, so that no view keeps the rows alive
    return Adapted(meta, _compact(adapted.params), _compact(adapted.buffers), adapted.seed, adapted.step)


def _compact(values: Params) -> Params:
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in values.items()}


def predictions(spec: Spec, meta: Meta, episodes: Episodes) -> Tensor:
    """Return logits or predictions ``(B, n, outputs)`` of the query rows, after adapting to the support rows."""
    learner = learner_of(spec)
    with torch.no_grad():
        adapted, _ = learner.adapt(meta, episodes.support)
        return learner.predict(adapted, episodes.query.x)


def outputs(spec: Spec, adapted: Adapted, x: Tensor) -> Tensor:
    """Return logits or predictions ``(n, outputs)`` for the rows ``x`` of one task."""
    learner = learner_of(spec)
    with torch.no_grad():
        return torch.cat([learner.predict(adapted, part.unsqueeze(0))[0] for part in x.split(_CHUNK)])


def distribution(spec: Spec, adapted: Adapted, x: Tensor) -> Gaussian | None:
    """Return the distribution of the targets of one task's rows, ``(n, outputs)``, where the learner has one."""
    tell = learner_of(spec).distribution
    if tell is None:
        return None
    with torch.no_grad():
        parts = [tell(adapted, part.unsqueeze(0)) for part in x.split(_CHUNK)]
    return Gaussian(torch.cat([part.mean[0] for part in parts]), torch.cat([part.variance[0] for part in parts]))
