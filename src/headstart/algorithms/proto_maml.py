"""Proto-MAML: gradient steps that start from the prototype classifier."""

from math import log
from typing import Any

from torch import Generator, nn

from headstart.algorithms.adaptation import Gradient, Start
from headstart.algorithms.maml import head_of, maml
from headstart.algorithms.prototypes import class_means
from headstart.algorithms.reading import why_not_own
from headstart.errors import UsageError, unknown_name
from headstart.forward.functional import Buffers, functional
from headstart.forward.surgery import replaced
from headstart.forward.task_map import TaskMap, TaskMapName
from headstart.schema import extends
from headstart.types import Batch, Learner, Params


@extends(maml, without=("start",))
def proto_maml(
    module: nn.Module,
    *,
    head: str | None = None,
    taskmap: TaskMapName | TaskMap = "auto",
    buffers: Buffers = "batch",
    **options: Any,
) -> Learner:
    """Proto-MAML: `maml` whose head starts, in each task, as the prototype classifier of its support set.

    With c_k the mean embedding of class k's support examples, row k of the head starts as 2 c_k and its bias as
    −‖c_k‖², so that the logits are −‖f(x) − c_k‖² up to a constant (a head without a bias leaves ‖c_k‖² out); then all
    parameters take T gradient steps. The meta-gradient goes through it. The mean of no examples is 0.

    Args:
        module: the model; its last layer must be an ``nn.Linear``, whose own weights are not used.
        head: the name of the last layer; by default ``head``, or the last one with weights of its own.
        options: those of `maml`.

    Reference: Triantafillou et al. 2019, arXiv:1903.03096, section 3 (first order there; pass
    ``adjoint=FirstOrder()`` for that).
    """
    start = prototype_start(module, head=head, taskmap=taskmap, buffers=buffers)
    return maml(module, start=start, taskmap=taskmap, buffers=buffers, **options)


def prototype_start(
    module: nn.Module,
    *,
    head: str | None = None,
    blend: bool = False,
    taskmap: TaskMapName | TaskMap = "auto",
    buffers: Buffers = "batch",
    name: str = "prototypes",
) -> Start:
    """Return the start of `proto_maml`: the head as the prototype classifier of the task's support set.

    Args:
        head: the name of the module's last layer.
        blend: learn how much of it: every row starts as w̄ + s · 2 c_k and every bias as b̄ − s · ‖c_k‖². log s is in
            M as ``<name>.log_scale``, and s starts as 1 / (number of features): with s = 1 a single support example
            is classified so surely that its loss has no gradient left. w̄ and b̄ are the means of the head's own
            rows, since a class's number means nothing (Ye, Chao 2021, arXiv:2106.09517).
        taskmap, buffers: as for `maml`.
        name: of the part of M.

    Raises:
        UsageError: the head is no ``nn.Linear``, or one whose weights are tied, frozen or in M.
        UnknownNameError: there is no layer called ``head``.
    """
    path = head or head_of(module)
    layers = dict(module.named_modules())
    if path not in layers:
        raise unknown_name("layer", path, [name for name in layers if name])
    layer = layers[path]
    if not isinstance(layer, nn.Linear):
        kind = type(layer).__name__
        raise UsageError(f"a start from prototypes needs a head that is an nn.Linear; {path!r} is a {kind}")
    if reason := why_not_own(module, path):
        raise UsageError(f"a start from prototypes sets the head of each task, but {reason}")
    weight, bias, has_bias = f"{path}.weight", f"{path}.bias", layer.bias is not None
    headless = replaced(module, lambda at, _: nn.Identity() if at == path else None)
    body = functional(headless, taskmap=taskmap, buffers=buffers)

    def values(m: Params, params: Params, shared: Params, support: Batch, gradient: Gradient) -> Params:
        tasks, every = support.y.shape[0], {**shared, **params}
        own = {key: value.expand(tasks, *value.shape) for key, value in body.buffers.items()}
        embedded, _ = body.apply({key: every[key] for key in body.leaves}, own, support.x, seed=support.seed)
        centres = class_means(embedded.flatten(2), support, layer.out_features)["prototypes"]
        rows, offsets = 2 * centres, -centres.square().sum(-1)
        if blend:
            scale = m[f"{name}.log_scale"].exp()
            rows = scale * rows + every[weight].mean(-2, keepdim=True)
            offsets = scale * offsets + (every[bias].mean(-1, keepdim=True) if has_bias else 0)
        return {**params, weight: rows} | ({bias: offsets} if has_bias else {})

    def structure(params: Params, generator: Generator | None) -> Params:
        return {f"{name}.log_scale": next(iter(params.values())).new_tensor(-log(layer.in_features))} if blend else {}

    return Start(values, structure, lambda m: {f"{name}.scale": m[f"{name}.log_scale"].exp()} if blend else {})
