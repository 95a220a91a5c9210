"""SimpleShot: the nearest class mean, in features that are centred and of length 1."""

from os import PathLike
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from headstart.algorithms.heads.head import Head, embedding, features_of, read_classes
from headstart.algorithms.kernels import squared_distances
from headstart.algorithms.pooled_classes import pretrained_head
from headstart.algorithms.prototypes import class_means
from headstart.algorithms.reptile import joined
from headstart.core import losses
from headstart.core.losses import present, there
from headstart.errors import check_known
from headstart.schema import extends
from headstart.types import Batch, Learner, Meta, Params, Tasks

Transform = Literal["CL2N", "L2N", "UN"]
#: Training tasks that are read for the mean of features, at most, and so many at a time.
_MOST, _TOGETHER = 256, 16


@extends(pretrained_head, without=("cosine",))
def simple_shot(
    module: nn.Module | None = None,
    *,
    transform: Transform = "CL2N",
    inputs: int | None = None,
    features: int | None = None,
    classes: int | None = None,
    ways: int | None = None,
    shared_classes: bool = False,
    **options: Any,
) -> Learner:
    """SimpleShot: classify by the nearest class mean of features, made comparable first; no task is trained on.

    The network is pre-trained on all training classes at once (`pretrained`). A task's features are g(x) = (f(x) − m) /
    ‖f(x) − m‖, with m in M the mean of f over the support and query examples of 256 training tasks, or all there are;
    the logit of class k is −‖g(x) − c_k‖², with c_k the mean of g over its support examples. ``Learner.prepare`` reads
    m by the weights at hand, so it is asked again whenever those are judged (`headstart.training.fit_best`).

    Args:
        module: the embedding f, its outputs flattened; by default the inputs themselves, flattened.
        transform: what is done to features: centre and scale them to length 1 (``"CL2N"``), scale them alone
            (``"L2N"``), or nothing (``"UN"``).
        ways: number of classes; by default the largest support label plus one.
        inputs, features, classes, shared_classes, options: as in `pretrained_head`.

    Reference: Wang, Chao, Weinberger, van der Maaten 2019, arXiv:1911.04623.
    """
    check_known("transform", transform, get_args(Transform))
    centred = transform == "CL2N"
    phi = embedding(module, **options)

    def seen(structure: Params, found: Tensor) -> Tensor:
        found = found - structure["centre"] if centred else found
        return found if transform == "UN" else nn.functional.normalize(found, dim=-1)

    def fit(structure: Params, found: Tensor, support: Batch) -> Params:
        return class_means(seen(structure, found), support, ways)

    def outputs(structure: Params, fitted: Params, found: Tensor) -> Tensor:
        return -squared_distances(seen(structure, found), fitted["prototypes"])

    def prepare(meta: Meta, tasks: Tasks, seed: int, folder: PathLike[str] | None = None, /) -> Meta:
        meta = read_classes(meta, tasks, seed) if shared_classes else meta
        if not centred:
            return meta
        most = min((tasks.counts or {}).get("train", _MOST), _MOST)
        total, count = torch.zeros_like(meta.structure["centre"], dtype=torch.float64), 0
        for first in range(0, most, _TOGETHER):
            batch = present(joined(tasks.sample("train", range(first, min(first + _TOGETHER, most)))))
            with torch.no_grad():
                values = {**meta.params, **meta.structure}
                found, _ = phi.apply(values, phi.of_tasks(batch), batch.x, None, 0)
            found = found[there(batch)]
            total, count = total + found.sum(0).to(total), count + len(found)
        centre = (total / max(count, 1)).to(meta.structure["centre"])
        return meta._replace(structure=meta.structure | {"centre": centre})

    numbers = {"centre": torch.zeros(features_of(module, inputs, features))} if centred else {}
    head = Head(numbers, fit, outputs, losses.cross_entropy, False)
    sizes: Any = {"inputs": inputs, "features": features, "classes": classes, "ways": ways}
    made = pretrained_head(module, head, **sizes, shared_classes=shared_classes, **options)
    return made._replace(prepare=prepare, renewed=centred)
