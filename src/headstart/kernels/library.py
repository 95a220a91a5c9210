"""Functions in C, translated by the compiler of the machine, kept on disk, and loaded."""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headstart.cache import cache_dir, whole

#: No option changes what is computed of numbers that are not finite, and sums take another order only where the source
#: says so. Memory is used again for numbers of other types; and of choices gcc makes jumps, but no vectors of these.
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fopenmp-simd", "-fno-strict-aliasing")
FLAGS += ("-fno-thread-jumps", "-shared", "-fPIC")
#: For this processor, which compilers are told in two ways.
FLAGS += ("-march=native",) if platform.machine().lower() in ("x86_64", "amd64", "i686") else ("-mcpu=native",)
#: So many functions are kept on disk, those that were used last.
KEPT = 500


def has_compiler() -> bool:
    """Return whether there is a compiler of C."""
    return _compiler() is not None


def loaded(text: str) -> Callable[..., Any]:
    """Return the function ``kernel`` of a source in C.

    Raises:
        RuntimeError: there is no compiler, or it fails, or there is no place for what it makes.
    """
    compiler, folder = _compiler(), cache_dir() / "kernels"
    if compiler is None:
        raise RuntimeError("no C compiler is found (cc, gcc, clang, or what CC names)")
    said = "\n".join([text, *FLAGS, *compiler, *_machine()])
    path = folder / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.so"
    try:
        try:
            library = ctypes.CDLL(str(path))
            with contextlib.suppress(OSError):  # a folder may be there to be read alone
                os.utime(path)
        except OSError:  # it is not there, or not whole
            folder.mkdir(0o700, parents=True, exist_ok=True)  # what is there is run
            _translate(text, compiler[0], path)
            _tidy(folder)
            library = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"a kernel cannot be kept in {folder}, which HEADSTART_CACHE may name: {error}") from error
    library.kernel.restype = None
    return library.kernel


def _translate(text: str, compiler: str, path: Path) -> None:
    with whole(path) as made:
        command = [compiler, *FLAGS, "-x", "c", "-", "-o", str(made), "-lm"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler} refuses a kernel: {done.stderr.strip()[:2000]}")


def _tidy(folder: Path) -> None:
    """Remove the functions that were not used for longest, if there are many."""
    with contextlib.suppress(OSError):  # another process may do it now
        there = sorted(folder.glob("*.so"), key=lambda one: one.stat().st_mtime)
        for one in there[:-KEPT]:
            one.unlink()


@functools.cache
def _compiler() -> tuple[str, str] | None:
    """Return the compiler, and what it says of itself."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = name and shutil.which(name)
        if found:
            return found, subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    return None


@functools.cache
def _machine() -> list[str]:
    """Return what the processor is and can do: folders may be shared by machines that are not alike."""
    lines = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    able = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return [platform.system(), platform.machine(), platform.processor(), *sorted(able)]
