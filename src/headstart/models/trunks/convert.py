"""Weights that can hold programs, made into such that cannot: called on purpose, never by itself."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from headstart.errors import DataError, FileError
from headstart.models.trunks.trunk import told_by


def to_safetensors(path: str | Path, out: str | Path) -> list[str]:
    """Read weights from a ``.pth``, ``.pt`` or ``.bin`` file, and write them as safetensors; return their names.

    PyTorch reads the file with ``weights_only=True``, which runs no program in it: what is not tensors is refused.

    Args:
        path: the file: a dict of tensors by name, or one that holds it as ``state_dict`` or ``model``.
        out: the file to write, ``….safetensors``; it must not be there.

    Raises:
        FileError: a file that cannot be read, or one in the way.
        DataError: a file that holds no tensors by name.
    """
    path, out = Path(path), Path(out)
    if out.exists() or out.suffix != ".safetensors":
        raise FileError(f"{out} is in the way, or not called ….safetensors; choose another name")
    if not path.is_file():  # a pipe would be waited for
        raise FileError(f"{path} is not an ordinary file")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's errors are of many types
        raise FileError(f"{path} cannot be read as weights alone: {told_by(error)}") from error
    for name in ("state_dict", "model"):
        found = found[name] if isinstance(found, dict) and isinstance(found.get(name), dict) else found
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"{path} holds a {type(found).__name__} that is no dict of tensors by name")
    save_file({str(name): value.detach().contiguous().clone() for name, value in found.items()}, out)
    return [str(name) for name in found]
