"""The configuration of a training run: options nested as their owners are, each with its default for this very run.

::

    {"tasks":  {"name": "icons", "ways": 5, "shots": 1, …},     a family, or a path of the user's own
     "method": {"name": "svm", "kernel": "linear", …},
     "model":  {"name": "conv4", "filters": 32, …},             where the method uses one
     "outer":  {"steps": 1000, "rate": 0.001, …},               where the method takes outer steps
     "run":    {"seed": 0, "test_tasks": 600, …}}

The command line, files and Python give such trees, of which all but the tasks may be left out. What there is to choose,
its range and its help are read off the factories (`headstart.schema`); defaults are those of the rows of the registry,
over the factories' own. Nothing here imports torch.
"""

import contextlib
import os
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import yaml
from annotated_types import Ge, Gt, Le, Predicate, doc

from headstart.errors import ConfigError, FileError, UsageError
from headstart.models.trunks.source import absolute, is_source
from headstart.registry import (
    DEFAULTS,
    ENCODED,
    TUNED,
    Family,
    Kind,
    Method,
    Model,
    What,
    find,
    load,
    load_target,
    rows,
)
from headstart.schema import REQUIRED, Count, Option, Span, allowed, checked, is_range, joined, options_of

Tree: TypeAlias = Mapping[str, Any]
"""A configuration as files hold it; a part may be its name alone."""

#: Options that may differ when a run goes on: they leave the result as it is, up to rounding.
_FREE = {"run.save_every", "run.keep_last", "run.keep_every", "run.device", "run.threads", "run.compile", "run.memory"}
_FREE |= {"run.on_nonfinite"}  # a step whose numbers are finite is the same; one whose are not can now be taken
_FREE |= {"run.track", "run.same_bits", "run.hung_after"}
_BYTES = 1 << 20
_MOST_LINES = 20


class Outer(NamedTuple):
    """The outer loop.

    Attributes:
        steps: outer steps.
        tasks_per_step: tasks of an outer step; no more than there are for training.
        optimizer: the outer optimiser.
        rate: its step size.
        schedule: how the outer rate goes over the steps: constant, or down to 0.
    """

    steps: Annotated[int, Ge(0), Le(100_000_000)] = 1000
    tasks_per_step: Annotated[int, Ge(1), Le(100_000)] = 4
    optimizer: Literal["adam", "sgd"] = "adam"
    rate: Annotated[float, Gt(0), Le(100)] = 0.001
    schedule: Literal["constant", "linear", "cosine"] = "constant"


def _is_memory(text: str) -> bool:
    from headstart.core.counting import to_bytes

    with contextlib.suppress(UsageError):
        return text == "auto" or to_bytes(text) > 0
    return False


class Run(NamedTuple):
    """What every run has.

    Attributes:
        evaluate_every: outer steps between two looks at the validation tasks; by default 250, or a quarter of all steps
            where that is less.
        evaluate_tasks: validation tasks of such a look.
        test_tasks: test tasks of the final score.
        save_every: outer steps between two checkpoints, or the time.
        keep_last: so many checkpoints are kept, the last ones; of two, one may be damaged.
        keep_every: save after every so many outer steps, too, and keep those checkpoints, while it is given.
        on_nonfinite: where the loss or the meta-gradient of a task is not finite, stop; or skip: take the step without
            such tasks, which metrics.jsonl and results.json name, until most fail again and again.
        seed: seed of the weights, the tasks and dropout.
        device: where to compute; auto takes cuda, then mps, then cpu.
        threads: CPU threads; by default what PyTorch takes.
        compile: compile the meta-gradient: several times faster for small networks, after some seconds of compiling.
            By default where all outer steps together save more than that, by counting operations. Needs a C compiler
            (cc, gcc, clang, or what CC names) and a CPU; where it cannot be done, one line says why.
        memory: most memory for what a step remembers for its derivatives; tasks are taken in as many parts as that
            needs. With auto, all tasks of a step together, and where memory runs out, in ever smaller
            parts, at last with a checkpointed adjoint. By default all tasks of a step together.
        same_bits: give the same bits with any number of processes; each task of a step is then worked on alone, which
            is slower, and in one thread where threads are not given.
        hung_after: seconds after which a process of several (torchrun) that does not answer is given up, by all.
        track: where the run's numbers go, too: tensorboard, mlflow, wandb, or several joined by commas. They stay in
            the run's folder unless the environment says otherwise (docs/sweeps.md).
    """

    evaluate_every: Count | None = None
    evaluate_tasks: Annotated[int, Ge(2), Le(1_000_000)] = 100
    test_tasks: Annotated[int, Ge(2), Le(1_000_000)] = 600
    save_every: Count | Span = 100
    keep_last: Annotated[int, Ge(2), Le(1_000_000)] = 2
    keep_every: Count | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Annotated[int, Ge(1), Le(4096)] | None = None
    compile: bool | None = None
    memory: Annotated[str, Predicate(_is_memory), doc("a size such as 2GiB, or auto")] | None = None
    same_bits: bool = False
    hung_after: Annotated[int, Ge(1), Le(86_400)] = 600
    track: Sequence[Literal["tensorboard", "mlflow", "wandb"]] | None = None


class Part(NamedTuple):
    """Tasks, a method or a model: its name, and its options by their factory's names."""

    name: str
    options: dict[str, Any]


class Config(NamedTuple):
    """A training run, every option that applies filled in."""

    tasks: Part
    method: Part
    model: Part | None
    """``None`` for a method that uses none."""
    outer: Outer | None
    """``None`` for a method that takes no outer steps."""
    run: Run

    def option(self, name: str) -> Any:
        """Return an option by owner and name, as in ``"tasks.ways"``; ``None`` where it is not set, or not there."""
        return flat(self.tree()).get(name)

    def tree(self) -> dict[str, dict[str, Any]]:
        """Return it as files hold it: plain values, and no option that is not set."""
        tree = {}
        for owner, part in self._asdict().items():
            if part is not None:
                values = {"name": part.name, **part.options} if isinstance(part, Part) else part._asdict()
                tree[owner] = {name: _plain(value) for name, value in values.items() if value is not None}
        return tree


class Schema(NamedTuple):
    """What there is to choose for some tasks, method and model."""

    family: Family
    kind: Kind
    method: Method
    model: Model | None
    options: dict[str, Option]
    """By owner and name, as in ``"method.kernel"``; defaults are those of this run."""

    def names(self) -> dict[str, str]:
        """Return what the tasks, the method and the model, where there is one, are called."""
        named = {"tasks": self.family.name, "method": self.method.name}
        return named if self.model is None else named | {"model": self.model.name}


#: What the shell gives to factories, and nobody chooses.
_GIVEN = {
    "tasks": {"seed", "split_seed", "device", "dtype"},
    "method": {
        "module",
        "loss",
        "ways",
        "shared_classes",
        "inputs",
        "outputs",
        "features",
        "classes",
        "device",
        "dtype",
        "explain",
    },
    "model": {"inputs", "input_shape", "outputs", "ways", "sha256"},
}
#: The field's own words for options that several owners call alike.
WORDS = {
    "method.name": "method",
    "method.steps": "inner-steps",
    "method.rate": "inner-rate",
    "model.name": "model",
    "outer.steps": "steps",
    "outer.rate": "outer-rate",
}
#: What the commands call their own options, on the command line.
_COMMANDS = "tasks methods out config jobs json help traceback seeds set launcher resources".split()
_WHAT: dict[str, What] = {"tasks": "task", "method": "method", "model": "model"}
_NAMES = [f"{owner}.name" for owner in _WHAT]


def resolve(tree: Tree | str, source: str = "") -> Config:
    """Return the configuration that a tree stands for, every option that applies filled in.

    Args:
        tree: the options, by owner; a text is the tasks alone.
        source: the file that they came from, for messages.

    Raises:
        UnknownNameError: tasks, a method or a model that do not exist.
        ConfigError: what is wrong, one line each: an option that there is not for these tasks, method and model, a
            value out of its range, one that is missing.

    >>> list(resolve({"tasks": {"name": "sinusoid", "shots": 5}, "method": "fomaml"}).method.options)
    ['steps', 'rate', 'taskmap', 'buffers', 'precision', 'training', 'check']
    >>> resolve({"tasks": "sinusoid", "outer": {"stpes": 5}})
    Traceback (most recent call last):
    headstart.errors.ConfigError: unknown option --outer.stpes; did you mean --steps?
    """
    where = f" (in {source})" if source else ""
    try:
        tree = normal(tree)
        schema = schema_of(tree)
    except UsageError as error:
        raise type(error)(f"{error}{where}") from error
    given, values, wrong = flat(tree), {}, []
    for name, value in given.items():
        try:
            if name in _NAMES or (value is None and name in schema.options):
                continue
            if name not in schema.options:
                raise ConfigError(unknown(name, schema))
            values[name] = _checked(name, value, schema)
        except ConfigError as error:
            wrong.append(str(error))
            if len(wrong) == _MOST_LINES:
                break
    names = schema.names()
    for name, option in schema.options.items():
        if given.get(name) is None and option.default is REQUIRED:
            owner = name.partition(".")[0]
            told = f": {option.help}" if option.help else ""
            wrong.append(f"{flag(name, schema)} is missing, which the {owner} {names[owner]!r} must have{told}")
        values.setdefault(name, option.default)
    if wrong:
        raise ConfigError("\n".join(line + where for line in wrong))
    own = nested({name: values[name] for name in schema.options})
    parts = {owner: Part(name, own.get(owner, {})) for owner, name in names.items()}
    outer = Outer(**own["outer"]) if schema.method.outer else None
    return Config(parts["tasks"], parts["method"], parts.get("model"), outer, Run(**own["run"]))


def normal(tree: Tree | str) -> dict[str, dict[str, Any]]:
    """Return a tree whose parts are all dictionaries, and whose tasks are a family: a path becomes its ``data``.

    Raises:
        ConfigError: no tasks, a part that there is not, or tasks that are neither a family nor a path that is there.
    """
    whole: Any = {"tasks": tree} if isinstance(tree, str) else tree
    if not isinstance(whole, Mapping):
        raise ConfigError(f"a configuration has the parts {', '.join(Config._fields)}; got {type(whole).__name__}")
    parts = {str(owner): _part(str(owner), part) for owner, part in whole.items()}
    if not parts.get("tasks", {}).get("name"):
        raise ConfigError("TASKS is missing: a family's name (headstart list tasks), or a folder or file of your own")
    return _pretrained({**parts, "tasks": _own_source(parts["tasks"])})


def _pretrained(parts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a tree in which a pretrained network that is given as the model stands where it belongs.

    Frozen it is what the tasks' examples go through; where a part of it is learned, the model is the network, and the
    examples are what it takes.

    >>> parts = normal({"tasks": "icons", "model": "net.py:make"})
    >>> parts["tasks"]["encoder"].endswith("net.py:make"), parts["model"]
    (True, {'name': 'projection'})
    """
    tasks, model = parts["tasks"], parts.get("model", {})
    source = model.get("name")
    tuned = model.get("tuned") is not None or tasks.get("encoded") == "inputs"
    if tuned and source in (None, "trunk"):
        source = model.get("source") or tasks.get("encoder")
    if isinstance(source, str) and is_source(source):
        other = tasks.get("encoder")
        if other is not None and absolute(other) != absolute(source):
            raise ConfigError(f"--model is the pretrained network {source}, but --encoder {other}; give one of them")
        model = {**model, "name": "trunk", "source": absolute(source)} if tuned else {**model, "name": "projection"}
        tasks = {**tasks, "encoder": source} | ({"encoded": "inputs"} if tuned else {})
    if isinstance(tasks.get("encoder"), str):
        tasks = {**tasks, "encoder": absolute(tasks["encoder"])}
    return {**parts, "tasks": tasks} | ({"model": model} if model else {})


def kind_of(parts: Mapping[str, Mapping[str, Any]]) -> Kind:
    """Return the kind of data of a `normal` tree's tasks; of a pretrained network, with the defaults of such."""
    tasks = parts["tasks"]
    kind = find("data", find("task", tasks["name"]).kind)
    if tasks.get("encoder") is None:
        return kind
    return kind._replace(**(TUNED if tasks.get("encoded") == "inputs" else ENCODED))


def _part(owner: str, part: Any) -> dict[str, Any]:
    if owner not in Config._fields:
        near = get_close_matches(owner, Config._fields, n=1)
        if not near:
            shared = [part for part, factory in (("outer", Outer), ("run", Run)) if owner in factory._fields]
            near = [f"{part}: {{{owner}: …}}" for part in shared or _takers(owner)]
        meant = f"did you mean {' or '.join(near)}?" if near else f"the parts are {', '.join(Config._fields)}"
        raise ConfigError(f"unknown part {owner!r} of a configuration; {meant}")
    named = owner in _WHAT
    if isinstance(part, str | Path) and named:
        part = {"name": str(part)}
    if not isinstance(part, Mapping) and part is not None:
        raise ConfigError(f"{owner} is {part!r}, but must be options by name{', or a name alone' if named else ''}")
    values = {str(name).replace("-", "_"): value for name, value in (part or {}).items()}
    if len(values) < len(part or {}):
        raise ConfigError(f"an option of {owner} is there twice, with - and with _: {', '.join(map(str, part or {}))}")
    if named and not (isinstance(values.get("name", "?"), str) and values.get("name", "?")):
        raise ConfigError(f"the name of {owner} is {values['name']!r}, but must be a text")
    return values


def together(sources: Sequence[str]) -> str | dict[str, Any] | None:
    """Return the tasks that the words of a command line stand for: one source, or several of one kind of data.

    Raises:
        ConfigError: sources of different kinds, or of one of which several cannot be taken together.
    """
    if len(sources) < 2:
        return next(iter(sources), None)
    own = [_own_source({"name": source}) for source in sources]
    kinds = {source: find("data", find("task", one["name"]).kind) for source, one in zip(sources, own)}
    first = kinds[sources[0]]
    if other := next((source for source, kind in kinds.items() if kind != first), None):
        raise ConfigError(
            f"TASKS are {sources[0]!r}, which is {first.name}, and {other!r}, which is {kinds[other].name}; tasks of"
            " several sources are of one kind of data"
        )
    if first.several is None:
        raise ConfigError(f"TASKS are {len(sources)} sources; several of {first.name} cannot be learned together yet")
    return {"name": first.several, "sources": own}


def forms(source: str | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a source as it is, and, where there are mixtures of its kind, as one of itself alone, with their options.

    >>> forms("icons")
    [{'name': 'icons'}, {'name': 'domains', 'sources': [{'name': 'icons'}]}]
    """
    own = normal({"tasks": source})["tasks"]
    several = find("data", find("task", own["name"]).kind).several
    return [own] if several in (None, own["name"]) else [own, {"name": several, "sources": [own]}]


def _sources_of(tasks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the sources of tasks that have several, each as its own family; none of other tasks."""
    if tasks["name"] not in {row.several for row in rows("data")}:
        return []
    sources = tasks.get("sources") or ()
    if isinstance(sources, str):
        sources = checked(Option("sources", tuple[str, ...], None, ""), sources)
    if not isinstance(sources, Sequence):
        raise ConfigError(f"the sources of tasks are {sources!r}, but must be a list of names, paths or options")
    return [_own_source(_part("tasks", source)) for source in sources]


def _own_source(tasks: dict[str, Any]) -> dict[str, Any]:
    """Return a folder or file that is given as tasks as the family that reads it, with that ``data``."""
    if sources := _sources_of(tasks):
        return {**tasks, "sources": sources}
    name, known = str(tasks["name"]), [row.name for row in rows("task")]
    path = os.path.abspath(os.path.expanduser(name))
    if name in known or not (os.path.exists(path) or os.sep in name or os.path.splitext(name)[1]):
        return tasks
    if not os.path.exists(path):
        raise ConfigError(
            f"TASKS is {name!r}, but there is no such folder or file; give one, or one of {', '.join(known)}"
        )
    if tasks.get("data") is not None:
        raise ConfigError(f"TASKS is {name!r} itself, so leave out --data")
    own = [row for row in rows("data") if row.family is not None]
    told = (row for row in own if any(tasks.get(option) is not None for option in row.told_by))
    seen = (row for row in own if load("data", row.name).recognises(Path(path)))
    if (row := next(told, None) or next(seen, None)) is not None:
        return {**tasks, "name": row.family, "data": path}
    read = "; ".join(f"{row.name}: {row.summary}" for row in own)
    raise ConfigError(f"TASKS is {name!r}, which is of no kind of data that can be read ({read})")


def schema_of(parts: Mapping[str, Mapping[str, Any]]) -> Schema:
    """Return what there is to choose for the tasks, the method and the model of a `normal` tree.

    Raises:
        UnknownNameError: tasks, a method or a model that do not exist.
        ConfigError: a model for a method that uses none, or outer steps for one that takes none.
    """
    family = find("task", parts["tasks"]["name"])
    kind = kind_of(parts)
    method = find("method", parts.get("method", {}).get("name") or kind.methods[0]["name"])
    model = find("model", parts.get("model", {}).get("name") or kind.model) if method.model != "none" else None
    for owner, lacks, what in (
        ("model", model is None, "uses no model"),
        ("outer", not method.outer, "takes no steps"),
    ):
        if lacks and parts.get(owner):
            told = flag(f"{owner}.{next(iter(parts[owner]))}")
            raise ConfigError(f"{told} does not apply to the method {method.name!r}, which {what} there; leave it out")
    defaults = {
        **DEFAULTS,
        **kind.defaults,
        **family.defaults,
        **method.defaults.get("", {}),
        **method.defaults.get(kind.name, {}),
    }
    factories = {"tasks": load("task", family.name), "method": load("method", method.name)}
    if model is not None:
        defaults |= {f"model.{name}": value for name, value in model.defaults.items()}
        factories["model"] = load("model", model.name)
    if method.outer:
        factories["outer"] = Outer
    options = {}
    for owner, factory in (factories | {"run": Run}).items():
        for own, option in options_of(factory).items():
            if own == "name" and owner in _WHAT:
                raise ConfigError(f"an option of {factory.__qualname__} is called name, as its row is; rename it")
            if own not in _GIVEN.get(owner, ()):
                name = f"{owner}.{own}"
                options[name] = option._replace(default=defaults.get(name, option.default))
    if family.options and (sources := parts["tasks"].get("sources")):
        for own, option in load_target(family.name, family.options)(sources).items():
            if own not in _GIVEN["tasks"]:
                options[f"tasks.{own}"] = option
    return Schema(family, kind, method, model, options)


def possible_methods(parts: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the method that a `normal` tree names, or those that may be chosen where it names none."""
    named, kind = parts.get("method", {}).get("name"), kind_of(parts)
    return (named,) if named else tuple(dict.fromkeys(str(method["name"]) for method in kind.methods))


def flat(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the options of a tree by owner and name."""
    return {f"{owner}.{name}": value for owner, part in parts.items() for name, value in part.items()}


def nested(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tree of options by owner and name: the opposite of `flat`."""
    parts: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        owner, _, own = name.partition(".")
        parts.setdefault(owner, {})[own] = value
    return parts


def _checked(name: str, value: Any, schema: Schema) -> Any:
    option = schema.options[name]
    try:
        found = checked(option, value)
    except ValueError as error:
        raise ConfigError(f"{flag(name, schema)} {error}") from error
    is_path = isinstance(found, Path) or (option.name == "data" and isinstance(found, str))
    return os.path.abspath(os.path.expanduser(found)) if is_path else found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value


def flag(name: str, schema: Schema | None = None) -> str:
    """Return the shortest name of an option on the command line.

    >>> flag("method.steps"), flag("tasks.ways")
    ('--inner-steps', '--tasks.ways')
    >>> flag("tasks.ways", schema_of(normal("icons")))
    '--ways'
    """
    return flags(name, () if schema is None else schema.options)[0]


def flags(name: str, options: Any = ()) -> tuple[str, ...]:
    """Return all names of an option on the command line, the shortest first, where these ``options`` are there."""
    own = name.partition(".")[2]
    alone = sum(other.partition(".")[2] == own for other in options) == 1
    alone = alone and own.replace("_", "-") not in (*WORDS.values(), *_COMMANDS)
    short = WORDS.get(name) or (own.replace("_", "-") if alone else None)
    return tuple(f"--{word}" for word in (short, name.replace("_", "-")) if word)


def unknown(name: str, schema: Schema, *others: Schema) -> str:
    """Say that there is no such option for a run, or for any of several, which one is near, or what would take it."""
    owner, _, own = name.partition(".")
    told = f"unknown option --{name.lstrip('.').replace('_', '-')}"
    if own == "name" and owner in _WHAT:
        return f"{told}; give the name {'as TASKS' if owner == 'tasks' else f'by --{owner}'}"
    if WORDS.get(f"outer.{own}", "").endswith(own) and owner in ("", "outer") and not schema.method.outer:
        return f"{told}: the method {schema.method.name!r} takes no outer steps"
    named: dict[str, dict[str, None]] = {}
    for one in (schema, *others):
        for part, called in one.names().items():
            named.setdefault(part, {})[repr(called)] = None
    schema = schema._replace(options={place: own for one in (schema, *others) for place, own in one.options.items()})
    same = [place for place in schema.options if place.partition(".")[2] == own]
    if not owner and len(same) > 1:
        return f"{told} alone; there are {' and '.join(flag(place, schema) for place in same)}"
    flagged = {flag(place, schema)[2:].replace("-", "_"): place for place in schema.options}
    own_names = {place.partition(".")[2]: place for place in schema.options if place.startswith(f"{owner}.")}
    names, takers = own_names if owner else flagged, _takers(own, owner)
    near = get_close_matches(own, names, n=1, cutoff=0.9 if takers else 0.5)
    if takers and not near:
        run = ", ".join(f"the {part} {', '.join(called)}" for part, called in named.items())
        theirs = " and ".join(f"the {part} {', '.join(others)}" for part, others in takers.items())
        return f"{told} for {run}; it belongs to {theirs}"
    meant = names[near[0]] if near else flagged.get(own)
    return told + (f"; did you mean {flag(meant, schema)}?" if meant else "; --help names those that there are")


def _takers(own: str, owner: str = "") -> dict[str, list[str]]:
    """Return which tasks, methods and models, or those of one part alone, take an option of that name."""
    found = {
        part: [row.name for row in rows(what) if own in _readable(what, row.name)]
        for part, what in _WHAT.items()
        if owner in ("", part) and own not in _GIVEN[part]
    }
    return {part: names for part, names in found.items() if names}


def _readable(what: What, name: str) -> Mapping[str, Option]:
    """Return a row's options; none where another package's row cannot be read, which says so where it is chosen."""
    try:
        return options_of(load(what, name))
    except ConfigError:
        return {}


def diff(old: Config, new: Config) -> list[str]:
    """Return what keeps a run with ``old`` from going on with ``new``: one line an option, none if it may.

    More outer steps than before are allowed where the outer rate is constant and the method does not anneal (elsewhere
    they would change the steps that are taken already), and so is what leaves the result as it is (`_FREE`).
    """
    before, after = flat(old.tree()), flat(new.tree())
    schema, lines = schema_of(new.tree()), []
    for name in dict.fromkeys([*before, *after]):
        was, now = before.get(name), after.get(name)
        raised = name == "outer.steps" and was is not None and now is not None and now > was
        raised = raised and after["outer.schedule"] == "constant" and not schema.method.annealed
        if was != now and not raised and name not in _FREE:
            told = "TASKS" if name == "tasks.name" else flag(name, schema)
            lines.append(f"{told}: {_shown(was)} -> {_shown(now)}")
    return lines


def _shown(value: Any) -> str:
    return "not set" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)


def command(config: Config, out: str = "RUN") -> str:
    """Return the command that makes a run again: what differs from the defaults, and the seed.

    >>> command(resolve({"tasks": "sinusoid", "method": {"name": "maml", "steps": 5}, "outer": {"steps": 100}}))
    'headstart train sinusoid --method maml --inner-steps 5 --steps 100 --seed 0 --out RUN'
    """
    tree = config.tree()
    schema, values = schema_of(tree), flat(tree)
    sources = _words(config.tasks)
    if sources is None:  # options of one source of several are for files
        return shlex.join(["headstart", "train", "--config", f"{out}/config.json", "--out", out])
    words = ["headstart", "train", *sources, "--method", config.method.name]
    if config.model is not None and config.model.name != schema.kind.model:
        words += ["--model", config.model.name]
    for name, option in schema.options.items():
        value, best = values.get(name), flag(name, schema)
        if value is None or (value == _plain(option.default) and name != "run.seed") or name == "tasks.sources":
            continue
        switch = best if value is True else f"--no-{best[2:]}"
        words += [switch] if isinstance(value, bool) else [best, text(value, option)]
    return shlex.join([*words, "--out", out])


def _words(tasks: Part) -> list[str] | None:
    """Return the words that tasks are called by on the command line, or ``None`` where it has none for them."""
    own = {row.family for row in rows("data")}
    words = []
    for one in tasks.options.get("sources") or [{"name": tasks.name}]:
        whole = {"name", "data"} if one["name"] in own else {"name"}
        if one.keys() - whole:
            return None
        words.append(str(one.get("data") or one["name"]))
    return words


def text(value: Any, option: Option) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, (list, tuple)):
        named = [one.get("data") or one["name"] if isinstance(one, dict) else one for one in value]  # a source
        return "-".join(map(str, value)) if is_range(option.type) else joined(named)
    return str(value)


def default_folder(config: Config) -> Path:
    """Return where a run goes by default: ``runs/TASKS-METHOD``."""
    return Path("runs") / f"{called(config)}-{config.method.name}"


def called(config: Config) -> str:
    """Return what people call the tasks of a configuration: their own file or folder, else the family."""
    if sources := config.tasks.options.get("sources"):
        return "+".join(called(config._replace(tasks=Part(one["name"], one))) for one in sources)
    data = config.tasks.options.get("data")
    own = data is not None and any(row.family == config.tasks.name for row in rows("data"))
    return Path(data).stem if own else config.tasks.name


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the tree that a JSON, YAML or TOML file holds.

    Raises:
        FileError: a file that cannot be read, or is not such a file.
        ConfigError: another ending.
    """
    from headstart.training.files import explained, read, read_json

    suffix = path.suffix.lower()
    with explained("read", path):
        whole = path.resolve()
    if suffix == ".json":
        found = read_json(whole)
    elif suffix in (".yaml", ".yml", ".toml"):
        data = read(whole, _BYTES)
        try:
            found = tomllib.loads(data.decode()) if suffix == ".toml" else yaml.load(data, _Yaml)
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise FileError(f"{path} is not valid {suffix[1:].upper()}: {reason}") from error
    else:
        raise ConfigError(f"--config {path}: expected a .json, .yaml, .yml or .toml file")
    if not isinstance(found, dict):
        raise FileError(f"{path} does not hold a configuration, such as tasks: sinusoid")
    try:
        return {str(owner): _part(str(owner), part) for owner, part in found.items()}
    except ConfigError as error:
        raise ConfigError(f"{error} (in {path})") from error


class _Yaml(yaml.SafeLoader):
    """YAML whose values are texts or nothing, to be read as on the command line, so that 1:00 is not 60."""

    yaml_implicit_resolvers = {
        start: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if len(set(map(str, keys))) < len(keys):
            raise yaml.YAMLError("a key is there twice")
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read here")  # a few lines of them can stand for terabytes
        return super().compose_node(parent, index)


def merged(file: Tree, given: Tree) -> dict[str, dict[str, Any]]:
    """Return the tree of a file and of flags; flags win, and what belongs to a name that they replace goes.

    Of a file that fills in every option, as a run's own does, the replaced name's defaults go, too: nobody chose them.

    >>> merged({"tasks": {"name": "icons", "ways": 3}}, {"tasks": {"name": "omniglot"}, "run": {"seed": 1}})
    {'tasks': {'name': 'omniglot'}, 'run': {'seed': 1}}
    """
    old = {owner: _part(owner, part) for owner, part in file.items()}
    new = {owner: _part(owner, part) for owner, part in given.items()}
    if new.get("tasks", {}).get("name"):
        new["tasks"] = _own_source(new["tasks"])
    names = {owner: part["name"] for owner, part in new.items() if part.get("name")}
    replaced = [owner for owner, name in names.items() if old.get(owner, {}).get("name", name) != name]
    with contextlib.suppress(ConfigError):  # what is wrong with the file is said where all of it is read
        filled, given = flat(resolve(old).tree()), flat(old)
        if replaced and filled.keys() <= given.keys():
            defaults = {name: _plain(option.default) for name, option in schema_of(normal(old)).options.items()}
            old = nested({name: given[name] for name, value in filled.items() if value != defaults.get(name, REQUIRED)})
    return old | {owner: part if owner in replaced else old.get(owner, {}) | part for owner, part in new.items()}


def help_of(option: Option) -> str:
    """Return an option's help, with its range and its default."""
    limits, default = allowed(option.type), option.default
    words = [option.help.rstrip(".")]
    words += [limits] if limits not in ("a text", "true or false", "a path", "a text or a path") else []
    if default is REQUIRED:
        words.append("required")
    elif default is True:
        words.append("default: on")
    elif default is not None and default is not False:
        words.append(f"default: {text(default, option)}")
    return " ".join(f"{word[:1].upper()}{word[1:]}." for word in words if word)
