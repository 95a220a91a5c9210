"""A pretrained network without its head: what it takes, how raw data become that, and its features.

A *source* says where it is: ``hf:FOLDER``, ``timm:NAME``, ``torchvision:NAME``, ``onnx:FILE`` or ``FILE.py:factory``.
Each door is one file here and one row of the registry.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.errors import ConfigError, DataError, FileError, HeadstartError, ShapeError, UsageError, check_known
from headstart.models.trunks.source import parts
from headstart.registry import load

Takes: TypeAlias = Literal["texts", "images"]
Resample: TypeAlias = Literal["nearest", "bilinear", "bicubic"]


class Trunk(NamedTuple):
    """A pretrained network without its head."""

    source: str
    sha256: str
    """Of all that its features depend on: its files, or, where it has none that are known, its weights."""
    takes: Takes
    inputs: Callable[[Any], Tensor]
    """Texts, or uint8 images ``(n, 3, H, W)``, as ``build()`` takes them: ids ``(n, length)``, int64, padded; or images
    ``(n, 3, size, size)``, uint8."""
    build: Callable[[], nn.Module]
    """Read the weights: a module ``inputs -> features (n, width)``, in evaluation mode, with normalisation, masks and
    pooling inside."""
    told: Mapping[str, Any]
    """What a run keeps of it, as JSON: its pooling, the most tokens of a text, the size of an image, …"""
    cut: Callable[[Sequence[str]], int] = lambda texts: 0
    """How many of texts it does not read to their ends."""


def open_trunk(source: str, *, sha256: str | None = None) -> Trunk:
    """Return the trunk that a source names; its weights are read where they are asked for.

    Args:
        source: ``hf:FOLDER``, ``timm:NAME``, ``torchvision:NAME``, ``onnx:FILE`` or ``FILE.py:factory``.
        sha256: what it must be; then no program of another one is run.

    Raises:
        ConfigError: no such door, or what the door needs is not installed.
        FileError: files that are missing, or that are not what they were.
    """
    if _keeps and sha256 is not None:
        return _kept(source, sha256)
    return _opened(source, sha256)


#: Whether trunks of a known SHA-256 stay open; set once, by `keep_open`.
_keeps = False


def keep_open() -> None:
    """Open each trunk whose SHA-256 is known once in this process, and keep it with its weights.

    For a service: to look at all files anew takes longer than to compute the features of a few examples. A network that
    changes meanwhile is found out by the next process.
    """
    global _keeps
    _keeps = True


@cache
def _kept(source: str, sha256: str) -> Trunk:
    trunk = _opened(source, sha256)
    return trunk._replace(build=cache(trunk.build))


def _opened(source: str, sha256: str | None) -> Trunk:
    door, rest = parts(source)
    with torch.device("cpu"):  # where only shapes are asked for, constants are what they are
        try:
            trunk = cast(Trunk, load("trunk", door)(rest, sha256) if door == "py" else load("trunk", door)(rest))
        except HeadstartError:
            raise
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:  # of files that hold other than expected
            raise FileError(f"the files beside {source} do not say what they should: {told_by(error)}") from error
    if sha256 is not None and trunk.sha256 != sha256:
        raise changed(source)
    return trunk


def some(trunk: Trunk) -> list[str] | Tensor:
    """Return two examples such as a trunk takes, by which to see what it does."""
    if trunk.takes == "texts":
        return ["a", "a few more words"]
    size, generator = int(trunk.told.get("size", 28)), torch.Generator().manual_seed(0)
    return torch.randint(256, (2, 3, size, size), dtype=torch.uint8, generator=generator)


def changed(source: str) -> FileError:
    """Return the error for a trunk that is another one than it was."""
    own = "; a function of your own has to give the same weights whenever it is called" if ".py:" in source else ""
    return FileError(
        f"the pretrained network {source} is not what it was when the run was made (its SHA-256 is another), so its"
        f" features mean something else; bring it back as it was, or train again in another --out{own}"
    )


@lru_cache(maxsize=1)
def _built(source: str, sha256: str) -> nn.Module:
    trunk = open_trunk(source, sha256=sha256)
    with torch.device("cpu"):
        return trunk.build()


def module_of(trunk: Trunk) -> nn.Module:
    """Return a trunk's module, frozen and in evaluation mode; the latest one is kept, so do not change it."""
    return frozen(_built(trunk.source, trunk.sha256))


def frozen(module: nn.Module) -> nn.Module:
    """Put a module into evaluation mode, none of its tensors to be learned; it is returned."""
    return module.eval().requires_grad_(False)


def digest(files: Iterable[Path], more: Sequence[str] = ()) -> str:
    """Return the SHA-256 of files, by their names and contents."""
    total = hashlib.sha256("\0".join(more).encode())
    for path in sorted(files):
        if not path.is_file():  # a pipe would be waited for
            raise FileError(f"cannot read {path}: it is not an ordinary file")
        try:
            with path.open("rb") as file:
                total.update(f"\0{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
        except OSError as error:
            raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    return total.hexdigest()


def digest_of(module: nn.Module, more: Sequence[str] = ()) -> str:
    """Return the SHA-256 of a module's tensors, by their names, types, shapes and numbers."""
    total = hashlib.sha256("\0".join(more).encode())
    for name, value in sorted(module.state_dict().items()):
        total.update(f"\0{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def needs(package: str, extra: str) -> Any:
    """Import a package of an extra, or say how to install it."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name or package} is not installed; `pip install headstart[{extra}]` brings it"
        ) from error
    except Exception as error:  # whatever another package does
        raise ConfigError(f"{package} fails: {told_by(error)}{of_torchvision()}") from error


def of_torchvision() -> str:
    """Return what there is to say of a torchvision that fails, as others then do that use it; mostly nothing."""
    try:
        import_module("torchvision")
    except ModuleNotFoundError:
        return ""
    except Exception as error:  # `pip check` does not see it
        return (
            f". The torchvision that is installed was not built for this PyTorch, {torch.__version__}"
            f" ({told_by(error)}): install both anew, from one index, or leave it out: `pip uninstall torchvision`"
        )
    return ""


def of_images(
    module: nn.Module,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    resample: Resample = "bilinear",
    source: str = "",
    told: Mapping[str, Any] | None = None,
) -> Trunk:
    """Return a network for images as a trunk.

    Args:
        module: normalised images ``(n, 3, size, size)`` -> features, flattened; maps ``(n, c, h, w)`` are averaged.
        size: height and width, in pixels.
        mean, std: of each channel, of values in [0, 1], by which it wants images normalised; ``(0, 0, 0)`` and ``(1, 1,
            1)`` where it takes them as they are.
        resample: how images of another size are made to fit.
        source, told: as in `Trunk`.
    """
    about = {"size": size, "mean": list(map(float, mean)), "std": list(map(float, std)), "resample": resample}
    if size < 1 or not len(about["mean"]) == len(about["std"]) == 3 or min(about["std"]) <= 0:
        raise UsageError(f"a network for images needs a size, and a mean and std of three channels; got {about}")
    check_known("resample", resample, ("nearest", "bilinear", "bicubic"))
    whole = Pictured(module, about)
    about |= told or {}
    return Trunk(source, digest_of(whole, [str(about)]), "images", resizer(size, resample), lambda: whole, about)


def of_texts(
    module: nn.Module,
    tokenize: Callable[[Sequence[str]], Tensor],
    *,
    pad: int,
    source: str = "",
    told: Mapping[str, Any] | None = None,
) -> Trunk:
    """Return a network for texts as a trunk.

    Args:
        module: ids ``(n, length)`` -> features ``(n, width)``, the same however many ``pad`` stand behind a text.
        tokenize: texts -> ids ``(n, length)``, int64, ``pad`` where there is none.
        pad: the id of nothing.
        source, told: as in `Trunk`.
    """
    about = {"pad": pad, **(told or {})}
    return Trunk(source, digest_of(module, [str(about)]), "texts", tokenize, lambda: module, about)


def resizer(size: int, resample: Resample) -> Callable[[Tensor], Tensor]:
    """Return what makes uint8 images ``(n, C, H, W)`` of one or three channels ``(n, 3, size, size)``."""

    def inputs(images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ShapeError(f"expected uint8 images (n, 1 or 3, H, W); got {tuple(images.shape)} of {images.dtype}")
        if images.shape[-2:] != (size, size):
            exact = {} if resample == "nearest" else {"antialias": True}
            scaled = F.interpolate(images.float(), (size, size), mode=resample, **exact)
            images = scaled.round().clamp(0, 255).to(torch.uint8)
        return images.expand(-1, 3, -1, -1)

    return inputs


class Pictured(nn.Module):
    """A network for normalised images, as one for images: uint8, or floating in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, told: Mapping[str, Any]) -> None:
        super().__init__()
        self.body = body
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(told[name]).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(self.mean) / 255 if images.dtype == torch.uint8 else images
        features = self.body((x - self.mean) / self.std)
        return features.mean((-2, -1)) if features.dim() == 4 else features.flatten(1)


@torch.no_grad()
def features_of(trunk: Trunk, examples: Sequence[str] | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Return the features ``(n, width)`` of texts, or of uint8 images ``(n, C, H, W)``, by the frozen network.

    Texts of like lengths go through it together, so that little of what is computed is padding.

    Raises:
        ConfigError: a network that fails.
        DataError: features that are not finite numbers, or not one row an example.
    """
    module, size = module_of(trunk).to(device), len(examples)

    def seen(part: Sequence[str] | Tensor) -> Tensor:
        try:
            found = module(trunk.inputs(part).to(device))
        except (HeadstartError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a network of anybody's does
            raise ConfigError(f"{trunk.source} fails on {len(part)} {trunk.takes}: {told_by(error)}") from error
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(part):
            told = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise DataError(f"{trunk.source} gives {told} for {len(part)} {trunk.takes}; expected a tensor (n, width)")
        return found

    if trunk.takes == "texts":
        order = sorted(range(size), key=lambda row: len(examples[row]))
        parts = [order[first : first + _TEXTS] for first in range(0, size, _TEXTS)]
        found = [seen([cast(str, examples[row]) for row in part]) for part in parts]
    else:
        order, together = list(range(size)), min(_IMAGES, max(1, _PIXELS // int(trunk.told.get("size", 28)) ** 2))
        found = [seen(part) for part in cast(Tensor, examples).split(together)]
    whole = torch.cat(found).float().cpu()
    if not bool(whole.isfinite().all()):
        raise DataError(f"{trunk.source} gives features that are not finite numbers")
    back = torch.empty(size, dtype=torch.int64)
    back[torch.tensor(order)] = torch.arange(size)
    return whole[back]


#: What goes through a network together: more would be slower on a processor, which keeps little at hand.
_TEXTS, _IMAGES, _PIXELS = 16, 64, 2**18


def told_by(error: Exception) -> str:
    """Return what another package's error says, in one line."""
    return (
        str(error)
        if isinstance(error, HeadstartError)
        else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    )
