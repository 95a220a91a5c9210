"""Model-agnostic meta-learning in one call, for tasks that are lists of examples."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from headstart.algorithms.maml import maml
from headstart.core.losses import TaskLoss
from headstart.core.objective import meta_gradient
from headstart.errors import DataError, DivergenceError, ShapeError, UsageError
from headstart.forward.python_state import copied
from headstart.types import Batch, Episodes


def maml_train(
    model: nn.Module,
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    learning_rate: float,
    iterations: int,
    *,
    inner_rate: float = 0.01,
    inner_steps: int = 1,
    loss: str | TaskLoss | None = None,
    support_size: int | None = None,
    tasks_per_step: int = 16,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of ``model`` whose weights are a good start for tasks like these (MAML, second order).

    In every iteration some tasks are each split at random into support and query examples; the weights are adapted to
    the support examples by ``inner_steps`` gradient steps, and θ moves down the gradient of the *query* loss *after*
    adapting, differentiated through those steps: L(θ) = Σᵢ loss(θ − α ∇loss(θ, Sᵢ), Qᵢ). To learn a new task, take the
    same steps on its examples.

    A loop of SGD steps over the tasks lowers the loss *before* adapting, so it ends near the one model that is best for
    all tasks pooled (for sine curves of random phase, nearly a flat line). That is joint training (`headstart.joint`).

    Layers that keep running statistics go by the batch at hand in training, and get those of all tasks at the end.

    Args:
        model: any module; its weights are where θ starts. It is not changed.
        inputs: ``inputs[i]`` are task i's inputs, ``(nᵢ, *features)``.
        targets: ``targets[i]`` are task i's class ids ``(nᵢ,)`` (integers) or target values ``(nᵢ, *outputs)``.
        learning_rate: of the outer optimiser, Adam.
        iterations: outer steps.
        inner_rate: the inner step size α.
        inner_steps: inner gradient steps.
        loss: ``"cross_entropy"``, ``"mse"`` or ``(outputs, batch) -> (B,)``; by default cross-entropy for integer
            targets and mean squared error for floating ones.
        support_size: examples a task that are adapted to; the rest are its query set. By default half of them.
        tasks_per_step: tasks an iteration, drawn without repetition (all of them where there are fewer).
        seed: of the choice of tasks and of the splits.

    Raises:
        DataError, ShapeError: lists of different lengths, tasks that are too small, values that are not finite.
        DivergenceError: the loss stopped being finite; the message names the iteration and the task.

    Reference: Finn, Abbeel, Levine 2017, arXiv:1703.03400.

    >>> import torch, headstart
    >>> x = [torch.linspace(-1, 1, 10).unsqueeze(1) for _ in range(20)]
    >>> y = [slope * task for slope, task in zip(torch.linspace(-2, 2, 20), x)]
    >>> model = headstart.maml_train(torch.nn.Linear(1, 1), x, y, learning_rate=0.01, iterations=5)
    >>> model(x[0]).shape
    torch.Size([10, 1])
    """
    _check(inputs, targets, support_size)
    if tasks_per_step < 1 or iterations < 0 or not learning_rate > 0:
        raise UsageError(
            f"learning_rate must be greater than 0, iterations at least 0 and tasks_per_step at least 1; "
            f"got {learning_rate}, {iterations} and {tasks_per_step}"
        )
    if loss is None:
        loss = "mse" if targets[0].is_floating_point() else "cross_entropy"
    learner = maml(model, loss=loss, steps=inner_steps, rate=inner_rate)
    meta = learner.init(None)
    leaves = [value.requires_grad_() for value in meta.params.values()]
    optimizer = torch.optim.Adam(leaves, lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for iteration in range(iterations):
        numbers = torch.randperm(len(inputs), generator=generator)[:tasks_per_step].tolist()
        tasks = [(inputs[number], targets[number]) for number in numbers]
        gradient, info = meta_gradient(learner, meta, _episodes(tasks, support_size, generator))
        for number, value in zip(numbers, info.query_loss.tolist() if info.query_loss is not None else ()):
            if not math.isfinite(value):
                raise DivergenceError(
                    f"the query loss of task {number} is {value} in iteration {iteration}; "
                    f"lower inner_rate or learning_rate"
                )
        for leaf, value in zip(leaves, gradient.params.values(), strict=True):
            leaf.grad = value
        optimizer.step()
    trained = copied(model)
    trained.load_state_dict({n: v.detach() for n, v in meta.params.items()}, strict=False)
    _set_statistics(trained, inputs)
    return trained


@torch.no_grad()
def _set_statistics(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Give layers that keep running statistics those of the tasks' inputs, averaged over the tasks."""
    if not any(isinstance(layer, _NormBase) and layer.running_mean is not None for layer in model.modules()):
        return
    body = copied(model).eval()
    for layer in body.modules():
        if isinstance(layer, _NormBase) and layer.running_mean is not None:
            layer.reset_running_stats()
            layer.momentum = None  # a plain average over the passes
            layer.train()
    for x in inputs:
        body(x)
    model.load_state_dict(body.state_dict())


def _episodes(tasks: Sequence[tuple[Tensor, Tensor]], support_size: int | None, generator: torch.Generator) -> Episodes:
    """Split every task at random, and pad the tasks to one size where they differ."""
    halves: tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]] = ([], [])
    for x, y in tasks:
        order = torch.randperm(len(x), generator=generator).to(x.device)
        size = len(order) // 2 if support_size is None else support_size
        for half, chosen in zip(halves, (order[:size], order[size:])):
            half.append((x[chosen], y[chosen]))
    return Episodes(*map(_stacked, halves))


def _stacked(tasks: Sequence[tuple[Tensor, Tensor]]) -> Batch:
    x, y = (nn.utils.rnn.pad_sequence(list(part), batch_first=True) for part in zip(*tasks))
    sizes = torch.tensor([len(task[0]) for task in tasks], device=x.device)
    if bool((sizes == x.shape[1]).all()):
        return Batch(x, y)
    return Batch(x, y, torch.arange(x.shape[1], device=x.device) < sizes.unsqueeze(1))


def _check(inputs: Sequence[Tensor], targets: Sequence[Tensor], support_size: int | None) -> None:
    if len(inputs) != len(targets) or not inputs:
        raise DataError(
            f"inputs and targets must be lists of one length, one entry a task; got {len(inputs)} and {len(targets)}"
        )
    if support_size is not None and support_size < 1:
        raise UsageError(f"support_size must be at least 1, got {support_size}")
    needed = (support_size or 1) + 1
    for number, (x, y) in enumerate(zip(inputs, targets)):
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim and y.ndim):
            kinds = [
                f"a tensor of shape {tuple(it.shape)}" if isinstance(it, Tensor) else type(it).__name__ for it in (x, y)
            ]
            raise ShapeError(f"task {number} must be two tensors with one row an example; got {' and '.join(kinds)}")
        if len(x) != len(y):
            raise ShapeError(f"task {number} has {len(x)} inputs but {len(y)} targets")
        if len(x) < needed:
            raise DataError(f"task {number} has {len(x)} examples; it needs {needed}, {needed - 1} of them to adapt to")
        if x.shape[1:] != inputs[0].shape[1:] or y.shape[1:] != targets[0].shape[1:]:
            raise ShapeError(
                f"task {number} has inputs {tuple(x.shape)} and targets {tuple(y.shape)}; "
                f"task 0 has {tuple(inputs[0].shape)} and {tuple(targets[0].shape)}"
            )
        for name, values in (("inputs", x), ("targets", y)):
            if values.is_floating_point() and not bool(values.isfinite().all()):
                raise DataError(f"the {name} of task {number} hold NaN or infinity; remove or replace those examples")
