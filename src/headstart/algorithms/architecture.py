"""Learning a model's architecture as part of M: sharpen the gates of its mixtures, make cost count, make the choice.

``search = sharpened(pressed(maml(model), expected_cost(model, shape), 0.1))``; when that is trained,
``derive(model, meta)`` is a plain module.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Generator, Tensor, nn

from headstart.core.objective import at, staged
from headstart.core.parameters import matches
from headstart.errors import ShapeError, UsageError, unknown_name
from headstart.forward.functional import functional
from headstart.forward.mixture import GATES, Mixture, mixtures
from headstart.forward.python_state import copied
from headstart.forward.surgery import replaced
from headstart.types import Adapted, Batch, Info, Learner, Meta, Tree


def sharpened(learner: Learner, *, start: float = 1.0, end: float = 0.1, gates: str = f"*{GATES}") -> Learner:
    """Divide the gates by a temperature that falls while meta-training, so that mixtures end near a choice.

    ``p = softmax(gates / τ)``, ``τ = start · (end / start)^done`` for a fraction ``done`` of the outer steps: the
    learner itself, which is how training ends, has ``τ = end``. M holds the gates undivided. Falling temperatures for
    softmax gates: Xie, Zheng, Liu, Lin 2018 (SNAS), arXiv:1812.09926, section 2.3 (there with random gates).

    To pay for the divided gates, `pressed` goes first, ``sharpened(pressed(learner, …))``; so does `first_order_until`.

    Args:
        learner: any whose M holds gates.
        start: τ at first.
        end: τ at last, at most ``start``.
        gates: the names of the gates in M, a pattern; by default those of every `Mixture`.

    Raises:
        UsageError: temperatures that are not start ≥ end > 0.
        UnknownNameError: a pattern that matches nothing in M.
    """
    if not start >= end > 0:
        raise UsageError(f"temperatures must be start >= end > 0, got start {start} and end {end}")
    structure = learner.init(Generator().manual_seed(0)).structure
    names = frozenset(name for name in structure if matches(name, gates))
    if not names:
        raise unknown_name("gates in M", gates, structure)

    def during(done: float) -> Learner:
        return _divided(at(learner, done), names, start * (end / start) ** done)

    return staged(_divided(learner, names, end), during)


def _divided(learner: Learner, names: frozenset[str], temperature: float) -> Learner:
    """Return a learner that works with these parts of M divided by a temperature."""

    def seen(meta: Meta) -> Meta:
        divided = {n: value / temperature if n in names else value for n, value in meta.structure.items()}
        return Meta(meta.params, divided)

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        adapted, info = learner.adapt(seen(meta), support, steps=steps)
        # it holds M as the outer loop has it, so that one put together from a file predicts the same
        return adapted._replace(meta=meta), info

    def predict(adapted: Adapted, x: Tree) -> Tensor:
        return learner.predict(adapted._replace(meta=seen(adapted.meta)), x)

    def path(meta: Meta, support: Batch, /, *stops: Any, **options: Any) -> Iterator[tuple[Adapted, Info]]:
        assert learner.path is not None
        for adapted, info in learner.path(seen(meta), support, *stops, **options):
            yield adapted._replace(meta=meta), info

    penalty, shown = learner.penalty, learner.shown
    return learner._replace(
        adapt=adapt,
        predict=predict,
        path=None if learner.path is None else path,
        penalty=None if penalty is None else lambda meta: penalty(seen(meta)),
        shown=None if shown is None else lambda meta: shown(seen(meta)),
        during=None,
    )


def pressed(learner: Learner, cost: Callable[[Meta], Tensor], strength: float) -> Learner:
    """Make what the model costs count: L(θ, M) = Σ Lᵢ(θ, M) + strength · cost(θ, M).

    Args:
        learner: any.
        cost: ``meta -> a scalar``, as `expected_cost` makes.
        strength: at least 0: what the whole cost is worth once in the mean meta-loss, in units of a task's loss.

    Raises:
        UsageError: a negative strength.
    """
    if not strength >= 0:
        raise UsageError(f"strength must be at least 0, got {strength}")

    def paying(one: Learner) -> Learner:
        penalty = one.penalty
        return one._replace(
            penalty=lambda meta: strength * cost(meta) + (0.0 if penalty is None else penalty(meta)), during=None
        )

    own = paying(learner)
    return own if learner.during is None else staged(own, lambda done: paying(at(learner, done)))


def derive(module: nn.Module, meta: Meta) -> nn.Module:
    """Return the plain module in which every `Mixture` is its most probable candidate, with the weights of ``meta``.

    What is chosen takes its mixture's path (a `Skip` is an ``nn.Identity`` there), and no gates are left. Other
    `Structural` parts stay, with their values in M; buffers, and each task's own parts, are those of ``module``.

    Args:
        module: the module that the learner was made from; it is not changed.
        meta: what was meta-learned; what it holds besides the module's is left out.

    Raises:
        UsageError: the module holds no mixture.
        ShapeError: ``meta`` is not of this module.

    >>> import torch
    >>> from headstart.forward.mixture import Skip
    >>> model = nn.Sequential(Mixture({"linear": nn.Linear(4, 4), "skip": Skip()}), nn.Linear(4, 2))
    >>> meta = functional(model)
    >>> derive(model, Meta(meta.params, {"0.gates.logits": torch.tensor([0.0, 3.0])}))
    Sequential(
      (0): Identity()
      (1): Linear(in_features=4, out_features=2, bias=True)
    )
    """
    mixtures(module)
    body = loaded(module, meta)
    # a candidate may hold mixtures itself
    while any(isinstance(layer, Mixture) for layer in body.modules()):
        body = replaced(body, lambda _, layer: layer.chosen() if isinstance(layer, Mixture) else None)
    return body


def choices(module: nn.Module, meta: Meta) -> dict[str, str]:
    """Return the name of the most probable candidate of every mixture, by the mixture's path; raises as `derive`."""
    return {path: mixture.choice() for path, mixture in mixtures(loaded(module, meta)).items()}


def loaded(module: nn.Module, meta: Meta) -> nn.Module:
    """Return a copy of ``module`` with the values of θ and M that ``meta`` has for it.

    Raises:
        ShapeError: ``meta`` lacks one of the module's, has parameters that it lacks, or has one of another shape.
    """
    body = copied(module)
    model = functional(body)
    for part, expected, given in (("θ", model.params, meta.params), ("M", model.structure, meta.structure)):
        wrong = [f"lacks {name!r}" for name in expected if name not in given]
        wrong += [f"holds {name!r}, which is not there" for name in given if part == "θ" and name not in expected]
        for name, like in expected.items():
            if name in given and given[name].shape != like.shape:
                wrong.append(f"holds {name!r} of shape {tuple(given[name].shape)}, expected {tuple(like.shape)}")
        if wrong:
            raise ShapeError(
                f"the {part} of meta is not that of this {type(module).__name__}: it {wrong[0]}; "
                f"give the module that the learner was made from"
            )
    body.load_state_dict({**meta.params, **{name: meta.structure[name] for name in model.structure}}, strict=False)
    return body
