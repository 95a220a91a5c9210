"""A baseline: the network as it starts, and what each task fits on its features."""

from typing import Any, Literal

from torch import nn

from headstart.algorithms.heads.head import embedding, learner
from headstart.algorithms.heads.regularised import regularised
from headstart.algorithms.prototypes import prototypes
from headstart.errors import check_known
from headstart.schema import extends
from headstart.types import Learner


@extends(embedding)
def frozen(
    module: nn.Module | None = None,
    *,
    head: Literal["means", "logistic"] = "means",
    ways: int | None = None,
    shared_classes: bool = False,
    **options: Any,
) -> Learner:
    """Classify on the features of the network as it starts; nothing is learned across tasks: a baseline.

    On `headstart.models.ngrams.ngrams`, which in a run start from inverse document frequencies, it is TF-IDF with the
    nearest class mean by cosine or with logistic regression; on a pretrained network, what that network is worth alone.

    Args:
        module: the network, its outputs flattened; by default the inputs themselves.
        head: what a task fits: the nearest class mean by cosine, or logistic regression on features of length 1, whose
            penalty is chosen by cross-validation among the task's examples.
        ways: number of classes; by default the largest support label plus one.
        shared_classes: as in `headstart.prototypes`.
        options: those of `embedding`.

    Raises:
        UnknownNameError: another head.
    """
    check_known("head", head, ("means", "logistic"))
    given: dict[str, Any] = {"ways": ways, "shared_classes": shared_classes, **options}
    if head == "means":
        made = prototypes(module, distance="cosine", **given)
    else:
        made = learner(module, regularised(ways), **given)
    return made._replace(gradient=None)
