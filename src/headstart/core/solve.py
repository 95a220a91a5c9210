"""The only inner loop: T steps of a rule on the support loss, for B tasks at once."""

from collections.abc import Iterable

import torch

from headstart.core.adjoints import Adjoint
from headstart.core.rules import Rule
from headstart.core.step import Given, Inner, Step, SupportLoss
from headstart.errors import UsageError
from headstart.types import Info, Params


def solve(
    support_loss: SupportLoss,
    start: Inner,
    given: Given,
    rule: Rule,
    adjoint: Adjoint,
    steps: int,
    first: int = 0,
    direct: bool = False,
) -> tuple[Inner, Info]:
    """Return the state after ``steps`` inner steps (see `Step`) and the support losses before each, ``(steps, B)``.

    Steps are numbered from ``first`` on; ``direct`` as for `Step`. The result is differentiable as the adjoint says;
    where gradients are off, nothing is remembered.
    """
    if steps < 0:
        raise UsageError(f"the number of inner steps must be 0 or more, got {steps}")
    end, losses = adjoint(Step(support_loss, rule, first, direct), given, start, steps)
    like = next(iter(start.params.values()))
    return end, Info(torch.stack(losses) if losses else like.new_zeros(0, like.shape[0]))


def expanded(params: Params, names: Iterable[str], tasks: int) -> Params:
    """Return the named parameters with a task axis, ``(tasks, *shape)``, all tasks starting from the same values."""
    wanted = set(names)
    return {name: value.expand(tasks, *value.shape) for name, value in params.items() if name in wanted}
