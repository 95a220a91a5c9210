"""A layer that is not decided yet: a mixture of candidates, whose proportions are part of M.

References: Liu, Simonyan, Yang 2018 (DARTS), arXiv:1806.09055, for the mixture; Lian et al. 2020 (T-NAS), ICLR, and
Elsken, Staffler, Metzen, Hutter 2019 (MetaNAS), arXiv:1911.11090, for learning it together with a MAML start.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from headstart.core.parameters import Structural
from headstart.errors import ShapeError, UsageError
from headstart.types import Params

#: How the gates' tensors are called in M, below the path of their mixture.
GATES = "gates.logits"


class Gates(Structural):
    """One number a candidate, of which the softmax is taken; all start at 0, so no candidate is preferred."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.logits = nn.Parameter(torch.zeros(len(self.names)))

    def forward(self, *_: object, **__: object) -> Tensor:
        """Return the proportions ``(candidates,)``."""
        return self.logits.softmax(-1)

    def shown(self, own: Params) -> Params:
        """Return the proportion of each candidate by its name."""
        return dict(zip(self.names, own["logits"].softmax(-1)))


class Mixture(nn.Module):
    """``Σₖ pₖ candidateₖ(x)`` with ``p = softmax(gates)``; the gates are part of M, the candidates' weights of θ.

    The outer loop learns which layer a family of tasks wants (the gates) and where its adaptation starts from (the
    weights); inner steps move the weights of all candidates only. `headstart.sharpened` makes the proportions end near
    a choice, `headstart.pressed` makes expensive ones pay, and `headstart.derive` makes the choice: an ordinary module.

    The papers take turns between weights and gates, on separate data; here both follow the loss on the query sets,
    which no inner step has seen. In T-NAS and MetaNAS tasks also adapt the gates.

    Args:
        candidates: at least two modules by name, or in order (called ``"0"``, ``"1"``, …), with outputs of one shape.

    Raises:
        UsageError: fewer than two candidates.
        ShapeError: when used, where two candidates' outputs differ in shape.

    >>> layer = Mixture({"wide": nn.Conv2d(4, 4, 5, padding=2), "narrow": nn.Conv2d(4, 4, 1), "skip": Skip()})
    >>> layer(torch.zeros(2, 4, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    >>> layer.gates()
    tensor([0.3333, 0.3333, 0.3333], grad_fn=<SoftmaxBackward0>)
    """

    def __init__(self, candidates: Mapping[str, nn.Module] | Sequence[nn.Module]) -> None:
        super().__init__()
        named = candidates if isinstance(candidates, Mapping) else {str(i): m for i, m in enumerate(candidates)}
        if len(named) < 2:
            raise UsageError(
                f"a mixture needs at least 2 candidates to choose from, got {', '.join(named) or 'none'}; "
                f"use the module itself where there is no choice"
            )
        self.candidates = nn.ModuleDict(dict(named))
        self.gates = Gates(list(named))

    def forward(self, *args: Tensor) -> Tensor:
        """Return the candidates' outputs, mixed."""
        outputs = [candidate(*args) for candidate in self.candidates.values()]
        names = self.gates.names
        for name, output in zip(names[1:], outputs[1:]):
            if output.shape != outputs[0].shape:
                raise ShapeError(
                    f"candidates of a mixture must give one shape, but {names[0]!r} gives {tuple(outputs[0].shape)} "
                    f"and {name!r} gives {tuple(output.shape)}; change the padding, stride or channels of one of them"
                )
        shares = self.gates()
        mixed = shares[0] * outputs[0]
        for share, output in zip(shares[1:], outputs[1:]):
            mixed = mixed + share * output
        return mixed

    def choice(self) -> str:
        """Return the name of the most probable candidate; of equal ones, the first."""
        return self.gates.names[int(self.gates.logits.argmax())]

    def chosen(self) -> nn.Module:
        """Return the most probable candidate; for a `Skip`, PyTorch's own identity."""
        candidate = self.candidates[self.choice()]
        return nn.Identity() if isinstance(candidate, Skip) else candidate


class Skip(nn.Identity):
    """The candidate that leaves the layer out: its output is its input."""


def mixtures(module: nn.Module) -> dict[str, Mixture]:
    """Return the mixtures of a module by path, outer ones before those inside their candidates.

    Raises:
        UsageError: there are none.
    """
    found = {path: layer for path, layer in module.named_modules() if isinstance(layer, Mixture)}
    if not found:
        raise UsageError(f"{type(module).__name__} holds no Mixture, so there is no architecture to choose")
    return found
