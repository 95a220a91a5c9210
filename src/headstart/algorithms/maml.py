"""Model-agnostic meta-learning, and the methods that differ from it in one choice.

Lᵢ(θ) = loss on the query set Qᵢ of θᵢ, with θᵢ = the result of T steps θ ← θ − rule(∇ loss on the support set Sᵢ).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map

from headstart.algorithms.reading import read
from headstart.core import losses
from headstart.core.adjoint import Adjoint, FirstOrder, Unrolled
from headstart.core.functional import Buffers, Functional, functional
from headstart.core.masks import present
from headstart.core.objective import backprop
from headstart.core.patterns import What
from headstart.core.rules import Rule, chain, exclude, only, per_weight, scale
from headstart.core.rules.rule import merged_structure
from headstart.core.solve import Inner, SupportLoss, expanded, gradients, solve
from headstart.core.taskmap import TaskMap
from headstart.core.variants import InnerLoss, Start
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
        adjoint: how to differentiate through the steps: `Unrolled`, `Checkpointed` or `FirstOrder`.
        taskmap: ``"auto"``, ``"vmap"`` or ``"loop"``.
        buffers: what normalisation does with running statistics: ``"batch"``, ``"frozen"`` or ``"task"``. With
            ``"batch"`` the query set is normalised by its own statistics (transductive, as in the paper).
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
    model = functional(module, buffers=buffers, taskmap=taskmap)
    inner_rule = scale(rate) if rule is None else rule
    moving = _moving(inner_rule, model)
    task_loss = losses.without_padding(losses.resolve(loss), model.batch_statistics)
    default_steps = steps

    def init(generator: Generator | None = None) -> Meta:
        params = _copied(model.params)
        own = {**params, **model.context}
        moved = {name: own[name] for name in own if name in moving}
        parts = {"the module": _copied(model.structure), "the rule": inner_rule.structure(moved, generator)}
        for name, variant in (("the start", start), ("the inner loss", inner_loss)):
            parts[name] = {} if variant is None else variant.structure({**moved, **model.context}, generator)
        return Meta(params, merged_structure(parts))

    init(Generator().manual_seed(0))  # refuses now parts of M that clash

    def begin(meta: Meta, support: Batch) -> tuple[Inner, Params, SupportLoss]:
        """Return where the tasks start, what is each task's own but does not move, and the support loss."""
        tasks = support.y.shape[0]
        shared = {**meta.params, **{name: meta.structure[name] for name in model.structure}}
        own = {**expanded(meta.params, moving, tasks), **expanded(model.context, model.context, tasks)}
        buffers = expanded(model.buffers, model.buffers, tasks)

        def support_loss(moved: Params, buffers: Params, step: int) -> tuple[Tensor, Params]:
            batch = support if examples is None else examples(support, step)
            params = {**shared, **own, **moved}
            outputs, buffers = model.apply(params, buffers, batch.x, seed=batch.seed, draw=step, step=step)
            if inner_loss is None:
                return task_loss(outputs, batch), buffers
            losses.refuse_padding(batch, model.batch_statistics)
            return inner_loss.loss(meta.structure, outputs, batch, step), buffers

        def gradient(params: Params) -> Params:
            moved = {name: params[name] for name in params if name in moving}
            exact = adjoint.exact and torch.is_grad_enabled()
            return gradients(support_loss, Inner(moved, {}, buffers), 0, create_graph=exact)[1]

        if start is not None:
            # as tensors of their own: an inner gradient holds the others still, also those computed from them
            own = {
                name: value.view_as(value)
                for name, value in start.values(meta.structure, own, shared, support, gradient).items()
            }
        moved = {name: value for name, value in own.items() if name in moving}
        fixed = {name: value for name, value in own.items() if name not in moving}
        return Inner(moved, inner_rule.state(meta.structure, moved, support.seed), buffers), fixed, support_loss

    def prepared(meta: Meta, support: Batch) -> tuple[Batch, bool]:
        """Return the support set as it is there, and whether anybody asks for a derivative."""
        support = present(support)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for part in meta for t in part.values())
        if wanted and adjoint.exact:
            model.certify(support.x)
        return support, wanted

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        support, wanted = prepared(meta, support)
        count = default_steps if steps is None else steps
        # where nobody asks for a derivative, nothing is kept for one
        with torch.set_grad_enabled(wanted):
            inner, fixed, support_loss = begin(meta, support)
            end, info = solve(support_loss, inner, meta.structure, inner_rule, adjoint, count)
        return Adapted(meta, {**fixed, **end.params}, end.buffers, support.seed, count), info

    def path(meta: Meta, support: Batch, /, detached: bool = False) -> tuple[list[Adapted], Info]:
        support, wanted = prepared(meta, support)
        losses_seen: list[Tensor] = []
        with torch.set_grad_enabled(wanted):
            inner, fixed, support_loss = begin(meta, support)
            reached = [Adapted(meta, {**fixed, **inner.params}, inner.buffers, support.seed, 0)]
            for step in range(default_steps):
                inner = tree_map(Tensor.detach, inner) if detached else inner
                inner, info = solve(support_loss, inner, meta.structure, inner_rule, adjoint, 1, first=step)
                reached.append(Adapted(meta, {**fixed, **inner.params}, inner.buffers, support.seed, step + 1))
                losses_seen.append(info.support_loss)
        return reached, Info(
            torch.cat(losses_seen) if losses_seen else support.y.new_zeros(0, len(support.y), dtype=torch.float)
        )

    def predict(adapted: Adapted, x: Tree) -> Tensor:
        meta = adapted.meta
        params = {**meta.params, **{name: meta.structure[name] for name in model.structure}, **adapted.params}
        outputs, _ = model.apply(
            params, adapted.buffers, x, seed=adapted.seed, draw=QUERY_DRAW, step=adapted.step, phase="query"
        )
        return outputs

    seen = [model.shown, inner_rule.shown, *([] if start is None else [start.shown])]
    return Learner(
        init,
        adapt,
        predict,
        task_loss,
        backprop,
        steps,
        adjoint.exact and inner_rule.exact,
        path,
        penalty=lambda meta: inner_rule.penalty(meta.structure),
        shown=lambda meta: {name: value for see in seen for name, value in see(meta.structure).items()},
    )


def _moving(rule: Rule, model: Functional) -> frozenset[str]:
    """Return the names of the parameters that adaptation moves."""
    leaves = {name: leaf for name, leaf in model.leaves.items() if leaf.role != "structure"}
    moving = rule.moves(leaves)
    if not moving:
        raise UsageError(f"the rule leaves nothing to move among {', '.join(leaves) or 'no parameters'}")
    return moving


def _copied(params: Params) -> Params:
    return {name: value.clone() for name, value in params.items()}


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
