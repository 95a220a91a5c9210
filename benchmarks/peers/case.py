"""What is computed, as values that every contender can make its tensors and its model of."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.prepared import Arrays, Prepared

if TYPE_CHECKING:
    from torch import nn

OUTER_RATE = 1e-3


def held(rate: float) -> float:
    """Return the rate as float32 has it, in which one of the peers keeps it."""
    return float(np.float32(rate))


class Case(NamedTuple):
    """Second-order MAML: one step of Adam (rate 1e-3) on the mean query loss of ``tasks`` tasks, or what differs."""

    name: str
    """In the words of a table."""
    model: Literal["mlp", "conv4", "resnet12", "transformer"]
    tasks: int
    support: int
    """Examples of a task's support set, all classes together."""
    query: int
    steps: int
    """Inner steps T of plain gradient descent."""
    rate: float
    """Inner rate."""
    ways: int = 0
    """Classes; 0: regression of one number, by the mean squared error."""
    size: int = 28
    """Height and width of an image, or tokens of a text."""
    channels: int = 1
    filters: int = 64
    hidden: tuple[int, ...] = (40, 40)
    """Widths of the hidden layers of the MLP."""
    what: Literal["maml", "anil", "adapters", "adapt"] = "maml"
    """``"anil"``: the inner steps move the head alone; ``"adapters"``: low-rank adapters of the blocks alone;
    ``"adapt"``: no outer gradient, only the query predictions."""
    dtype: Literal["float32", "float64"] = "float32"
    seed: int = 0
    first: int = 0
    """The number of the first task: two cases with the same seed share the tasks whose numbers both have."""


def case_of(values: Mapping[str, Any]) -> Case:
    """Return the case of which JSON has the values."""
    own: dict[str, Any] = {**values, "hidden": tuple(values.get("hidden", Case._field_defaults["hidden"]))}
    return Case(**own)


def arrays(case: Case) -> Arrays:
    """Return ``support_x``, ``support_y``, ``query_x`` and ``query_y``, with the tasks along the first axis.

    Task number i is a function of the seed and i alone.
    """
    made = [_task(case, number) for number in range(case.first, case.first + case.tasks)]
    return {name: np.stack([task[name] for task in made]) for name in made[0]}


def _task(case: Case, number: int) -> Arrays:
    generator = np.random.default_rng([case.seed, number])
    if not case.ways:
        amplitude, phase = generator.uniform(0.1, 5.0), generator.uniform(0.0, np.pi)
        x = generator.uniform(-5.0, 5.0, (case.support + case.query, 1))
        y = (amplitude * np.sin(x - phase)).astype(case.dtype)
    else:
        y = np.concatenate([np.arange(count) % case.ways for count in (case.support, case.query)])
        x = _inputs(case, generator, y)
    x = x if np.issubdtype(x.dtype, np.integer) else x.astype(case.dtype)
    cut = case.support
    return {"support_x": x[:cut], "support_y": y[:cut], "query_x": x[cut:], "query_y": y[cut:]}


def _inputs(case: Case, generator: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Return images, or rows of words, around one prototype a class."""
    if case.model == "transformer":
        words = generator.integers(1, VOCABULARY, (case.ways, case.size))[labels]
        return np.where(generator.random(words.shape) < 0.5, words, generator.integers(1, VOCABULARY, words.shape))
    shape = (case.channels, case.size, case.size)
    prototypes = generator.normal(size=(case.ways, *shape))
    return prototypes[labels] + generator.normal(size=(len(labels), *shape))


VOCABULARY = 256


def module(case: Case) -> "nn.Module":
    """Return the model with its initial weights, the same for every contender.

    Batch normalisation has no running statistics: every set is normalised by its own, everywhere.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        model = _module(case)
    for part in model.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return model.to(getattr(torch, case.dtype)).train()


def _module(case: Case) -> "nn.Module":
    from headstart.models.conv4 import conv4
    from headstart.models.mlp import mlp

    shape = (case.channels, case.size, case.size)
    if case.model == "mlp":
        return mlp(shape, case.ways, hidden=case.hidden) if case.ways else mlp(1, 1, hidden=case.hidden)
    if case.model == "conv4":
        return conv4(shape, case.ways, filters=case.filters)
    if case.model == "resnet12":
        from headstart.models.resnet12 import resnet12

        return resnet12(shape, case.ways)
    from headstart.algorithms.adapters import low_rank
    from headstart.models.transformer import transformer

    model = transformer(case.size, case.ways, vocabulary=VOCABULARY)
    return low_rank(model, rank=4, what="block*") if case.what == "adapters" else model


def moved(case: Case, model: "nn.Module") -> list[str]:
    """Return the names of the parameters that the inner steps move."""
    names = [name for name, _ in model.named_parameters()]
    if case.what == "anil":
        return [name for name in names if name.startswith("head.")]
    if case.what == "adapters":
        return [name for name in names if name.endswith((".up", ".down"))]
    return names


class Task(NamedTuple):
    """One task's tensors."""

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor


def batched(case: Case) -> Task:
    """Return the tensors of all tasks, which are along the first axis."""
    return Task(**{name: torch.from_numpy(value) for name, value in arrays(case).items()})


def tasks_of(case: Case) -> list[Task]:
    """Return each task's tensors."""
    return [Task(*parts) for parts in zip(*batched(case))]


def loss_of(case: Case) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of a task's outputs and targets."""
    return F.cross_entropy if case.ways else F.mse_loss


def outer_optimizer(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Return the optimiser of the outer steps, which is `headstart.fit`'s: Adam, in one operation for all tensors."""
    return torch.optim.Adam(list(parameters), lr=OUTER_RATE, fused=True)


def trained(named: Iterable[tuple[str, Tensor]], backward: Callable[[], object], note: str = "") -> Prepared:
    """Return a contender whose ``backward`` adds the meta-gradient to the ``grad`` of the named parameters."""
    parameters = dict(named)
    optimizer = outer_optimizer(parameters.values())

    def answer() -> Arrays:
        optimizer.zero_grad()
        backward()
        return gradients(parameters)

    def step() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    return Prepared(step, answer, note)


def gradients(parameters: dict[str, Tensor]) -> Arrays:
    """Return what backward has left in each ``grad``; zero where nothing did."""
    return {
        name: (torch.zeros_like(value) if value.grad is None else value.grad).detach().numpy().copy()
        for name, value in parameters.items()
    }
