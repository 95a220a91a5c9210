"""Model-agnostic meta-learning, and the methods that differ from it in one choice.

Lᵢ(θ) = loss on the query set Qᵢ of θᵢ, with θᵢ = the result of T steps θ ← θ − rule(∇ loss on the support set Sᵢ).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from headstart.core import losses
from headstart.core.adjoint import Adjoint, FirstOrder, Unrolled
from headstart.core.functional import Buffers, functional
from headstart.core.masks import present
from headstart.core.objective import backprop
from headstart.core.patterns import What
from headstart.core.rules import Rule, chain, exclude, only, per_weight, scale
from headstart.core.solve import Inner, expanded, solve
from headstart.core.taskmap import TaskMap
from headstart.errors import UsageError
from headstart.types import Adapted, Batch, Info, Learner, Meta, Params, Tree

#: The dropout pass of the query set; inner step t is pass t.
QUERY_DRAW = 2**31


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
    examples: Callable[[Batch, int], Batch] | None = None,
) -> Learner:
    """Learn initial weights θ from which ``steps`` gradient steps adapt to a task.

    ``θᵢ ← θᵢ − rate · ∇loss(θᵢ, Sᵢ)``, T times from θᵢ = θ; L(θ) = Σᵢ loss(θᵢ, Qᵢ), differentiated through the steps.

    Args:
        module: the model; its trainable weights are where θ starts. It is read, never changed.
        loss: ``"cross_entropy"``, ``"mse"`` or ``(outputs, batch) -> (B,)``.
        steps: T, at least 0.
        rate: the inner step size α; not used where ``rule`` is given.
        rule: the inner update, by default `scale` (rate).
        adjoint: how to differentiate through the steps: `Unrolled`, `Checkpointed` or `FirstOrder`.
        taskmap: ``"auto"``, ``"vmap"`` or ``"loop"``.
        buffers: what normalisation does with running statistics: ``"batch"``, ``"frozen"`` or ``"task"``. With
            ``"batch"`` the query set is normalised by its own statistics (transductive, as in the paper).
        examples: ``(support, step) -> the batch that this inner step uses``; by default all of the support set.

    Reference: Finn, Abbeel, Levine 2017, arXiv:1703.03400.

    >>> import torch, headstart
    >>> learner = headstart.maml(torch.nn.Linear(2, 1), loss="mse", steps=1, rate=0.1)
    >>> meta = learner.init(None)
    >>> support = headstart.Batch(torch.zeros(3, 4, 2), torch.ones(3, 4, 1))
    >>> adapted, info = learner.adapt(meta, support)
    >>> learner.predict(adapted, torch.zeros(3, 7, 2)).shape
    torch.Size([3, 7, 1])
    """
    function = functional(module, buffers=buffers, taskmap=taskmap)
    inner_rule = scale(rate) if rule is None else rule
    moving = inner_rule.moves(function.leaves)
    if not moving:
        raise UsageError(f"the rule leaves nothing to move among {', '.join(function.leaves) or 'no parameters'}")
    task_loss = losses.without_padding(losses.resolve(loss), function.batch_statistics)
    default_steps = steps

    def init(generator: Generator | None = None) -> Meta:
        params = {name: value.clone() for name, value in function.params.items()}
        moved = {name: value for name, value in params.items() if name in moving}
        return Meta(params, inner_rule.structure(moved, generator))

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        support = present(support)

        def support_loss(moved: Params, buffers: Params, step: int) -> tuple[Tensor, Params]:
            batch = support if examples is None else examples(support, step)
            params = {**meta.params, **moved}
            outputs, buffers = function.apply(params, buffers, batch.x, seed=batch.seed, draw=step)
            return task_loss(outputs, batch), buffers

        tasks = support.y.shape[0]
        # where nobody asks for a derivative, nothing is kept for one
        wanted = torch.is_grad_enabled() and any(t.requires_grad for part in meta for t in part.values())
        if wanted and adjoint.exact:
            function.certify(support.x)
        with torch.set_grad_enabled(wanted):
            params = expanded(meta.params, moving, tasks)
            own_buffers = expanded(function.buffers, function.buffers, tasks)
            start = Inner(params, inner_rule.state(params), own_buffers)
            count = default_steps if steps is None else steps
            end, info = solve(support_loss, start, meta.structure, inner_rule, adjoint, count)
        return Adapted(meta, end.params, end.buffers, support.seed), info

    def predict(adapted: Adapted, x: Tree) -> Tensor:
        params = {**adapted.meta.params, **adapted.params}
        outputs, _ = function.apply(params, adapted.buffers, x, seed=adapted.seed, draw=QUERY_DRAW, phase="query")
        return outputs

    return Learner(init, adapt, predict, task_loss, backprop, steps, adjoint.exact)


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
    own = [
        name
        for name, layer in module.named_modules()
        if name and any(p.requires_grad for p in layer.parameters(recurse=False))
    ]
    if len(own) < 2:
        raise UsageError(f"{type(module).__name__} has no head apart from its body; name the parameters with head=")
    return "head" if any(name.partition(".")[0] == "head" for name in own) else own[-1]
