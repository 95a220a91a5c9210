"""How the derivative of the adapted parameters with respect to what adaptation started from is computed.

An adjoint runs T inner steps. It decides what is remembered for the backward pass; the mathematics of a step is not
its business.
"""

from headstart.core.adjoint.adjoint import Adjoint
from headstart.core.adjoint.checkpointed import Checkpointed
from headstart.core.adjoint.implicit import ConjugateGradient, Implicit, Neumann
from headstart.core.adjoint.mixed_mode import MixedMode
from headstart.core.adjoint.unrolled import FirstOrder, Truncated, Unrolled

__all__ = [
    "Adjoint",
    "Checkpointed",
    "ConjugateGradient",
    "FirstOrder",
    "Implicit",
    "MixedMode",
    "Neumann",
    "Truncated",
    "Unrolled",
]
