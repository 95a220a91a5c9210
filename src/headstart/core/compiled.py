"""The meta-gradient as one compiled program.

The whole computation, the inner steps with their derivatives and the outer derivative, is recorded once as a list of
tensor operations, and compiled. Every derivative is taken while recording, so the program holds no function that is
differentiated from outside (which ``torch.compile`` refuses for second derivatives), and it computes what the
uncompiled meta-gradient computes, operation by operation. It is recorded anew for other shapes.
"""

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch._inductor
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from headstart.core.objective import backprop
from headstart.core.taskmap import first_line
from headstart.types import Batch, Episodes, Info, Learner, Meta

logger = logging.getLogger("headstart")

#: A learner that changes while it learns is compiled for so many of its forms, and no more.
FORMS = 4


class Program(NamedTuple):
    """A compiled meta-gradient for inputs of certain shapes."""

    run: Callable[..., Any]
    """``(tensors) -> the gradients of θ and of M, and what there is of `Info```."""
    told: tuple[bool, ...]
    """Which fields of `Info` there are."""
    operations: int
    seconds: float
    """That recording and compiling took."""


def compiled(learner: Learner) -> Learner:
    """Return the learner with its meta-gradient compiled by TorchInductor, for each shape of its inputs once.

    Worth it where operations are small and steps many: compiling takes seconds for a small network and minutes for
    a convolutional one (it is kept on disk between runs). Learners whose gradient is not by back-propagation, whose
    computation depends on values, or that cannot be compiled on this machine (it needs a C++ compiler), stay as they
    are, and one line of the log says why.

    >>> import headstart, torch
    >>> from headstart.core.compiled import compiled
    >>> learner = compiled(headstart.maml(torch.nn.Linear(2, 1), loss="mse", steps=1))
    """
    if learner.gradient is not backprop:
        logger.info("not compiled: this learner's meta-gradient is not by back-propagation")
        return learner
    gradient, during = _Compiled(), learner.during
    if during is None:
        return learner._replace(gradient=gradient)
    return learner._replace(
        gradient=gradient,
        during=lambda done: _with_gradient(during(done), gradient),  # the same programs throughout
    )


def _with_gradient(learner: Learner, gradient: "_Compiled") -> Learner:
    return learner._replace(gradient=gradient) if learner.gradient is backprop else learner


class _Compiled:
    """The `MetaGradient` that compiles `backprop` for every shape that it meets."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # threads wait for the one that compiles
        self.programs: dict[Any, Program | None] = {}
        # the learners compiled for, so that none is forgotten and another one taken for it
        self.learners: list[tuple[Any, ...]] = []

    def __call__(self, learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Meta, Info]:
        with self.lock:
            form = self._form(learner)
        if form is None:
            return backprop(learner, meta, episodes)
        tensors = [leaf.detach().contiguous() for leaf in _tensors(meta, episodes)]
        shapes = tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in tensors)
        key = (form, shapes, *map(tuple, meta), *map(_layout, episodes), torch.get_num_threads())
        with self.lock:
            if key not in self.programs:
                self.programs[key] = _made(learner, meta, episodes, tensors)
        program = self.programs[key]
        if program is None:
            return backprop(learner, meta, episodes)
        with torch.no_grad():
            found = iter(program.run(*tensors))
        gradient = Meta(*({name: next(found) for name in part} for part in meta))
        return gradient, Info(*(next(found) if there else None for there in program.told))

    def _form(self, learner: Learner) -> int | None:
        """Return the number of this form of the learner; ``None`` where there have been too many."""
        parts = tuple(part for name, part in learner._asdict().items() if name not in ("gradient", "during"))
        for number, known in enumerate(self.learners):
            if all(a is b or a == b for a, b in zip(known, parts)):
                return number
        if len(self.learners) == FORMS:
            logger.warning("no longer compiled: the learner changes at every step")
        if len(self.learners) >= FORMS:
            self.learners = self.learners[: FORMS + 1]
            return None
        self.learners.append(parts)
        return len(self.learners) - 1


def _tensors(meta: Meta, episodes: Episodes) -> list[Tensor]:
    leaves = [*meta.params.values(), *meta.structure.values()]
    for batch in episodes:
        leaves.extend([batch.x] if isinstance(batch.x, Tensor) else tree_leaves(batch.x))
        leaves.extend(part for part in batch[1:] if part is not None)
    return leaves


def _layout(batch: Batch) -> tuple[Any, ...]:
    """Return what of a batch is not said by its tensors: which there are, and how the inputs are nested."""
    nesting = None if isinstance(batch.x, Tensor) else str(tree_flatten(batch.x)[1])
    return (nesting, *(part is None for part in batch[1:]))


def _rebuilt(meta: Meta, episodes: Episodes, tensors: Iterable[Tensor]) -> tuple[Meta, Episodes]:
    left = iter(tensors)
    own = Meta(*({name: next(left) for name in part} for part in meta))
    batches = []
    for batch in episodes:
        x = tree_map(lambda _: next(left), batch.x)
        batches.append(Batch(x, *(None if part is None else next(left) for part in batch[1:])))
    return own, Episodes(*batches)


def _made(learner: Learner, meta: Meta, episodes: Episodes, tensors: list[Tensor]) -> Program | None:
    before = torch.get_rng_state()
    # once as it is: it checks the data and the model, and lets the task map choose
    backprop(learner, meta, episodes)
    if not torch.equal(before, torch.get_rng_state()):
        torch.set_rng_state(before)  # as if there had been no trial
        logger.warning("not compiled, running as it is: the model draws from PyTorch's global generator")
        return None
    start = time.perf_counter()
    try:
        program = _program(learner, meta, episodes, tensors)
    except Exception as error:  # whatever a compiler may raise, the uncompiled way is there
        logger.warning("not compiled, running as it is: %s: %s", type(error).__name__, first_line(error))
        return None
    seconds = time.perf_counter() - start
    logger.info("compiled the meta-gradient: %d operations in %.1f s", program.operations, seconds)
    return program._replace(seconds=seconds)


def _program(learner: Learner, meta: Meta, episodes: Episodes, tensors: list[Tensor]) -> Program:
    told: list[bool] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        gradient, info = backprop(learner, *_rebuilt(meta, episodes, tensors))
        told[:] = [part is not None for part in info]
        return [*gradient.params.values(), *gradient.structure.values(), *(part for part in info if part is not None)]

    # of copies, since what is recorded is also run, and may write into its inputs
    graph = make_fx(flat, tracing_mode="real")(*(tensor.clone() for tensor in tensors))
    for node in graph.graph.nodes:
        node.meta.clear()  # what recording found of the copies; the compiler looks for itself
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        run = torch._inductor.compile(graph, list(tensors), options={"cpp_wrapper": tensors[0].device.type == "cpu"})
        run(*tensors)  # compiles what is left to the first call
    operations = sum(node.op == "call_function" for node in graph.graph.nodes)
    return Program(run, tuple(told), operations, 0.0)
