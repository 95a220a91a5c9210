"""The contract of a `Learner`: exact, pure, isolated, deterministic; and of a registered method, which makes one."""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headstart.core.losses import there
from headstart.core.objective import meta_gradient, meta_loss, predicted
from headstart.core.tree import mapped, tensors_of
from headstart.errors import UsageError
from headstart.registry import find, load
from headstart.testing import contract as kit
from headstart.testing.contract import require, require_close, same_bits, take
from headstart.types import Adapted, Batch, Episodes, Gaussian, Indivisible, Info, Learner, Meta, Params, Tree


class _Case(NamedTuple):
    learner: Learner
    meta: Meta
    episodes: Episodes


class _Result(NamedTuple):
    adapted: Adapted
    info: Info
    outputs: Tensor
    losses: Tensor
    distribution: Gaussian | None


def _run(case: _Case, steps: int | None = None) -> _Result:
    with torch.no_grad():
        adapted, info = case.learner.adapt(case.meta, case.episodes.support, steps=steps)
        query = case.episodes.query
        outputs = predicted(case.learner, adapted, query.x, query.mask)
        found = None if case.learner.distribution is None else case.learner.distribution(adapted, query.x)
        return _Result(adapted, info, outputs, case.learner.loss(outputs, query), found)


class _Plain(NamedTuple):
    """What a learner gives where nothing is changed, computed once for all checks that compare with it."""

    result: _Result
    gradient: Meta | None


def _plain(case: _Case) -> _Plain:
    return _Plain(_run(case), meta_gradient(*case)[0] if case.learner.gradient is not None else None)


def _of_a_task(result: _Result) -> list[Tree]:
    return [result.adapted.params, result.adapted.buffers, result.outputs, result.losses, result.distribution]


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
    - pure: meta value, episodes and module stay bit-equal; no global random number is drawn, no unasked history kept.
    - deterministic: the same call gives the same bits.
    - shapes: everything has its task axis; the gradient looks like the meta value and is finite.
    - isolated: a task's result is the same alone, in another order, and beside tasks with other data (to rounding).
    - steps (for learners that take inner steps): 0 steps give the initial model, whatever the support set (where
      ``initial``); ``steps=`` overrides their number, and the first steps of many are the steps of few.
    - masks: examples that are masked out do not change the result, even where they are NaN.
    - order, where asked for: the order of the support examples does not matter.
    - divided: the meta-gradient is the mean of those of parts of the tasks, as several processes take it
      (`headstart.processes`), unless it says that it is not (`headstart.types.Indivisible`).
    - exact, where ``learner.exact``: `meta_gradient` agrees with central differences of `meta_loss` in θ and in M.
    - task maps agree: what the learner of the first task map says, the others' learners say, to 1e-10.

    Args:
        learner: the learner, or a function that makes it from the name of a task map: then all are made and compared.
        episodes: at least two tasks, in float64 (`random_episodes` makes some); a seed in them switches dropout on.
        module: the module that the learner was made from, to see that it is left alone.
        masks: false for models whose examples see each other (batch normalisation by the batch).
        initial: false for learners that give each task a start of its own, read off its support set (`Start`).
        order: check that the order of support examples does not matter.
        directions, tolerance: of the central differences; see `check_derivative`.
        taskmaps: what ``learner`` is called with, where it is a function.

    Raises:
        ContractError: the contract that is broken, by how much, and what that means.

    >>> import headstart
    >>> from headstart.testing import check_learner, random_episodes
    >>> net = headstart.mlp(2, 3, hidden=(4,)).double()
    >>> check_learner(lambda taskmap: headstart.maml(net, steps=2, taskmap=taskmap), random_episodes((2,)), module=net)
    """
    tensors_before, rest_before = kit.module_state(module)
    learners = [learner] if isinstance(learner, Learner) else [learner(name) for name in taskmaps]
    case = _Case(learners[0], _check_init(learners[0]), episodes)
    _check_arguments(case)
    plain = _check_pure(case)
    after, rest = kit.module_state(module)
    same = same_bits(tensors_before, after) and rest_before == rest
    require(same, "pure", "the learner changes the module it was made from")
    _check_shapes(case, plain)
    _check_deterministic(case, plain)
    _check_isolated(case, plain)
    if case.learner.steps is not None:
        _check_steps(case, initial)
    if masks:
        _check_masks(case, plain)
    if order:
        _check_order(case, plain)
    if plain.gradient is not None:
        _check_divided(case, plain.gradient)
    if plain.gradient is not None and case.learner.exact:
        _check_exact(case, plain.gradient, directions, tolerance)
    for other, name in zip(learners[1:], taskmaps[1:]):
        theirs, contract = _plain(case._replace(learner=other)), f"task maps {taskmaps[0]} and {name} agree"
        require_close(_of_a_task(theirs.result), _of_a_task(plain.result), contract, "their results differ")
        require_close(theirs.gradient, plain.gradient, contract, "their meta-gradients differ")


def _check_arguments(case: _Case) -> None:
    if any(t.is_floating_point() and t.dtype != torch.float64 for t in tensors_of([case.meta, case.episodes])):
        raise UsageError(
            "central differences and comparisons need float64: make the learner from module.double(), "
            "and take episodes in torch.float64"
        )
    if case.episodes.support.y.shape[0] < 2:
        raise UsageError("whether tasks are isolated shows with two or more; got episodes of 1 task")


def _check_init(learner: Learner) -> Meta:
    before = kit.generator_state()
    first, again = (learner.init(torch.Generator().manual_seed(1)) for _ in range(2))
    claim = "generators of one seed give different meta values; no run can be repeated"
    require(same_bits(first, again), "init", claim)
    require(kit.generator_state() == before, "init", "it draws from a global generator, not from the one it is given")
    ours, others = ({t.data_ptr() for t in tensors_of(meta) if t.numel()} for meta in (first, again))
    require(not ours & others, "init", "two calls return the same memory; training one would train the other")
    return first


def _check_pure(case: _Case) -> _Plain:
    inputs = (case.meta, case.episodes)
    before, generators = kit.copied(inputs), kit.generator_state()
    plain = _plain(case)
    ungraded = case.learner.adapt(case.meta, case.episodes.support)
    off = "under torch.no_grad() the result keeps a history; predicting would leak memory"
    unasked = "nothing in the meta value requires a gradient, but the result keeps a history"
    for (adapted, info), claim in ((plain.result[:2], off), (ungraded, unasked)):
        history = [t for t in tensors_of([adapted.params, adapted.buffers, info]) if t.requires_grad]
        require(not history, "pure", claim)
    require(same_bits(before, inputs), "pure", "the learner writes into its meta value or its episodes")
    meaning = "the learner draws from the global generator; take random numbers from Batch.seed"
    require(kit.generator_state() == generators, "deterministic", meaning)
    return plain


def _check_shapes(case: _Case, plain: _Plain) -> None:
    tasks, query = case.episodes.support.y.shape[0], case.episodes.query
    result, gradient = plain
    for name, value in {**result.adapted.params, **result.adapted.buffers}.items():
        claim = f"adapted {name!r} has shape {tuple(value.shape)}, its first axis must be the {tasks} tasks"
        require(value.shape[:1] == (tasks,), "shapes", claim)
    shapes = {
        "predict": (result.outputs.shape[:2], query.y.shape[:2]),
        "loss": (result.losses.shape, (tasks,)),
        "Info.support_loss": (result.info.support_loss.shape, (case.learner.steps or 0, tasks)),
    }
    for what, (got, expected) in shapes.items():
        require(tuple(got) == tuple(expected), "shapes", f"{what} gives {tuple(got)}, expected {tuple(expected)}")
    if gradient is None:
        return
    for part, like in zip(gradient, case.meta):
        got, expected = ({k: (v.shape, v.dtype) for k, v in tree.items()} for tree in (part, like))
        claim = f"the gradient has {sorted(part)}, it must have the names, shapes and types of {sorted(like)}"
        require(got == expected, "shapes", claim)
    require(kit.finite(gradient), "shapes", "the meta-gradient holds NaN or infinity")
    require(not any(t.requires_grad for t in tensors_of(gradient)), "pure", "the meta-gradient keeps a history")


def _check_deterministic(case: _Case, first: _Plain) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        second = _plain(case)
    require(same_bits(first, second), "deterministic", f"two equal calls differ by {kit.error(first, second):.2g}")


def _check_exact(case: _Case, gradient: Meta, directions: int, tolerance: float) -> None:
    how: dict[str, Any] = {"directions": directions, "tolerance": tolerance}
    for field, symbol, point, slope in zip(Meta._fields, "θM", case.meta, gradient):

        def loss(values: Params, field: str = field) -> float:
            with torch.no_grad():
                return meta_loss(case.learner, case.meta._replace(**{field: values}), case.episodes)[0].item()

        if point:
            kit.check_derivative(loss, point, slope, contract=f"exact in {symbol}", **how)


def _check_isolated(case: _Case, plain: _Plain) -> None:
    """A task's result is the same alone, in another order of tasks, and beside tasks with other data."""
    tasks = case.episodes.support.y.shape[0]
    together = _of_a_task(plain.result)

    def hold(episodes: Episodes, chosen: list[int], rows: list[int], how: str) -> None:
        """Compare rows of a run on other episodes with the chosen tasks of the first run."""
        got, claim = _of_a_task(_run(case._replace(episodes=episodes))), f"the result of task {chosen[0]} changes {how}"
        require_close(take(got, rows), take(together, chosen), "isolated", f"{claim}; tasks see each other")

    for task in range(tasks):
        hold(take(case.episodes, [task]), [task], [0], "when it is alone")
    backwards = list(range(tasks))[::-1]
    hold(take(case.episodes, backwards), backwards, list(range(tasks)), "in another order of tasks")
    for task in (0, tasks - 1):
        others = mapped(lambda leaf: leaf.clone(), _disturbed(case.episodes))
        for target, source in zip(tensors_of(others), tensors_of(case.episodes)):
            target[task] = source[task]
        hold(others, [task], [task], "when the other tasks have other data")


def _disturbed(episodes: Episodes) -> Episodes:
    """Return episodes with other inputs, targets and seeds, of the same shapes and ranges."""

    def other(batch: Batch) -> Batch:
        x = mapped(lambda leaf: 1.7 * leaf.flip(1) + 0.3 if leaf.is_floating_point() else leaf.flip(1), batch.x)
        y = 0.3 - batch.y if batch.y.is_floating_point() else batch.y.roll(1, 1)
        return Batch(x, y, batch.mask, None if batch.seed is None else batch.seed + 1)

    return Episodes(other(episodes.support), other(episodes.query))


def _check_steps(case: _Case, initial: bool) -> None:
    """No steps give the initial model, where ``initial``; ``steps=`` overrides them; few are the first of many."""
    tasks = case.episodes.support.y.shape[0]
    none = _run(case, steps=0)
    if initial:
        disturbed = _disturbed(case.episodes).support._replace(seed=case.episodes.support.seed)
        other = _run(case._replace(episodes=Episodes(disturbed, case.episodes.query)), steps=0)
        claim = "with steps=0 the prediction depends on the support set; it must be the initial model's"
        require(same_bits(none.outputs, other.outputs), "steps", claim)
        for name in none.adapted.params.keys() & case.meta.params.keys():
            value = none.adapted.params[name]
            same = same_bits(value, case.meta.params[name].expand_as(value))
            require(same, "steps", f"with steps=0, {name!r} is not what adaptation starts from")
    few, many = _run(case, steps=1).info.support_loss, _run(case, steps=2).info.support_loss
    shapes = [tuple(t.shape) for t in (none.info.support_loss, few, many)]
    claim = f"steps=0, 1 and 2 give support losses of shapes {shapes}; steps= must override the number of steps"
    require(shapes == [(0, tasks), (1, tasks), (2, tasks)], "steps", claim)
    require_close(few[0], many[0], "steps", "the first of two steps is not the step that is taken alone")


def _padded(batch: Batch) -> Batch:
    """Return the batch with two more examples a task, NaN where they can be, and masked out."""

    def longer(leaf: Tensor) -> Tensor:
        extra = leaf[:, :1].repeat_interleave(2, 1)
        return torch.cat([leaf, extra * float("nan") if leaf.is_floating_point() else extra], 1)

    mask = nn.functional.pad(there(batch), (0, 2))
    return Batch(mapped(longer, batch.x), longer(batch.y), mask, batch.seed)


def _check_divided(case: _Case, gradient: Meta) -> None:
    if isinstance(case.learner.gradient, Indivisible):
        return
    tasks = case.episodes.query.y.shape[0]
    first, others = (
        meta_gradient(case.learner, case.meta, take(case.episodes, part))[0] for part in ([0], [*range(1, tasks)])
    )
    mean = Meta(*({n: (one[n] + (tasks - 1) * rest[n]) / tasks for n in one} for one, rest in zip(first, others)))
    claim = "the meta-gradient of all tasks is not the mean of those of parts of them, and does not say so"
    require_close(gradient, mean, "divided", claim)


def _check_masks(case: _Case, plain: _Plain) -> None:
    """Examples that are masked out change no result and no gradient, even where they are NaN, in all tasks or one."""
    result, gradient = _plain(case._replace(episodes=Episodes(*(_padded(batch) for batch in case.episodes))))
    expected = plain.result
    count = expected.outputs.shape[1]
    said = mapped(lambda leaf: leaf[:, :count], [result.outputs, result.distribution])
    seen = [result.adapted.params, result.losses, said]
    wanted = [expected.adapted.params, expected.losses, [expected.outputs, expected.distribution]]
    require_close(seen, wanted, "masks", "examples that are masked out change the result")
    claim = "examples that are masked out (NaN here) change the meta-gradient"
    require_close(gradient, plain.gradient, "masks", claim)
    _check_ragged(case)


def _check_ragged(case: _Case) -> None:
    """The first task, short of one example of its support set, is as it is alone without that one."""
    support, query = case.episodes
    y = support.y[0]
    repeated = y.bincount()[y] > 1 if not y.is_floating_point() else y.new_ones(len(y), dtype=torch.bool)
    spare = repeated.nonzero().flatten()
    if support.mask is not None or not len(spare) or len(y) < 2:
        return  # no class may be without an example
    # that one last, so that the places of the others stay
    places = torch.arange(len(y), device=y.device)
    order = torch.cat([places[places != spare[0]], spare[:1]])
    support = support._replace(x=mapped(lambda leaf: leaf[:, order], support.x), y=support.y[:, order])
    mask = torch.ones(support.y.shape[:2], dtype=torch.bool, device=y.device)
    mask[0, -1] = False

    def blank(leaf: Tensor) -> Tensor:
        gone = ~mask.view(*mask.shape, *(1,) * (leaf.ndim - 2))
        return leaf.masked_fill(gone, float("nan")) if leaf.is_floating_point() else leaf

    ragged = case._replace(episodes=Episodes(support._replace(x=mapped(blank, support.x), mask=mask), query))
    first = take(support, [0])
    alone = first._replace(x=mapped(lambda leaf: leaf[:, :-1], first.x), y=first.y[:, :-1])
    got, expected = _run(ragged), _run(case._replace(episodes=Episodes(alone, take(query, [0]))))
    shown = take([got.outputs, got.losses, got.distribution], [0])
    claim = "a task of fewer examples than those beside it is another one than when it is alone"
    require_close(shown, [expected.outputs, expected.losses, expected.distribution], "masks", claim)


def _check_order(case: _Case, plain: _Plain) -> None:
    support = case.episodes.support
    x, y, mask = mapped(lambda leaf: leaf.flip(1), (support.x, support.y, support.mask))
    flipped = case._replace(episodes=case.episodes._replace(support=Batch(x, y, mask, support.seed)))
    claim = "reversing the support examples changes predictions"
    require_close(_run(flipped).outputs, plain.result.outputs, "order", claim)


def check_method(
    name: str,
    module: nn.Module | None = None,
    *,
    options: dict[str, Any] | None = None,
    device: str = "cpu",
    **how: Any,
) -> None:
    """Check a registered method with `check_learner`, once for each kind of target that its row names.

    Args:
        name: of the method; one that another package registers is found alike.
        module: float64, with 3 values in and 3 out; by default a small one.
        options: of the method's factory; by default 2 steps of 0.1 where it takes such.
        device: where to compute, such as ``"cuda"``; the module is there already, if it is given.
        how: what else `check_learner` is told.

    Raises:
        ContractError: the contract that is broken, by how much, and what that means.

    >>> check_method("ridge")
    """
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double() if module is None else module
    network = network.to(device) if module is None else module
    for episodes in episodes_of(name, random_episodes((3,)), random_episodes((3,), regression=True)):
        episodes = mapped(lambda leaf: leaf.to(device), episodes)
        learner = partial(made, name, network, episodes, **(options or {}))
        check_learner(learner, episodes, module=network, **how)


def episodes_of(name: str, classes: Episodes, numbers: Episodes) -> Iterator[Episodes]:
    """Yield those of the episodes whose targets a method can predict."""
    kinds = {"classification": classes, "regression": numbers}
    yield from (kinds[target] for target in find("method", name).targets)


def made(name: str, module: nn.Module | None, episodes: Episodes, taskmap: str = "vmap", /, **options: Any) -> Learner:
    """Return the learner of a registered method as a run makes it, with 2 steps of 0.1 unless ``options`` differ.

    The ``episodes`` tell the sizes of inputs and targets, and their kind; the module is left out where there is no use.
    """
    factory = load("method", name)
    takes = inspect.signature(factory).parameters
    x, y = episodes.support.x, episodes.support.y
    numbers = y.is_floating_point()
    outputs = y.shape[2:].numel() if numbers else int(y.max()) + 1
    supplied = {
        "loss": "mse" if numbers else "cross_entropy",
        "ways": None if numbers else outputs,
        "inputs": x.shape[2:].numel(),
        "outputs": outputs,
        "classes": outputs,
        "dtype": x.dtype,
        "explain": None,
        "taskmap": taskmap,
        "steps": 2,
        "rate": 0.1,
    }
    none = find("method", name).model == "none"
    if not none and "features" in takes:
        with torch.no_grad():
            supplied["features"] = copy.deepcopy(module).eval()(x[0, :1]).numel()  # type: ignore[union-attr]
    given = {key: value for key, value in {**supplied, **options}.items() if key in takes or key in options}
    if not none:
        return factory(module, **given)
    learner = factory(**given)
    # it starts there and in this type, wherever and in whatever it was made
    return learner._replace(init=lambda *seed: mapped(lambda value: value.to(x.device, x.dtype), learner.init(*seed)))


def random_episodes(
    input_shape: Sequence[int],
    *,
    outputs: int = 3,
    tasks: int = 3,
    support: int = 4,
    query: int = 5,
    regression: bool = False,
    tokens: int | None = None,
    seed: int = 0,
) -> Episodes:
    """Return float64 episodes of random examples.

    Args:
        input_shape: shape of one input.
        outputs: number of classes (each occurs in every set that is large enough), or of target values.
        tasks: B.
        support, query: examples of a task.
        regression: floating targets ``(B, n, outputs)`` in place of class ids.
        tokens: draw int64 inputs in ``[0, tokens)``, for embeddings.
        seed: of the generator.

    >>> random_episodes((1, 8, 8), outputs=3).support.x.shape
    torch.Size([3, 4, 1, 8, 8])
    """
    generator = torch.Generator().manual_seed(seed)

    def batch(count: int) -> Batch:
        shape = (tasks, count, *input_shape)
        if tokens is None:
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
        else:
            x = torch.randint(tokens, shape, generator=generator)
        if regression:
            return Batch(x, torch.randn(tasks, count, outputs, generator=generator, dtype=torch.float64))
        orders = [torch.randperm(count, generator=generator) for _ in range(tasks)]
        return Batch(x, torch.stack(orders) % outputs)

    return Episodes(batch(support), batch(query))
