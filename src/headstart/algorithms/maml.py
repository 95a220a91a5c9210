"""Model-agnostic meta-learning, and the methods that differ from it in one choice.

Lᵢ(θ) = loss on the query set Qᵢ of θᵢ, with θᵢ = the result of T steps θ ← θ − rule(∇ loss on the support set Sᵢ).
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from annotated_types import Ge, Gt, Le
from torch import Generator, nn

from headstart.algorithms.adaptation import Adaptation, InnerLoss, Now, Start
from headstart.algorithms.reading import read
from headstart.core import adjoints, losses
from headstart.core.adjoints import Adjoint, AdjointName, FirstOrder
from headstart.core.objective import backprop
from headstart.core.parameters import What
from headstart.core.rules import Rule, chain, curvature, exclude, generated_rates, only, per_weight, scale
from headstart.core.rules.rule import nothing_to_move
from headstart.errors import UsageError
from headstart.forward.functional import Buffers, Precision, functional, structured
from headstart.forward.task_map import TaskMap, TaskMapName
from headstart.forward.trunk import split
from headstart.schema import NotNegative, Size, extends
from headstart.types import Batch, Learner

Steps: TypeAlias = Annotated[int, Ge(0), Le(1000)]
Rate: TypeAlias = Annotated[float, Gt(0), Le(100)]


def maml(
    module: nn.Module,
    *,
    loss: str | losses.TaskLoss = "cross_entropy",
    steps: Steps = 5,
    rate: Rate = 0.01,
    rule: Rule | None = None,
    adjoint: AdjointName | Adjoint = "unrolled",
    taskmap: TaskMapName | TaskMap = "auto",
    buffers: Buffers = "batch",
    precision: Precision = "full",
    training: bool = True,
    check: bool = True,
    examples: Callable[[Batch, int, Now], Batch] | None = None,
    start: Start | None = None,
    inner_loss: InnerLoss | None = None,
) -> Learner:
    """Learn initial weights θ from which ``steps`` gradient steps adapt to a task, and whatever M there is.

    ``θᵢ ← θᵢ − rate · ∇loss(θᵢ, Sᵢ)``, T times from θᵢ = θ; L(θ) = Σᵢ loss(θᵢ, Qᵢ), differentiated through the steps. M
    is what the rule, start, inner loss and `Structural` parts learn. Parameters in `Context` modules are each task's.

    Args:
        module: the model; its trainable weights are where θ starts. It is read, never changed.
        loss: ``"cross_entropy"``, ``"mse"`` or ``(outputs, batch) -> (B,)``. Of a module that gives more than a tensor,
            ``outputs`` are its ``.logits``, or, where it has none, all that it gives; a named loss needs one tensor.
        steps: T, the gradient steps of an adaptation.
        rate: the inner step size α, by which a task's loss, a mean over its examples, moves the weights.
        rule: the inner update, by default `scale` (rate), which it takes the place of.
        adjoint: how to differentiate through the steps: ``"unrolled"``, ``"checkpointed"`` (less memory, more time) or
            ``"first_order"`` (inner gradients as constants, not exact); or an `Adjoint` with settings of its own.
        taskmap: how the tasks of a step go through the model: at once (``"vmap"``), one by one (``"loop"``), or as is
            measured to be faster (``"auto"``: two runs may then differ in rounding).
        buffers: what normalisation goes by: the batch at hand (``"batch"``: the query set by its own statistics, as in
            the paper), the model's statistics (``"frozen"``), or those of each task's support set (``"task"``).
        precision: ``"full"``, or ``"bf16"``: products and convolutions in bfloat16, parameters as they are.
        training: whether meta-training runs the model in training mode, in which dropout drops; `evaluate`, `adapt` and
            `predict` run it in evaluation mode always.
        check: whether to refuse a model whose second derivatives are not right. What the model detaches is held still,
            and needs no leave; without a check, derivatives are those of its operations as they are.
        examples: ``(support, step, now) -> the batch that this inner step uses``, by default all of the support set;
            ``now`` holds the current parameters, and predicts by them (`Now`).
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
    how: dict[str, Any] = {"buffers": buffers, "taskmap": taskmap, "precision": precision}
    how |= {"training": training, "check": check}
    takes_all = {"read": None if isinstance(loss, str) else structured}
    model = functional(module, **how, **takes_all)
    inner_rule, through = scale(rate) if rule is None else rule, adjoints.resolve(adjoint)
    task_loss = losses.without_padding(losses.resolve(loss), model.batch_statistics)
    leaves = {name: leaf for name, leaf in model.leaves.items() if leaf.role != "structure"}
    names, halves = inner_rule.moves(leaves), None
    if not names:
        raise nothing_to_move(leaves)
    if examples is None and start is None and isinstance(buffers, str):  # these may look into the whole of it
        parts = split(module, names | set(model.buffers))
        halves = parts and (
            functional(parts[0], **how, read=lambda features: features),
            functional(parts[1], **how, **takes_all),
        )
    inner = Adaptation(model, names, inner_rule, task_loss, through, steps, examples, start, inner_loss, halves)
    inner.init(Generator().manual_seed(0))  # refuses now parts of M that clash
    return Learner(
        inner.init,
        inner.adapt,
        inner.predict,
        task_loss,
        backprop,
        steps,
        through.exact and inner_rule.exact,
        inner.path,
        penalty=lambda meta: inner_rule.penalty(meta.structure),
        shown=inner.shown,
    )


@extends(maml, without=("adjoint",))
def fomaml(module: nn.Module, **options: Any) -> Learner:
    """First-order MAML: `maml` with the inner gradients taken as constants (`FirstOrder`).

    Reference: Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.2.
    """
    return maml(module, adjoint=FirstOrder(), **options)


@extends(maml, without=("rule",))
def anil(module: nn.Module, *, head: What | None = None, rate: Rate = 0.01, **options: Any) -> Learner:
    """Almost no inner loop: `maml` whose inner loop moves the ``head`` only.

    Args:
        head: which parameters are the head, by name (such as ``"block4*"``) or type; by default the last layer.
        options: those of `maml`.

    Reference: Raghu, Raghu, Bengio, Vinyals 2019, arXiv:1909.09157.
    """
    return maml(module, rule=chain(only(head or head_of(module)), scale(rate)), **options)


@extends(maml, without=("rule",))
def boil(module: nn.Module, *, head: What | None = None, rate: Rate = 0.01, **options: Any) -> Learner:
    """Body only inner loop: `maml` whose inner loop moves everything but the ``head``.

    Args:
        head: which parameters are the head, by name (such as ``"block4*"``) or type; by default the last layer.
        options: those of `maml`.

    Reference: Oh, Yoo, Kim, Yun 2020, arXiv:2008.08882.
    """
    return maml(module, rule=chain(exclude(head or head_of(module)), scale(rate)), **options)


@extends(maml, without=("rule",))
def meta_sgd(module: nn.Module, *, rate: Rate | tuple[Rate, Rate] = (0.005, 0.1), **options: Any) -> Learner:
    """Meta-SGD: `maml` with a learned step size for every weight, θᵢ = θ − α ∘ ∇loss(θ, Sᵢ); M = α.

    Args:
        rate: where each α starts: a number, or a range to draw it from uniformly (the paper's, by default).
        options: those of `maml`.

    Reference: Li, Zhou, Chen, Li 2017, arXiv:1707.09835 (one inner step there; ``steps`` says how many here).
    """
    return maml(module, rule=per_weight(rate), **options)


def head_of(module: nn.Module) -> str:
    """Return the name of the module's head: the submodule ``head``, else the last one with weights of its own."""
    if head := read(module).head:
        return head
    raise UsageError(
        f"{type(module).__name__} has no head apart from its body: it would be the last layer with trainable weights, "
        f"behind others, which may be frozen; name the parameters with head="
    )


@extends(maml, without=("rule",))
def alfa(
    module: nn.Module,
    *,
    rate: Rate = 0.01,
    decay: NotNegative = 0.0,
    hidden: Size | None = None,
    steps: Steps = 5,
    **options: Any,
) -> Learner:
    """ALFA: `maml` whose inner steps go by generated learning rates and weight decays, ``θᵢ ← β θᵢ − α ∇loss``.

    α and β, one of each for every parameter tensor, come of the task's own mean gradients and weights at every step
    through a network in M, times learned base values of each tensor and step; see `generated_rates`.

    Args:
        rate: where the base learning rates start.
        decay: where the base weight decays start, the part of a weight that a step takes away.
        hidden: the size of the network's hidden layer, by default two for each parameter tensor.
        options: those of `maml`.

    Reference: Baik, Choi, Choi, Kim, Lee 2020, arXiv:2011.00209.
    """
    rule = generated_rates(rate, steps=max(steps, 1), decay=decay, hidden=hidden)
    return maml(module, rule=rule, steps=steps, **options)


@extends(maml, without=("rule",))
def meta_curvature(module: nn.Module, *, rate: Rate = 0.01, **options: Any) -> Learner:
    """Meta-Curvature: `maml` whose gradients go through learned matrices, θᵢ ← θᵢ − α MC(∇loss); M = the matrices.

    Reference: Park, Oliva 2019, arXiv:1902.03356 (MC1: an output, an input and a filter factor for every weight).
    """
    return maml(module, rule=chain(curvature(), scale(rate)), **options)
