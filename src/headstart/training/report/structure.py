"""What a run has learned about its model: M in plain numbers, and how far tasks move each tensor."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Generator, Tensor

from headstart.data.tables.schema import Feature, Schema, schema_from_json
from headstart.errors import ConfigError
from headstart.training.build import Job
from headstart.training.evaluate import adapted_after, interval
from headstart.training.files import finite, to_json, write
from headstart.training.metrics import write_csv
from headstart.types import Learner, Meta, Params

Row: TypeAlias = dict[str, Any]

#: Test tasks that movement is the mean over, how many at a time, and how many numbers may be held at once.
TASKS, _AT_A_TIME, _NUMBERS = 50, 10, 1 << 26
#: A vector of no more elements than this is written out.
_FEW = 16
_COLUMNS = (
    "about", "kind", "part", "tensor", "step", "size", "mean", "ci95", "relative", "distance", "tasks", "std", "min",
    "max", "negative", "open", "from_identity", "values",
)  # fmt: skip


class Findings(NamedTuple):
    """What there is to say of a run's model."""

    learned: list[Row]
    """Rows of `learned`; empty where M is."""
    movement: list[Row]
    """Rows of `movement`; empty where nothing takes inner steps."""
    effects: list[Row] = []
    """Rows of `random_effects`; empty where the method has none, or the tasks are no table."""

    def any(self) -> bool:
        """Return whether M holds anything, or anything moved."""
        return bool(self.learned) or any(row["mean"] for row in self.movement)


def find(job: Job, meta: Meta) -> Findings:
    """Return what was learned about the model of a run, with movement over at most as many tasks as it is tested on."""
    there = (job.tasks.counts or {}).get("test", TASKS)
    episodes = max(2, min(TASKS, job.config.run.test_tasks, there))
    schema = job.tasks.details.get("schema")
    effects = [] if schema is None else random_effects(job.learner, meta, schema_from_json(schema, "the run's table"))
    return Findings(learned(job.learner, meta), movement(job, meta, episodes), effects)


def write_findings(run: Path, found: Findings) -> list[Path]:
    """Write ``structure.json`` and, as flat rows of the same numbers, ``structure.csv``; return their paths."""
    write(run / "structure.json", to_json(found._asdict()))
    parts = {"learned": found.learned, "movement": found.movement}
    rows = [{"about": about, **row} for about, part in parts.items() for row in part]
    for row in rows:
        row["values"] = " ".join(map(str, row.get("values") or ()))
    write_csv(run / "structure.csv", [{name: row.get(name) for name in _COLUMNS} for row in rows])
    return [run / "structure.json", run / "structure.csv"]


def summary(found: Findings) -> str:
    """Return in a sentence what was learned about the model, and which tensors tasks move most and least."""
    sizes = Counter[str]()
    for row in found.learned:
        if row["kind"] != "count":
            sizes[row["part"]] += row["size"]
    listed = [f"{part} ({size} number{'s' * (size != 1)})" for part, size in sizes.items()]
    text = ", ".join(listed[:6]) + (f" and {len(listed) - 6} parts more" if len(listed) > 6 else "")
    moved = [row for row in last_step(found.movement) if row["mean"] is not None and row["relative"]]
    if moved and max(row["mean"] for row in moved) > 0:
        most, least = (choose(moved, key=lambda row: row["mean"]) for choose in (max, min))
        steps = f"in {most['step']} inner step{'s' * (most['step'] != 1)}"
        told = f"{steps} test tasks move {most['tensor']} most, by {_percent(most['mean'])} of its length"
        if most is not least:
            told += f", and {least['tensor']} least, by {_percent(least['mean'])}"
        text = f"{text or 'nothing but where it starts'}; {told}"
    return text


def _percent(part: float) -> str:
    if part < 1e-4:
        return "less than 0.01 %"  # perhaps by rounding alone
    return f"{100 * part:.0f} %" if part >= 0.1 else f"{100 * part:.2g} %"


def last_step(movement: list[Row]) -> list[Row]:
    """Return the rows of the learner's own number of inner steps."""
    last = max((row["step"] for row in movement), default=0)
    return [row for row in movement if row["step"] == last]


@torch.no_grad()
def movement(job: Job, meta: Meta, episodes: int = TASKS) -> list[Row]:
    """Return how far test tasks move each tensor from where the outer loop put it.

    For every number of inner steps k = 0 … T there is a row a tensor that adaptation changes: the mean over tasks of
    ‖θᵢ after k steps − θ‖ / ‖θ‖ and half its 95 % interval. A tensor that is zero in θ, and one that is each task's
    own from the beginning (`Context`, measured from its value at k = 0), moves by the norm itself, and ``relative`` is
    then false. ``distance`` is the mean of the norm itself for every tensor.

    Args:
        job: the run's tasks and learner.
        meta: θ and M.
        episodes: number of tasks of the split 'test', at least 2.

    Returns:
        The rows, steps within tensors; none for a learner that takes no steps. What is not finite is ``None``.
    """
    learner = job.learner
    if episodes < 2:
        raise ConfigError(f"movement is a mean over tasks and needs at least 2, got {episodes}")
    if not learner.steps:
        return []
    found: dict[tuple[str, int], list[Tensor]] = {}
    sizes: dict[str, int] = {}
    numbers = (learner.steps + 1) * max(1, sum(value.numel() for value in meta.params.values()))
    at_once = max(1, min(_AT_A_TIME, _NUMBERS // numbers))
    for first in range(0, episodes, at_once):
        support = job.tasks.sample("test", range(first, min(first + at_once, episodes))).support
        own: Params = {}
        for step, adapted in enumerate(adapted_after(learner, meta, support, range(learner.steps + 1))):
            for name, value in adapted.params.items():
                start = meta.params[name] if name in meta.params else own.setdefault(name, value)
                distances = (value - start).cpu().double().flatten(1).norm(dim=1)
                found.setdefault((name, step), []).append(distances)
                sizes[name] = value[0].numel()
    rows = []
    for name, size in sizes.items():
        length = float(meta.params[name].cpu().double().norm()) if name in meta.params else 0.0
        for step in range(learner.steps + 1):
            distances = torch.cat(found[name, step])
            told = interval((distances / (length or 1.0)).tolist())._asdict() | {"distance": float(distances.mean())}
            about = {"tensor": name, "step": step, "size": size, "relative": bool(length), "tasks": episodes}
            rows.append(finite(about | told))
    return rows


def learned(learner: Learner, meta: Meta) -> list[Row]:
    """Return M in plain numbers, in the units in which it acts as far as the learner says (``Learner.shown``).

    A row is a tensor of M, or one number of it where it has one for each inner step, or one gate of a mixture. Its
    ``part`` is the rule's name for it, or the path of the module that holds it; ``tensor`` is the tensor of θ that
    it is for, or its name within the part; ``step`` counts inner steps from 0. ``kind`` is

    - ``"rate"``: step sizes; ``"mask"``: gates over what moves, ``open`` being the fraction above 0.5;
    - ``"gate"``: the proportion of a candidate of a mixture;
    - ``"matrix"``: what started as the identity, ``from_identity`` being ‖A − I‖ / ‖I‖;
    - ``"count"``: how many values and tasks were read, which nobody learned; ``"other"``: anything else.

    ``negative`` is the fraction below 0, ``values`` holds vectors of at most 16 elements. What is not finite is
    ``None``.
    """
    starts = _in_units(learner, learner.init(Generator().manual_seed(0)))
    parts: dict[str, Params] = {}
    for name, value in _in_units(learner, meta).items():
        part, tensor = _place(name, meta.params)
        parts.setdefault(part, {})[tensor] = value
    rows: list[Row] = []
    for part, values in parts.items():
        gates, stepped = _are_gates(part, values), _are_stepped(values, meta.params)
        for tensor, value in values.items():
            kind = "gate" if gates else _kind(part, value, starts.get(f"{part}.{tensor}" if tensor else part))
            if gates and value.ndim:
                rows += [_row(kind, part, str(index), None, one) for index, one in enumerate(value)]
            elif stepped:
                rows += [_row(kind, part, tensor, step, one) for step, one in enumerate(value)]
            else:
                rows.append(_row(kind, part, tensor, None, value))
    return rows


def random_effects(learner: Learner, meta: Meta, schema: Schema) -> list[Row]:
    """Return how the tasks of a table differ: a row for the intercept and each slope that is a task's own.

    ``sd`` is its standard deviation over tasks, in the target's unit for each of the ``effect``'s; ``correlations`` are
    with the effects before it. The intercept is at the means of the features; where a feature is taken by its
    logarithm, the slope is that of the logarithm. Empty for a learner without random effects.
    """
    shown = {} if learner.shown is None else learner.shown(meta)
    name = next((name for name in ("effects.inputs", "effects.time") if name in shown), None)
    if name is None:
        return []
    covariance = shown[name].detach().double().cpu().reshape(-1, *shown[name].shape[-2:])[0]
    slopes = [(*one, feature) for feature in schema.features for one in _slopes(feature)]
    timed = [one for one in slopes if one[2].column == schema.time_column and one[2].kind != "category"][:1]
    timed = timed or (slopes if len(schema.inputs) == 1 else [])
    listed = timed if name == "effects.time" else slopes
    names, scales = ["intercept", *(one[0] for one in listed)], [1.0, *(one[1] for one in listed)]
    if len(names) < len(covariance) and timed:
        names, scales = [*names, f"{timed[0][0]} squared"], [*scales, timed[0][1] ** 2]
    rows = []
    deviations = covariance.diagonal().clamp(min=0).sqrt()
    for place, (effect, scale) in enumerate(zip(names, scales)):
        own = covariance[place, :place] / (deviations[place] * deviations[:place])
        told = [float(value) if value.isfinite() else None for value in own]
        rows.append({"effect": effect, "sd": schema.scale * float(deviations[place]) / scale, "correlations": told})
    return rows


def _slopes(feature: Feature) -> list[tuple[str, float]]:
    """Return the names of a feature's inputs, and what 1 of each is in the feature's own unit."""
    name = f"log(1 + |{feature.column}| / {feature.unit:.4g})" if feature.unit else feature.column
    if feature.kind in ("category", "text"):
        return [(one, 1.0) for one in feature.inputs]
    return [(name, feature.scale), *((one, 1.0) for one in feature.inputs[1:])]


def _in_units(learner: Learner, meta: Meta) -> Params:
    """Return what the learner shows of M, and as it stands what that says nothing of."""
    structure = {
        name: value.detach().clone().requires_grad_(value.is_floating_point()) for name, value in meta.structure.items()
    }
    with torch.enable_grad():
        seen = {} if learner.shown is None else dict(learner.shown(Meta(meta.params, structure)))
        # what is shown of a tensor depends on it
        leaves = {name: value for name, value in structure.items() if value.requires_grad}
        outputs = [value.sum() for value in seen.values() if value.requires_grad]
        told = torch.autograd.grad(outputs, list(leaves.values()), allow_unused=True) if outputs else ()
    shown = {name for name, gradient in zip(leaves, told) if gradient is not None}
    every = seen | {name: value for name, value in structure.items() if name not in shown | seen.keys()}
    return {name: value.detach().cpu().double() for name, value in every.items() if value.numel()}


def _place(name: str, params: Mapping[str, Tensor]) -> tuple[str, str]:
    """Return the part of M that a tensor belongs to, and what it is for within the part.

    >>> params = {"body.0.weight": torch.zeros(2)}
    >>> _place("curvature.output.body.0.weight", params), _place("body.0.warp.weight", params)
    (('curvature.output', 'body.0.weight'), ('body.0.warp', 'weight'))
    """
    words = name.split(".")
    owners = {".".join(of[:end]) for of in (key.split(".") for key in params) for end in range(1, len(of) + 1)}
    end = next((end for end in range(1, len(words)) if ".".join(words[end:]) in owners), 1)
    if end == 1 and ".".join(words[1:]) not in owners:  # for no tensor of θ
        end = words.index("gates") + 1 if "gates" in words else max(1, len(words) - 1) if words[0] in owners else 1
    return ".".join(words[:end]), ".".join(words[end:])


def _are_stepped(values: Params, params: Params) -> bool:
    shapes = {value.shape for value in values.values()}
    others = any(name in params and params[name].shape != value.shape for name, value in values.items())
    return others and len(shapes) == 1 == len(next(iter(shapes)))


def _are_gates(part: str, values: Params) -> bool:
    gates = [value.flatten() for value in values.values() if value.ndim < 2]
    if "gates" not in part.split(".") or not gates:
        return False
    every = torch.cat(gates)
    return bool((every >= 0).all()) and abs(float(every.sum()) - 1) < 1e-3


def _kind(part: str, value: Tensor, start: Tensor | None) -> str:
    words = part.replace("_", ".").split(".")
    if part in ("values", "tasks") and value.ndim == 0:
        return "count"
    if "mask" in words and 0 <= float(value.min()) and float(value.max()) <= 1:
        return "mask"
    if "rate" in words or "rates" in words:
        return "rate"
    return "matrix" if start is not None and _from_identity(part, start) == 0 else "other"


def _from_identity(part: str, value: Tensor) -> float | None:
    """Return ‖A − I‖ / ‖I‖ for a square matrix (also as a 1×1 convolution) or a diagonal; ``None`` for others."""
    if value.ndim >= 2 and value.shape[0] == value.shape[1] == math.sqrt(value.numel()):
        identity = torch.eye(len(value), dtype=value.dtype)
    elif value.ndim == 1 and part.endswith("diagonal"):
        identity = torch.ones_like(value)
    else:
        return None
    return float((value.view_as(identity) - identity).norm() / identity.norm())


def _row(kind: str, part: str, tensor: str, step: int | None, value: Tensor) -> Row:
    flat = value.flatten()
    listed = value.ndim == 1 and len(flat) <= _FEW and bool(flat.isfinite().all())
    row = {
        "kind": kind, "part": part, "tensor": tensor, "step": step, "size": len(flat),
        "mean": float(flat.mean()), "std": float(flat.std(correction=0)), "min": float(flat.min()),
        "max": float(flat.max()), "negative": float((flat < 0).double().mean()),
        "open": float((flat > 0.5).double().mean()) if kind == "mask" else None,
        "from_identity": _from_identity(part, value) if kind == "matrix" else None,
        "values": flat.tolist() if listed else None,
    }  # fmt: skip
    return finite(row)
