"""The options of a factory, read off it: names, types, ranges and defaults from its signature, help from its ``Args``.

A parameter is an option where a part of its type is plain: numbers, strings, booleans, paths, choices, tuples of them,
and dictionaries, which files alone can say. What is left (modules, rules, functions) is for Python alone. Nothing here
imports torch.

>>> def factory(module, *, steps: Count = 5, kernel: Literal["linear", "rbf"] = "linear", rule: object = None) -> None:
...     '''Make something.
...
...     Args:
...         steps: how many.
...         kernel: which one.
...     '''
>>> [(option.name, option.default, option.help, allowed(option.type)) for option in options_of(factory).values()]
[('steps', 5, 'how many.', 'a whole number from 1 up'), ('kernel', 'linear', 'which one.', 'one of linear, rbf')]
"""

import csv
import inspect
import io
import re
from collections.abc import Callable, Collection, Sequence
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar, Union, get_args, get_origin

from annotated_types import DocInfo, Ge, Gt, Le, Lt, MaxLen, Predicate, doc

from headstart.errors import ConfigError

Count: TypeAlias = Annotated[int, Ge(1)]
Size: TypeAlias = Annotated[int, Ge(1), Le(100_000)]
Sizes: TypeAlias = Annotated[Sequence[Size], MaxLen(98)]
"""Widths of layers, one a layer."""
Whole: TypeAlias = Annotated[int, Ge(0)]
Positive: TypeAlias = Annotated[float, Gt(0)]
NotNegative: TypeAlias = Annotated[float, Ge(0)]
Share: TypeAlias = Annotated[float, Gt(0), Le(0.9)]
Probability: TypeAlias = Annotated[float, Ge(0), Le(1)]

#: How many seconds a unit of time has.
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def seconds(span: str) -> float | None:
    """Return how long a span of time is, such as ``"5min"``; ``None`` for what is none.

    >>> seconds("30s"), seconds("1.5 h"), seconds("5 metres")
    (30.0, 5400.0, None)
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([a-z]+)", span)
    size = float(found[1]) * _UNITS.get(found[2], 0) if found else 0.0
    return size or None


Span: TypeAlias = Annotated[str, Predicate(lambda text: seconds(text) is not None), doc("a time such as 30s, 5min, 2h")]

REQUIRED = inspect.Parameter.empty
_PLAIN = (bool, int, float, str, Path)
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_SPELT = {int: r"[-+]?\d{1,18}", float: _NUMBER, bool: "true|false"}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
Factory = TypeVar("Factory", bound=Callable[..., Any])


class Option(NamedTuple):
    """Something that can be chosen."""

    name: str
    type: Any
    """Its plain part: what a command line or a file can say, ranges included."""
    default: Any
    """`REQUIRED` where there is none."""
    help: str


def extends(parent: Callable[..., Any], *, without: Collection[str] = ()) -> Callable[[Factory], Factory]:
    """Say that a factory hands its ``**options`` on to ``parent``, which then are options, and parameters, of its own.

    Args:
        parent: who takes them.
        without: what the factory decides itself.
    """

    def mark(factory: Factory) -> Factory:
        own = inspect.signature(factory, eval_str=True)
        named = {name: value for name, value in own.parameters.items() if value.kind is not value.VAR_KEYWORD}
        theirs = [
            value
            for name, value in inspect.signature(parent, eval_str=True).parameters.items()
            if value.kind is value.KEYWORD_ONLY and name not in named and name not in without
        ]
        marked: Any = factory
        marked.__signature__ = own.replace(parameters=[*named.values(), *theirs])
        marked.__parent__ = parent
        return factory

    return mark


@cache
def options_of(factory: Callable[..., Any]) -> dict[str, Option]:
    """Return what can be chosen of a factory, by name, in its order."""
    texts, found = _arguments(factory), {}
    try:
        parameters = inspect.signature(factory, eval_str=True).parameters
    except NameError as error:
        raise ConfigError(f"the types of {factory.__qualname__}'s options cannot be read: {error}") from error
    for name, parameter in parameters.items():
        plain, default = _plain(parameter.annotation), parameter.default
        if parameter.annotation is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY:
            raise ConfigError(f"{factory.__qualname__} does not say of what type {name} is; annotate it, such as int")
        if plain is None or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if default is REQUIRED or default is None or _is_plain(default):
            found[name] = Option(name, plain, default, texts.get(name, ""))
    return found


def _arguments(factory: Callable[..., Any]) -> dict[str, str]:
    """Return what the ``Args`` (or ``Attributes``) of a docstring, and of whom it extends, say of each name."""
    parent = getattr(factory, "__parent__", None)
    found = {} if parent is None else dict(_arguments(parent))
    section = re.search(r"^(?:Args|Attributes):\n((?:[ \t]+.*\n?|\n)*)", inspect.getdoc(factory) or "", re.MULTILINE)
    text = inspect.cleandoc(section[1]) if section else ""
    for names, told in re.findall(r"^([\w, ]+): (.*(?:\n[ \t]+.*)*)", text, re.MULTILINE):
        found |= dict.fromkeys(re.findall(r"\w+", names), " ".join(told.replace("`", "").split()))
    return found


def _plain(hint: Any) -> Any:
    """Return the part of a type that a command line can say; ``None`` where there is none."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner = _plain(parts[0])
        return None if inner is None else Annotated[(inner, *hint.__metadata__)]
    if origin in (Union, UnionType):
        plain = [one for one in map(_plain, parts) if one is not None]
        return reduce(or_, plain) if plain else None
    if origin in (Literal, dict) or hint in _PLAIN:
        return hint
    if origin is tuple and all(part is Ellipsis or _plain(part) is not None for part in parts):
        return hint
    if origin is Sequence:
        each: Any = _plain(parts[0])
        return None if each is None else tuple[each, ...]
    return None


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def checked(option: Option, value: Any) -> Any:
    """Return a value as the option's type has it: ``"5"`` as 5, ``"1-5"`` as a range, ``[40, 40]`` as a tuple.

    Where a type is a text or a number, a text that spells a number is that number, wherever it comes from.

    Raises:
        ConfigError: what must be instead, without the option's name.

    >>> checked(Option("shots", int | tuple[int, int], 1, ""), "1-5")
    (1, 5)
    """
    read = _from_text(option.type, value.strip() if isinstance(value, str) else value)
    try:
        if bool not in parts(option.type) and any(isinstance(one, bool) for one in (value, *_members(value))):
            raise ValueError("a boolean is no number")
        if isinstance(value, (set, frozenset)):
            raise ValueError("a set has no order")
        found = _adapter(option.type).validate_python(read)
        if isinstance(found, tuple) and is_range(option.type) and len(found) == 2 and found[0] > found[1]:
            raise ValueError("a range goes from less to more")
    except ValueError as error:
        raise ConfigError(f"is {value!r:.200}, but must be {allowed(option.type)}") from error
    return found


def _members(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter  # what makes a learner without a command line has no need of it

    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


def _from_text(hint: Any, value: Any) -> Any:
    """Return words as the choices and tuples that they stand for, and a single number as a range, where need be."""
    members, ranges = parts(hint), _ranges(hint)
    if isinstance(value, str):
        named = {str(choice): choice for part in members if get_origin(part) is Literal for choice in get_args(part)}
        if value in named:
            return named[value]
        if any(get_origin(part) is tuple and part not in ranges for part in members):
            words = next(csv.reader([value], skipinitialspace=True), [])
            return tuple(word.strip() for word in words if word.strip())
        for kind, pattern in _SPELT.items() if str in members else ():  # a command line has texts alone
            if kind in members and re.fullmatch(pattern, value):
                return value == "true" if kind is bool else kind(value)
        ends = re.fullmatch(rf"({_NUMBER})\s*-\s*({_NUMBER})", value)
        if ranges and ends:
            return ends.groups()
    return (value, value) if ranges == members and isinstance(value, (str, int, float)) else value


def parts(hint: Any) -> list[Any]:
    """Return the members of a union, limits left out."""
    if get_origin(hint) is Annotated:
        return parts(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [part for member in get_args(hint) for part in parts(member) if part is not NoneType]
    return [hint]


def _ranges(hint: Any) -> list[Any]:
    return [part for part in parts(hint) if get_origin(part) is tuple and get_args(part)[-1] is not Ellipsis]


def is_range(hint: Any) -> bool:
    """Return whether a type takes a range of two ends."""
    return bool(_ranges(hint))


def joined(values: Sequence[Any]) -> str:
    """Return values as one text, joined by commas; one that has a comma itself is in quotes.

    >>> joined(["age", "dose, mg"])
    'age,"dose, mg"'
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def allowed(hint: Any) -> str:
    """Return what a value of a type may be, in words.

    >>> allowed(Count), allowed(Literal["a", "b"] | None), allowed(int | tuple[int, int]), allowed(Span)
    ('a whole number from 1 up', 'one of a, b', 'a whole number or a range such as 1-5', 'a time such as 30s, 5min, 2h')
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        told = [limit.documentation for limit in hint.__metadata__ if isinstance(limit, DocInfo)]
        return told[0] if told else f"{allowed(parts[0])} {_range(hint.__metadata__)}".strip()
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(allowed(part) for part in parts if part is not NoneType))
    if origin is Literal:
        return "one of " + ", ".join(map(str, parts))
    if origin is dict:
        return "options by name"
    if origin is tuple:
        several = parts[-1] is Ellipsis
        if several and get_origin(parts[0]) is Literal:
            return f"{allowed(parts[0])}, or several joined by commas"
        return "values joined by commas, such as 40,40" if several else "a range such as 1-5"
    return _WORDS.get(hint, "given otherwise")


def _range(limits: Sequence[Any]) -> str:
    words = []
    for limit in limits:
        if isinstance(limit, Ge):
            words.append(f"from {limit.ge}")
        elif isinstance(limit, Gt):
            words.append(f"above {limit.gt}")
        elif isinstance(limit, Le):
            words.append(f"up to {limit.le}" if words else f"of at most {limit.le}")
        elif isinstance(limit, MaxLen):
            words.append(f"(at most {limit.max_length})")
        elif isinstance(limit, Lt):
            words.append(f"and below {limit.lt}" if words else f"below {limit.lt}")
    return " ".join(words) + (
        " up" if words and not any(isinstance(limit, (Le, Lt, MaxLen)) for limit in limits) else ""
    )
