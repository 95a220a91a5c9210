"""Where episodes come from: ``headstart.tasks.icons(...)`` and the other families, each imported when it is first used.

Every factory returns a `headstart.types.Tasks`. Besides the registered families there are `few_shot` and `class_store`
for images in memory, and `Rows` and `row_tasks` for rows.
"""

from importlib import import_module
from typing import Any

from headstart.registry import rows

_TARGETS = {row.name: row.target for row in rows("task")} | {
    "few_shot": "headstart.data.fewshot:few_shot",
    "class_store": "headstart.data.fewshot:class_store",
    "Rows": "headstart.data.rows:Rows",
    "row_tasks": "headstart.data.rows:row_tasks",
}

__all__ = sorted(_TARGETS)  # pyrefly: ignore[unresolvable-dunder-all]


def __getattr__(name: str) -> Any:
    if name not in _TARGETS:
        raise AttributeError(f"module 'headstart.tasks' has no attribute {name!r}")
    module, attribute = _TARGETS[name].split(":")
    globals()[name] = value = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return __all__
