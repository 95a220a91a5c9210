"""Pre-training on the classes of all training tasks at once, as one large classification, and what starts from it."""

from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from torch import Generator, Tensor, nn

from headstart.algorithms.adaptation import uniform
from headstart.algorithms.heads.head import Head, embedding, features_of, learner as head_learner
from headstart.algorithms.prototypes import prototypes
from headstart.algorithms.reptile import joined
from headstart.core import losses
from headstart.core.losses import present
from headstart.core.objective import backprop, staged
from headstart.errors import ShapeError, UsageError
from headstart.schema import Positive, extends
from headstart.types import Episodes, Info, Learner, Meta

#: What of θ is the classifier of all training classes.
CLASSES = "classes."


@extends(embedding)
def pretrained(
    learner: Learner,
    module: nn.Module | None,
    *,
    inputs: int | None = None,
    features: int | None = None,
    classes: int | None = None,
    cosine: bool = False,
    **options: Any,
) -> Learner:
    """Return ``learner`` whose embedding f is trained to tell all K training classes apart, in place of on its tasks.

    L(θ, M) = the mean over tasks of −log softmax(V f(x) + b)[y] over a task's support and query examples, with y among
    all K classes: cross-entropy on pooled examples, in which each class counts as often as tasks draw it (alike). V
    ``(K, d)`` and b are in θ, and no part of what a task learns or predicts by. What else there is in M stays where it
    starts. A network that has nothing to train leaves nothing to learn across tasks.

    Args:
        learner: it learns a task on the features of ``module``, which it calls by the same names.
        module: the embedding f; ``None``: the inputs themselves.
        inputs: number of features of an input, needed without a module.
        features: d, the number of the module's features; by default, read off its last linear layer.
        classes: K; ``None`` where nothing is trained any more.
        cosine: τ cos(V_k, f(x)) in place of V_k f(x) + b_k, with τ the ``scale`` in the learner's own M, learned.
        options: those of `embedding`.
    """
    phi = embedding(module, **options)
    if not phi.params and not phi.structure:
        return learner._replace(gradient=None)
    size, count = features_of(module, inputs, features), classes or 0

    def init(generator: Generator | None = None) -> Meta:
        start = learner.init(generator)
        own = {"weight": uniform((count, size), size**-0.5, phi.like, generator)}
        own |= {} if cosine else {"bias": phi.like.new_zeros(count)}
        return start._replace(params=start.params | {CLASSES + name: value for name, value in own.items()})

    def objective(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Tensor, Info]:
        batch = present(joined(episodes))
        losses.refuse_padding(batch, phi.batch_statistics)
        values = {**meta.params, **meta.structure}
        embedded, _ = phi.apply(values, phi.of_tasks(batch), batch.x, batch.seed, 0)
        weight = meta.params[f"{CLASSES}weight"]
        if embedded.shape[-1] != size:
            raise ShapeError(f"there are {embedded.shape[-1]} features, but the learner was made for {size}")
        if cosine:
            embedded, weight = (nn.functional.normalize(one, dim=-1) for one in (embedded, weight))
            logits = meta.structure["scale"] * embedded @ weight.T
        else:
            logits = embedded @ weight.T + meta.params[f"{CLASSES}bias"]
        found = losses.cross_entropy(logits, batch)
        return found, Info(found.new_zeros(0, len(found)), found.detach())

    return learner._replace(init=init, objective=objective, gradient=backprop, exact=True, pooled=True)


@extends(pretrained)
def pretrained_head(
    module: nn.Module | None,
    head: Head,
    *,
    inputs: int | None = None,
    features: int | None = None,
    classes: int | None = None,
    cosine: bool = False,
    ways: int | None = None,
    shared_classes: bool = False,
    **options: Any,
) -> Learner:
    """Return the learner that fits ``head`` to each task, on the features of an embedding that is `pretrained`.

    Args:
        module: the embedding, its outputs flattened; by default the inputs themselves, flattened.
        head: what is fitted to a task's support set.
        ways: number of classes; by default the largest support label plus one.
        shared_classes: as in `prototypes`.
        inputs, features, classes, cosine, options: as in `pretrained`.
    """
    made = head_learner(module, head, ways=ways, shared_classes=shared_classes, **options)
    return pretrained(made, module, inputs=inputs, features=features, classes=classes, cosine=cosine, **options)


@extends(pretrained, without=("cosine",))
def meta_baseline(
    module: nn.Module | None = None,
    *,
    scale: Positive = 10.0,
    share: Annotated[float, Ge(0), Lt(1)] = 0.5,
    inputs: int | None = None,
    features: int | None = None,
    classes: int | None = None,
    ways: int | None = None,
    shared_classes: bool = False,
    **options: Any,
) -> Learner:
    """Meta-Baseline: pre-train the embedding on all training classes at once, then train it on tasks, by class means.

    In the first part of the outer steps as in `pretrained`; in the others L = Σᵢ the query loss of the logits
    τ cos(f(x), c_k), with c_k the mean of f over the support examples of class k and τ in M. Both stages are of one run
    and one optimiser (the paper chooses the first stage's weights before the second begins).

    Args:
        module: the embedding, its outputs flattened.
        scale: where τ starts, which is learned.
        share: the part of the outer steps that are on all classes at once.
        ways: number of classes; by default the largest support label plus one.
        shared_classes: as in `prototypes`.
        options: those of `embedding`.

    Reference: Chen, Liu, Xu, Darrell, Wang 2020, arXiv:2003.04390.
    """
    if not 0 <= share < 1:
        raise UsageError(f"share is the part of the steps that pre-train, from 0 up and below 1; got {share}")
    plain = prototypes(module, distance="cosine", ways=ways, shared_classes=shared_classes, **options)

    def start(generator: Generator | None = None) -> Meta:
        meta = plain.init(generator)
        return meta._replace(structure=meta.structure | {"scale": torch.full_like(meta.structure["scale"], scale)})

    sizes = {"inputs": inputs, "features": features, "classes": classes}
    first = pretrained(plain._replace(init=start), module, **sizes, **options)
    if first.gradient is None:
        return plain._replace(init=start)
    later = plain._replace(init=first.init)
    return staged(later, lambda done: first if done < share else later)
