"""The contract of an `Adjoint`."""

from typing import NamedTuple

import torch
from torch import Tensor

from headstart.core.adjoints import Adjoint, Unrolled
from headstart.core.inner import Given, Inner, solve
from headstart.core.rules import chain, momentum, scale
from headstart.core.tree import tensors_of
from headstart.testing.contract import finite, require, require_close
from headstart.types import Info, Params

TASKS = 3

_RULE = chain(momentum(0.5), scale(0.1, learn=True))


class _Problem(NamedTuple):
    """A small inner problem: what moves ``(B, 4)``, a parameter that stays ``(4, 4)``, and M."""

    start: Params
    shared: Tensor
    structure: Params


def check_adjoint(adjoint: Adjoint, *, steps: tuple[int, ...] = (0, 1, 2, 5)) -> None:
    """Check that an adjoint keeps its promises, on an inner problem with momentum, a learned rate and buffers.

    - values: the adapted parameters, rule state, buffers and losses are those of `Unrolled`, also without gradients.
    - exact, where ``adjoint.exact``: so are the derivatives with respect to what adaptation starts from, to the
      parameters that stay, to M and to the buffers. Else they are finite.
    - lean: where gradients are off, nothing keeps a history; the losses never do.

    Args:
        adjoint: the adjoint.
        steps: the numbers of inner steps to try.

    Raises:
        ContractError: the contract that is broken, by how much, and what that means.

    >>> from headstart import Checkpointed
    >>> check_adjoint(Checkpointed(every=2))
    """
    for count in steps:
        problem, after = _problem(), f"after {count} steps"
        _, info = ours = _solve(adjoint, problem, count)
        expected = _solve(Unrolled(), problem, count)
        require_close(ours, expected, "values", f"{adjoint} and Unrolled() adapt differently {after}", 1e-12)
        require(not info.support_loss.requires_grad, "lean", f"{adjoint} keeps the history of the losses")
        require(tuple(info.support_loss.shape) == (count, TASKS), "values", f"{adjoint} gives losses of other shapes")
        with torch.no_grad():
            end, _ = ours = _solve(adjoint, problem, count)
        require_close(ours, expected, "values", f"{adjoint} adapts differently when gradients are off", 1e-12)
        lean = count == 0 or not any(t.requires_grad for t in tensors_of(end))
        claim = f"{adjoint} keeps a history where gradients are off; adapting would use the memory of training"
        require(lean, "lean", claim)
        found = _derivatives(adjoint, count)
        require(finite(found), "finite", f"{adjoint} gives NaN or infinite derivatives {after}")
        if adjoint.exact:
            claim = f"{adjoint} says that it is exact, but its derivatives {after} are not"
            require_close(found, _derivatives(Unrolled(), count), "exact", claim)


def _problem() -> _Problem:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    return _Problem({"w": draw(TASKS, 4), "b": draw(TASKS, 4)}, draw(4, 4), {"rate": draw() + 0})


def _solve(adjoint: Adjoint, problem: _Problem, steps: int) -> tuple[Inner, Info]:
    def support_loss(given: Given, params: Params, buffers: Params, step: int) -> tuple[Tensor, Params]:
        hidden = torch.tanh(params["w"] @ given.params["shared"] + params["b"] * (1 + step)) + buffers["seen"]
        return hidden.square().mul(params["w"].cos()).sum(1), {"seen": 0.9 * buffers["seen"] + 0.1 * hidden}

    state, seen = _RULE.state(problem.structure, problem.start, None), torch.zeros_like(problem.start["w"])
    given = Given(problem.structure, {"shared": problem.shared})
    return solve(support_loss, Inner(problem.start, state, {"seen": seen}), given, _RULE, adjoint, steps)


def _derivatives(adjoint: Adjoint, steps: int) -> list[Tensor]:
    problem = _problem()
    end, _ = _solve(adjoint, problem, steps)
    value = torch.stack([(t.sin() + t.square()).sum() for t in tensors_of(end)]).sum()
    leaves = tensors_of([problem.start, problem.shared, problem.structure])
    return list(torch.autograd.grad(value, leaves, materialize_grads=True))
