"""The contract of a `Learner`: exact, pure, isolated, deterministic."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from headstart.core.objective import meta_loss
from headstart.errors import UsageError
from headstart.testing.case import ROUNDING, Case, gradient_of, of_a_task, run
from headstart.testing.contract import (
    copied,
    error,
    finite,
    generator_state,
    module_state,
    require,
    same_bits,
    tensors,
)
from headstart.testing.differences import check_derivative
from headstart.testing.invariance import check_isolated, check_masks, check_order, check_steps
from headstart.types import Episodes, Learner, Meta, Params


def check_learner(
    learner: Learner | Callable[[str], Learner],
    episodes: Episodes,
    *,
    module: nn.Module | None = None,
    masks: bool = True,
    order: bool = False,
    initial: bool = True,
    directions: int = 3,
    tolerance: float = 1e-6,
    taskmaps: Sequence[str] = ("vmap", "loop"),
) -> None:
    """Check that a learner keeps its promises on ``episodes``.

    - init: the same generator gives the same meta value, in fresh memory.
    - pure: meta value, episodes and module stay bit-equal; no global random number is drawn; where nobody asks for
      a derivative, no history is kept.
    - deterministic: the same call gives the same bits.
    - shapes: everything has its task axis; the gradient looks like the meta value and is finite.
    - isolated: a task's result is the same alone, in another order, and beside tasks with other data (to rounding).
    - steps (for learners that take inner steps): 0 steps give the initial model, whatever the support set (where
      ``initial``); ``steps=`` overrides their number, and the first steps of many are the steps of few.
    - masks: examples that are masked out do not change the result, even where they are NaN.
    - order, where asked for: the order of the support examples does not matter.
    - exact, where ``learner.exact``: `meta_gradient` is the derivative of `meta_loss` with respect to θ and to M, held
      against central differences.
    - task maps agree: what the learner of the first task map says, the others' learners say, to 1e-10.

    Args:
        learner: the learner, or a function that makes it from the name of a task map: then each is made, and they are
            compared.
        episodes: at least two tasks, in float64 (`random_episodes` makes some); a seed in them switches dropout on.
        module: the module that the learner was made from, to see that it is left alone.
        masks: false for models whose examples see each other (batch normalisation by the batch).
        initial: false for learners that give each task a start of its own, read off its support set (`Start`).
        order: check that the order of support examples does not matter.
        directions: how many random directions the exact gradient is held against, in θ and in M.
        tolerance: of central differences, relative to the gradient; see `check_derivative`.
        taskmaps: what ``learner`` is called with, where it is a function.

    Raises:
        ContractError: the contract that is broken, by how much, and what that means.

    >>> import headstart
    >>> from headstart.testing import check_learner, random_episodes
    >>> net = headstart.mlp(2, 3, hidden=(4,)).double()
    >>> check_learner(lambda taskmap: headstart.maml(net, steps=2, taskmap=taskmap), random_episodes((2,)), module=net)
    """
    before = module_state(module)
    learners = [learner] if isinstance(learner, Learner) else [learner(name) for name in taskmaps]
    meta = _check_init(learners[0])
    case = Case(learners[0], meta, episodes)
    _check_arguments(case)
    _check_pure(case)
    require(_same_module(before, module_state(module)), "pure", "the learner changes the module it was made from")
    _check_shapes(case)
    _check_deterministic(case)
    check_isolated(case)
    if case.learner.steps is not None:
        check_steps(case, initial=initial)
    if masks:
        check_masks(case)
    if order:
        check_order(case)
    if case.learner.gradient is not None and case.learner.exact:
        _check_exact(case, directions, tolerance)
    for other, name in zip(learners[1:], taskmaps[1:]):
        _check_agreement(case, case._replace(learner=other), f"task maps {taskmaps[0]} and {name} agree")


def _check_arguments(case: Case) -> None:
    floats = [t for t in tensors([case.meta, case.episodes]) if t.is_floating_point()]
    if any(t.dtype != torch.float64 for t in floats):
        raise UsageError(
            "central differences and comparisons need float64: make the learner from module.double(), "
            "and take episodes in torch.float64"
        )
    if case.episodes.support.y.shape[0] < 2:
        raise UsageError("whether tasks are isolated shows with two or more; got episodes of 1 task")


def _check_init(learner: Learner) -> Meta:
    before = generator_state()
    first, second = (learner.init(torch.Generator().manual_seed(1)) for _ in range(2))
    require(
        same_bits(first, second), "init", "generators of one seed give different meta values; no run can be repeated"
    )
    require(generator_state() == before, "init", "it draws from a global generator, not from the one it is given")
    shared = {t.data_ptr() for t in tensors(first) if t.numel()} & {t.data_ptr() for t in tensors(second) if t.numel()}
    require(not shared, "init", "two calls return the same memory; training one would train the other")
    return first


def _check_pure(case: Case) -> None:
    inputs = (case.meta, case.episodes)
    before, generators = copied(inputs), generator_state()
    result = run(case)
    history = [t for t in tensors([result.adapted.params, result.adapted.buffers, result.info]) if t.requires_grad]
    require(not history, "pure", "under torch.no_grad() the result keeps a history; predicting would leak memory")
    gradient_of(case)
    adapted, info = case.learner.adapt(case.meta, case.episodes.support)
    require(
        not any(t.requires_grad for t in tensors([adapted.params, adapted.buffers, info])),
        "pure",
        "nothing in the meta value requires a gradient, but the result keeps a history",
    )
    require(same_bits(before, inputs), "pure", "the learner writes into its meta value or its episodes")
    require(
        generator_state() == generators,
        "deterministic",
        "the learner draws from the global generator; take random numbers from Batch.seed",
    )


def _same_module(before: tuple[object, object], after: tuple[object, object]) -> bool:
    return same_bits(before[0], after[0]) and before[1] == after[1]


def _check_shapes(case: Case) -> None:
    tasks, query = case.episodes.support.y.shape[0], case.episodes.query
    result = run(case)
    for name, value in {**result.adapted.params, **result.adapted.buffers}.items():
        require(
            value.ndim > 0 and value.shape[0] == tasks,
            "shapes",
            f"adapted {name!r} has shape {tuple(value.shape)}, its first axis must be the {tasks} tasks",
        )
    shapes = {
        "predict": (result.outputs.shape[:2], query.y.shape[:2]),
        "loss": (result.losses.shape, (tasks,)),
        "Info.support_loss": (result.info.support_loss.shape, (case.learner.steps or 0, tasks)),
    }
    for what, (got, expected) in shapes.items():
        require(tuple(got) == tuple(expected), "shapes", f"{what} gives {tuple(got)}, expected {tuple(expected)}")
    gradient = gradient_of(case)
    if gradient is None:
        return
    for part, like in zip(gradient, case.meta):
        described = ({k: (v.shape, v.dtype) for k, v in tree.items()} for tree in (part, like))
        require(
            next(described) == next(described),
            "shapes",
            f"the gradient has {sorted(part)}, it must have the names, shapes and types of {sorted(like)}",
        )
    require(finite(gradient), "shapes", "the meta-gradient holds NaN or infinity")
    require(not any(t.requires_grad for t in tensors(gradient)), "pure", "the meta-gradient keeps a history")


def _check_deterministic(case: Case) -> None:
    state = torch.get_rng_state()
    try:
        first = run(case), gradient_of(case)
        torch.manual_seed(12345)
        second = run(case), gradient_of(case)
    finally:
        torch.set_rng_state(state)
    require(same_bits(first, second), "deterministic", f"two equal calls differ by {error(first, second):.2g}")


def _check_exact(case: Case, directions: int, tolerance: float) -> None:
    gradient = gradient_of(case)
    assert gradient is not None
    for field, symbol in (("params", "θ"), ("structure", "M")):
        point = getattr(case.meta, field)
        if not point:
            continue

        def loss(values: Params, field: str = field) -> float:
            with torch.no_grad():
                return meta_loss(case.learner, case.meta._replace(**{field: values}), case.episodes)[0].item()

        check_derivative(
            loss,
            point,
            getattr(gradient, field),
            contract=f"exact in {symbol}",
            directions=directions,
            tolerance=tolerance,
        )


def _check_agreement(ours: Case, theirs: Case, contract: str) -> None:
    gap = error(of_a_task(run(theirs)), of_a_task(run(ours)))
    require(gap <= ROUNDING, contract, f"their results differ by {gap:.2g} (relative)")
    gap = error(gradient_of(theirs), gradient_of(ours))
    require(gap <= ROUNDING, contract, f"their meta-gradients differ by {gap:.2g} (relative)")
