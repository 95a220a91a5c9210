"""Model-agnostic meta-learning, and the methods that differ from it in one choice.

Lᵢ(θ) = loss on the query set Qᵢ of θᵢ, with θᵢ = the result of T steps θ ← θ − rule(∇ loss on the support set Sᵢ).
"""

from collections.abc import Callable
from typing import Any

from torch import Generator, nn

from headstart.algorithms.adaptation import Adaptation, halves_of, moving
from headstart.algorithms.reading import read
from headstart.algorithms.variants import InnerLoss, Start
from headstart.core import losses
from headstart.core.adjoints import Adjoint, FirstOrder, Unrolled
from headstart.core.objective import backprop
from headstart.core.patterns import What
from headstart.core.rules import Rule, chain, exclude, only, per_weight, scale
from headstart.errors import UsageError
from headstart.forward.functional import Buffers, Precision, functional
from headstart.forward.task_map import TaskMap
from headstart.types import Batch, Learner


def maml(
    module: nn.Module,
    *,
    loss: str | losses.TaskLoss = "cross_entropy",
    steps: int = 5,
    rate: float = 0.01,
    rule: Rule | None = None,
    adjoint: Adjoint = Unrolled(),
    taskmap: str | TaskMap = "auto",
    buffers: Buffers = "batch",
    precision: Precision = "full",
    examples: Callable[[Batch, int], Batch] | None = None,
    start: Start | None = None,
    inner_loss: InnerLoss | None = None,
) -> Learner:
    """Learn initial weights θ from which ``steps`` gradient steps adapt to a task, and whatever M there is.

    ``θᵢ ← θᵢ − rate · ∇loss(θᵢ, Sᵢ)``, T times from θᵢ = θ; L(θ) = Σᵢ loss(θᵢ, Qᵢ), differentiated through the steps.

    M is what the rule, the start, the inner loss and the module's `Structural` parts learn; without any it is empty.
    Parameters inside `Context` modules are each task's own.

    Args:
        module: the model; its trainable weights are where θ starts. It is read, never changed.
        loss: ``"cross_entropy"``, ``"mse"`` or ``(outputs, batch) -> (B,)``.
        steps: T, at least 0.
        rate: the inner step size α; not used where ``rule`` is given.
        rule: the inner update, by default `scale` (rate).
        adjoint: how to differentiate through the steps: `Unrolled`, `Checkpointed`, `MixedMode`, `Truncated`,
            `FirstOrder` or `Implicit`.
        taskmap: ``"auto"``, ``"vmap"`` or ``"loop"``.
        buffers: what normalisation does with running statistics: ``"batch"``, ``"frozen"`` or ``"task"``. With
            ``"batch"`` the query set is normalised by its own statistics (transductive, as in the paper).
        precision: ``"full"``, or ``"bf16"``: products and convolutions in bfloat16, parameters as they are.
        examples: ``(support, step) -> the batch that this inner step uses``; by default all of the support set.
        start: where each task starts from, by default θ.
        inner_loss: what adaptation lowers, by default ``loss``.

    Reference: Finn, Abbeel, Levine 2017, arXiv:1703.03400.

    >>> import torch, headstart
    >>> learner = headstart.maml(torch.nn.Linear(2, 1), loss="mse", steps=1, rate=0.1)
    >>> meta = learner.init(None)
    >>> support = headstart.Batch(torch.zeros(3, 4, 2), torch.ones(3, 4, 1))
    >>> adapted, info = learner.adapt(meta, support)
    >>> learner.predict(adapted, torch.zeros(3, 7, 2)).shape
    torch.Size([3, 7, 1])
    """
    model = functional(module, buffers=buffers, taskmap=taskmap, precision=precision)
    inner_rule = scale(rate) if rule is None else rule
    task_loss = losses.without_padding(losses.resolve(loss), model.batch_statistics)
    names, halves = moving(inner_rule, model), None
    if examples is None and start is None and isinstance(buffers, str):  # these may look into the whole of it
        halves = halves_of(module, model, names, buffers=buffers, taskmap=taskmap, precision=precision)
    inner = Adaptation(model, names, inner_rule, task_loss, adjoint, steps, examples, start, inner_loss, halves)
    inner.init(Generator().manual_seed(0))  # refuses now parts of M that clash
    return Learner(
        inner.init,
        inner.adapt,
        inner.predict,
        task_loss,
        backprop,
        steps,
        adjoint.exact and inner_rule.exact,
        inner.path,
        penalty=lambda meta: inner_rule.penalty(meta.structure),
        shown=inner.shown,
    )


def fomaml(module: nn.Module, **options: Any) -> Learner:
    """First-order MAML: `maml` with the inner gradients taken as constants (`FirstOrder`).

    Reference: Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.2.
    """
    return maml(module, adjoint=FirstOrder(), **options)


def anil(module: nn.Module, *, head: What | None = None, rate: float = 0.01, **options: Any) -> Learner:
    """Almost no inner loop: `maml` whose inner loop moves the ``head`` only (by default the last layer).

    Reference: Raghu, Raghu, Bengio, Vinyals 2019, arXiv:1909.09157.
    """
    return maml(module, rule=chain(only(head or head_of(module)), scale(rate)), **options)


def boil(module: nn.Module, *, head: What | None = None, rate: float = 0.01, **options: Any) -> Learner:
    """Body only inner loop: `maml` whose inner loop moves everything but the ``head``.

    Reference: Oh, Yoo, Kim, Yun 2020, arXiv:2008.08882.
    """
    return maml(module, rule=chain(exclude(head or head_of(module)), scale(rate)), **options)


def meta_sgd(module: nn.Module, *, rate: float | tuple[float, float] = (0.005, 0.1), **options: Any) -> Learner:
    """Meta-SGD: `maml` with a learned step size for every weight, θᵢ = θ − α ∘ ∇loss(θ, Sᵢ); M = α.

    Args:
        rate: where each α starts: a number, or a range to draw it from uniformly (the paper's, by default).

    Reference: Li, Zhou, Chen, Li 2017, arXiv:1707.09835 (one inner step there; ``steps`` says how many here).
    """
    return maml(module, rule=per_weight(rate), **options)


def head_of(module: nn.Module) -> str:
    """Return the name of the module's head: the submodule ``head``, else the last one with weights of its own."""
    head = read(module).head
    if not head:
        raise UsageError(
            f"{type(module).__name__} has no head apart from its body: it would be the last of two or more layers with "
            f"weights; name the parameters with head="
        )
    return head
