"""What must not change a learner's result: other tasks, their order, and examples that are not there."""

import torch
from torch import Tensor

from headstart.testing.case import ROUNDING, Case, Result, gradient_of, of_a_task, run
from headstart.testing.contract import error, mapped, require, same_bits, take, tensors
from headstart.types import Batch, Episodes


def check_isolated(case: Case) -> None:
    """A task's result is the same alone, in another order of tasks, and beside tasks with other data."""
    tasks = case.episodes.support.y.shape[0]
    together = of_a_task(run(case))

    def hold(episodes: Episodes, chosen: list[int], rows: list[int], how: str) -> None:
        """Compare rows of a run on other episodes with the chosen tasks of the first run."""
        got, expected = take(of_a_task(run(case._replace(episodes=episodes))), rows), take(together, chosen)
        gap = error(got, expected)
        require(
            gap <= ROUNDING,
            "isolated",
            f"the result of task {chosen[0]} changes by {gap:.2g} (relative) {how}; tasks see each other",
        )

    for task in range(tasks):
        hold(take(case.episodes, [task]), [task], [0], "when it is alone")
    backwards = list(range(tasks))[::-1]
    hold(take(case.episodes, backwards), backwards, list(range(tasks)), "in another order of tasks")
    for task in (0, tasks - 1):
        others = mapped(lambda leaf: leaf.clone(), _disturbed(case.episodes))
        for target, source in zip(tensors(others), tensors(case.episodes)):
            target[task] = source[task]
        hold(others, [task], [task], "when the other tasks have other data")


def _disturbed(episodes: Episodes) -> Episodes:
    """Return episodes with other inputs, targets and seeds, of the same shapes and within the same ranges."""

    def other(batch: Batch) -> Batch:
        x = mapped(lambda leaf: 1.7 * leaf.flip(1) + 0.3 if leaf.is_floating_point() else leaf.flip(1), batch.x)
        y = 0.3 - batch.y if batch.y.is_floating_point() else batch.y.roll(1, 1)
        return Batch(x, y, batch.mask, None if batch.seed is None else batch.seed + 1)

    return Episodes(other(episodes.support), other(episodes.query))


def check_steps(case: Case, *, initial: bool = True) -> None:
    """No steps give the initial model, where ``initial``; ``steps=`` overrides them; few are the first of many."""
    tasks = case.episodes.support.y.shape[0]
    none = run(case, steps=0)
    if initial:
        _check_initial(case, none)
    few, many = run(case, steps=1).info.support_loss, run(case, steps=2).info.support_loss
    shapes = [tuple(t.shape) for t in (none.info.support_loss, few, many)]
    require(
        shapes == [(0, tasks), (1, tasks), (2, tasks)],
        "steps",
        f"steps=0, 1 and 2 give support losses of shapes {shapes}; steps= must override the number of steps",
    )
    require(error(few[0], many[0]) <= ROUNDING, "steps", "the first of two steps is not the step that is taken alone")


def _check_initial(case: Case, none: Result) -> None:
    """What ``none``, the result of no steps, says is the initial model's, whatever the support set."""
    disturbed = _disturbed(case.episodes).support._replace(seed=case.episodes.support.seed)
    other = run(case._replace(episodes=Episodes(disturbed, case.episodes.query)), steps=0)
    require(
        same_bits(none.outputs, other.outputs),
        "steps",
        "with steps=0 the prediction depends on the support set; it must be the initial model's",
    )
    for name, value in none.adapted.params.items():
        if name in case.meta.params:
            start = case.meta.params[name].expand_as(value)
            require(same_bits(value, start), "steps", f"with steps=0, {name!r} is not what adaptation starts from")


def _padded(batch: Batch) -> Batch:
    """Return the batch with two more examples a task, NaN where they can be, and masked out."""

    def longer(leaf: Tensor) -> Tensor:
        extra = leaf[:, :1].repeat_interleave(2, 1)
        return torch.cat([leaf, extra * float("nan") if leaf.is_floating_point() else extra], 1)

    there = torch.ones(batch.y.shape[:2], dtype=torch.bool) if batch.mask is None else batch.mask
    mask = torch.cat([there, torch.zeros_like(there[:, :1]).repeat(1, 2)], 1)
    return Batch(mapped(longer, batch.x), longer(batch.y), mask, batch.seed)


def check_masks(case: Case) -> None:
    """Examples that are masked out change neither results nor gradients, even where they are NaN."""
    padded = case._replace(episodes=Episodes(*(_padded(batch) for batch in case.episodes)))
    plain, result = run(case), run(padded)
    there = plain.outputs.shape[1]
    seen = [result.adapted.params, result.outputs[:, :there], result.losses]
    gap = error(seen, [plain.adapted.params, plain.outputs, plain.losses])
    require(gap <= ROUNDING, "masks", f"examples that are masked out change the result by {gap:.2g} (relative)")
    gap = error(gradient_of(padded), gradient_of(case))
    require(
        gap <= ROUNDING,
        "masks",
        f"examples that are masked out (NaN here) change the meta-gradient by {gap:.2g} (relative)",
    )


def check_order(case: Case) -> None:
    """The order of the support examples does not matter."""
    support = case.episodes.support
    x, y, mask = mapped(lambda leaf: leaf.flip(1), (support.x, support.y, support.mask))
    flipped = case._replace(episodes=case.episodes._replace(support=Batch(x, y, mask, support.seed)))
    gap = error(run(flipped).outputs, run(case).outputs)
    require(gap <= ROUNDING, "order", f"reversing the support examples changes predictions by {gap:.2g} (relative)")
