"""Tasks of several families and folders of images at once: each task is of one of them."""

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le

from headstart.data.domains import mixed
from headstart.data.fewshot import GIVEN, Ways, few_shot, original
from headstart.data.images.convert import converted
from headstart.errors import ConfigError, HeadstartError, ShapeError, UsageError
from headstart.registry import find, load, rows
from headstart.schema import NotNegative, Option, Size, checked, extends, options_of
from headstart.types import Tasks

#: What is the same in all domains, since their tasks are learned together.
_OF_ALL = ("ways", "shots", "queries", "train_ways", "sampler", "seed", "device")

_QUERIES = 5  # where nobody says


@extends(few_shot, without=GIVEN)
def domains(
    sources: Sequence[str | dict[str, Any]],
    *,
    weights: Sequence[NotNegative] | None = None,
    image_size: Annotated[int, Ge(8), Le(512)] | None = None,
    channels: Literal[1, 3] | None = None,
    ways: Ways = 5,
    queries: Size | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    **options: Any,
) -> Tasks:
    """Make few-shot tasks of several sources of images, each task of one of them (`headstart.data.domains.mixed`).

    Training tasks are of each source as its weight says; validation and test have as many of each. An option of a
    source, such as ``rotations``, is handed to every source that takes it and has none of its own.

    Args:
        sources: the names of families, paths of folders of images, or mappings of such a ``name`` and options of its
            own: ``["icons", {"name": "folder", "data": "flags", "fit": "pad"}]``.
        weights: how much of training is of each source, in their order; by default of all the same.
        image_size: height and width of all images, in pixels; by default as the sources have them, which must agree.
        channels: 1 for grey, 3 for colour; by default likewise. Grey becomes colour by repetition.
        ways: classes of a task.
        queries: query images a class; by default 5, or fewer where a source has fewer by default.
        seed: decides the tasks, and which source each is of.
        device: where the images are kept and the tasks are made.
        options: those of `few_shot`, and of the sources.

    Raises:
        UsageError: no source, one of them twice, weights that do not fit, or an option that no source takes.
        ShapeError: images of different shapes, where nothing says which to take.
        ShortClassError: a source with too few classes or images, which is named.

    >>> tasks = domains(["icons"], ways=3, channels=3)
    >>> tasks.input_shape, tasks.names("test", 0)[0].partition("/")[0]
    ((3, 28, 28), 'icons')
    """
    named, taken = _named(sources), set[str]()
    if queries is None:
        usual = (options_of(load("task", source["name"]))["queries"].default for source in named.values())
        queries = min(count for count in (_QUERIES, *usual) if count is not None)
    given = {"image_size": image_size, "channels": channels, "ways": ways, "queries": queries, "seed": seed, **options}
    given = {name: value for name, value in given.items() if value is not None} | {"device": device}
    families: dict[str, Tasks] = {}
    for domain, source in named.items():
        accepted = inspect.signature(load("task", source["name"])).parameters
        handed = {name: value for name, value in given.items() if name in accepted and name not in source}
        taken |= handed.keys()
        try:
            own = _checked(source)
            families[domain] = load("task", source["name"])(**{**handed, **own})
        except HeadstartError as error:
            raise type(error)(f"{domain}: {error}") from error
    if lost := given.keys() - taken - {"image_size", "channels"}:
        raise UsageError(f"none of {', '.join(named)} takes {', '.join(sorted(lost))}; leave it out")
    shapes = {domain: family.input_shape for domain, family in families.items()}
    wanted = {
        name: {shape[place] for shape in shapes.values()} if value is None else {value}
        for name, place, value in (("channels", 0, channels), ("image_size", -1, image_size))
    }
    if unclear := [name for name, values in wanted.items() if len(values) > 1]:
        told = "; ".join(f"{domain} has {' x '.join(map(str, shape))}" for domain, shape in shapes.items())
        flags = " ".join(f"--{name.replace('_', '-')} {max(wanted[name])}" for name in unclear)
        raise ShapeError(
            f"the images of the domains differ (channels x height x width: {told}); {flags} makes all of them so"
        )
    ((deep,), (size,)) = wanted.values()
    alike = {domain: converted(family, deep, size) for domain, family in families.items()}
    return mixed("domains", alike, weights=weights, seed=seed, details=_details(alike))


def options_of_sources(sources: Sequence[Mapping[str, Any]]) -> dict[str, Option]:
    """Return the options that sources take besides those of `domains`; a default is each source's own."""
    found: dict[str, Option] = {}
    for source in sources:
        for name, option in options_of(load("task", source["name"])).items():
            other = found.get(name, option)
            found[name] = option._replace(type=option.type | other.type, default=None)
    return {name: option for name, option in found.items() if name not in options_of(domains)}


def _named(sources: Sequence[str | Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the sources by what their domains are called: a folder, or a family; numbered where that is not enough."""
    if not sources:
        raise UsageError("domains have no source; give the names of families, or folders of images")
    families, found = [row.name for row in rows("task")], dict[str, dict[str, Any]]()
    for one in sources:
        source = {"name": one} if isinstance(one, str) else dict(one)
        if source.get("name") not in families:
            source |= {"name": "folder", "data": source.get("name")}
        if source in found.values():
            raise UsageError(f"the source {source.get('data') or source['name']} is there twice")
        if find("task", source["name"]).kind != "images" or load("task", source["name"]) is domains:
            raise ConfigError(f"{source['name']!r} is no single source of images, which domains are made of")
        called = Path(source["data"]).stem if source["name"] == "folder" else str(source["name"])
        count = sum(other.partition("#")[0] == called for other in found)
        found[f"{called}#{count + 1}" if count else called] = source
    return found


def _checked(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return a source's own options, as its family takes them."""
    known, found = options_of(load("task", source["name"])), {}
    for name, value in source.items():
        if name == "name" or value is None:
            continue
        if name in _OF_ALL or name not in known:
            why = "is the same for all sources, so give it once" if name in known else "is no option of it"
            raise ConfigError(f"{name} {why}; it takes {', '.join(known.keys() - _OF_ALL)}")
        try:
            found[name] = checked(known[name], value)
        except ConfigError as error:
            raise ConfigError(f"{name} {error}") from error
    return found


def _details(families: Mapping[str, Tasks]) -> dict[str, Any]:
    """Return what the model card says of all domains together."""
    every = {domain: family.details for domain, family in families.items()}
    classes, notes = Counter[str](), list[str]()
    names, owners = dict[str, list[str]](), dict[str, dict[str, str]]()
    for domain, details in every.items():
        classes.update(details["classes"])
        notes += [f"{domain}: {note}" for note in details.get("notes", ())]
        for split, called in details["class_names"].items():
            names.setdefault(split, []).extend(called)
            owners.setdefault(split, {}).update({original(name): domain for name in called})
    trained, tested = owners.get("train", {}), owners.get("test", {})
    if same := sorted(trained.keys() & tested.keys()):
        notes.append(
            f"{len(same)} of the test classes are called as training classes of another domain, such as {same[0]!r} of"
            f" {tested[same[0]]} and {trained[same[0]]}: where they show the same, the score is flattered"
        )
    if len({bool(details.get("light_on_dark")) for details in every.values()}) > 1:
        light = [domain for domain, details in every.items() if details.get("light_on_dark")]
        notes.append(f"{', '.join(light)} are light on dark, the others as they are, and so will new images be read")
    first, fits = next(iter(every.values())), [details["fit"] for details in every.values() if "fit" in details]
    return {
        **{name: first[name] for name in ("ways", "shots", "queries", "sampler")},
        "classes": dict(classes),
        "class_names": names,
        "notes": tuple(notes),
        "light_on_dark": all(details.get("light_on_dark") for details in every.values()),
        **({"fit": fits[0]} if fits else {}),
        "source": "; ".join(f"{domain}: {details.get('source', 'built in')}" for domain, details in every.items()),
    }
