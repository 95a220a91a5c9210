"""Model-aware meta-learning: read the module, and propose what to learn about it beside its initial weights."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from headstart.algorithms.maml import maml
from headstart.algorithms.objectives import first_order_until as until_first_order
from headstart.algorithms.objectives import multi_step
from headstart.algorithms.proposal import Begin, Geometry, Proposal, Rates, propose
from headstart.algorithms.proto_maml import prototype_start
from headstart.algorithms.variants import Start
from headstart.core.adjoints import Adjoint, Checkpointed, FirstOrder, Unrolled
from headstart.core.losses import TaskLoss
from headstart.core.patterns import What
from headstart.core.rules import Rule, chain, curvature, exclude, only, per_tensor, per_weight, scale
from headstart.errors import UsageError
from headstart.forward.functional import Buffers
from headstart.forward.task_map import TaskMap
from headstart.types import Learner


def aware(
    module: nn.Module,
    *,
    loss: str | TaskLoss = "cross_entropy",
    steps: int = 5,
    rate: float = 0.1,
    start: Start | Begin | None = None,
    moves: What | Sequence[What] | None = None,
    rates: Rates | None = None,
    geometry: Geometry | None = None,
    rule: Rule | None = None,
    adjoint: Adjoint | None = None,
    multi_step_until: float | None = None,
    first_order_until: float | None = None,
    taskmap: str | TaskMap = "auto",
    buffers: Buffers = "batch",
    explain: Callable[[str], None] | None = print,
    **options: Any,
) -> Learner:
    """Adapt ``module``, aware of what it is: L(θ, M) = Σᵢ Lᵢ(θ, M) with M proposed from its layers.

    `propose` reads the module and chooses where tasks start, what moves, with which rates and in which geometry, and
    how meta-training goes; each choice is said with its reason, and each can be overridden. What comes out is an
    ordinary `Learner`, made by `maml` from parts that all stand on their own.

    Args:
        module: the model.
        loss: ``"cross_entropy"``, ``"mse"`` or ``(outputs, batch) -> (B,)``.
        steps: T.
        rate: where step sizes start.
        start: ``"prototypes"`` (see `prototype_start`), ``"initial"`` (θ) or a `Start`.
        moves: what adaptation moves: name patterns, module types or predicates.
        rates: learned step sizes: ``"one"``, one a ``"tensor"``, a tensor and ``"step"``, or one a ``"weight"``.
        geometry: ``"curvature"`` (see `headstart.rules.curvature`) or ``"plain"``.
        rule: the whole inner update, in place of the three above.
        adjoint: how to differentiate through the steps.
        multi_step_until: the fraction of meta-training with the multi-step loss; 0 for none.
        first_order_until: the fraction of meta-training with first-order gradients; 0 for none.
        taskmap, buffers, options: those of `maml`.
        explain: what each choice is told to, line by line; ``None`` for silence.

    Raises:
        UsageError: what was asked for is not in the module, the message says what there is; or a rule beside what it
            stands in place of.

    >>> import headstart
    >>> learner = headstart.aware(headstart.mlp(1, 1), loss="mse", steps=1, rate=0.01, explain=None)
    >>> sorted(name for name in learner.init(None).structure if name.startswith("rate.hidden1"))
    ['rate.hidden1.bias', 'rate.hidden1.weight']
    """
    if rule is not None and not moves is rates is geometry is None:
        raise UsageError("rule= is the whole inner update, in place of moves=, rates= and geometry=; leave those out")
    plan = propose(
        module,
        loss=loss,
        steps=steps,
        start="given" if isinstance(start, Start) else start,
        moves=moves,
        rates=rates if rule is None else "given",
        geometry=geometry if rule is None else "given",
        multi_step_until=multi_step_until,
        first_order_until=first_order_until,
        adjoint=adjoint,
    )
    if explain is not None:
        for choice in plan.choices:
            explain(str(choice))
    begin = start if isinstance(start, Start) else None
    if begin is None and plan.start == "prototypes":
        begin = prototype_start(module, blend=True, taskmap=taskmap, buffers=buffers)
    inner = _rule(plan, rate, steps) if rule is None else rule
    exact = adjoint or (Checkpointed() if plan.checkpoint else Unrolled())
    shared: dict[str, Any] = {
        "loss": loss,
        "steps": steps,
        "rule": inner,
        "start": begin,
        "taskmap": taskmap,
        "buffers": buffers,
    }
    learner = maml(module, adjoint=exact, **shared, **options)
    if plan.first_order_until:
        cheap = maml(module, adjoint=FirstOrder(), **shared, **options)
        learner = until_first_order(learner, cheap, plan.first_order_until)
    return multi_step(learner, until=plan.multi_step_until) if plan.multi_step_until else learner


def _rule(plan: Proposal, rate: float, steps: int) -> Rule:
    """Return the inner update of a proposal."""
    rates = {
        "one": lambda: scale(rate, learn=True, positive=True),
        "tensor": lambda: per_tensor(rate, positive=True),
        "step": lambda: per_tensor(rate, steps=steps, positive=True),
        "weight": lambda: per_weight(rate),
    }
    parts = [only(*plan.moves)] if plan.moves else [exclude(*plan.stays)] if plan.stays else []
    metric = [curvature()] if plan.geometry == "curvature" else []
    return chain(*parts, *metric, rates[plan.rates]())
