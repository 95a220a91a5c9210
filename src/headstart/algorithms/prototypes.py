"""Prototypical networks: classify by the nearest class mean in a learned embedding."""

from typing import Literal

import torch
from torch import Generator, Tensor, nn

from headstart.core import losses
from headstart.core.masks import present
from headstart.core.objective import backprop
from headstart.core.values import in_range, one_hot
from headstart.errors import ShapeError, unknown_name
from headstart.forward.functional import Buffers, functional
from headstart.forward.task_map import TaskMap
from headstart.types import Adapted, Batch, Info, Learner, Meta, Params, Tree

Distance = Literal["euclidean", "cosine"]


def prototypes(
    module: nn.Module,
    *,
    distance: Distance = "euclidean",
    ways: int | None = None,
    taskmap: str | TaskMap = "auto",
    buffers: Buffers = "batch",
) -> Learner:
    """Learn an embedding f in which the nearest class mean is right.

    c_k = mean of f(x) over the support examples of class k; the logit of class k for a query x is −‖f(x) − c_k‖²
    (``"euclidean"``), or τ · cos(f(x), c_k) (``"cosine"``) with the scale τ learned in M, from 10.

    Args:
        module: the embedding f; its outputs ``(n, *features)`` are flattened.
        distance: ``"euclidean"`` as in the paper, or ``"cosine"``.
        ways: number of classes; by default the largest support label plus one (which reads it from the device).
        taskmap: ``"auto"``, ``"vmap"`` or ``"loop"``.
        buffers: what normalisation does with running statistics. With ``"batch"``, support and query sets are each
            normalised by their own statistics.

    Reference: Snell, Swersky, Zemel 2017, arXiv:1703.05175; cosine with a learned scale as in Gidaris, Komodakis
    2018, arXiv:1804.09458.
    """
    if distance not in ("euclidean", "cosine"):
        raise unknown_name("distance", distance, ("euclidean", "cosine"))
    function = functional(module, buffers=buffers, taskmap=taskmap)
    task_loss = losses.without_padding(losses.cross_entropy, function.batch_statistics)

    def init(generator: Generator | None = None) -> Meta:
        params = {name: value.clone() for name, value in function.params.items()}
        scale = {"scale": torch.tensor(10.0).to(next(iter(params.values())))} if distance == "cosine" else {}
        return Meta(params, scale)

    def embed(
        meta: Meta, x: Tree, batch_buffers: dict[str, Tensor], seed: Tensor | None, draw: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        phase = "support" if draw == 0 else "query"
        outputs, updated = function.apply(meta.params, batch_buffers, x, seed=seed, draw=draw, phase=phase)
        return outputs.flatten(2), updated

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        support = present(support)
        tasks = support.y.shape[0]
        # the support set has no loss of its own here
        losses.refuse_padding(support, function.batch_statistics)
        own = {name: value.expand(tasks, *value.shape) for name, value in function.buffers.items()}
        embedded, own = embed(meta, support.x, own, support.seed, 0)
        return Adapted(meta, class_means(embedded, support, ways), own, support.seed), Info(
            embedded.new_zeros(0, tasks)
        )

    def predict(adapted: Adapted, x: Tree) -> Tensor:
        embedded, _ = embed(adapted.meta, x, adapted.buffers, adapted.seed, 1)
        centres = adapted.params["prototypes"]
        if distance == "cosine":
            normal = (nn.functional.normalize(v, dim=-1) for v in (embedded, centres))
            queries, keys = normal
            logits = adapted.meta.structure["scale"] * queries @ keys.transpose(1, 2)
        else:
            logits = -squared_distances(embedded, centres)
        return logits + adapted.params["absent"].unsqueeze(1)

    return Learner(init, adapt, predict, task_loss, backprop)


def class_means(embedded: Tensor, support: Batch, ways: int | None = None) -> Params:
    """Return the ``prototypes``: the mean ``(B, ways, d)`` of each class's embedded support examples ``(B, n, d)``.

    Masks are respected. Beside the means stands ``absent`` ``(B, ways)``, to be added to the logits: −∞ for a class
    without a support example, which nothing can be taken for, and 0 else.

    Raises:
        ShapeError: labels that are not integers, or not one an example.
    """
    if support.y.is_floating_point() or support.y.shape != embedded.shape[:2]:
        raise ShapeError(
            f"class means need integer labels (tasks, examples) = {tuple(embedded.shape[:2])}; "
            f"got y {tuple(support.y.shape)} of {support.y.dtype}"
        )
    labels = support.y.long()
    count = int(labels.max()) + 1 if ways is None else ways
    member = one_hot(in_range(labels, count, f"there are {count} ways"), count, embedded)
    if support.mask is not None:
        member = member * support.mask.unsqueeze(-1).to(embedded.dtype)
        embedded = torch.where(support.mask.unsqueeze(-1), embedded, 0)
    sizes = member.sum(1)
    means = member.transpose(1, 2) @ embedded / sizes.clamp(min=1).unsqueeze(-1)
    return {"prototypes": means, "absent": torch.zeros_like(sizes).masked_fill(sizes == 0, -torch.inf)}


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """Return ‖left − right‖² ``(B, n, m)`` for ``(B, n, d)`` and ``(B, m, d)``."""
    squares = left.square().sum(-1).unsqueeze(-1) + right.square().sum(-1).unsqueeze(-2)
    return squares - 2 * left @ right.transpose(1, 2)
