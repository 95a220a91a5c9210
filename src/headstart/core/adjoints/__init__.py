"""How the derivative of the adapted parameters with respect to what adaptation started from is computed.

An adjoint runs T inner steps. It decides what is remembered for the backward pass; the mathematics of a step is not
its business.
"""

from headstart.core.adjoints.adjoint import Adjoint
from headstart.core.adjoints.checkpointed import Checkpointed
from headstart.core.adjoints.implicit import ConjugateGradient, Implicit, Neumann
from headstart.core.adjoints.mixed_mode import MixedMode
from headstart.core.adjoints.unrolled import FirstOrder, Truncated, Unrolled

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
