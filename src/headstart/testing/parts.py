"""The contracts of the parts of an inner loop: an update `Rule`, and an `Adjoint`."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_flatten

from headstart.core.adjoints import Adjoint, Unrolled
from headstart.core.inner import Given, Inner, solve
from headstart.core.rules import Rule, chain, momentum, scale
from headstart.core.tree import mapped, tensors_of
from headstart.forward.functional import functional
from headstart.testing import contract as kit
from headstart.testing.contract import generator_state, require, require_close, same_bits
from headstart.types import Batch, Info, Params, Tree

TASKS = 3


class _Case(NamedTuple):
    rule: Rule
    given: dict[str, Params]
    """M (structure), what moves ``(B, *shape)`` (params), and the gradients of each step."""
    seed: Tensor
    """Of every task."""


def check_rule(
    rule: Rule, *, module: nn.Module | None = None, steps: int = 3, directions: int = 3, tolerance: float = 1e-6
) -> None:
    """Check that an inner update rule keeps its promises over ``steps`` steps with random gradients.

    - moves: it moves parameters that are there, and some.
    - structure: its part of M depends on θ and the generator alone.
    - state: every tensor has the task axis first, and keeps its shape and type from step to step.
    - shapes: the step has the names, shapes and types of the gradients, and is finite.
    - pure: it writes into nothing that it is given.
    - isolated: a task's steps are the same alone and beside other tasks.
    - exact, where ``rule.exact``: the derivatives of the steps with respect to gradients, parameters and M, through
      the states of all steps, agree with central differences.
    - zero: where a task's gradients are zero (a dead ReLU, an input of zeros), first and second derivatives are finite.

    Args:
        rule: the rule.
        module: what it is to move the parameters of, where it chooses by name or type; by default a small network
            with the layers ``body`` (Linear), ``norm`` (LayerNorm) and ``head`` (Linear).
        steps: how many steps to take.
        directions, tolerance: of the central differences; see `check_derivative`.

    Raises:
        ContractError: the contract that is broken, by how much, and what that means.

    >>> from headstart import rules
    >>> check_rule(rules.chain(rules.clip(norm=1.0), rules.momentum(decay=0.9), rules.scale(0.1, learn=True)))
    """
    case = _case(rule, _small() if module is None else module, steps)
    _check_state(case)
    _check_steps(case)
    _check_isolated(case)
    if rule.exact:
        _check_exact(case, directions, tolerance)
    _check_zero(case)


def _small() -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(body=nn.Linear(3, 4), norm=nn.LayerNorm(4), head=nn.Linear(4, 2))
    return nn.Sequential(layers)


def _case(rule: Rule, module: nn.Module, steps: int) -> _Case:
    function = functional(module)
    moving = rule.moves(function.leaves)
    strange = sorted(moving - function.leaves.keys())
    require(not strange, "moves", f"it moves {', '.join(strange)}, which are no parameters")
    require(bool(moving), "moves", "it moves nothing")
    generator = torch.Generator().manual_seed(0)
    theta = {name: _random(leaf.shape, generator) for name, leaf in function.leaves.items() if name in moving}
    params = {name: _random((TASKS, *value.shape), generator) for name, value in theta.items()}
    gradients = [{k: _random(v.shape, generator) for k, v in params.items()} for _ in range(steps)]
    before = generator_state()
    structure, again = (rule.structure(theta, torch.Generator().manual_seed(1)) for _ in range(2))
    require(same_bits(structure, again), "structure", "two generators of one seed give two different parts of M")
    require(generator_state() == before, "structure", "it draws from a global generator, not from the one it is given")
    by_step = {f"the gradients of step {number}": one for number, one in enumerate(gradients)}
    return _Case(rule, {"structure": structure, "params": params, **by_step}, torch.arange(TASKS))


def _random(shape: Sequence[int], generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _steps(case: _Case) -> tuple[list[Params], list[Tree]]:
    structure, params, *by_step = case.given.values()
    updates, states = [], [case.rule.state(structure, params, Batch(None, case.seed, seed=case.seed))]
    for number, gradients in enumerate(by_step):
        moved, state = case.rule.update(structure, states[-1], gradients, params, number)
        params = {name: value - moved[name] for name, value in params.items()}
        updates.append(moved)
        states.append(state)
    return updates, states


def _check_state(case: _Case) -> None:
    described = []
    for state in _steps(case)[1]:
        leaves, shape = tree_flatten(state)
        described.append(([(leaf.shape, leaf.dtype) for leaf in leaves if isinstance(leaf, Tensor)], shape))
        for leaf in leaves:
            fits = isinstance(leaf, Tensor) and leaf.shape[:1] == (TASKS,)
            got = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            require(fits, "state", f"it holds {got}, but must hold tensors with the {TASKS} tasks as first axis")
    changed = [number for number, one in enumerate(described) if one != described[0]]
    require(not changed, "state", f"its shapes, types or names change at step {(changed or [0])[0]}")


def _check_steps(case: _Case) -> None:
    before, generators = kit.copied(case.given), generator_state()
    updates = _steps(case)[0]
    require(same_bits(before, case.given), "pure", "the rule writes into M, the parameters or the gradients")
    require(generator_state() == generators, "pure", "the rule draws from a global generator")
    for number, update in enumerate(updates):
        # gradients are as the parameters are
        got, expected = ({k: (tuple(v.shape), v.dtype) for k, v in one.items()} for one in (update, before["params"]))
        require(got == expected, "shapes", f"step {number} is {got}, but the gradients are {expected}")
    require(kit.finite(updates), "shapes", "a step holds NaN or infinity")


def _check_isolated(case: _Case) -> None:
    together = _steps(case)
    for task in range(TASKS):
        own = {what: part if what == "structure" else kit.take(part, [task]) for what, part in case.given.items()}
        claim = f"task {task} moves differently when it is alone"
        alone = _steps(_Case(case.rule, own, case.seed[[task]]))
        require_close(alone, kit.take(together, [task]), "isolated", claim, 1e-12)


def _total(case: _Case) -> Tensor:
    updates, states = _steps(case)
    generator = torch.Generator().manual_seed(2)
    parts = tensors_of([updates, states[-1]])
    return torch.stack([(_random(part.shape, generator) * part).sum() for part in parts]).sum()


def _derivative(case: _Case, create_graph: bool = False) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    leaves = mapped(lambda leaf: leaf.detach().clone().requires_grad_(), case.given)
    given = tensors_of(leaves)
    # the steps of a rule may not depend on anything at all, as those of a constant
    total = _total(case._replace(given=leaves)) + 0 * given[0].sum()
    return given, torch.autograd.grad(total, given, create_graph=create_graph, materialize_grads=True)


def _check_exact(case: _Case, directions: int, tolerance: float) -> None:
    gradients = iter(_derivative(case)[1])
    exact = mapped(lambda leaf: next(gradients), case.given)
    for what, point in case.given.items():

        def total(values: Params, what: str = what) -> float:
            with torch.no_grad():
                return _total(case._replace(given=case.given | {what: values})).item()

        if point:
            how: dict[str, Any] = {"directions": directions, "tolerance": tolerance}
            kit.check_derivative(total, point, exact[what], contract=f"exact in {what}", **how)


def _check_zero(case: _Case) -> None:
    still = {
        what: part if what in ("structure", "params") else {k: torch.cat([0 * v[:1], v[1:]]) for k, v in part.items()}
        for what, part in case.given.items()
    }
    given, first = _derivative(case._replace(given=still), create_graph=True)
    meaning = "one weight without a gradient would make the whole meta-gradient NaN"
    require(kit.finite(first), "zero", f"the derivative is NaN or infinite where a task's gradient is zero; {meaning}")
    total = torch.stack([g.sum() for g in first]).sum()
    if total.requires_grad:
        second = torch.autograd.grad(total, given, materialize_grads=True)
        require(kit.finite(second), "zero", f"the second derivative is NaN or infinite at a zero gradient; {meaning}")


_RULE = chain(momentum(decay=0.5), scale(0.1, learn=True))


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
        require(kit.finite(found), "finite", f"{adjoint} gives NaN or infinite derivatives {after}")
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

    seen = torch.zeros_like(problem.start["w"])
    state = _RULE.state(problem.structure, problem.start, Batch(None, seen))
    given = Given(problem.structure, {"shared": problem.shared})
    return solve(support_loss, Inner(problem.start, state, {"seen": seen}), given, _RULE, adjoint, steps)


def _derivatives(adjoint: Adjoint, steps: int) -> list[Tensor]:
    problem = _problem()
    end, _ = _solve(adjoint, problem, steps)
    value = torch.stack([(t.sin() + t.square()).sum() for t in tensors_of(end)]).sum()
    leaves = tensors_of([problem.start, problem.shared, problem.structure])
    return list(torch.autograd.grad(value, leaves, materialize_grads=True))
