"""A module as a pure function of its parameters, mapped over tasks.

`functional` reads an ordinary ``nn.Module`` once and returns its parameters by name and an ``apply`` that runs B tasks,
each with parameters of its own or shared ones. The module itself is never called or changed: ``apply`` runs a private
copy of its structure without weights, into which the tensors are handed. Tied weights stay one parameter.

Only the forward pass is mapped over tasks; gradients are taken outside, of the sum of the tasks' losses, with
respect to leaves that have a task axis. Differentiating ``vmap(torch.func.grad(...))`` instead gives silently wrong
second derivatives through batch, instance and layer normalisation.
"""

import contextlib
import functools
import logging
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from math import prod
from operator import itemgetter
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from headstart.core import tree
from headstart.core.inference import ordinary, out_of_inference_mode
from headstart.core.parameters import Leaf, Role, Stepped, Structural, matches, role_of
from headstart.core.process import KEPT, PLAIN_ATTENTION, WITHOUT_CUDNN, casting, put_back
from headstart.core.tree import mapped
from headstart.errors import DifferentiationError, ShapeError, UsageError, check_known, unknown_name
from headstart.forward.over_tasks import over_tasks
from headstart.forward.second_derivatives import certified, doubled
from headstart.forward.skeleton import (
    Skeleton,
    batch_normalised,
    is_known,
    refuse_untwiceable,
    statistics_of,
    without_weights,
)
from headstart.forward.task_map import TROUBLE, OneTask, OpaqueError, TaskMap, auto, first_line, in_turn, loop, vmap
from headstart.forward.unseen import Exact, Seen, is_traced, misbatched, seen
from headstart.types import Params, Tree

logger = logging.getLogger("headstart")

BufferPolicy: TypeAlias = Literal["batch", "frozen", "task"]
Buffers: TypeAlias = BufferPolicy | Mapping[str, BufferPolicy]
Phase: TypeAlias = Literal["support", "query"]
Precision: TypeAlias = Literal["full", "bf16"]


class Functional(NamedTuple):
    """A module as a pure function."""

    params: Params
    """θ: the module's trainable tensors, copied; a tied one once."""
    structure: Params
    """The module's part of M: the trainable tensors inside `Structural` modules, copied."""
    context: Params
    """What every task starts anew from: the trainable tensors inside `Context` modules, copied."""
    buffers: Params
    """The buffers of which every task has its own copy (policy ``"task"``), copied."""
    leaves: dict[str, Leaf]
    """What is known of each trainable tensor: its shape, and the type of the module that holds it."""
    apply: "Apply"
    """The forward pass of B tasks."""
    batch_statistics: str
    """The path of a layer that normalises by the examples of a batch together; empty where there is none."""
    certify: Callable[[Tree], None]
    """``certify(x)``: check once, on the first task's inputs, that second derivatives exist and are right."""
    shown: Callable[[Params], Params]
    """``M -> the module's part of M`` in the units in which it acts."""
    laid_out: Callable[[Params, Tree], Params]
    """``(params, x) -> params`` with their numbers in the order in memory that suits passes over ``x``."""
    stepped: bool
    """Whether a part of it goes by the number of inner steps taken."""


#: The layers that work on images of a task. On a CPU, they are up to ten times faster where the channels of a pixel lie
#: beside each other in memory ("channels last"), which changes nothing but the speed, and rounding.
IMAGES = (nn.Conv2d, nn.ConvTranspose2d)

#: From so many numbers of a task's widest feature map on, a CPU is kept busy by one task.
LARGE = 2**16

#: So many examples are enough to see whether a module's second derivatives are right.
FEW = 4

#: What PyTorch says where inputs do not fit a model.
_MISFITS = (
    r"channels, but got|shapes cannot be multiplied|size mismatch|must match the size|same dtype"
    r"|dtypes must be the same|Expected size for"
)

#: What PyTorch says where it cannot map a module.
_OF_VMAP = r"vmap|functorch|[Bb]atching rule|doesn't have storage"

Apply: TypeAlias = Callable[..., tuple[Tensor, Params]]
"""``apply(params, buffers, x, *, seed=None, draw=0, step=0, phase="support") -> (outputs, buffers)``

``params``: all of the module's trainable tensors (θ, M and context), each ``(*shape)`` (shared) or ``(B, *shape)``;
``buffers``: each ``(B, *shape)``; ``x``: ``(B, n, *features)``, a tensor, or a tuple or dict of them (the module's
arguments); ``seed``: ``(B,)`` switches dropout on, ``draw`` counts the passes; ``step``: inner steps taken so far, for
modules that are `Stepped`; outputs are ``(B, n, *outputs)``.
"""


@out_of_inference_mode
def functional(
    module: nn.Module,
    *,
    buffers: Buffers = "batch",
    taskmap: str | TaskMap = "auto",
    precision: Precision = "full",
    training: bool = True,
    check: bool = True,
    read: "Callable[[Tree], Tree] | None" = None,
) -> Functional:
    """Return ``module`` as a pure, task-batched function.

    Args:
        module: any module; its trainable tensors are θ, and are copied. Those with ``requires_grad=False`` are
            constants and stay shared with the module, since a frozen trunk may be large: do not change them.
        buffers: what normalisation layers do with running statistics, for all, or by name pattern:
            ``"batch"`` normalises by the current batch and keeps nothing (in MAML: transductive), but for layers
            that are frozen and in evaluation mode, which go by the module's own statistics;
            ``"frozen"`` uses the module's own statistics; ``"task"`` gives every task a copy that its support set
            updates and its query set uses. Buffers of other layers are constants unless a pattern says ``"task"``.
        taskmap: ``"auto"``, ``"vmap"``, ``"loop"``, or a function with their interface.
        precision: ``"full"``: that of the parameters; ``"bf16"``: products and convolutions, and their derivatives,
            in bfloat16, with parameters and outputs as they are (PyTorch's autocast).
        training: whether a pass with a seed (one of `fit`) is in training mode, in which dropout drops; passes without
            one (those of `evaluate`, `adapt` and `predict`) are in evaluation mode always.
        check: whether to refuse what has no right second derivative. What a module detaches, on purpose, is held still
            and needs no leave; a custom autograd function whose backward pass is not meant to be its derivative does:
            without a check, the derivatives are those of the operations as they are.
        read: ``what the module returns -> outputs``, by default `one_tensor`; `structured` lets any structure through.

    A pass is always a first one: what it sets on the module's layers, or puts into lists, dicts and objects that they
    hold, is forgotten, but for buffers whose policy is ``"task"``. Of classes and of global names only dicts and the
    caches of methods are.

    Raises:
        DifferentiationError: a layer has no second derivative, or cannot be mapped as asked.
        UsageError: a pattern that matches no buffer.
    """
    check_known("precision", precision, ("full", "bf16"))
    refuse_untwiceable(module, check)
    policies, read = _policies(module, buffers), read or one_tensor
    task_map = _resolve(taskmap, module)
    trainable = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    constants = {name: ordinary(p.detach()) for name, p in module.named_parameters() if not p.requires_grad}
    per_task: Params = {}
    for name, buffer in module.named_buffers():
        if policies[name] == "task":
            per_task[name] = buffer.detach().clone()
        elif policies[name] == "frozen":
            constants[name] = buffer.detach().clone()
    context = _forward_context(module)
    leaves = _leaves(module)
    shapes = {name: leaf.shape for name, leaf in leaves.items()}
    images = any(isinstance(layer, IMAGES) for layer in module.modules())
    channels = widest(module.modules())

    def laid_out(params: Params, x: Tree) -> Params:
        if not (images and one_by_one(x, channels)):
            return params
        return {name: channels_last(p) if issubclass(leaves[name].module, IMAGES) else p for name, p in params.items()}

    own = threading.local()  # one a thread, since a pass puts its tensors into it

    def skeleton(training: bool, support: bool) -> Skeleton:
        made: dict[tuple[bool, bool], Skeleton] = own.__dict__.setdefault("skeletons", {})
        if (training, support) not in made:
            made[training, support] = Skeleton(module_copy, policies, training=training, support=support)
        return made[training, support]

    # kept so that what happens to the user's module later does not change the function
    module_copy = without_weights(module)
    skeleton(False, True)  # refuses now what it cannot do

    known_all = all(map(is_known, module_copy.modules()))
    does, seeing, unlooked = Seen(), threading.Lock(), set() if known_all else {"inputs", "tasks"}

    def run(
        task_map: TaskMap,
        constants: Params,
        params: Params,
        buffers: Params,
        x: Tree,
        *,
        seed: Tensor | None = None,
        draw: int = 0,
        step: int = 0,
        phase: Phase = "support",
    ) -> tuple[Tensor, Params]:
        frame = skeleton(seed is not None, phase == "support")
        turns = images and one_by_one(x, channels)
        if turns:
            params, x = laid_out(params, x), mapped(channels_last, x)
        keys = {} if seed is None else {f"{name}.seed": seed for name in frame.dropouts}
        x_args, x_kwargs = _arguments(x)
        dims = [{name: 0 if p.ndim > len(shapes[name]) else None for name, p in params.items()}, 0, 0, 0, 0]

        def one(params: Params, buffers: Params, args: Any, kwargs: Any, keys: Params) -> tuple[Tensor, Params]:
            # a forward pass may update a buffer in place, so each gets a copy to update
            own = {name: buffer.clone() for name, buffer in buffers.items()}
            if does.writes:  # a task's inputs are not the model's to change
                args, kwargs = mapped(Tensor.clone, (args, kwargs))
            frame.restart(draw, step)
            given = {**params, **constants, **own, **keys}
            state = dict(given)
            with frame.afresh():
                outputs = read(functional_call(frame.body, state, args, kwargs))
            if frame.own:
                _refuse_changes([name for name in constants if state[name] is not given[name]], policies)
            return outputs, {**{name: state[name] for name in own}, **frame.updated_statistics()}

        def at_once(params: Params, buffers: Params, args: Any, kwargs: Any, keys: Params) -> tuple[Tensor, Params]:
            inputs = args[0].clone() if does.writes else args[0]
            try:
                with frame.afresh():
                    bare = shapes | {name: buffer.shape[1:] for name, buffer in buffers.items()}
                    return read(over_tasks(frame.body, {**params, **constants, **buffers}, bare, inputs)), buffers
            except OpaqueError:  # from one layer to the next; mapped together, they hand each other what they like
                return vmap(one, dims, [params, buffers, args, kwargs, keys])

        # of a chain, query sets leave statistics as they are; what other buffers become, nobody here knows
        known = frame.chain and not keys and frame.statistics_alone(buffers) and len(x_args) == 1 and not x_kwargs
        function: Callable[..., Tree] = OneTask(one, at_once, frame.native) if known else one
        if turns and known and frame.native:
            function = OneTask(one, lambda *args: in_turn(at_once, dims, args), True)
        elif turns:
            function = OneTask(one, lambda *args: loop(one, dims, args), True)
        shared = {**constants, **params}
        versions = [tensor._version for tensor in shared.values()]
        inexact = does.inexact or "inputs" in unlooked
        try:
            with context(), _computing_in(precision, params), Exact() if inexact else contextlib.nullcontext():
                outputs, after = task_map(function, dims, [params, buffers, x_args, x_kwargs, keys])
        except (RuntimeError, AttributeError, ValueError) as error:
            raise _explained(error, x, leaves, type(frame.body) if task_map is vmap else None) from error
        changed = [name for (name, tensor), was in zip(shared.items(), versions) if tensor._version != was]
        _refuse_changes(changed, policies)
        return (mapped(_as_full, outputs) if precision == "bf16" else outputs), after

    @out_of_inference_mode
    def apply(params: Params, buffers: Params, x: Tree, **options: Any) -> tuple[Tensor, Params]:
        options |= {} if training else {"seed": None}
        if unlooked and not is_traced([params, buffers, x]):
            with seeing:  # one thread looks, the others wait
                if "inputs" in unlooked:
                    look_at_inputs(params, buffers, x, **options)
                if "tasks" in unlooked and not (images and one_by_one(x, channels)):
                    look_at_tasks(params, buffers, x, **{**options, "seed": None})
        return run(task_map, constants, params, buffers, x, **options)

    def shared_in(params: Params) -> set[str]:
        return {name for name, value in params.items() if value.ndim == len(shapes[name])}

    def look_at_inputs(
        params: Params,
        buffers: Params,
        x: Tree,
        *,
        seed: Tensor | None = None,
        draw: int = 0,
        step: int = 0,
        phase: Phase = "support",
    ) -> None:
        nonlocal does
        frame, shared = skeleton(seed is not None, phase == "support"), shared_in(params)
        own, first = mapped(itemgetter(0), (buffers, seed))
        state = {**constants, **own, **{name: value if name in shared else value[0] for name, value in params.items()}}
        state |= {} if seed is None else {f"{name}.seed": first for name in frame.dropouts}
        restart = functools.partial(frame.restart, draw, step)
        for args, kwargs in _few_and_all(x):
            try:
                with context():
                    does = seen(frame, restart, state, args, kwargs)
                break
            except UsageError:
                raise
            except TROUBLE as error:  # a few may not do; all are run next
                logger.debug("inputs were not looked at: %s", error)
        unlooked.discard("inputs")

    def look_at_tasks(params: Params, buffers: Params, x: Tree, **options: Any) -> None:
        nonlocal task_map
        by, exact = vmap if isinstance(task_map, auto) else task_map, doubled(constants)

        def again(task_map: TaskMap, params: Params, rest: Any) -> tuple[Tree, Params]:
            return run(task_map, exact, params, *doubled(rest), **options)

        gap = "" if by is loop else misbatched(again, by, params, shared_in(params), (buffers, x))
        if gap and by is task_map:
            raise DifferentiationError(
                f"{type(module_copy).__name__} mapped over tasks by {getattr(by, '__name__', by)} has {gap}, against "
                f"one task at a time; use taskmap='loop' or 'auto'"
            )
        if gap:
            logger.info("task map: loop, since vmap gives this model %s", gap)
            task_map = loop
        unlooked.discard("tasks")

    unchecked = [module_copy] if check and not known_all else []

    @out_of_inference_mode
    def certify(x: Tree) -> None:
        if not unchecked:
            return
        few, whole = _few_and_all(x)
        with context(), put_back():  # the check must not take random numbers from the passes that count
            frame, state = skeleton(False, True), {**trainable, **constants, **per_task}
            names = {*trainable, *per_task}
            certified(frame, state, names, *few) or certified(frame, state, names, *whole)
        unchecked.clear()

    def part(role: Role) -> Params:
        return {name: value for name, value in trainable.items() if leaves[name].role == role}

    return Functional(
        part("initial"),
        part("structure"),
        part("context"),
        per_task,
        leaves,
        apply,
        batch_normalised(module, policies),
        certify,
        functools.partial(_shown, module_copy),
        laid_out,
        any(isinstance(layer, Stepped) for layer in module.modules()),
    )


def _computing_in(precision: Precision, params: Params) -> contextlib.AbstractContextManager[None]:
    if precision == "full":
        return contextlib.nullcontext()
    return casting(((next((value.device.type for value in params.values()), "cpu"), torch.bfloat16, True),))


def _shown(module: nn.Module, structure: Params) -> Params:
    seen: Params = {}
    for path, layer in module.named_modules():
        if isinstance(layer, Structural):
            own = tree.within(structure, path) if path else structure
            if own:  # else all of it is frozen, and so not in M
                seen |= tree.prefixed(path, layer.shown(own)) if path else layer.shown(own)
    return seen


def _explained(error: Exception, x: Tree, leaves: Mapping[str, Leaf], mapped: type | None = None) -> Exception:
    """Return what PyTorch says of shapes that do not fit, or of ``vmap``, in words that help, or the error itself."""
    if mapped is not None and re.search(_OF_VMAP, str(error)):
        return DifferentiationError(
            f"{mapped.__name__} cannot be mapped over tasks by vmap; use taskmap='loop' or 'auto'; PyTorch says: "
            f"{first_line(error)}"
        )
    if "is not an nn.Parameter" in str(error):
        return UsageError(
            "the forward pass takes a weight by get_parameter(), which finds no task's own; take it as an attribute of "
            "its layer"
        )
    if re.search("change requires_grad flags", str(error)):
        return UsageError(
            "the forward pass sets requires_grad of a weight, which is each task's own there; freeze weights before "
            "(module.layer.requires_grad_(False)), or use .detach() in forward"
        )
    if "Expected more than 1 value per channel" in str(error):
        return ShapeError(
            "normalisation goes by the examples of a batch, and there is only one; give more, or normalise by the "
            "model's own statistics (buffers='frozen') or by those of each task's support set (buffers='task')"
        )
    if not re.search(_MISFITS, str(error)):
        return error
    got = ", ".join(f"{tuple(leaf.shape[1:])} of {leaf.dtype}" for leaf in tree.tensors_of(x))
    first = next(iter(leaves.values()), None)
    own = f"; its first weight, {first.name}, has shape {first.shape}" if first else ""
    return ShapeError(
        f"the model cannot take a task's inputs (examples, *features) = {got}{own}; PyTorch says: {first_line(error)}"
    )


def one_tensor(outputs: Tree) -> Tensor:
    """Return what a module gives as one tensor: itself, its ``logits``, or the only tensor in it.

    Raises:
        ShapeError: it gives something else.
    """
    found = getattr(outputs, "logits", outputs)
    if isinstance(found, Tensor):
        return found
    if len(only := tree.tensors_of(outputs)) == 1:
        return only[0]
    if isinstance(outputs, Mapping):
        parts = ", ".join(f"{name!r}: {type(part).__name__}" for name, part in outputs.items())
    else:
        parts = ", ".join(type(part).__name__ for part in outputs) if isinstance(outputs, (tuple, list)) else ""
    raise ShapeError(
        f"the model gives a {type(outputs).__name__}{f' of {parts}' if parts else ''}; needed is one tensor (examples, "
        f"*outputs), or something with a tensor as its .logits. Say which one it is: put the model into a module of "
        f"your own whose forward returns it, as in `return self.net(x)[0]`, or give a loss of your own that takes all "
        f"of it, (outputs, batch) -> (B,)"
    )


def structured(outputs: Tree) -> Tree:
    """Return ``.logits`` where there are any, else all that a module gives, with None for what is no tensor."""
    found = getattr(outputs, "logits", outputs)
    if isinstance(found, Tensor):
        return found
    return tree_map(lambda leaf: leaf if isinstance(leaf, Tensor) else None, outputs)


def _as_full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _arguments(x: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not isinstance(x, Tensor):
        for leaf in tree_leaves(x):
            if not (leaf is None or isinstance(leaf, (Tensor, bool, int, float, str))):
                raise ShapeError(
                    f"the inputs hold a {type(leaf).__module__}.{type(leaf).__name__}; they are tensors (tasks, "
                    f"examples, *features), and numbers, flags, text or None, which are handed to the model as they are"
                )
    if isinstance(x, Mapping):
        return (), {str(name): value for name, value in x.items()}
    return (tuple(x) if isinstance(x, (tuple, list)) else (x,)), {}


def _few_and_all(x: Tree) -> tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]:
    """Return the arguments of a pass on the first task's inputs: on a few, which show as much, and on all of them."""
    return tuple(_arguments(mapped(lambda leaf, most=most: leaf[0, :most], x)) for most in (FEW, None))


def _leaves(module: nn.Module) -> dict[str, Leaf]:
    return {
        name: Leaf(name, tuple(p.shape), type(module.get_submodule(name.rpartition(".")[0])), role_of(module, name))
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def _policies(module: nn.Module, buffers: Buffers) -> dict[str, BufferPolicy]:
    default: BufferPolicy = "batch" if isinstance(buffers, Mapping) else buffers
    chosen = buffers if isinstance(buffers, Mapping) else {}
    for policy in (default, *chosen.values()):
        check_known("buffer policy", policy, ("batch", "frozen", "task"))
    statistics = statistics_of(module)
    names = [name for name, _ in module.named_buffers()]
    policies: dict[str, BufferPolicy] = {name: default if name in statistics else "frozen" for name in names}
    for path, layer in module.named_modules():  # a frozen trunk is meant as it is
        own = [p.requires_grad for p in layer.parameters(recurse=False)]
        if default == "batch" and own and not any(own) and not layer.training:
            theirs = {f"{path}.{name}".lstrip(".") for name, _ in layer.named_buffers(recurse=False)}
            for name in theirs & statistics:
                policies[name] = "frozen"
    for pattern, policy in chosen.items():
        hit = [name for name in names if matches(name, pattern)]
        if not hit:
            raise unknown_name("buffer", pattern, names)
        if policy == "batch" and not set(hit) <= statistics:
            other = next(name for name in hit if name not in statistics)
            raise UsageError(
                f"buffer {other!r} is not a running statistic, so it cannot follow the batch; "
                f"use 'frozen' (a constant) or 'task' (a copy per task)"
            )
        policies.update(dict.fromkeys(hit, policy))
    return policies


def _resolve(taskmap: str | TaskMap, module: nn.Module) -> TaskMap:
    if not isinstance(taskmap, str):
        return taskmap
    check_known("task map", taskmap, ("auto", "vmap", "loop"))
    if taskmap == "loop":
        return loop
    for path, layer in module.named_modules():
        recurrent = isinstance(layer, nn.RNNBase)
        # vmap refuses the one, and leaves out what the others do
        if recurrent or layer._backward_hooks or layer._backward_pre_hooks:
            if taskmap == "auto":
                return loop
            kind = type(layer).__name__ + ("" if recurrent else " with backward hooks")
            raise DifferentiationError(
                f"{kind} at {path or 'the top'!r} cannot be mapped over tasks by vmap; use taskmap='loop' or 'auto'"
            )
    return vmap if taskmap == "vmap" else auto()


def _forward_context(module: nn.Module) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Return the context in which the forward pass uses kernels that can be differentiated twice."""
    modules = list(module.modules())
    recurrent = any(isinstance(m, nn.RNNBase) for m in modules)
    # any module that is not torch's own may call attention as a function
    own = any(not type(m).__module__.startswith("torch.nn.modules") for m in modules)
    known = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    attention = own or any(isinstance(m, known) for m in modules)
    settings = [KEPT] * own + [PLAIN_ATTENTION] * attention + [WITHOUT_CUDNN] * recurrent

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for setting in settings:
                stack.enter_context(setting.held())
            yield

    return entered if settings else contextlib.nullcontext


def _refuse_changes(names: Sequence[str], buffers: Collection[str]) -> None:
    changed = [name for name in names if name in buffers]
    if changed:
        copies = ", ".join(f"{name!r}: 'task'" for name in changed)
        raise UsageError(
            f"the forward pass changed buffer {changed[0]!r}, which all tasks share; give every task a copy with "
            f"buffers={{{copies}}}"
        )
    if names:
        raise UsageError(f"the forward pass changed parameter {names[0]!r} in place; change a copy of it instead")


def channels_last(tensor: Tensor) -> Tensor:
    """Return ``(…, channels, height, width)`` with the channels of a pixel beside each other; as it is off a CPU."""
    if tensor.device.type != "cpu" or tensor.ndim < 4:
        return tensor
    channels, _, width = tensor.shape[-3:]
    if tensor.stride()[-3:] == (1, width * channels, channels):
        return tensor
    if channels == 1:  # contiguous() would leave the stride of a single channel as it is
        return tensor.squeeze(-3).contiguous().unsqueeze(-1).movedim(-1, -3)
    return tensor.movedim(-3, -1).contiguous().movedim(-1, -3)


def widest(modules: Iterable[nn.Module]) -> float:
    """Return the most numbers that a convolution makes of a pixel: its channels, by the pixels that its stride skips.

    >>> widest([nn.Conv2d(3, 32, 3, stride=2), nn.ReLU()])
    8.0
    """
    made = (
        layer.in_channels if isinstance(layer, nn.ConvTranspose2d) else layer.out_channels / prod(layer.stride)
        for layer in modules
        if isinstance(layer, IMAGES)
    )
    return max(made, default=1.0)


def one_by_one(x: Tree, channels: float) -> bool:
    """Return whether tasks of images (B, n, C, H, W) are better taken in turn: on a CPU, where one fills its caches.

    Together they would need grouped convolutions, which leave the channels of a pixel apart. ``channels`` is `widest`.
    """
    image = next((part for part in tree_leaves(x) if isinstance(part, Tensor) and part.ndim == 5), None)
    if image is None or image.device.type != "cpu":
        return False
    examples, _, height, width = image.shape[1:]
    return examples * height * width * channels >= LARGE
