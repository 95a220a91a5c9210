"""Configurations in a line, for tests: options by their own names, each given to whom it belongs."""

from collections.abc import Mapping
from typing import Any

from headstart.training.config import WORDS, nested, normal, schema_of


def tree(options: Mapping[str, Any], **more: Any) -> dict[str, dict[str, Any]]:
    """Return ``{"tasks": "sinusoid", "steps": 5}`` as ``{"tasks": {"name": "sinusoid"}, "outer": {"steps": 5}}``."""
    given = {name: value for name, value in {**options, **more}.items() if value is not None}
    named = {f"{part}.name": given.pop(part) for part in ("tasks", "method", "model") if part in given}
    words = {word.replace("-", "_"): place for place, word in WORDS.items()}
    places = {place.partition(".")[2]: place for place in schema_of(normal(nested(named))).options} | words
    return nested({**named, **{places.get(name, f"run.{name}"): value for name, value in given.items()}})
