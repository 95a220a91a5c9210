"""The one schema of a training run: flags, configuration files and Python calls all become a `TrainConfig`.

Nothing here imports torch, so that ``headstart train --help`` is quick.
"""

import re
from difflib import get_close_matches
from typing import Any, TypeAlias

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo

from headstart.errors import ConfigError
from headstart.training.options import Options, limits_text

Setting: TypeAlias = int | float | str | bool | None


class TrainConfig(Options):
    """A training run."""

    tasks: str = Field(
        ...,
        description="A task family's name (headstart list tasks), a folder of class folders, or a CSV or Parquet file.",
    )


#: What may differ when a run goes on: these leave the result as it is, up to rounding.
FREE_TO_CHANGE = frozenset({"save_every", "device", "threads", "compile", "memory"})
#: Methods whose steps depend on how many there are to be.
ANNEALED = frozenset({"maml_plus_plus", "aware"})


def make_config(values: dict[str, Any], source: str = "") -> TrainConfig:
    """Validate ``values``; the error names every option that is wrong, one line each.

    Args:
        values: options by name.
        source: the file they came from, for the message.

    Raises:
        ConfigError: an unknown option, or a value out of its range.

    >>> make_config({"tasks": "sinusoid", "stpes": 5})
    Traceback (most recent call last):
    headstart.errors.ConfigError: unknown option --stpes; did you mean --steps?
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, source)) from error


def explain(error: ValidationError, source: str = "") -> str:
    """Say what a pydantic error means: the flag, the value that came, what is allowed; one line each."""
    lines = {}
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        lines.setdefault(name, _explain_one(name, problem))
    where = f" (in {source})" if source else ""
    return "\n".join(line + where for line in lines.values())


def _explain_one(name: str, problem: Any) -> str:
    if problem["type"] == "missing":
        return f"{flag(name)} is missing: {TrainConfig.model_fields[name].description}"
    if problem["type"] == "extra_forbidden":
        near = get_close_matches(name, TrainConfig.model_fields, n=1)
        hint = f"; did you mean {flag(near[0])}?" if near else ""
        return f"unknown option {flag(name)}{hint}"
    field = TrainConfig.model_fields.get(name)
    allowed = allowed_values(field) if field else ""
    if problem["type"] == "value_error":
        allowed = str(problem["ctx"]["error"]).removeprefix("must be ")
    elif not allowed:
        allowed = problem["msg"].removeprefix("Input should be ")
    return f"{flag(name)} is {problem['input']!r}, but must be {allowed}"


def allowed_values(field: FieldInfo) -> str:
    """Return the range of a field in words."""
    limits = {key: getattr(m, key) for m in field.metadata for key in ("gt", "ge", "le") if hasattr(m, key)}
    choices = re.findall(r"Literal\[(.*?)\]", str(field.annotation))
    if choices:
        return "one of " + choices[0].replace("'", "")
    kind = (
        "a whole number" if "int" in str(field.annotation) else "a number" if "float" in str(field.annotation) else ""
    )
    return " ".join(part for part in (kind, limits_text(limits)) if part)


def flag(name: str) -> str:
    """Return the command line's name of an option.

    >>> flag("inner_rate")
    '--inner-rate'
    """
    return "TASKS" if name == "tasks" else "--" + name.replace("_", "-")


def diff(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Return what keeps a run with ``old`` from going on with ``new``: one line an option, none if it may.

    More steps than before are allowed where the outer rate is constant and the method does not anneal (elsewhere they
    would change the steps that are taken already), and so is what leaves the result as it is (`FREE_TO_CHANGE`).
    """
    lines = []
    for name in TrainConfig.model_fields:
        before, after = getattr(old, name), getattr(new, name)
        raised = name == "steps" and before is not None and after is not None and after > before
        raised = raised and new.schedule in (None, "constant") and new.method not in ANNEALED
        if before != after and name not in FREE_TO_CHANGE and not raised:
            lines.append(f"{flag(name)}: {_shown(before)} -> {_shown(after)}")
    return lines


def _shown(value: Setting) -> str:
    return "not set" if value is None else str(value)
