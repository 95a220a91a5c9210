"""What to learn about a module: choices that go by its layers, each with its reason."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import nn

from headstart.algorithms.reading import NORMS, Reading, read
from headstart.core.adjoints import Adjoint
from headstart.core.losses import TaskLoss
from headstart.core.patterns import Leaf, What
from headstart.core.roles import role_of
from headstart.errors import UsageError, unknown_name

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
