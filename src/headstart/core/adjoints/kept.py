"""Where the states of a chain of steps are kept until the sweep comes back to them."""

from collections.abc import Callable
from typing import TypeAlias

from headstart.core.step import Inner

Fetch: TypeAlias = Callable[[], Inner]
Keep: TypeAlias = Callable[[Inner], Fetch]
"""``state -> a function that returns it``."""
Place: TypeAlias = Callable[[], Keep]
"""Called once for every sweep."""


def in_memory() -> Keep:
    """Keep states as they are."""
    return lambda inner: lambda: inner
