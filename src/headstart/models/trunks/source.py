"""How one writes where a pretrained network is: ``hf:FOLDER``, ``timm:NAME``, ``onnx:FILE``, ``FILE.py:factory``, …

Nothing here imports torch.
"""

import os

from headstart.errors import ConfigError
from headstart.registry import rows


def parts(source: str) -> tuple[str, str]:
    """Return a source's door and what follows; of ``FILE.py:factory`` all of it follows.

    Raises:
        ConfigError: no such door.

    >>> parts("hf:some/folder"), parts("net.py:make")
    (('hf', 'some/folder'), ('py', 'net.py:make'))
    """
    if not is_source(source):
        known = ", ".join(row.usage for row in rows("trunk"))
        raise ConfigError(f"{source!r} is no pretrained network; expected one of {known}")
    door, _, rest = source.partition(":")
    return ("py", source) if door.endswith(".py") else (door, rest)


def is_source(name: object) -> bool:
    """Return whether a name is that of a pretrained network.

    >>> [is_source(name) for name in ("hf:some/folder", "net.py:make", "conv4", "c:whatever")]
    [True, True, False, False]
    """
    door, colon, rest = name.partition(":") if isinstance(name, str) else ("", "", "")
    return bool(colon and rest) and (door.endswith(".py") or any(row.name == door != "py" for row in rows("trunk")))


def absolute(source: str) -> str:
    """Return a source with its file or folder, where it has one, by its absolute path: a run may be opened elsewhere.

    >>> absolute("timm:resnet18")
    'timm:resnet18'
    """
    door, rest = parts(source)
    file, colon, name = rest.rpartition(":") if door == "py" else (rest, "", "")
    path = os.path.abspath(os.path.expanduser(file))
    found = f"{path}{colon}{name}" if door == "py" or os.path.exists(path) else rest
    return found if door == "py" else f"{door}:{found}"
