"""How the derivative of the adapted parameters with respect to what adaptation started from is computed."""

from typing import Literal, TypeAlias

from headstart.core.adjoints.checkpointed import Checkpointed as Checkpointed
from headstart.core.adjoints.implicit import Implicit as Implicit
from headstart.core.inner import (
    Adjoint as Adjoint,
    FirstOrder as FirstOrder,
    Truncated as Truncated,
    Unrolled as Unrolled,
)
from headstart.core.linear import ConjugateGradient as ConjugateGradient, Neumann as Neumann
from headstart.errors import pick

AdjointName: TypeAlias = Literal["unrolled", "checkpointed", "first_order"]


def resolve(adjoint: AdjointName | Adjoint) -> Adjoint:
    """Return the adjoint called ``adjoint``, with its defaults, or ``adjoint`` itself."""
    named = {"unrolled": Unrolled, "checkpointed": Checkpointed, "first_order": FirstOrder}
    return pick("adjoint", adjoint, named)() if isinstance(adjoint, str) else adjoint
