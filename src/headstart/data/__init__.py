"""Kinds of data, and the built-in families of tasks (`headstart.tasks` has their names); and people's own as tasks.

``from_dataset`` takes a data set of (example, label), ``from_episodes`` what gives episodes.
"""

from typing import Any

__all__ = ["from_dataset", "from_episodes"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'headstart.data' has no attribute {name!r}")
    from headstart.data import datasets  # imports torch

    return getattr(datasets, name)
