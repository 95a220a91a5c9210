"""The options of a run on the command line: which there are depends on the tasks, the method and the model.

The words are read twice: once for the names that decide what there is to choose, then with all of it.
"""

import csv
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, NamedTuple, Union

from cyclopts import App, Group, Parameter
from cyclopts.exceptions import UnknownOptionError

from headstart.errors import ConfigError
from headstart.registry import rows
from headstart.schema import Option, options_of, parts
from headstart.training.config import Outer, Run, Schema, Tree, flags, flat, help_of, nested, normal, schema_of, unknown

#: The commands' own options that decide, and such as take a value besides.
_NAMES, _OTHERS = ("--method", "--methods", "--model", "--config", "--on"), ("--out",)
#: Options of tasks, and all options, that decide which others there are.
_OF_TASKS = ("encoder", "encoded", *(option for row in rows("data") for option in row.told_by))
_DECIDING = {
    **{f"--{owner}{name}": name for name in _OF_TASKS for owner in ("", "tasks.")},
    **{flag: "tuned" for flag in ("--tuned", "--model.tuned")},
    **{flag: flag[2:] for flag in _NAMES},
}


class Value(str):
    """What help calls the value of an option."""


class Called(NamedTuple):
    """What a command line says."""

    own: dict[str, Any]
    """The arguments of the command itself."""
    tree: dict[str, dict[str, Any]]
    """The run's options, by owner; texts and booleans that nobody has checked."""


def first_look(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Read the tasks off a command's words, and what follows ``--method``, ``--config``, …, by names without dashes."""
    names: dict[str, str] = {}
    free: list[str] = []
    perhaps: list[str] = []
    for before, word in zip(["", *words], words):
        name, equals, value = word.partition("=")
        if name in _DECIDING and equals:
            names[_DECIDING[name]] = value
        elif before in _DECIDING:
            names[_DECIDING[before]] = word
        elif not word.startswith("-") and before not in _OTHERS:
            # behind an option it may be the option's value, or the tasks behind a switch
            (perhaps if before.startswith("--") and "=" not in before else free).append(word)
    known = {row.name for row in rows("task")}
    return free or [word for word in perhaps if word in known or os.path.exists(word)][:1], names


def behind(words: Sequence[str], name: str) -> list[str]:
    """Return the words behind an option that takes several, wherever it stands.

    >>> behind(["--train", "icons", "omniglot", "--out", "here", "--train=more"], "--train")
    ['icons', 'omniglot', 'more']
    """
    found, taken = list[str](), False
    for word in words:
        own, equals, value = word.partition("=")
        if word.startswith("-"):
            taken = own == name
            found += [value] if taken and equals else []
        elif taken:
            found.append(word)
    return found


def grid(words: Sequence[str], schemas: Sequence[Schema]) -> dict[str, list[str]]:
    """Return the values to try of options by owner and name, as a sweep takes them.

    Args:
        words: such as ``inner-rate=0.01,0.1``, the option called as behind dashes.
        schemas: what there is to choose.

    Raises:
        ConfigError: a word without values, an option there twice, or one that there is not.

    >>> grid(["model=mlp,identity"], [])
    {'model.name': ['mlp', 'identity']}
    """
    options = {name: option for schema in schemas for name, option in schema.options.items()}
    places = {word: name for name in (*options, "model.name") for word in flags(name, options)}
    found: dict[str, list[str]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        read = [value.strip() for value in next(csv.reader([values], skipinitialspace=True), [])]
        if not equals or not all(read) or not read:
            raise ConfigError(f"--set takes an option and its values, as in inner-rate=0.01,0.1; got {word!r}")
        place = places.get(f"--{name.lstrip('-').replace('_', '-')}")
        if place is None:
            owner, _, own = name.lstrip("-").replace("-", "_").rpartition(".")
            raise ConfigError(unknown(f"{owner}.{own}", *schemas))
        if place in found:
            raise ConfigError(f"--set has {name} twice; give all of its values at once, as in {name}=1,2")
        found[place] = read
    return found


def named(tasks: str | Mapping[str, Any] | None, names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the tree of what `first_look` has read."""
    parts = {
        "tasks": {**(tasks if isinstance(tasks, Mapping) else {"name": tasks})},
        "method": {"name": names.get("method")},
        "model": {"name": names.get("model"), "tuned": names.get("tuned")},
    }
    parts["tasks"] |= {name: names.get(name) for name in _OF_TASKS}
    return {owner: {k: v for k, v in part.items() if v is not None} for owner, part in parts.items()}


def choices(tree: Tree) -> Schema:
    """Return what there is to choose for a tree; what it says already is the default."""
    parts = normal(tree)
    schema, given = schema_of(parts), flat(parts)
    options = schema.options.items()
    return schema._replace(options={name: one._replace(default=given.get(name, one.default)) for name, one in options})


def call(
    command: Callable[..., Any], words: Sequence[str], schemas: Sequence[Schema] | None, epilogue: str = ""
) -> Called | None:
    """Read a command's words; or print its help, where they ask for it, and return ``None``.

    Args:
        command: a function whose parameters and docstring are the command's own; it is not called.
        words: the words behind the command's name.
        schemas: what there is to choose; where there is none, what every run has, and for ``None`` nothing.
        epilogue: what the help ends with.

    Raises:
        CycloptsError, ConfigError: words that are no option of this command and run.
    """
    options: dict[str, Option] = {}
    for schema in schemas or ():
        for name, option in schema.options.items():
            other = options.get(name, option)
            kept = option.default if option.default == other.default else None
            options[name] = option._replace(type=Union[option.type, other.type], default=kept)  # noqa: UP007
    if schemas == []:
        options = {f"outer.{name}": option._replace(default=None) for name, option in options_of(Outer).items()}
        options |= {f"run.{name}": option for name, option in options_of(Run).items()}
    places = {name.replace(".", "__"): name for name in options}
    own = inspect.signature(command, eval_str=True)
    called = {name: _called(name, options, own) for name in options}

    def read(*arguments: Any, **given: Any) -> Called:
        said = shaped.__signature__.bind(*arguments, **given).arguments
        tree = nested({places[key]: value for key, value in said.items() if key in places and value is not None})
        return Called({key: value for key, value in said.items() if key not in places}, tree)

    groups = _groups(schemas or ())
    added = [
        _parameter(key, options[name], called[name][0], groups[name.partition(".")[0]]) for key, name in places.items()
    ]
    shaped: Any = read
    shaped.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])
    shaped.__annotations__ = {name: value.annotation for name, value in shaped.__signature__.parameters.items()}
    shaped.__doc__ = command.__doc__
    app = App(
        name=f"headstart {command.__name__.lstrip('_')}",
        help_format="markdown",
        help_epilogue=epilogue,
        version_flags=[],
        group_commands=Group("Commands", show=False),
    )
    app.default(shaped)
    try:
        return app(_short(words, called), exit_on_error=False, print_error=False, result_action="return_value")
    except UnknownOptionError as error:
        word = (error.token.keyword or error.token.value).split("=")[0].lstrip("-")
        if word.startswith("no-") and f"--{word[3:]}" in {one for names in called.values() for one in names}:
            raise ConfigError(f"--{word[3:]} takes a value, and is nothing to switch off by --{word}") from error
        word = word.removeprefix("no-")
        owner, _, name = word.replace("-", "_").rpartition(".")
        if schemas and not name:
            raise
        whole = [key.removeprefix("as_") for key, value in own.parameters.items() if value.kind is value.KEYWORD_ONLY]
        if near := get_close_matches(word, whole, n=1, cutoff=0.75):
            raise ConfigError(f"unknown option --{word}; did you mean --{near[0]}?") from error
        if schemas is None:
            raise
        missing = f"unknown option --{word}; where it is one of tasks, name the TASKS first"
        raise ConfigError(unknown(f"{owner}.{name}", *schemas) if schemas else missing) from error


def _groups(schemas: Sequence[Schema]) -> dict[str, Group]:
    told = {"tasks": "Tasks", "method": "Method", "model": "Model", "outer": "Outer loop", "run": "Run"}
    if len(schemas) == 1:
        told |= {owner: f"{told[owner]}: {name}" for owner, name in schemas[0].names().items()}
    return {owner: Group(title, sort_key=place) for place, (owner, title) in enumerate(told.items())}


def _called(name: str, options: Mapping[str, Option], command: inspect.Signature) -> tuple[str, ...]:
    """Return an option's names, the shortest first, without one that the command has for something else."""
    own = {f"--{key.replace('_', '-')}" for key in command.parameters}
    return tuple(word for word in flags(name, options) if word not in own)


def _parameter(key: str, option: Option, best: str, group: Group) -> inspect.Parameter:
    switch = set(parts(option.type)) == {bool}
    shown = Parameter(
        name=best,
        negative=f"--no-{best[2:]}" if switch else (),
        help=help_of(option),
        group=group,
        show_default=False,
        show_choices=False,
    )
    # what is no switch is a text, which is read where the other ways of configuring are
    hint = Annotated[(bool if switch else Value) | None, shown]
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)


def _short(words: Sequence[str], called: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the words with full names of options, such as ``--method.kernel``, as the short ones, where there are."""
    short = {}
    for best, *others in called.values():
        for other in others:
            owner, _, own = other[2:].partition(".")
            short[other] = best
            short[f"--no-{other[2:]}"] = short[f"--{owner}.no-{own}"] = f"--no-{best[2:]}"
    parts = [word.partition("=") for word in words]
    return [short.get(name, name) + equals + value for name, equals, value in parts]
