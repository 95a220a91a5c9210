"""What layers hold besides tensors and other layers: functions, and lists, dicts and objects that a pass may change.

``deepcopy`` leaves functions as they are, so a hook, or a ``forward`` that was set on a layer, would go on with the
weights of the module that it was made for; and what a pass puts into a list or a dict would be there in the next one,
which is another task's.
"""

import contextlib
import copy
import dis
import functools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from headstart.errors import UsageError

_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)
_PLAIN = (str, bytes, int, float, complex, type, ModuleType, type(None))
_CACHED = type(functools.lru_cache(lambda: None))

#: What of a class, or of a module of Python, may hold what a pass computed, for the next one; lists there keep records.
_CACHES = (dict, OrderedDict, defaultdict, _CACHED)

#: What every layer has, and no pass changes but by way of `nn.Module`.
_INTERNAL = frozenset(vars(nn.Module())) - {"_modules", "_parameters", "_buffers"}


def reached(layer: nn.Module) -> list[Any]:
    """Return all that a layer holds, also inside containers, objects and functions; layers and tensors are not entered.

    What of it is in ``_modules``, ``_parameters`` and ``_buffers`` is left out.
    """
    registered = ("_modules", "_parameters", "_buffers")
    seen: dict[int, Any] = {}
    stack = [value for name, value in vars(layer).items() if name not in registered]
    for kind in type(layer).__mro__:
        if not kind.__module__.startswith(("torch", "builtins", "headstart.")):
            own = vars(kind)
            stack += [value for name, value in own.items() if type(value) in _CACHES or name == "forward"]
    while stack:
        one = stack.pop()
        if id(one) not in seen and not isinstance(one, _PLAIN):
            seen[id(one)] = one
            stack.extend(_inside(one))
    return list(seen.values())


def _inside(one: Any) -> Iterable[Any]:
    if isinstance(one, (nn.Module, Tensor)):
        return ()
    if isinstance(one, dict):
        return one.values()
    if isinstance(one, (list, tuple, set, frozenset, deque)):
        return one
    if isinstance(one, MethodType):
        return (one.__self__, one.__func__)
    if isinstance(one, functools.partial):
        return (one.func, one.args, one.keywords)
    if type(one).__module__.startswith("torch") or str(getattr(one, "__module__", "")).startswith("torch"):
        return ()
    if isinstance(one, FunctionType):
        used = (one.__globals__.get(name) for name in _globals(one.__code__))
        return (*_contents(one), one.__defaults__, one.__kwdefaults__, *(v for v in used if type(v) in _CACHES))
    own = getattr(one, "__dict__", None)
    return (own,) if isinstance(own, dict) else ()


def _contents(function: FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is empty yet
            found.append(cell.cell_contents)
    return found


def copied(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of a module whose functions refer to the copy where they referred to the module.

    Raises:
        UsageError: a function refers to a layer of it by a global name.
    """
    memo = {} if memo is None else memo
    paths = {id(layer): path for path, layer in module.named_modules()}
    made: dict[FunctionType, FunctionType] = {}
    cells: dict[int, CellType] = {}
    for layer in module.modules():
        for one in reached(layer):
            if isinstance(one, FunctionType) and one not in made:
                _refuse_global(one, layer, paths)
                closure = tuple(cells.setdefault(id(cell), CellType()) for cell in one.__closure__ or ())
                if closure or one.__defaults__ or one.__kwdefaults__:
                    made[one] = memo[id(one)] = FunctionType(
                        one.__code__, one.__globals__, one.__name__, None, closure or None
                    )
            elif isinstance(one, Tensor) and not one.is_leaf:  # what a pass has left behind
                memo[id(one)] = one.detach().to("meta")
    body = copy.deepcopy(module, memo)

    def now(value: Any) -> Any:
        return memo.get(id(value), value)

    for old, new in made.items():
        new.__dict__.update(old.__dict__)
        new.__defaults__ = old.__defaults__ and tuple(map(now, old.__defaults__))
        new.__kwdefaults__ = old.__kwdefaults__ and {name: now(value) for name, value in old.__kwdefaults__.items()}
        for cell, before in zip(new.__closure__ or (), old.__closure__ or ()):
            with contextlib.suppress(ValueError):
                cell.cell_contents = now(before.cell_contents)
    return body


class _Astray(Tensor):
    """In place of a weight where passes, which hand weights in by their names, cannot put the current one."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        one = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, cls))
        raise UsageError(
            f"the model uses {vars(one)['name']!r} as {vars(one)['holder']} holds it, beside the layer that it belongs "
            f"to; take it from its layer in forward, where it is each task's own"
        )

    def __deepcopy__(self, memo: Any) -> "_Astray":
        return self


def refuse_astray(body: nn.Module) -> None:
    """Let weights of a copy on ``meta`` refuse to be used where a list, dict, attribute or function holds them."""
    tensors: dict[str, Tensor] = {**dict(body.named_parameters()), **dict(body.named_buffers())}
    names = {id(tensor): name for name, tensor in tensors.items()}

    def instead(value: Any, layer: nn.Module) -> _Astray:
        found = Tensor._make_subclass(_Astray, value.detach())
        vars(found).update(
            name=names[id(value)], holder=f"a list, dict, attribute or function of {type(layer).__name__}"
        )
        return found

    for layer in body.modules():
        if isinstance(layer, nn.RNNBase):  # keeps its own list current
            continue
        for one in [vars(layer), *reached(layer)]:
            if isinstance(one, FunctionType):
                for cell in one.__closure__ or ():
                    with contextlib.suppress(ValueError):
                        if id(cell.cell_contents) in names:
                            cell.cell_contents = instead(cell.cell_contents, layer)
            elif isinstance(one, (dict, list)):
                for key, value in list(one.items() if isinstance(one, dict) else enumerate(one)):
                    if id(value) in names:
                        one[key] = instead(value, layer)


def _refuse_global(function: FunctionType, layer: nn.Module, paths: dict[int, str]) -> None:
    for name in _globals(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, nn.Module) and id(value) in paths:
            raise UsageError(
                f"{function.__qualname__}, which {type(layer).__name__} at {paths[id(layer)] or 'the top'!r} holds, "
                f"takes {paths[id(value)] or 'the model'!r} by the global name {name!r}, and so always with its own "
                f"weights; hand it in, as in functools.partial({function.__name__}, {name}), or make it a method"
            )


@functools.cache
def _globals(code: CodeType) -> frozenset[str]:
    """Return the global names that a function uses."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return frozenset(own).union(*(_globals(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def changeable(layers: Iterable[nn.Module]) -> list[Any]:
    """Return the containers and caches that a pass of these layers may change."""
    found = {id(own): own for layer in layers for own in (layer._modules, layer._parameters, layer._buffers)}
    for layer in layers:
        internal = {id(vars(layer).get(name)) for name in _INTERNAL}
        found |= {id(one): one for one in reached(layer) if type(one) in (*_CONTAINERS, _CACHED)}
        for one in internal & found.keys():
            del found[one]
    return list(found.values())


@contextlib.contextmanager
def put_back_state(containers: list[Any]) -> Iterator[None]:
    """Give containers back at the end what they held before."""
    before = [None if type(one) is _CACHED else copy.copy(one) for one in containers]
    try:
        yield
    finally:
        for one, was in zip(containers, before):
            if was is None:
                one.cache_clear()
            elif not _same(one, was):
                one.clear()
                (one.extend if isinstance(one, (list, deque)) else one.update)(was)


def _same(one: Any, was: Any) -> bool:
    parts = (one.items(), was.items()) if isinstance(one, dict) else (one, was)
    if len(one) != len(was):
        return False
    if isinstance(one, dict):
        return all(key is old and value is held for (key, value), (old, held) in zip(*parts))
    return all(value is held for value, held in zip(*parts))
