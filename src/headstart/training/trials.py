"""What a learner answers on unseen tasks of several sizes, and on examples of classes that a task does not have.

Where classes have a name beyond their task, the examples of a split's tasks are pooled by class, and tasks of other
numbers of classes and of examples are drawn from the pool: nothing is asked of the data that the run's own tasks do not
show. Of some classes of a draw nothing is learned, and the learner is asked
for their examples all the same.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from headstart.core.losses import there
from headstart.core.objective import predicted
from headstart.data.encoder import beside, pad_of
from headstart.data.fewshot import ClassStore, class_store, few_shot
from headstart.data.kind import unsound
from headstart.registry import find
from headstart.training.build import Job, for_new_tasks, make_learner
from headstart.types import Batch, Learner, Meta, Tasks

#: Bytes of examples that are pooled, at most.
_MOST = 2**28
#: Query examples of a class, at most, and tasks at a time.
_QUERIES, _TOGETHER = 15, 20
#: Tasks of the run's own size, of which fewer are no reason to try others.
_FEW = 8
#: Numbers of classes and of examples of each that are tried beside the run's own.
_WAYS, _SHOTS = (2, 20), (1, 5, 10)


class Trial(NamedTuple):
    """Answers on N query examples of tasks of one size, on the CPU and in double precision."""

    ways: int
    shots: int
    logits: Tensor
    """``(N, ways)``."""
    y: Tensor
    """``(N,)`` int64."""
    task: Tensor
    """``(N,)`` int64, which task each is of, from 0 up."""
    unknown: Tensor
    """``(M, ways)``: on examples of classes that the tasks do not have; M is 0 where there are none."""


def trials(
    job: Job,
    meta: Meta,
    split: str,
    *,
    episodes: int,
    own: bool = False,
    others: Tensor | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Trial]:
    """Adapt to unseen tasks of each size, and answer their query examples; the first trial is of the run's own size.

    Args:
        job, meta: the method, and what was meta-learned.
        split: which tasks.
        episodes: how many of the run's own size; a quarter as many of the others, which 8 at least are a reason for.
        own: try no other size.
        others: examples ``(n, *features)`` of no class at all, of which every task is asked, in place of those of
            classes of the split that it does not have.
        on_batch: called with the number of tasks done after each batch.
    """
    row, config = find("method", job.config.method.name), for_new_tasks(job.config)

    @cache
    def learner_of(ways: int) -> Learner:
        return make_learner(config, job.tasks._replace(output_size=ways), job.device)[0]

    episodes = episodes if job.tasks.counts is None else min(episodes, job.tasks.counts.get(split, 0))
    if not episodes:
        return []
    store, found = _pooled(job.tasks, split, episodes), list[Trial]()
    for ways, shots in [] if store is None else _sizes(job.tasks, split, row.classes == "any", own or episodes < _FEW):
        unseen = 0 if row.transductive or others is not None else ways
        drawn = _drawn(store, split, ways, shots, unseen, job)
        if drawn is not None:
            count = max(2, episodes if not found else episodes // 4)
            one = _tried(learner_of(ways), meta, drawn, split, count, (ways, shots), others, on_batch)
            if not bool(unsound(one.logits, True).any() | unsound(one.unknown, True).any()):
                found.append(one)
    return found or [_own(learner_of(job.tasks.output_size), meta, job.tasks, split, episodes, on_batch)]


def _sizes(tasks: Tasks, split: str, any_ways: bool, own: bool) -> list[tuple[int, int]]:
    """Return numbers of classes and of examples of each, the run's own first."""
    support = tasks.sample(split, range(4)).support
    kept = there(support)
    counts = [y[kept[place]].bincount() for place, y in enumerate(support.y)]
    shots = [count for task in counts for count in task.tolist() if count]
    ways = [int((task > 0).sum()) for task in counts] if any_ways else [tasks.output_size]
    first = (max(ways), max(shots))
    if own:
        return [first]
    every_way = sorted({*ways, *(_WAYS if any_ways else ())})
    every = [(way, shot) for way in every_way for shot in sorted({min(shots), max(shots), *_SHOTS})]
    return [first, *(size for size in every if size != first)]


def _pooled(tasks: Tasks, split: str, episodes: int) -> ClassStore | None:
    """Return the different examples of each class that tasks of a split show; ``None`` where classes have no names."""
    if tasks.names is None or tasks.pool is None:
        return None
    parts: dict[str, list[Tensor]] = {}
    size = 0
    for number in range(episodes):
        for batch in tasks.sample(split, [number]):
            y = torch.where(there(batch), batch.y, -1)[0]
            for label, name in enumerate(tasks.names(split, number)):
                parts.setdefault(name, []).append(batch.x[0, y == label])
                size += parts[name][-1].nbytes
        if size > _MOST:
            break
    pad = pad_of(tasks)
    if pad is not None:  # as long as the longest of all
        longest = max(part.shape[-1] for own in parts.values() for part in own)
        first = next(iter(parts.values()))[0]
        filler = first.new_full((0, longest), pad)
        parts = {name: [beside([filler, *own], 0, pad)] for name, own in parts.items()}
    every = {name: torch.cat(own) for name, own in parts.items()}
    return class_store({name: x.flatten(1).unique(dim=0).view(-1, *x.shape[1:]) for name, x in every.items() if len(x)})


class _Drawn(NamedTuple):
    """Tasks of which the last classes are not to be learned."""

    tasks: Tasks
    queries: int


def _drawn(store: ClassStore | None, split: str, ways: int, shots: int, unseen: int, job: Job) -> _Drawn | None:
    """Return tasks of so many classes and as many others, or as there are; ``None`` where there are too few."""
    assert store is not None
    sizes = store.sizes.sort(descending=True).values
    # a class more is worth more than a query example more
    least = min(ways + min(unseen, max(1, ways // 2)), len(sizes))
    queries = min(_QUERIES, int(sizes[least - 1]) - shots)
    if least < ways or queries < 1:
        return None
    classes = min(ways + unseen, int((sizes >= shots + queries).sum()))
    given = {"ways": classes, "shots": shots, "queries": queries, "seed": job.config.run.seed, "device": job.device}
    return _Drawn(few_shot(job.tasks.name, {split: store}, on_short="skip", **given), queries)


def _tried(
    learner: Learner,
    meta: Meta,
    drawn: _Drawn,
    split: str,
    count: int,
    size: tuple[int, int],
    others: Tensor | None,
    on_batch: Callable[[int], None],
) -> Trial:
    ways, shots = size
    seen, asked = ways * shots, ways * drawn.queries
    known, unknown = list[Tensor](), list[Tensor]()
    for numbers in _in_parts(count):
        support, query = drawn.tasks.sample(split, numbers)
        with torch.no_grad():
            adapted, _ = learner.adapt(meta, Batch(support.x[:, :seen], support.y[:, :seen]))
            known.append(learner.predict(adapted, query.x[:, :asked]).cpu().double())
            odd = query.x[:, asked:] if others is None else others.expand(len(numbers), *others.shape)
            if odd.shape[1]:
                unknown.append(learner.predict(adapted, odd).cpu().double())
        on_batch(numbers[-1] + 1)
    logits = torch.cat(known)
    y = torch.arange(ways).repeat_interleave(drawn.queries).repeat(count)
    odd = torch.cat(unknown).flatten(0, 1) if unknown else logits.new_zeros(0, ways)
    return Trial(ways, shots, logits.flatten(0, 1), y, torch.arange(count).repeat_interleave(asked), odd)


def _own(learner: Learner, meta: Meta, tasks: Tasks, split: str, count: int, on_batch: Callable[[int], None]) -> Trial:
    """Return answers on the run's own tasks, of classes that have no name, or of too few examples."""
    found, learned = list[tuple[Tensor, Tensor, Tensor]](), 0
    for numbers in _in_parts(count):
        support, query = tasks.sample(split, numbers)
        with torch.no_grad():
            adapted, _ = learner.adapt(meta, support)
            logits = predicted(learner, adapted, query.x, query.mask).cpu().double()
        kept, task = there(query).cpu(), torch.tensor(numbers).unsqueeze(1).expand(query.y.shape)
        found.append((logits[kept], query.y.cpu()[kept], task[kept]))
        learned += int(there(support).sum())
        on_batch(numbers[-1] + 1)
    logits, y, task = (torch.cat(parts) for parts in zip(*found))
    shots = max(1, round(learned / count / tasks.output_size))
    return Trial(tasks.output_size, shots, logits, y, task, logits[:0])


def _in_parts(count: int) -> Iterator[Sequence[int]]:
    return (range(first, min(first + _TOGETHER, count)) for first in range(0, count, _TOGETHER))
