"""Meta-learning: from many small tasks, learn the head start from which a new task takes a handful of examples.

    L(θ)    = Σᵢ Lᵢ(θ)        model-agnostic
    L(θ, M) = Σᵢ Lᵢ(θ, M)     model-aware: M is what is learned about the model itself

Names are imported when they are first used, so ``import headstart`` costs next to nothing.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

#: Where each public name lives, as the stub beside this file says.
_HOME = {
    alias.name: node.module or ""
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'headstart' has no attribute {name!r}")
    home = _HOME[name]
    # what these two hold are modules, public as a whole: headstart.rules.chain
    modules = home in ("headstart", "headstart.core")
    value = import_module(f"{home}.{name}") if modules else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
