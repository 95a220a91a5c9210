"""What a contender is to whoever asks it; a process that serves one need not have PyTorch for that."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from numpy import ndarray

Arrays: TypeAlias = dict[str, ndarray]


class Prepared(NamedTuple):
    """A contender, ready."""

    step: Callable[[], object]
    """Does the work once, all of it before it returns."""
    answer: Callable[[], Arrays] | None = None
    """What every contender must agree on, such as the meta-gradient, computed in the way that ``step`` has it; asked
    for before the first step."""
    note: str = ""
    """What a reader must know of how this contender does it."""
    meet: Callable[[], object] | None = None
    """Called before every step and not timed, such as waiting for other processes."""


Prepare: TypeAlias = Callable[[Mapping[str, Any]], Prepared]
"""``(the case's values, as JSON has them) -> Prepared``: what a worker is started with, as ``module:function``."""
