"""What a module's tensors are to meta-learning: θ, unless they lie inside one of these.

- θ: where adaptation starts from; the outer loop learns them, a rule decides which of them adaptation moves.
- M (`Structural`): the outer loop learns them, no adaptation moves them.
- context (`Context`): the tasks' own; each task starts from the module's values, and nothing is learned across tasks.
"""

from typing import Literal, TypeAlias

from torch import nn

from headstart.types import Params

Role: TypeAlias = Literal["initial", "structure", "context"]


class Structural(nn.Module):
    """A module whose parameters are part of M: the outer loop learns them, and no inner step moves them.

    Derive from it, or wrap layers in it as ``Structural(layer)``: warp layers, gates, modulators.
    """

    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        if layer is not None:
            self.layer = layer

    def forward(self, *args: object, **kwargs: object) -> object:
        """Do what the wrapped layer does."""
        return self.layer(*args, **kwargs)

    def shown(self, own: Params) -> Params:
        """Return this module's part of M, its own parameters by name, in the units in which it acts, for reports."""
        return own


class Context(nn.Module):
    """A module whose parameters are each task's own: they start from the same values in every task, and the outer
    loop does not learn them.
    """


class Stepped(nn.Module):
    """A module that does something else at every inner step: ``self.step`` is the number of steps taken so far."""

    step: int = 0


def role_of(module: nn.Module, name: str) -> Role:
    """Return what the parameter ``name`` of ``module`` is: the innermost module that says so decides."""
    path = name.split(".")[:-1]
    for end in range(len(path), -1, -1):
        holder = module.get_submodule(".".join(path[:end]))
        if isinstance(holder, Structural):
            return "structure"
        if isinstance(holder, Context):
            return "context"
    return "initial"
