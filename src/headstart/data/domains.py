"""Tasks of several sources: each is of one of them, its domain."""

import math
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from headstart.core.losses import there
from headstart.data.random import SPLITS, check_seed, uniform
from headstart.errors import DataError, ShapeError, UsageError, check_known
from headstart.types import Batch, Episodes, Pool, Tasks

_DOMAIN = 2**16  # the stream of random numbers, far from those of the sources


def mixed(
    name: str,
    sources: Mapping[str, Tasks],
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    details: Mapping[str, Any] | None = None,
) -> Tasks:
    """Return tasks that are each of one of several families of tasks alike.

    Training task t is task t of a domain that is drawn with a chance by its weight, from random numbers of (seed, t)
    alone. Validation and test are balanced: task t is task ``t // D`` of the domain number ``t mod D``, so that a
    domain's tasks there are the first of its own family.

    Args:
        name: what the tasks are called.
        sources: the families, by domain; all of the same kind, shape of inputs, number of ways and of examples.
        weights: how much of training is of each domain, in their order; by default all are the same.
        seed: decides the domains of training tasks.
        details: more for the model card.

    Raises:
        UsageError: no sources, or weights that do not fit them.
        ShapeError: tasks that are not alike, so that they could not be learned together.
        DataError: a domain that has no tasks in a split that another one has.

    >>> from headstart.data.curves.curves import curves
    >>> from headstart.data.curves.sinusoid import sinusoid
    >>> tasks = mixed("both", {"sines": sinusoid(), "curves": curves(shots=10)})
    >>> [tasks.domain("test", number) for number in range(3)]
    ['sines', 'curves', 'sines']
    """
    check_seed(seed)
    if not sources:
        raise UsageError("there is no source to mix; give one or more families of tasks")
    domains, shares = list(sources), [1.0] * len(sources) if weights is None else list(weights)
    if len(shares) != len(domains) or not all(0 <= share < math.inf for share in shares) or not sum(shares):
        raise UsageError(
            f"--weights is {','.join(map(str, shares))}; expected {len(domains)} numbers of 0 or more, one for each of"
            f" {', '.join(domains)}"
        )
    first, families = domains[0], list(sources.values())
    _refuse_different(sources)
    ends = torch.tensor(shares, dtype=torch.float64).cumsum(0)

    @lru_cache(maxsize=64)
    def drawn(numbers: tuple[int, ...]) -> list[int]:
        places = torch.searchsorted(ends, uniform(seed, "train", numbers, _DOMAIN, 1)[:, 0] * ends[-1], right=True)
        return places.tolist()

    def placed(split: str, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """Return the number of each task's domain, and its own number there."""
        numbers = [int(number) for number in numbers]
        if split == "train":
            return list(zip(drawn(tuple(numbers)), numbers))
        return [(number % len(domains), number // len(domains)) for number in numbers]

    @cache
    def widths(split: str) -> tuple[tuple[int, bool], ...]:
        """Return how many examples the support and the query sets of a split have room for, and whether some lack."""
        probes = [family.sample(split, [0]) for family in families]
        found = []
        for batches in zip(*probes):
            sizes = {batch.y.shape[1] for batch in batches}
            found.append((max(sizes), len(sizes) > 1 or any(batch.mask is not None for batch in batches)))
        return tuple(found)

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        check_known("split", split, SPLITS)
        found = placed(split, numbers)
        groups = {own: [place for place, (domain, _) in enumerate(found) if domain == own] for own, _ in found}
        parts = [
            families[own].sample(split, [found[place][1] for place in places])
            for own, places in (groups or {0: []}).items()
        ]
        back = torch.tensor([place for places in groups.values() for place in places]).argsort()
        return Episodes(*(_joined(batches, back, *room) for batches, room in zip(zip(*parts), widths(split))))

    def names(split: str, number: int) -> tuple[str, ...]:
        ((own, inner),) = placed(split, [number])
        called = families[own].names
        assert called is not None
        return tuple(f"{domains[own]}/{one}" for one in called(split, inner))

    pools = [family.pool for family in families if family.pool is not None]
    firsts = [sum(pool.count for pool in pools[:place]) for place in range(len(pools))]

    def classes(numbers: Sequence[int]) -> Tensor:
        found = (firsts[own] + pools[own].classes([inner])[0] for own, inner in placed("train", numbers))
        return torch.nn.utils.rnn.pad_sequence(list(found), batch_first=True)

    counts = None
    if all(family.counts is not None for family in families):
        least = {split: min((family.counts or {}).get(split, 0) for family in families) for split in SPLITS}
        # balanced: no more of one than of another; training numbers go round and round
        counts = {split: len(families) * count for split, count in least.items()}
        if empty := [split for split, count in counts.items() if not count]:
            raise DataError(f"not every domain of {name} has tasks in the split {empty[0]!r}")
    return Tasks(
        name=name,
        sample=sample,
        kind=sources[first].kind,
        input_shape=sources[first].input_shape,
        output_size=sources[first].output_size,
        details={
            "domains": {domain: dict(family.details) for domain, family in sources.items()},
            "weights": tuple(share / sum(shares) for share in shares),
            "seed": seed,
            **(details or {}),
        },
        counts=counts,
        names=names if all(family.names is not None for family in families) else None,
        pool=Pool(sum(pool.count for pool in pools), classes) if len(pools) == len(families) else None,
        domain=lambda split, number: domains[placed(split, [number])[0][0]],
    )


def _joined(batches: Sequence[Batch], back: Tensor, width: int, lacking: bool) -> Batch:
    """Return the tasks of several batches in the order ``back``, each with room for ``width`` examples."""

    def padded(leaf: Tensor) -> Tensor:
        room = width - leaf.shape[1]
        return torch.cat([leaf, leaf.new_zeros(len(leaf), room, *leaf.shape[2:])], 1) if room else leaf

    def together(*leaves: Tensor) -> Tensor:
        whole = torch.cat([padded(leaf) for leaf in leaves]) if len(leaves) > 1 else padded(leaves[0])
        return whole[back.to(whole.device)] if len(leaves) > 1 else whole

    x, y = tree_map(together, *((batch.x, batch.y) for batch in batches))
    return Batch(x, y, together(*map(there, batches)) if lacking else None)


def _refuse_different(sources: Mapping[str, Tasks]) -> None:
    first = next(iter(sources))
    for name, what in (
        ("kind", "tasks"),
        ("input_shape", "inputs of shape"),
        ("output_size", "ways or targets:"),
        ("unit", "a unit of targets of"),
    ):
        for domain, family in sources.items():
            own, other = getattr(family, name), getattr(sources[first], name)
            if own != other:
                raise ShapeError(
                    f"tasks of several domains must be alike, but {first} has {what} {other}, and {domain} {own}"
                )
    if shared := [domain for domain, family in sources.items() if family.shared_classes]:
        raise ShapeError(f"{shared[0]} has classes that all tasks share; the domains of a mixture have none in common")
