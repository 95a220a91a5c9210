"""An environment of its own for the other libraries: a virtual one, built once by pip.

It sees the packages of the environment that headstart runs in (through a .pth file, after its own), so that torch is
the very same and is not installed twice, and nothing of it is replaced: what is installed comes without its
dependencies, in the versions and with the hashes of ``benchmarks/peers-requirements.txt``.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import venv
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.process import completed
from headstart.errors import FileError, HeadstartError, UsageError
from headstart.training.files import explained, make_folder, read_json, to_json, write

VARIABLE = "HEADSTART_PEERS"
_MARK = "peers.json"
_PIP_SECONDS = 900
_ASK_SECONDS = 60
#: What could not be installed is tried again after so long.
_AGAIN_SECONDS = 86_400.0


class Package(NamedTuple):
    """What pip installs."""

    name: str
    needs: tuple[str, ...] = ()
    """What comes with it, by its names in the requirements."""
    source: bool = False
    """Only unpacked from its source archive: its release does not build with today's Python."""
    compared: bool = True
    """Whether the suites compare it; otherwise one that they do needs it, or another benchmark."""


_SETFIT = (
    *("sentence-transformers", "accelerate", "datasets", "evaluate", "dill", "multiprocess", "xxhash", "psutil"),
    *("requests", "urllib3", "certifi", "charset-normalizer"),
)
PACKAGES = (
    Package("learn2learn", source=True),
    Package("higher"),
    Package("torchopt", ("optree", "graphviz")),
    Package("iteryne"),
    Package("parallel-metalearn"),
    Package("jax", ("jaxlib", "ml-dtypes", "opt-einsum")),
    Package("torchvision", compared=False),
    Package("cython", ("setuptools",), compared=False),
    Package("easyfsl"),
    Package("torchmeta"),
    Package("setfit", _SETFIT, compared=False),
)
REQUIREMENTS = Path(__file__).parents[1] / "peers-requirements.txt"


class Environment(NamedTuple):
    """An environment with the peers."""

    python: Path
    """The interpreter to start contenders with."""
    versions: dict[str, str]
    """``{package: version}`` of the peers that are there."""
    failed: dict[str, str]
    """``{package: why it is not there}``."""


class _Mark(NamedTuple):
    """What headstart writes in a folder that it fills, before anything else, and by which it knows it again."""

    key: str
    """What the environment was built of; empty while it is being made."""
    versions: dict[str, str]
    failed: dict[str, str]
    tried: float = 0.0
    """When the last package was tried that could not be installed, in seconds since 1970."""


def default_folder() -> Path:
    """Return where the environment is by default: ``$HEADSTART_PEERS``, else a folder in the user's cache.

    In the cache there is one for each Python, torch and installation of headstart.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named)
    if sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "headstart" / f"peers-{_key()}"


def existing(folder: Path | None = None) -> Environment | None:
    """Return the environment in ``folder``, if it was built for the Python and torch that run now."""
    folder = folder or default_folder()
    mark = _marked(folder)
    if mark is None or mark.key != _key() or not _python(folder).exists():
        return None
    return Environment(_python(folder), mark.versions, mark.failed)


def build(folder: Path | None = None, note: Callable[[str], None] = print, again: bool = False) -> Environment:
    """Return the environment in ``folder``, building first whatever is not there.

    A package that cannot be installed is left out, and named in ``failed``.

    Args:
        folder: by default `default_folder`. What is in it is replaced only where headstart has put it there.
        note: is told what goes on, a line at a time.
        again: whether to try once more what could not be installed; without it, that is tried once a day.

    Raises:
        FileError: the folder cannot be written, or Python cannot make a virtual environment.
        UsageError: the folder holds something else.
    """
    folder = (folder or default_folder()).absolute()
    if existing(folder) is None:
        _make(folder, note)
        _write_mark(folder, _Mark(_key(), {}, {}))
    mark = _marked(folder) or _Mark(_key(), {}, {})
    again = again or time.time() - mark.tried > _AGAIN_SECONDS
    wanted = [each for each in PACKAGES if each.name not in mark.versions and (again or each.name not in mark.failed)]
    for number, package in enumerate(wanted, start=1):
        note(f"peers {number}/{len(wanted)}: installing {package.name} in {folder}")
        mark = _with(folder, package, mark, note)
        # after each, so that a build that is broken off goes on where it was
        _write_mark(folder, mark)
    return Environment(_python(folder), mark.versions, mark.failed)


class _InstallError(Exception):
    """A package cannot be installed."""


def _with(folder: Path, package: Package, mark: _Mark, note: Callable[[str], None]) -> _Mark:
    """Install a package, and return the mark with what came of it."""
    failed = {name: why for name, why in mark.failed.items() if name != package.name}
    try:
        number = _unpack(folder, package) if package.source else _install(folder, package)
    except _InstallError as error:
        note(f"peers: {package.name} is left out: {error}")
        return mark._replace(failed={**failed, package.name: str(error)}, tried=time.time())
    return mark._replace(versions={**mark.versions, package.name: number}, failed=failed)


def _marked(folder: Path) -> _Mark | None:
    """Return the mark of a folder that headstart has made, or ``None``."""
    try:
        found = read_json(folder / _MARK)
    except (HeadstartError, OSError):
        return None
    if not isinstance(found, dict):
        return None
    key, versions, failed = (found.get(name) for name in ("key", "versions", "failed"))
    texts = [key, *(text for part in (versions, failed) if isinstance(part, dict) for text in part.values())]
    if not (isinstance(versions, dict) and isinstance(failed, dict) and all(isinstance(text, str) for text in texts)):
        return None
    tried = found.get("tried", 0.0)
    return _Mark(str(key), versions, failed, float(tried) if isinstance(tried, (int, float)) else 0.0)


def _write_mark(folder: Path, mark: _Mark) -> None:
    write(folder / _MARK, to_json(mark._asdict()))


def _make(folder: Path, note: Callable[[str], None]) -> None:
    """Make an empty virtual environment that sees the packages of the running one."""
    _emptied(folder)
    note(f"peers: making an environment in {folder}")
    try:
        venv.EnvBuilder(with_pip=True).create(folder)
        own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        (Path(own) / "running.pth").write_text("\n".join(_running_site()), encoding="utf-8")
    except (OSError, subprocess.CalledProcessError) as error:
        raise FileError(
            f"cannot make a virtual environment in {folder}: {error}; name another folder with --peers, install "
            "Python's venv module, or go without the peers (--without-peers)"
        ) from None


def _emptied(folder: Path) -> None:
    """Make the folder, or empty it where it is headstart's, and leave the mark in it."""
    another = "name another folder with --peers"
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; {another}")
    if folder.is_dir() and folder.resolve() == Path(sys.prefix).resolve():
        raise UsageError(f"{folder} is the environment that headstart runs in; {another}")
    make_folder(folder)
    with explained("read", folder):
        there = list(folder.iterdir())
    if there and _marked(folder) is None:
        raise UsageError(f"{folder} holds files, but no environment of peers that headstart made; {another}")
    _write_mark(folder, _Mark("", {}, {}))
    with explained("empty", folder):
        for path in (path for path in there if path.name != _MARK):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _running_site() -> list[str]:
    return list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))


def _key() -> str:
    """Return what the environment was built of; another key asks for another one."""
    of: list[Any] = [platform.python_version(), version("torch"), _running_site(), PACKAGES, REQUIREMENTS.read_text()]
    return hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _pip(folder: Path, *words: str) -> None:
    command = [str(_python(folder)), "-m", "pip", *words, "--quiet", "--retries", "1", "--disable-pip-version-check"]
    done = _done(command, _PIP_SECONDS, f"pip took longer than {_PIP_SECONDS} s; is there a network?")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()[-1:]
        raise _InstallError(f"pip failed: {' '.join(lines[-2:]).strip() or 'it said nothing'}")


def _done(command: list[str], seconds: float, late: str) -> "subprocess.CompletedProcess[str]":
    try:
        return completed(command, seconds)
    except subprocess.TimeoutExpired:
        raise _InstallError(late) from None
    except OSError as error:
        raise _InstallError(f"{command[0]} cannot be run: {error.strerror or error}") from None


def _install(folder: Path, package: Package) -> str:
    with tempfile.TemporaryDirectory() as place:
        _pip(folder, "install", "--no-deps", *_required(package, Path(place)))
    asked = f"from importlib.metadata import version; print(version({package.name!r}))"
    done = _done([str(_python(folder)), "-c", asked], _ASK_SECONDS, f"no version within {_ASK_SECONDS} s")
    if done.returncode:
        raise _InstallError("pip installed it, but it is not found")
    return done.stdout.strip()


def _required(package: Package, place: Path) -> list[str]:
    """Return the words that ask pip for a package: by its hashes, which stand in a file in ``place``."""
    if package.name == "torchvision":  # of which every release is for one of torch
        return [f"torchvision==0.{int(version('torch').split('.')[1]) + 15}.*"]
    text = REQUIREMENTS.read_text(encoding="utf-8").replace("\\\n", "")
    lines = {line.split("==")[0]: line for line in text.splitlines() if line and not line.startswith("#")}
    path = place / "requirements.txt"
    path.write_text("\n".join(lines[name] for name in (package.name, *package.needs)), encoding="utf-8")
    return ["--require-hashes", "--requirement", str(path)]


def _unpack(folder: Path, package: Package) -> str:
    """Unpack the package's source archive beside the installed packages, and return its version."""
    with tempfile.TemporaryDirectory() as place:
        # of this package alone: with ":all:", what pip needs to look into it is built from source too, for minutes
        source = ("--no-deps", "--no-binary", package.name)
        _pip(folder, "download", *source, "--dest", place, *_required(package, Path(place)))
        archives = sorted(Path(place).glob("*.tar.gz"))
        if not archives:
            raise _InstallError("there is no source archive")
        try:
            with tarfile.open(archives[0]) as archive:
                archive.extractall(folder / "sources", filter="data")
        except (tarfile.TarError, OSError) as error:
            raise _InstallError(f"its archive cannot be unpacked: {error}") from None
        return archives[0].name.removesuffix(".tar.gz").removeprefix(package.name + "-")


def source_folder(name: str) -> Path:
    """Return where, in the environment that runs now, a package lies that was only unpacked.

    Raises:
        PackageNotFoundError: there is none.
    """
    found = sorted((Path(sys.prefix) / "sources").glob(f"{name}-*/{name}"))
    if not found:
        raise PackageNotFoundError(name)
    return found[-1]
