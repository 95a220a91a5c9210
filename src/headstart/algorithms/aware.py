"""Model-aware meta-learning: read the module, and propose what to learn about it beside its initial weights."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

from torch import nn

from headstart.algorithms.adaptation import Start
from headstart.algorithms.adapters import LowRank, low_rank
from headstart.algorithms.film import reachable
from headstart.algorithms.maml import Rate, Steps, maml
from headstart.algorithms.maml_plus_plus import annealed
from headstart.algorithms.proto_maml import prototype_start
from headstart.algorithms.reading import NORMS, Reading, read
from headstart.core.adjoints import Adjoint, AdjointName, Checkpointed, Unrolled, resolve
from headstart.core.losses import TaskLoss
from headstart.core.parameters import Leaf, What, role_of
from headstart.core.rules import Rule, chain, curvature, exclude, only, per_tensor, per_weight, scale
from headstart.errors import UsageError, check_known, unknown_name
from headstart.forward.functional import Buffers
from headstart.forward.task_map import TaskMap, TaskMapName
from headstart.models.trunks.cut import blocks_of
from headstart.schema import Probability, extends
from headstart.types import Learner

Rates = Literal["one", "tensor", "step", "weight"]
Geometry = Literal["curvature", "plain"]
Begin = Literal["prototypes", "initial"]

#: Above this many values, adaptation moves only what is cheap to keep for every task.
LARGE = 3_000_000
#: The rank of adapters.
RANK = 8
#: Up to this width, factors of a layer's curvature cost no more than the layer.
NARROW = 256
#: From this many inner steps on, what every step computed is no longer kept.
MANY_STEPS = 10


class Proposal(NamedTuple):
    """What `aware` proposes for a module."""

    reading: Reading
    start: Begin
    adapters: tuple[str, ...]
    """Linear layers that get a low-rank addition (`low_rank`)."""
    moves: tuple[What, ...]
    """What adaptation moves; empty: everything but ``stays``."""
    stays: tuple[What, ...]
    rates: Rates
    geometry: Geometry
    checkpoint: bool
    multi_step_until: float
    first_order_until: float
    choices: tuple[str, ...]
    """The same in words, with reasons: ``part: choice (why)``."""


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
    how meta-training goes; each choice is said with its reason, and can be overridden. A network of blocks that is
    large, as pretrained ones are, frozen or not, gets low-rank adapters beside the linear layers of its later blocks.

    Args:
        rate: where the step sizes start.
        start: where tasks start: ``"prototypes"`` (the head from class means, see `prototype_start`), ``"initial"``
            (θ) or a `Start`; by default the former for classes and a linear head.
        moves: what adaptation moves: name patterns, module types or predicates; by default what the layers suggest.
        rates: which step sizes are learned: ``"one"``, one a ``"tensor"``, one a tensor and ``"step"``, or one a
            ``"weight"``; by default one a tensor, and with a single step one a weight.
        geometry: in which metric gradients are followed: ``"curvature"`` (learned factors of every weight, the
            rule ``curvature``) or ``"plain"``; by default the former for narrow layers without convolutions.
        rule: the whole inner update, in place of the three above.
        adjoint: how to differentiate through the steps, as for `maml`; by default checkpointed from 10 steps on.
        multi_step_until: the fraction of meta-training with the loss after every step; by default none.
        first_order_until: the fraction of meta-training with first-order gradients; by default half with several steps.
        options: those of `maml`.
        explain: what each choice is told to, line by line; ``None`` for silence.

    Raises:
        UsageError: what was asked for is not in the module; or a rule beside what it stands in place of.

    >>> import headstart
    >>> learner = headstart.aware(headstart.mlp(1, 1), loss="mse", steps=1, rate=0.01, explain=None)
    >>> sorted(name for name in learner.init(None).structure if name.startswith("rate.hidden1"))
    ['rate.hidden1.bias', 'rate.hidden1.weight']
    """
    adjoint = None if adjoint is None else resolve(adjoint)
    plan = propose(
        module, loss=loss, steps=steps, start=start, moves=moves, rates=rates, geometry=geometry, rule=rule,
        multi_step_until=multi_step_until, first_order_until=first_order_until, adjoint=adjoint,
    )  # fmt: skip
    if explain is not None:
        for choice in plan.choices:
            explain(choice)
    if plan.adapters:
        module = low_rank(module, rank=RANK, what=lambda leaf: leaf.name in plan.adapters)
    begin = start if isinstance(start, Start) else None
    if plan.start == "prototypes":
        begin = prototype_start(module, blend=True, taskmap=taskmap, buffers=buffers)
    return annealed(
        module,
        adjoint or (Checkpointed() if plan.checkpoint else Unrolled()),
        plan.first_order_until,
        plan.multi_step_until,
        loss=loss,
        steps=steps,
        rule=_rule(plan, rate, steps) if rule is None else rule,
        start=begin,
        taskmap=taskmap,
        buffers=buffers,
        **options,
    )


def _rule(plan: Proposal, rate: float, steps: int) -> Rule:
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
    start: Start | Begin | None = None,
    moves: What | Sequence[What] | None = None,
    rates: Rates | None = None,
    geometry: Geometry | None = None,
    rule: Rule | None = None,
    multi_step_until: float | None = None,
    first_order_until: float | None = None,
    adjoint: Adjoint | None = None,
) -> Proposal:
    """Read ``module`` and propose what `aware` does with it; arguments that are given overrule the proposal."""
    if rule is not None and not moves is rates is geometry is None:
        raise UsageError("rule= is the whole inner update, in place of moves=, rates= and geometry=; leave those out")
    reading = read(module)
    begin, begins = _start(reading, loss, start)
    adapters = _adapters(module, reading) if moves is None and rule is None else ()
    moving, staying, moved = _moves(module, reading, moves, adapters)
    speed, paced = _rates(steps, rates)
    metric, shaped = _geometry(module, geometry)
    if rule is not None:
        moving, staying, speed, metric = (), (), "one", "plain"
        moved, paced = _said("moves", "what your rule moves"), _said("rule", "a rule of your own")
        shaped = _said("geometry", "that of your rule")
    several = multi_step_until or 0.0
    if several:
        judged = _said("objective", f"the losses after every step for the first {several:.0%} of training")
    else:
        why = "asked for" if multi_step_until == 0 else "judging every step takes time and memory"
        judged = _said("objective", "the loss after the last step", why)
    cheap, derived = _first_order(steps, first_order_until, adjoint)
    checkpoint = adjoint is None and steps >= MANY_STEPS
    if adjoint is not None:
        kept = _said("adjoint", type(adjoint).__name__)
    elif checkpoint:
        kept = _said("adjoint", "checkpointed", f"for {MANY_STEPS} inner steps or more")
    else:
        kept = _said("adjoint", "unrolled", f"what fewer than {MANY_STEPS} inner steps leave is small")
    choices = (_seen(reading), begins, moved, paced, shaped, judged, derived, kept)
    return Proposal(reading, begin, adapters, moving, staying, speed, metric, checkpoint, several, cheap, choices)


def _said(part: str, choice: str, why: str = "asked for") -> str:
    return f"{part}: {choice} ({why})"


def _seen(reading: Reading) -> str:
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
    return _said("module", f"{reading.size} values in {counts or 'no known'} layers{tied}", f"head: {_head(reading)}")


def _head(reading: Reading) -> str:
    return repr(reading.head) if reading.head else "none apart from the body"


def _start(reading: Reading, loss: str | TaskLoss, asked: Start | Begin | None) -> tuple[Begin, str]:
    if isinstance(asked, Start):
        return "initial", _said("start", "a start of your own")
    if asked not in (None, *get_args(Begin)):
        raise unknown_name("start", str(asked), get_args(Begin))
    if asked == "prototypes" and not reading.linear_head:
        raise UsageError(
            f"a start from prototypes needs a head that is an nn.Linear behind other layers, with weights of its own "
            f"(not tied, frozen or in M); the head found here: {_head(reading)}"
        )
    if asked == "prototypes" or (asked is None and loss == "cross_entropy" and reading.linear_head):
        why = "asked for" if asked else "classes are numbered anew in every task, so a learned head knows nothing"
        return "prototypes", _said("start", "head from class means, blended with its mean row", why)
    why = "asked for" if asked else "no linear classifier with weights of its own at the end"
    return "initial", _said("start", "the learned weights", why)


def _adapters(module: nn.Module, reading: Reading) -> tuple[str, ...]:
    """Return the linear layers of the later half of a large network's blocks, where none has an adapter yet."""
    blocks = blocks_of(module)
    later = tuple(f"{path}." for path in blocks[len(blocks) // 2 :])
    if reading.values <= LARGE or reading.context or any(isinstance(layer, LowRank) for layer in module.modules()):
        return ()
    layers = reachable(module).items()
    return tuple(path for path, layer in layers if isinstance(layer, nn.Linear) and path.startswith(later))


def _moves(
    module: nn.Module, reading: Reading, asked: What | Sequence[What] | None, adapters: Sequence[str]
) -> tuple[tuple[What, ...], tuple[What, ...], str]:
    """Return what moves (if empty, everything but what stays), what stays, and that in words."""
    if asked is not None:
        several = isinstance(asked, Sequence) and not isinstance(asked, str)
        chosen: tuple[What, ...] = tuple(asked) if several else (asked,)
        return chosen, (), _said("moves", ", ".join(map(_named, chosen)))
    if any(role_of(module, name) == "context" for name, p in module.named_parameters() if p.requires_grad):
        why = "the module has context parameters, which are each task's own"
        return (_is_context,), (), _said("moves", "the context", why)
    if adapters:
        own = (reading.head,) if reading.head and reading.head not in adapters else ()
        which = f"low-rank adapters beside {len(adapters)} linear layers of the later blocks"
        why = f"{reading.values} values are too many to copy for every task"
        return (*own, LowRank), (), _said("moves", ", ".join((*own, which)), why)
    if reading.size > LARGE:
        what: tuple[What, ...] = (reading.head,) if reading.head else ()
        what += tuple(kind for kind in NORMS if _can_move(module, kind))
        if what:
            why = f"{reading.size} values are too many to copy for every task"
            return what, (), _said("moves", ", ".join(map(_named, what)), why)
    if len(reading.layers) > 1 and _can_move(module, nn.Embedding):
        why = "a few examples touch a few rows of an embedding"
        return (), (nn.Embedding,), _said("moves", "all but the embeddings", why)
    return (), (), _said("moves", "everything", f"{reading.size} values a task are few")


def _rates(steps: int, asked: Rates | None) -> tuple[Rates, str]:
    words: dict[Rates, str] = {
        "one": "one learned for all",
        "tensor": "one learned for each tensor",
        "step": "one learned for each tensor and inner step",
        "weight": "one learned for each weight",
    }
    if asked is not None:
        check_known("rates", asked, words)
        return asked, _said("rates", words[asked])
    if steps > 1:
        return "tensor", _said("rates", words["tensor"], "layers need different speeds")
    return "weight", _said("rates", words["weight"], "with a single step, all that is learned of it has to be in it")


def _geometry(module: nn.Module, asked: Geometry | None) -> tuple[Geometry, str]:
    if asked is not None:
        check_known("geometry", asked, get_args(Geometry))
        return asked, _said("geometry", asked)
    shapes = [tuple(p.shape) for p in module.parameters() if p.requires_grad]
    widest = max((max(shape[:2]) for shape in shapes if len(shape) > 1), default=0)
    if any(len(shape) > 2 for shape in shapes):
        return "plain", _said("geometry", "plain", "in convolutions, the time for its factors buys more as outer steps")
    if 0 < widest <= NARROW:
        why = f"no layer is wider than {widest}, so its factors are small"
        return "curvature", _said("geometry", "curvature", why)
    return "plain", _said("geometry", "plain", f"the factors of a layer {widest} wide would outgrow it")


def _first_order(steps: int, asked: float | None, adjoint: Adjoint | None) -> tuple[float, str]:
    if adjoint is not None and not adjoint.exact:
        return 0.0, _said("derivatives", "first order throughout", "the adjoint that was asked for takes no others")
    share = (0.5 if steps > 1 else 0.0) if asked is None else asked
    if not share:
        why = "asked for" if asked == 0 else "a single step costs little"
        return 0.0, _said("derivatives", "exact throughout", why)
    why = "asked for" if asked else "at half the cost, a rough direction is good enough at first"
    return share, _said("derivatives", f"first order for the first {share:.0%} of training, then exact", why)


def _can_move(module: nn.Module, kind: type[nn.Module]) -> bool:
    return any(
        p.requires_grad and role_of(module, name) == "initial"
        for name, p in module.named_parameters()
        if isinstance(module.get_submodule(name.rpartition(".")[0]), kind)
    )


def _is_context(leaf: Leaf) -> bool:
    return leaf.role == "context"


def _named(what: What) -> str:
    return what if isinstance(what, str) else getattr(what, "__name__", repr(what))
