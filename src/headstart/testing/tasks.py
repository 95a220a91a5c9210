"""The contract of a family of `Tasks`."""

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from headstart.core.losses import there
from headstart.core.tree import tensors_of
from headstart.testing.contract import finite, generator_state, require, same_bits, take
from headstart.types import Batch, Episodes, Tasks


def check_tasks(
    tasks: Tasks | Callable[[int], Tasks],
    *,
    splits: Sequence[str] = ("train", "validation", "test"),
    numbers: Sequence[int] = range(16),
    duplicates: float = 0.0,
) -> None:
    """Check that a family of tasks keeps its promises.

    - shapes: ``x`` is ``(B, n, *input_shape)``; class ids are int64, within the ways, the support set has an example
      of every class that the query set asks for; where classes have names, each has one of its own; targets are
      ``(B, n, output_size)``; nothing is NaN.
    - determined: task t of a split is the same in any batch and order, and global generators have no part in it.
    - different: other numbers, splits and (where a factory is given) seeds give other tasks.
    - leakage: support and query sets of a task share no example.

    Args:
        tasks: the family, or a function that makes it from a seed.
        splits: the splits that it has.
        numbers: the task numbers to look at, at least three.
        duplicates: the share of query examples that may equal a support example of their class, since data may hold a
            photograph twice. An equal example of another class is never right.

    Raises:
        ContractError: the contract that is broken, by how much, and what that means.

    >>> from headstart.data.curves.sinusoid import sinusoid
    >>> check_tasks(lambda seed: sinusoid(seed=seed))
    """
    family = tasks if isinstance(tasks, Tasks) else tasks(0)
    sampled = {split: family.sample(split, numbers) for split in splits}
    for split, episodes in sampled.items():
        for name, batch in zip(("support", "query"), episodes):
            _check_batch(family, batch, len(numbers), f"{name} set of {split!r}")
        if family.kind == "classification":
            _check_classes(family, episodes, split, numbers)
        _check_determined(family, split, numbers, episodes)
        _check_leakage(episodes, split, duplicates)
    _check_different(sampled)
    if not isinstance(tasks, Tasks):
        for split, episodes in sampled.items():
            again, other = (tasks(seed).sample(split, numbers) for seed in (0, 1))
            require(same_bits(again, episodes), "determined", "one seed makes two families")
            require(not same_bits(other, episodes), "different", f"seeds 0 and 1 give the same tasks of {split!r}")


def _check_batch(family: Tasks, batch: Batch, count: int, where: str) -> None:
    for leaf in tensors_of(batch.x):
        claim = f"x of the {where} is {tuple(leaf.shape)} and y {tuple(batch.y.shape)} for {count} tasks"
        require(leaf.shape[:2] == batch.y.shape[:2] and leaf.shape[0] == count, "shapes", claim)
    if isinstance(batch.x, Tensor):
        got, expected = tuple(batch.x.shape[2:]), tuple(family.input_shape)
        require(got == expected, "shapes", f"inputs of the {where} are {got}, not {expected}")
    require(finite(batch), "shapes", f"the {where} holds NaN or infinity")
    y = batch.y
    if family.kind == "classification":
        fits = y.ndim == 2 and y.dtype == torch.int64
        require(fits, "shapes", f"class ids of the {where} are {tuple(y.shape)} of {y.dtype}, not (B, n) of int64")
        low, high = int(y.min()), int(y.max())
        require(0 <= low and high < family.output_size, "shapes", f"class ids of the {where} go from {low} to {high}")
    else:
        fits = tuple(y.shape[2:]) == (family.output_size,) and y.is_floating_point()
        require(fits, "shapes", f"targets of the {where} are {tuple(y.shape)} of {y.dtype}")
    if batch.mask is not None:
        fits = batch.mask.shape == y.shape[:2] and batch.mask.dtype == torch.bool
        require(fits, "shapes", f"the mask of the {where} is {tuple(batch.mask.shape)} of {batch.mask.dtype}")
        require(bool(batch.mask.any(1).all()), "shapes", f"a {where} has no example at all")


def _check_classes(family: Tasks, episodes: Episodes, split: str, numbers: Sequence[int]) -> None:
    support, query = ([set(y[own].tolist()) for y, own in zip(batch.y.cpu(), there(batch).cpu())] for batch in episodes)
    for number, (known, asked) in enumerate(zip(support, query)):
        unseen = sorted(asked - known)
        require(not unseen, "shapes", f"the query set of {split!r} task {number} asks for {unseen}, not in its support")
        if family.names is not None:
            names = family.names(split, numbers[number])
            fits = len(set(names)) == len(names) > max(known)
            require(fits, "shapes", f"the classes of {split!r} task {number} are called {names}, not one name a class")


def _check_determined(family: Tasks, split: str, numbers: Sequence[int], episodes: Episodes) -> None:
    before, ends = generator_state(), (len(numbers) - 1, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4321)
        again = family.sample(split, numbers)
        alone = [family.sample(split, [numbers[place]]) for place in ends]
        backwards = family.sample(split, list(numbers)[::-1])
    family.sample(split, numbers)
    require(generator_state() == before, "determined", f"sampling {split!r} draws from a global generator")
    meaning = "it must be a function of (seed, split, t) alone, or a resumed run would see other tasks"
    require(same_bits(again, episodes), "determined", f"tasks of {split!r} differ when asked for again; {meaning}")
    for place, one in zip(ends, alone):
        same = same_bits(one, take(episodes, [place]))
        require(same, "determined", f"task {numbers[place]} of {split!r} is another one when it is alone; {meaning}")
    same = same_bits(backwards, take(episodes, list(range(len(numbers)))[::-1]))
    require(same, "determined", f"tasks of {split!r} depend on the order they are asked for in; {meaning}")


def _check_leakage(episodes: Episodes, split: str, duplicates: float) -> None:
    shared, asked = 0, 0
    for number in range(episodes.query.y.shape[0]):
        support, query = (_examples(batch, number) for batch in episodes)
        known = dict(support)
        for row, label in query:
            asked += 1
            if row in known:
                shared += 1
                said = f"in the support set as {known[row]} and in the query set as {label}"
                require(known[row] == label, "leakage", f"in {split!r} task {number} one example is {said}")
    said = f"{shared} of {asked} query examples of {split!r} are in their own support set, {duplicates:.1%} are allowed"
    require(shared <= duplicates * asked, "leakage", f"{said}; their score would be flattered")


def _examples(batch: Batch, task: int) -> list[tuple[bytes, object]]:
    own = there(batch)[task].cpu()
    parts = [leaf[task].cpu()[own].flatten(1) for leaf in tensors_of(batch.x)]
    rows = [b"".join(part[place].numpy().tobytes() for part in parts) for place in range(int(own.sum()))]
    return list(zip(rows, batch.y[task].cpu()[own].tolist()))


def _check_different(sampled: dict[str, Episodes]) -> None:
    for split, episodes in sampled.items():
        first, second = (take(episodes, [place]) for place in (0, 1))
        require(not same_bits(first, second), "different", f"two numbers of {split!r} give the same task")
    for name, other in combinations(sampled, 2):
        same = same_bits(sampled[name], sampled[other])
        require(not same, "different", f"the splits {name!r} and {other!r} give the same tasks")
