"""Model-aware meta-learning: read the module, and propose what to learn about it beside its initial weights."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from torch import nn

from headstart.algorithms.adaptation import Start
from headstart.algorithms.maml import Rate, Steps, maml
from headstart.algorithms.objectives import first_order_until as until_first_order
from headstart.algorithms.objectives import multi_step
from headstart.algorithms.proto_maml import prototype_start
from headstart.algorithms.reading import NORMS, Reading, read
from headstart.core.adjoints import Adjoint, AdjointName, Checkpointed, FirstOrder, Unrolled, resolve
from headstart.core.losses import TaskLoss
from headstart.core.parameters import Leaf, What, role_of
from headstart.core.rules import Rule, chain, curvature, exclude, only, per_tensor, per_weight, scale
from headstart.errors import UsageError, unknown_name
from headstart.forward.functional import Buffers
from headstart.forward.task_map import TaskMap, TaskMapName
from headstart.schema import Probability, extends
from headstart.types import Learner

Rates = Literal["one", "tensor", "step", "weight"]
Geometry = Literal["curvature", "plain"]
Begin = Literal["prototypes", "initial"]

#: Above this many values, adaptation moves only what is cheap to keep for every task.
LARGE = 3_000_000
#: Up to this width, factors of a layer's curvature cost no more than the layer.
NARROW = 256
#: From this many inner steps on, what every step computed is no longer kept.
MANY_STEPS = 10


class Choice(NamedTuple):
    """One part of the proposal."""

    part: str
    choice: str
    why: str

    def __str__(self) -> str:
        return f"{self.part}: {self.choice} ({self.why})"


class Proposal(NamedTuple):
    """What `aware` proposes for a module."""

    reading: Reading
    start: Begin
    moves: tuple[What, ...]
    """What adaptation moves; empty: everything but ``stays``."""
    stays: tuple[What, ...]
    rates: Rates
    geometry: Geometry
    checkpoint: bool
    multi_step_until: float
    first_order_until: float
    choices: tuple[Choice, ...]
    """The same in words, with reasons."""


@extends(maml)
def aware(
    module: nn.Module,
    *,
    loss: str | TaskLoss = "cross_entropy",
    steps: Steps = 5,
    rate: Rate = 0.1,
    start: Start | Begin | None = None,
    moves: What | Sequence[What] | None = None,
    rates: Rates | None = None,
    geometry: Geometry | None = None,
    rule: Rule | None = None,
    adjoint: AdjointName | Adjoint | None = None,
    multi_step_until: Probability | None = None,
    first_order_until: Probability | None = None,
    taskmap: TaskMapName | TaskMap = "auto",
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
        steps: T, the gradient steps of an adaptation.
        rate: where the step sizes start.
        start: where tasks start: ``"prototypes"`` (the head from class means, see `prototype_start`), ``"initial"``
            (θ) or a `Start`; by default the former for classes and a linear head.
        moves: what adaptation moves: name patterns, module types or predicates; by default what the layers suggest.
        rates: which step sizes are learned: ``"one"``, one a ``"tensor"``, one a tensor and ``"step"``, or one a
            ``"weight"``; by default one a tensor, and with a single step one a weight.
        geometry: in which metric gradients are followed: ``"curvature"`` (learned factors of every weight, see
            `headstart.rules.curvature`) or ``"plain"``; by default the former where layers are narrow and none is a
            convolution.
        rule: the whole inner update, in place of the three above.
        adjoint: how to differentiate through the steps: ``"unrolled"``, ``"checkpointed"`` (less memory, more time) or
            ``"first_order"``; or an `Adjoint` of its own settings; by default checkpointed from 10 steps on.
        multi_step_until: the fraction of meta-training with the loss after every step; by default none.
        first_order_until: the fraction of meta-training with first-order gradients; by default half with several steps.
        options: those of `maml`.
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
    adjoint = None if adjoint is None else resolve(adjoint)
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


def propose(
    module: nn.Module,
    *,
    loss: str | TaskLoss = "cross_entropy",
    steps: int = 5,
    start: Literal["prototypes", "initial", "given"] | None = None,
    moves: What | Sequence[What] | None = None,
    rates: Rates | Literal["given"] | None = None,
    geometry: Geometry | Literal["given"] | None = None,
    multi_step_until: float | None = None,
    first_order_until: float | None = None,
    adjoint: Adjoint | None = None,
) -> Proposal:
    """Read ``module`` and propose what `aware` does with it; arguments that are given overrule the proposal."""
    reading = read(module)
    begin, why_begin = _start(reading, loss, start)
    moving, staying, why_moves = _moves(module, reading, moves)
    if rates == "given":
        moving, staying, why_moves = (), (), Choice("moves", "what your rule moves", "asked for")
    speed, why_speed = _rates(steps, rates)
    metric, why_metric = _geometry(module, geometry)
    several, why_several = _multi_step(multi_step_until)
    cheap, why_cheap = _first_order(steps, first_order_until, adjoint)
    checkpoint, kept = _adjoint(steps, adjoint)
    choices = (_seen(reading), why_begin, why_moves, why_speed, why_metric, why_several, why_cheap, kept)
    return Proposal(reading, begin, moving, staying, speed, metric, checkpoint, several, cheap, choices)


def _adjoint(steps: int, asked: Adjoint | None) -> tuple[bool, Choice]:
    if asked is not None:
        return False, Choice("adjoint", type(asked).__name__, "asked for")
    if steps >= MANY_STEPS:
        return True, Choice("adjoint", "checkpointed", f"for {MANY_STEPS} inner steps or more")
    return False, Choice("adjoint", "unrolled", f"what fewer than {MANY_STEPS} inner steps leave is small")


def _seen(reading: Reading) -> Choice:
    kinds = {
        "linear or convolutional": reading.layers,
        "normalisation": reading.norms,
        "attention": reading.attention,
        "embedding": reading.embeddings,
        "recurrent": reading.recurrent,
        "structural": reading.structural,
        "context": reading.context,
    }
    counts = ", ".join(f"{len(paths)} {kind}" for kind, paths in kinds.items() if paths)
    tied = f", tied: {', '.join(reading.tied)}" if reading.tied else ""
    return Choice("module", f"{reading.size} values in {counts or 'no known'} layers{tied}", f"head: {_head(reading)}")


def _head(reading: Reading) -> str:
    return repr(reading.head) if reading.head else "none apart from the body"


def _start(reading: Reading, loss: str | TaskLoss, asked: str | None) -> tuple[Begin, Choice]:
    fits = loss == "cross_entropy" and reading.linear_head
    if asked not in (None, "given", "prototypes", "initial"):
        raise unknown_name("start", str(asked), ("prototypes", "initial"))
    if asked == "prototypes" and not reading.linear_head:
        raise UsageError(
            f"a start from prototypes needs a head that is an nn.Linear behind other layers, with weights of its own "
            f"(not tied, frozen or in M); the head found here: {_head(reading)}"
        )
    if asked == "prototypes" or (asked is None and fits):
        why = "asked for" if asked else "classes are numbered anew in every task, so a learned head knows nothing"
        return "prototypes", Choice("start", "head from class means, blended with its mean row", why)
    why = "asked for" if asked else "no linear classifier with weights of its own at the end" if not fits else ""
    return "initial", Choice("start", "a start of your own" if asked == "given" else "the learned weights", why)


def _moves(
    module: nn.Module, reading: Reading, asked: What | Sequence[What] | None
) -> tuple[tuple[What, ...], tuple[What, ...], Choice]:
    if asked is not None:
        chosen: tuple[What, ...] = (
            (asked,) if isinstance(asked, str) or not isinstance(asked, Sequence) else tuple(asked)
        )
        return chosen, (), Choice("moves", ", ".join(_named(one) for one in chosen), "asked for")
    roles = {role_of(module, name) for name, p in module.named_parameters() if p.requires_grad}
    if "context" in roles:
        why = "the module has context parameters, which are each task's own"
        return (_is_context,), (), Choice("moves", "the context", why)
    if reading.size > LARGE:
        what: list[What] = [reading.head] if reading.head else []
        what += [kind for kind in NORMS if _can_move(module, kind)]
        why = f"{reading.size} values are too many to copy for every task"
        if what:
            return tuple(what), (), Choice("moves", ", ".join(_named(one) for one in what), why)
    stays: list[What] = [nn.Embedding] if _can_move(module, nn.Embedding) and len(reading.layers) > 1 else []
    if stays:
        why = "a few examples touch a few rows of an embedding"
        return (), tuple(stays), Choice("moves", "all but the embeddings", why)
    return (), (), Choice("moves", "everything", f"{reading.size} values a task are few")


def _rates(steps: int, asked: str | None) -> tuple[Rates, Choice]:
    words = {
        "one": "one learned for all",
        "tensor": "one learned for each tensor",
        "step": "one learned for each tensor and inner step",
        "weight": "one learned for each weight",
    }
    if asked == "given":
        return "one", Choice("rule", "a rule of your own", "asked for")
    if asked is not None and asked not in words:
        raise unknown_name("rates", asked, words)
    if asked is not None:
        return asked, Choice("rates", words[asked], "asked for")  # type: ignore[return-value]
    if steps > 1:
        return "tensor", Choice("rates", words["tensor"], "layers need different speeds")
    return "weight", Choice("rates", words["weight"], "with a single step, all that is learned of it has to be in it")


def _geometry(module: nn.Module, asked: str | None) -> tuple[Geometry, Choice]:
    if asked not in (None, "given", "curvature", "plain"):
        raise unknown_name("geometry", str(asked), ("curvature", "plain"))
    if asked in ("curvature", "plain"):
        return asked, Choice("geometry", asked, "asked for")  # type: ignore[return-value]
    if asked == "given":
        return "plain", Choice("geometry", "that of your rule", "asked for")
    shapes = [tuple(p.shape) for p in module.parameters() if p.requires_grad]
    widest = max((max(shape[:2]) for shape in shapes if len(shape) > 1), default=0)
    if any(len(shape) > 2 for shape in shapes):
        return "plain", Choice(
            "geometry", "plain", "in convolutions, the time for its factors buys more as outer steps"
        )
    if 0 < widest <= NARROW:
        return "curvature", Choice(
            "geometry", "curvature", f"no layer is wider than {widest}, so its factors are small"
        )
    return "plain", Choice("geometry", "plain", f"the factors of a layer {widest} wide would outgrow it")


def _multi_step(asked: float | None) -> tuple[float, Choice]:
    if not asked:
        why = "asked for" if asked == 0 else "judging every step takes time and memory"
        return 0.0, Choice("objective", "the loss after the last step", why)
    return asked, Choice("objective", f"the losses after every step for the first {asked:.0%} of training", "asked for")


def _first_order(steps: int, asked: float | None, adjoint: Adjoint | None) -> tuple[float, Choice]:
    if adjoint is not None and not adjoint.exact:
        return 0.0, Choice("derivatives", "first order throughout", "the adjoint that was asked for takes no others")
    share = (0.5 if steps > 1 else 0.0) if asked is None else asked
    if not share:
        return 0.0, Choice(
            "derivatives", "exact throughout", "asked for" if asked == 0 else "a single step costs little"
        )
    why = "asked for" if asked else "at half the cost, a rough direction is good enough at first"
    return share, Choice("derivatives", f"first order for the first {share:.0%} of training, then exact", why)


def _can_move(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer of this kind has trainable parameters in θ."""
    return any(
        p.requires_grad and role_of(module, name) == "initial"
        for name, p in module.named_parameters()
        if isinstance(module.get_submodule(name.rpartition(".")[0]), kind)
    )


def _is_context(leaf: Leaf) -> bool:
    return leaf.role == "context"


def _named(what: What) -> str:
    return what if isinstance(what, str) else getattr(what, "__name__", repr(what))
