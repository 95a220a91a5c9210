"""What an adapted model, and the learner itself, are as a graph: from examples as they come to answers."""

from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from headstart.core.tree import mapped
from headstart.data.kind import Raw
from headstart.errors import ConfigError
from headstart.exporting.graph import ByValuesError, Graph, Input, recorded
from headstart.registry import find
from headstart.training.head_start import AdaptedTask, HeadStart, learners, shots_of, trust_of
from headstart.training.trust import Trust, believed
from headstart.types import Adapted, Batch, Learner, Meta, Params

#: Examples in trials: numbers that no other size is likely to be.
_QUERIES, _SUPPORT = 17, 23


def raw_of(by: HeadStart) -> Raw:
    """Return what an exported model of such data takes.

    Raises:
        ConfigError: a kind of data, or a preparation, that is not exported.
    """
    if by.kind.raw is None:
        raise ConfigError(f"models of {by.kind.name} cannot be exported; predict by headstart")
    return by.kind.raw(by.prepared)


def of_task(by: HeadStart, task: AdaptedTask, raw: Raw) -> Graph:
    """Return the graph that answers as an adapted model does: from ``raw`` examples.

    Raises:
        ConfigError: a method that does not predict by a graph.
    """
    learner = _one_by_one(by).learner_of(len(task.labels))
    adapted = _on_cpu(task.adapted)

    def called(name: str) -> str:  # what adapting moved goes by the name of what it moved
        return name if name in adapted.meta.params else f"adapted.{name}"

    def answers(weights: Params, examples: Tensor) -> dict[str, Tensor]:
        own = {name: weights[called(name)] for name in adapted.params}
        params = {name: own[name][0] if name in own else weights[name] for name in adapted.meta.params}
        structure = {name: weights[f"structure.{name}"] for name in adapted.meta.structure}
        buffers = {name: weights[name] for name in adapted.buffers}
        given = adapted._replace(meta=Meta(params, structure), params=own, buffers=buffers)
        return _answers(
            learner, given, raw, raw.inputs(examples), trust_of(by, task), shots_of(task) if task.labels else None
        )

    weights = {name: value for name, value in adapted.meta.params.items() if name not in adapted.params}
    weights |= {f"structure.{name}": value for name, value in adapted.meta.structure.items()}
    weights |= {called(name): value for name, value in adapted.params.items()} | adapted.buffers
    method = by.config.method.name
    if find("method", method).transductive:
        raise _no_graph(method, "it reads all that is asked together")
    try:
        return recorded(answers, weights, [Input(raw.name, raw.some, raw.free)])
    except ByValuesError as error:
        raise _no_graph(method, str(error)) from error


def of_learner(by: HeadStart, raw: Raw, ways: int, shots: int) -> Graph:
    """Return the graph that learns a task of a support set, and answers queries, as ``adapt`` and ``predict`` do.

    Where its operations go by the number of support examples, that is ``shots`` for each of the ``ways`` (or, of
    numbers, ``shots`` in all); else there may be any number. Probabilities are calibrated as of so many shots.

    Raises:
        ConfigError: a method that does not learn by a graph.
    """
    method = by.config.method.name
    if find("method", method).transductive:
        raise _no_graph(method, "it reads all that is asked together")
    if by.meta is None:
        raise ConfigError(
            "a network as it is has learned nothing by which a new task is learned; export what it adapted"
        )
    learner, meta = _one_by_one(by).learner_of(ways), Meta(*map(_on_cpu, by.meta))
    classes = by.like(ways).kind == "classification"
    label = "support_labels" if classes else "support_targets"

    def answers(weights: Params, support: Tensor, y: Tensor, queries: Tensor) -> dict[str, Tensor]:
        params = {name: weights[name] for name in meta.params}
        structure = {name: weights[f"structure.{name}"] for name in meta.structure}
        y = y if classes else ((y.double() - raw.mean) / raw.scale).float().unsqueeze(-1)
        batch = Batch(raw.inputs(support).unsqueeze(0), y.unsqueeze(0))
        adapted, _ = learner.adapt(Meta(params, structure), batch)
        return _answers(learner, adapted, raw, raw.inputs(queries), by.trust, shots if classes else None)

    weights = {**meta.params, **{f"structure.{name}": value for name, value in meta.structure.items()}}
    failed = ""
    for free in ((0,), ()):
        size = _SUPPORT if free else shots * (ways if classes else 1)
        x, y = support_like(by, raw, size, ways)
        inputs = [
            Input(f"support_{raw.name}", x, (*free, *raw.free[1:])),
            Input(label, y, free),
            Input(f"query_{raw.name}", raw.some, raw.free),
        ]
        try:
            return recorded(answers, weights, inputs)
        except ByValuesError as error:
            failed = str(error)
    raise _no_graph(method, failed, "learn")


def support_like(by: HeadStart, raw: Raw, size: int, ways: int) -> tuple[Tensor, Tensor]:
    """Return raw examples and their class ids ``(n,)``, or targets in their own units, for trials."""
    places = torch.arange(size)
    x = raw.some[places % len(raw.some)]
    if by.like(ways).kind == "classification":
        return x, places % ways
    return x, raw.mean + raw.scale * (0.37 * places).sin().double()


def _answers(
    learner: Learner, adapted: Adapted, raw: Raw, x: Tensor, trust: Trust | None, shots: float | None
) -> dict[str, Tensor]:
    """Return what `headstart.training.head_start.answered` says, as tensors; of classes, of so many ``shots``."""
    x = x.unsqueeze(0)
    outputs = learner.predict(adapted, x)[0]
    if shots is not None and trust is None:
        return {"probabilities": outputs.softmax(-1)}
    if shots is not None and trust is not None:
        told = believed(trust, outputs.double(), shots)._asdict()
        return {name: value.float() for name, value in told.items() if value is not None}
    found = outputs[:, 0].double()
    named = {"prediction": found}
    if learner.distribution is not None:
        half = NormalDist().inv_cdf(0.95) * learner.distribution(adapted, x).variance[0, :, 0].double().sqrt()
        named |= {"low": found - half, "high": found + half}
    return {name: raw.mean + raw.scale * value for name, value in named.items()}


def _one_by_one(by: HeadStart) -> HeadStart:
    """Return the same with networks that see one task at a time: of one, this is the network's own operations."""
    own = by.config.method
    if "taskmap" not in own.options:
        return by
    config = by.config._replace(method=own._replace(options={**own.options, "taskmap": "loop"}))
    return by._replace(config=config, learner_of=learners(config, by.kind, by.prepared, torch.device("cpu"), by.spread))


def _on_cpu(tree: Any) -> Any:
    return mapped(Tensor.cpu, tree)


def _no_graph(method: str, why: str, does: str = "predict") -> ConfigError:
    return ConfigError(
        f"{method} does not {does} by a graph of operations ({why}), so it cannot be exported so; predict by headstart,"
        " or take another method: docs/export.md lists what each can"
    )
