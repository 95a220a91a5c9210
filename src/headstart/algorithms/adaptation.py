"""Adaptation by gradient steps: the functions of every learner that `maml` makes.

θᵢ = the start, then T times θᵢ ← θᵢ − rule(∇ loss on the support set Sᵢ), for B tasks at once.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from headstart.core import losses
from headstart.core.adjoints import Adjoint, FirstOrder
from headstart.core.inference import ordinary, out_of_inference_mode
from headstart.core.inner import Given, Inner, expanded, gradients, solve
from headstart.core.losses import present
from headstart.core.rules import Rule
from headstart.core.rules.rule import merged_structure
from headstart.engine.replayed_loops import ReplayedLoops
from headstart.errors import UsageError
from headstart.forward.functional import Functional
from headstart.forward.task_map import OpaqueError
from headstart.types import Adapted, Batch, Info, Meta, Params, Tree

Gradient: TypeAlias = Callable[[Params], Params]
"""``params (B, *shape) -> every task's gradient of its support loss`` with respect to those that move."""


def uniform(shape: Sequence[int], bound: float, like: Tensor, generator: Generator | None) -> Tensor:
    """Return numbers from −``bound`` to ``bound``, of the type of ``like`` and where it is."""
    # drawn on the CPU, so that a seed means the same numbers on every device
    draw = torch.rand(tuple(shape), generator=generator, dtype=torch.float64)
    return ((2 * draw - 1) * bound).to(like)


class Start(NamedTuple):
    """Changes the parameters of a task before the first inner step."""

    values: Callable[[Params, Params, Params, Batch, Gradient], Params]
    """``(M, params, shared, support, gradient) -> params``: those that move and the context, each ``(B, *shape)``;
    ``shared`` are the model's others, without a task axis, and become each task's own where they are returned."""
    structure: Callable[[Params, Generator | None], Params]
    """``(params, generator) -> the part of M that it learns``, from parameters without a task axis."""
    shown: Callable[[Params], Params] = lambda m: {}
    """``M -> its part of M in the units in which it acts``, for reports."""


class Now(NamedTuple):
    """The tasks' models as they are before an inner step: where what is learned from goes by what is learned."""

    params: Params
    """All parameters, those of a task ``(B, *shape)``."""
    predict: Callable[[Tree], Tensor]
    """``x (B, n, *features) -> outputs (B, n, *outputs)``: to choose examples, or to act and see what comes of it."""


class InnerLoss(NamedTuple):
    """What adaptation lowers on the support set, where that is not the learner's own loss."""

    loss: Callable[[Params, Tensor, Batch, int, Now], Tensor]
    """``(M, outputs, support, step, now) -> (B,)``; ``outputs`` are those of the step's examples."""
    structure: Callable[[Params, Generator | None], Params]
    """``(params, generator) -> the part of M that it learns``."""


#: The dropout pass of the query set; inner step t is pass t.
QUERY_DRAW = 2**31


@dataclass(frozen=True)
class Adaptation:
    """The parts of a learner, and its functions."""

    model: Functional
    moving: frozenset[str]
    """The names of the parameters that adaptation moves."""
    rule: Rule
    task_loss: losses.TaskLoss
    adjoint: Adjoint
    steps: int
    examples: Callable[[Batch, int, Now], Batch] | None
    start: Start | None
    inner_loss: InnerLoss | None
    halves: tuple[Functional, Functional] | None
    """The model in two: what does not move, computed once for a support set, and the rest, at every step."""
    replayed: ReplayedLoops = field(default_factory=ReplayedLoops, init=False, compare=False, repr=False)
    """The records of its steps without derivatives, which are its own."""

    def init(self, generator: Generator | None = None) -> Meta:
        """Return θ and M to start meta-training from."""
        model, params = self.model, tree_map(Tensor.clone, self.model.params)
        moved = {name: value for name, value in {**params, **model.context}.items() if name in self.moving}
        parts = {
            "the module": tree_map(Tensor.clone, model.structure),
            "the rule": self.rule.structure(moved, generator),
        }
        for name, variant in (("the start", self.start), ("the inner loss", self.inner_loss)):
            parts[name] = {} if variant is None else variant.structure({**moved, **model.context}, generator)
        return Meta(params, merged_structure(parts))

    @out_of_inference_mode
    def adapt(self, meta: Meta, support: Batch, /, steps: int | Tensor | None = None) -> tuple[Adapted, Info]:
        """Take ``steps`` inner steps, by default the learner's own number, or each task its own, ``(B,)``."""
        if not isinstance(steps, Tensor):
            return next(self.path(meta, support, (self.steps if steps is None else steps,)))
        tasks = len(support.y)
        if steps.shape != (tasks,) or steps.is_floating_point() or (tasks and int(steps.min()) < 0):
            raise UsageError(
                f"steps by task are whole numbers ({tasks},) from 0 up, got {steps.dtype} {[*steps.shape]}"
            )
        if self.model.stepped:
            raise UsageError(
                "a module with parts for each inner step (Stepped) takes one number of steps for all tasks"
            )
        return next(self.path(meta, support, (int(steps.max()),), own=steps))

    @out_of_inference_mode
    def path(
        self,
        meta: Meta,
        support: Batch,
        /,
        stops: Sequence[int] | None = None,
        detached: bool = False,
        own: Tensor | None = None,
    ) -> Iterator[tuple[Adapted, Info]]:
        """Take the inner steps as they are asked for, and yield what has been reached at each of the stops.

        Where each task has its ``own`` number of steps, it stays as it is after so many.
        """
        meta, support = ordinary(meta), ordinary(support)
        support, wanted = self._prepared(meta, support)
        # where nobody asks for a derivative, nothing is kept for one
        with torch.set_grad_enabled(wanted):
            inner, given, fixed = self._begin(meta, support)
        given = given._replace(steps=own)
        taken, loop = 0, None if wanted else self.replayed
        for stop in range(self.steps + 1) if stops is None else stops:
            with torch.set_grad_enabled(wanted):
                inner = tree_map(Tensor.detach, inner) if detached else inner
                inner, info = solve(self.support_loss, inner, given, self.rule, self.adjoint, stop - taken, taken, loop)
            taken = stop
            yield Adapted(meta, {**fixed, **inner.params}, inner.buffers, support.seed, taken), info

    def predict(self, adapted: Adapted, x: Tree) -> Tensor:
        """Return the adapted models' outputs."""
        params = {**self._shared(adapted.meta), **adapted.params}
        options = {"seed": adapted.seed, "draw": QUERY_DRAW, "step": adapted.step}
        return self.model.apply(params, adapted.buffers, x, phase="query", **options)[0]

    def shown(self, meta: Meta) -> Params:
        """Return M in the units in which it acts."""
        parts = (self.model, self.rule, *([] if self.start is None else [self.start]))
        return {name: value for part in parts for name, value in part.shown(meta.structure).items()}

    def _prepared(self, meta: Meta, support: Batch) -> tuple[Batch, bool]:
        """Return the support set as it is there, and whether anybody asks for a derivative."""
        support = present(support)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for part in meta for t in part.values())
        if wanted and not isinstance(self.adjoint, FirstOrder):
            self.model.certify(support.x)
        return support, wanted

    def _shared(self, meta: Meta) -> Params:
        """Return what of θ and M the model computes with."""
        return {**meta.params, **{name: meta.structure[name] for name in self.model.structure}}

    def _begin(self, meta: Meta, support: Batch) -> tuple[Inner, Given, Params]:
        """Return where the tasks start, what the steps are given, and what of it is each task's own."""
        model, tasks, shared = self.model, support.y.shape[0], self._shared(meta)
        start = model.laid_out(meta.params, support.x)
        own = {**expanded(start, self.moving, tasks), **expanded(model.context, model.context, tasks)}
        buffers = expanded(model.buffers, model.buffers, tasks)
        if self.start is not None:
            gradient = partial(self._gradient, Given(meta.structure, {**shared, **own}, support), buffers)
            found = self.start.values(meta.structure, own, shared, support, gradient)
            # as tensors of their own: an inner gradient holds the others still, also those computed from them
            own = {name: value.view_as(value) for name, value in found.items()}
        moved = {name: value for name, value in own.items() if name in self.moving}
        fixed = {name: value for name, value in own.items() if name not in self.moving}
        still = {name: value for name, value in {**shared, **fixed}.items() if name not in moved}
        state = self.rule.state(meta.structure, moved, support)
        features = None
        if self.halves is not None:
            trunk, rest = self.halves
            with contextlib.suppress(OpaqueError):  # then the whole model is computed at every step
                features = trunk.apply(_named(trunk, still), {}, support.x, seed=support.seed)[0]
                # what a layer hands to the next is one argument, whatever it is
                features = features if isinstance(features, Tensor) else (features,)
                still = _named(rest, still) if self.inner_loss is None else still  # which may ask for all of it
        return Inner(moved, state, buffers), Given(meta.structure, still, support, features=features), fixed

    def support_loss(self, given: Given, moved: Params, buffers: Params, step: int) -> tuple[Tensor, Params]:
        """The `SupportLoss` of the inner steps."""
        whole, before = {**given.params, **moved}, buffers

        def predict(x: Tree) -> Tensor:
            return self.model.apply(whole, before, x, seed=given.support.seed, draw=step, step=step)[0]

        now = Now(whole, predict)
        batch = given.support if self.examples is None else self.examples(given.support, step, now)
        # a loss may look into the batch, so the features are no part of it
        model, x, params = self.model, batch.x, whole
        if self.halves is not None and given.features is not None:
            model, x, params = self.halves[1], given.features, _named(self.halves[1], whole)
        outputs, buffers = model.apply(params, buffers, x, seed=batch.seed, draw=step, step=step)
        if self.inner_loss is None:
            return self.task_loss(outputs, batch), buffers
        losses.refuse_padding(batch, self.model.batch_statistics)
        return self.inner_loss.loss(given.structure, outputs, batch, step, now), buffers

    def _gradient(self, given: Given, buffers: Params, params: Params) -> Params:
        """Return every task's gradient of its support loss with respect to what moves."""
        moved = {name: params[name] for name in params if name in self.moving}
        exact = self.adjoint.exact and torch.is_grad_enabled()
        return gradients(self.support_loss, given, Inner(moved, {}, buffers), 0, create_graph=exact)[1]


def _named(model: Functional, params: Params) -> Params:
    return {name: params[name] for name in model.leaves if name in params}
