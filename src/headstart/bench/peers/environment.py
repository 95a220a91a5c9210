"""An environment of its own for the other libraries: a virtual one, built once by pip.

It sees the packages of the environment that headstart runs in (through a .pth file, after its own), so that torch is
the very same and is not installed twice. What headstart runs on is given to pip as constraints: nothing is replaced.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any, NamedTuple

from headstart.errors import FileError, UsageError

VARIABLE = "HEADSTART_PEERS"
_MARK = "peers.json"
_PIP_SECONDS = 900


class Package(NamedTuple):
    """What pip installs."""

    name: str
    alone: bool = False
    """Without its dependencies: for metadata that ask for versions that are long gone, or for what is not needed."""
    source: bool = False
    """Only unpacked from its source archive: its release does not build with today's Python."""


PACKAGES = (
    Package("learn2learn", source=True),
    Package("higher", alone=True),
    Package("torchopt"),
    Package("iteryne", alone=True),
    Package("parallel-metalearn"),
    Package("jax"),
    Package("torchvision", alone=True),
    Package("tqdm"),
    Package("cython"),
    Package("setuptools"),
    Package("pandas"),
    Package("easyfsl", alone=True),
    Package("torchmeta", alone=True),
)


class Environment(NamedTuple):
    """An environment with the peers."""

    folder: Path
    python: Path
    """The interpreter to start contenders with."""
    versions: dict[str, str]
    """``{package: version}`` of the peers that are there."""
    failed: dict[str, str]
    """``{package: why it is not there}``."""


def default_folder() -> Path:
    """Return where the environment is by default: ``$HEADSTART_PEERS``, else a folder in the user's cache."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    if sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "headstart" / "peers"


def existing(folder: Path | None = None) -> Environment | None:
    """Return the environment in ``folder``, if it was built for the Python and torch that run now."""
    folder = folder or default_folder()
    try:
        mark = json.loads((folder / _MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if mark.get("key") != _key() or not _python(folder).exists():
        return None
    return Environment(folder, _python(folder), mark["versions"], mark["failed"])


def build(folder: Path | None = None, note: Callable[[str], None] = print) -> Environment:
    """Return the environment in ``folder``, building first whatever is not there.

    A package that cannot be installed is left out, and named in ``failed``; the next call tries it again.

    Raises:
        FileError: the folder cannot be written, or Python cannot make a virtual environment.
        UsageError: the folder holds something else.
    """
    folder = (folder or default_folder()).absolute()
    found = existing(folder)
    if found is not None and not found.failed:
        return found
    if found is None:
        _make(folder, note)
    versions = {} if found is None else dict(found.versions)
    missing = [package for package in PACKAGES if package.name not in versions]
    failed = {package.name: "was not tried: installing was broken off" for package in missing}
    for number, package in enumerate(missing, start=1):
        note(f"peers {number}/{len(missing)}: installing {package.name} in {folder}")
        try:
            versions[package.name] = _unpack(folder, package) if package.source else _install(folder, package)
            del failed[package.name]
        except _InstallError as error:
            failed[package.name] = str(error)
            note(f"peers: {package.name} is left out: {error}")
        # after each, so that a build that is broken off goes on where it was
        mark = {"key": _key(), "versions": versions, "failed": failed}
        (folder / _MARK).write_text(json.dumps(mark, indent=2), encoding="utf-8")
    return Environment(folder, _python(folder), versions, failed)


class _InstallError(Exception):
    """A package cannot be installed."""


def _make(folder: Path, note: Callable[[str], None]) -> None:
    """Make an empty virtual environment that sees the packages of the running one."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise UsageError(f"{folder} holds files, but no environment of peers; name another folder with --peers")
    note(f"peers: making an environment in {folder}")
    try:
        venv.EnvBuilder(clear=True, with_pip=True).create(folder)
        own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        (Path(own) / "running.pth").write_text("\n".join(_running_site()), encoding="utf-8")
        with open(folder / "constraints.txt", "w", encoding="utf-8") as file:
            file.writelines(f"{name}=={number}\n" for name, number in sorted(_running().items()))
    except (OSError, subprocess.CalledProcessError) as error:
        raise FileError(
            f"cannot make a virtual environment in {folder}: {error}; name another folder with --peers, install "
            "Python's venv module, or go without the peers (--without-peers)"
        ) from None


def _running_site() -> list[str]:
    return list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))


def _running() -> dict[str, str]:
    """Return the versions of what headstart runs on, without local parts such as +cpu, which indexes do not have."""
    found = {each.name.lower(): each.version.split("+")[0] for each in distributions(path=_running_site())}
    return {name: number for name, number in found.items() if name not in ("pip", "setuptools", "wheel", "headstart")}


def _key() -> str:
    """Return what the environment was built of; another key asks for another one."""
    of: list[Any] = [platform.python_version(), version("torch"), _running_site(), [list(each) for each in PACKAGES]]
    return hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _pip(folder: Path, *words: str) -> None:
    command = [str(_python(folder)), "-m", "pip", *words, "--quiet", "--retries", "1", "--disable-pip-version-check"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS)
    except subprocess.TimeoutExpired:
        raise _InstallError(f"pip took longer than {_PIP_SECONDS} s; is there a network?") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()[-1:]
        raise _InstallError(f"pip failed: {' '.join(lines[-2:]).strip() or 'it said nothing'}")


def _install(folder: Path, package: Package) -> str:
    alone = ["--no-deps"] if package.alone else []
    _pip(folder, "install", *alone, "--constraint", str(folder / "constraints.txt"), package.name)
    asked = f"from importlib.metadata import version; print(version({package.name!r}))"
    done = subprocess.run([str(_python(folder)), "-c", asked], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise _InstallError("pip installed it, but it is not found")
    return done.stdout.strip()


def _unpack(folder: Path, package: Package) -> str:
    """Unpack the package's source archive beside the installed packages, and return its version."""
    with tempfile.TemporaryDirectory() as place:
        _pip(folder, "download", "--no-deps", "--no-binary", ":all:", "--dest", place, package.name)
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
