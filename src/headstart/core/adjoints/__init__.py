"""How the derivative of the adapted parameters with respect to what adaptation started from is computed.

An adjoint runs T inner steps. It decides what is remembered for the backward pass; the mathematics of a step is not
its business.
"""

from typing import Literal, TypeAlias, get_args

from headstart.core.adjoints.checkpointed import Checkpointed
from headstart.core.adjoints.implicit import Implicit
from headstart.core.adjoints.unrolled import FirstOrder, Truncated, Unrolled
from headstart.core.inner import Adjoint
from headstart.core.linear import ConjugateGradient, Neumann
from headstart.errors import unknown_name

__all__ = [
    "Adjoint",
    "AdjointName",
    "Checkpointed",
    "ConjugateGradient",
    "FirstOrder",
    "Implicit",
    "Neumann",
    "Truncated",
    "Unrolled",
    "resolve",
]

AdjointName: TypeAlias = Literal["unrolled", "checkpointed", "first_order"]


def resolve(adjoint: AdjointName | Adjoint) -> Adjoint:
    """Return the adjoint called ``adjoint``, with its defaults, or ``adjoint`` itself."""
    if not isinstance(adjoint, str):
        return adjoint
    named: dict[str, Adjoint] = {
        "unrolled": Unrolled(),
        "checkpointed": Checkpointed(),
        "first_order": FirstOrder(),
    }
    if adjoint not in named:
        raise unknown_name("adjoint", adjoint, get_args(AdjointName))
    return named[adjoint]
