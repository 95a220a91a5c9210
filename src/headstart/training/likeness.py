"""Whether a new task looks like those that were trained on: how far its examples are from theirs.

Distances are of what the network makes of examples, or, where it makes nothing of them but outputs, of the inputs. The
training examples are described by their principal components, and how far validation tasks are from them says how far
is too far.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from headstart.core.losses import there
from headstart.data.encoder import beside, pad_of
from headstart.errors import FileError
from headstart.training.build import assembled
from headstart.training.checkpoint import alike
from headstart.training.config import Config, Part
from headstart.types import Batch, Meta, Params, Tasks

#: The share of tasks such as the validation tasks that are said to look unlike.
FALSE_ALARMS = 0.05
#: Training examples that are looked at, principal components that are kept, and examples that go through together.
_MOST, _COMPONENTS, _TOGETHER = 4000, 32, 256
#: Tasks of one split that are looked at, so many at once, and the fewest that say how far is too far.
_TASKS, _AT_ONCE, _FEWEST = 200, 20, 19
#: Numbers of examples for which it is said how far is too far.
_SIZES = (1, 2, 5, 10, 25, 50, 100)

Embed: TypeAlias = Callable[[Tensor], Tensor]
"""``(n, *features) -> (n, d)``."""


class Likeness(NamedTuple):
    """What training examples are like, in d dimensions."""

    mean: Tensor
    """``(d,)``."""
    components: Tensor
    """``(d, r)``, each divided by its standard deviation."""
    rest: Tensor
    """``()``, the mean square of what is outside the components."""
    sizes: Tensor
    """``(k,)``, numbers of examples, the fewest first."""
    limits: Tensor
    """``(k,)``: the mean distance of so many examples of a task that `FALSE_ALARMS` of the validation tasks exceed."""

    def distances(self, embedded: Tensor) -> Tensor:
        """Return how far examples ``(n, d)`` are, ``(n,)``: the log of the mean square, 0 for usual training ones.

        Half is of the principal components, in standard deviations (Mahalanobis), half of what is outside them.
        """
        off = embedded.double() - self.mean
        inside = off @ self.components
        scale = self.components.square().sum(0)
        outside = (off.square().sum(-1) - (inside.square() / scale).sum(-1)).clamp(min=0)
        return ((inside.square().mean(-1) + outside / self.rest) / 2).clamp(min=1e-12).log()

    def limit(self, examples: int) -> float:
        """Return how far the mean of so many examples may be."""
        return float(self.limits[max(int((self.sizes <= examples).sum()) - 1, 0)])

    @classmethod
    def of_tensors(cls, found: Params, where: str) -> "Likeness":
        """Return what was kept by the names of the fields.

        Raises:
            FileError: it is something else.
        """
        whole = found.keys() == set(cls._fields) and all(value.dtype == torch.float64 for value in found.values())
        one = cls(**found) if whole else None
        if one is None or not (
            one.mean.ndim == one.sizes.ndim == one.limits.ndim == 1
            and one.components.ndim == 2
            and len(one.components) == len(one.mean)
            and one.rest.shape == ()
            and len(one.sizes) == len(one.limits) > 0
        ):
            raise FileError(f"{where} does not say what training tasks look like")
        return one


def embedding(config: Config, meta: Meta, tasks: Tasks, device: torch.device) -> Embed | None:
    """Return what a run's network makes of examples, without its head, or where it has none the inputs.

    Args:
        config: the run's.
        meta: what was meta-learned.
        tasks: such as it was trained on.
        device: where to compute.

    Returns:
        ``None`` where inputs are codes, and no network makes features of them.
    """
    # class means of classes of one example are its features, whatever was learned on them
    plain = tasks._replace(kind="classification", output_size=2, pool=None, shared_classes=False)
    given: dict[str, Any] = {"ways": None, "seed": 0, "device": device}
    learner, own = assembled(Part("prototypes", {}), None, plain, **given)[0], Meta({}, {})
    if config.model is not None:
        features = assembled(Part("prototypes", {}), config.model, plain, **given)[0]
        names, values = features.init(None), {**meta.params, **meta.structure}
        if all(name in values and alike(values[name], like) for part in names for name, like in part.items()):
            learner, own = features, Meta(*({name: values[name] for name in part} for part in names))
    if own == Meta({}, {}) and tasks.integers:
        return None

    def embed(x: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [
                learner.adapt(own, Batch(part.unsqueeze(0), torch.arange(len(part), device=part.device).unsqueeze(0)))
                for part in x.split(_TOGETHER)
            ]
        return torch.cat([adapted.params["prototypes"][0] for adapted, _ in parts]).cpu().double()

    return embed


def fitted(embed: Embed, tasks: Tasks, episodes: int) -> Likeness | None:
    """Return what training examples look like, and how far validation tasks are from them.

    ``None`` where there are fewer than 19 validation tasks, of which 1 in 20 could not be told.
    """
    training = torch.cat([embed(x) for x in examples(tasks, "train", episodes)])[:_MOST]
    if len(training) < 2 or not bool(training.isfinite().all()):
        return None
    mean = training.mean(0)
    count = min(_COMPONENTS, len(training) - 1, len(mean))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # where there are many dimensions, of random directions
        _, sizes, found = torch.pca_lowrank(training, q=min(count + 8, *training.shape), niter=4)
    deviations = (sizes[:count] / len(training) ** 0.5).clamp(min=1e-9)
    components = found[:, :count] / deviations
    off = training - mean
    outside = (off.square().sum(-1) - (off @ found[:, :count]).square().sum(-1)).clamp(min=0)
    none = torch.zeros(0, dtype=torch.float64)
    bare = Likeness(mean, components, outside.mean().clamp(min=1e-12), none, none)
    generator = torch.Generator().manual_seed(0)
    seen = [bare.distances(embed(x)) for x in examples(tasks, "validation", episodes)]
    seen = [one[torch.randperm(len(one), generator=generator)] for one in seen]
    if len(seen) < _FEWEST:
        return None
    limits = {
        size: _exceeded(torch.stack([one[:size].mean() for one in seen]))
        for size in _SIZES
        if all(len(one) >= size for one in seen)
    }
    kept = (torch.tensor(part, dtype=torch.float64) for part in (list(limits), list(limits.values())))
    return Likeness(*bare[:3], *kept)


def _exceeded(values: Tensor) -> float:
    """Return what a task to come exceeds with probability `FALSE_ALARMS` at most, where it is such as these."""
    ordered = values.sort().values
    place = -int(-(1 - FALSE_ALARMS) * (len(values) + 1) // 1) - 1
    return float(ordered[min(place, len(values) - 1)])


def examples(tasks: Tasks, split: str, episodes: int) -> list[Tensor]:
    """Return the examples of tasks of a split, of each together."""
    count, pad = min(episodes, _TASKS, (tasks.counts or {}).get(split, episodes)), pad_of(tasks)
    found = list[Tensor]()
    for numbers in torch.arange(count).chunk(-(-count // _AT_ONCE)) if count else ():
        halves = [zip(batch.x, there(batch)) for batch in tasks.sample(split, numbers.tolist())]
        found += [beside([x[kept] for x, kept in parts], 0, pad) for parts in zip(*halves)]
    return found


def unlike(likeness: Likeness, embed: Embed, x: Tensor) -> bool:
    """Return whether support examples ``(n, *features)`` are farther from training ones than they should be."""
    return len(x) > 0 and float(likeness.distances(embed(x)).mean()) > likeness.limit(len(x))


def alarms(likeness: Likeness, embed: Embed, tasks: Tasks, split: str, episodes: int) -> tuple[int, int]:
    """Return how many tasks of a split look unlike by their support sets, and of how many."""
    count = min(episodes, _TASKS, (tasks.counts or {}).get(split, episodes))
    supports = (tasks.sample(split, [number]).support for number in range(count))
    told = [unlike(likeness, embed, support.x[0][there(support)[0]]) for support in supports]
    return sum(told), len(told)


def unlike_text(name: str | None, sources: str) -> str:
    """Return what is said of a task that looks unlike."""
    what = "this task" if name is None else f"task {name!r}"
    return (
        f"{what} looks unlike those that were trained on ({sources}): its examples are farther from theirs than those"
        f" of {100 * (1 - FALSE_ALARMS):.0f} % of the run's validation tasks, so what its report says need not hold"
        f" here; of tasks like the validation tasks {100 * FALSE_ALARMS:.0f} % are told so, too"
    )
