"""Import the parts of other libraries that load data, without all else that their ``__init__`` would import."""

import importlib.util
import sys
from types import ModuleType


def bare(*names: str) -> None:
    """Let the modules of packages be imported without running the packages' own ``__init__``.

    Old libraries import there what today's environments no longer have, such as downloaders of data sets.

    Args:
        names: packages, each after the one that it is in.

    Raises:
        ModuleNotFoundError: a package that is not installed.
    """
    for name in names:
        if name in sys.modules:
            continue
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)
        _add(name, importlib.util.module_from_spec(spec))


def bare_at(name: str, folders: list[str]) -> ModuleType:
    """Return an empty package whose modules lie in ``folders``."""
    package = ModuleType(name)
    package.__path__ = folders
    _add(name, package)
    return package


def stand_in(name: str, **members: object) -> None:
    """Put an empty module where a library imports one whose ``members`` are all that is used here.

    Whatever else is imported from it is a class without anything.
    """
    _add(name, _StandIn(name, members))


class _StandIn(ModuleType):
    def __init__(self, name: str, members: dict[str, object]) -> None:
        super().__init__(name)
        # a path, of no folder, makes it a package
        self.__dict__.update(members, __path__=[])

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _add(name: str, module: ModuleType) -> None:
    sys.modules[name] = module
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, module)
