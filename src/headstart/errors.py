"""Every error that headstart raises on purpose.

The command line ends with an error's ``exit_code``: 2 where the call or the flag must change, 3 where the data must, 1
elsewhere. A message says what came, what was expected, and the fix.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

Value = TypeVar("Value")


class HeadstartError(Exception):
    """The root: catch it to catch everything that headstart raises on purpose."""

    exit_code = 1


class UsageError(HeadstartError, ValueError):
    """What was asked for cannot be done; the call must change."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not there; the message suggests the nearest ones."""


class ConfigError(UsageError):
    """A configuration that is invalid, or that differs from the one its run folder was made with."""


class ShapeError(UsageError):
    """Tensors that do not fit each other, or the model."""


class DifferentiationError(UsageError):
    """A module that cannot be differentiated twice, or mapped over tasks."""


class DataError(HeadstartError, ValueError):
    """The data cannot be used as they are."""

    exit_code = 3


class ShortClassError(DataError):
    """A class has too few images, or a split has too few classes."""


class LeakageError(DataError):
    """Two splits share a class, so a score on one would be flattered by training on the other."""


class DivergenceError(HeadstartError, ArithmeticError):
    """The loss is no longer a finite number."""


class OutOfMemoryError(HeadstartError, MemoryError):
    """A step asks for more memory than there is; the message says what fits, where anything does."""


class ProcessError(HeadstartError):
    """Another process of the run has ended or does not answer, or its weights are others."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class FileError(HeadstartError, OSError):
    """A file that cannot be read or written, or does not hold what it should."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error for a ``name`` that is not among the ``known`` ones, suggesting the nearest.

    >>> unknown_name("method", "mmal", ["maml", "reptile"])
    UnknownNameError("unknown method 'mmal'; did you mean 'maml'? Known: maml, reptile")
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else "."
    rest = f" Known: {', '.join(known) or 'none'}" if len(near) < len(known) or not known else ""
    return UnknownNameError(f"unknown {kind} {name!r}{hint}{rest}")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the system, or PyTorch on any device, says that there is no memory left.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."))
    True
    """
    if isinstance(error, HeadstartError) or not isinstance(error, (MemoryError, RuntimeError)):
        return False
    words = ("allocate memory", "tried to allocate", "out of memory", "alloc_failed")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def asked_for(error: BaseException) -> str:
    """Return what an error of `is_out_of_memory` says of the memory that was asked for.

    >>> asked_for(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error ..."))
    'tried to allocate 8 bytes'
    """
    text = str(error)
    found = re.search(r"tried to allocate [\d.]+ \w+", text, re.IGNORECASE)
    return found[0].replace("Tried", "tried") if found else (text.splitlines() or ["there is none left"])[0][:160]


def check_text(what: str, text: str) -> None:
    """Raise `DataError` where UTF-8 cannot write a text: half of an emoji, or what a folder was called in another code.

    >>> check_text("the label", "\\ud83d")
    Traceback (most recent call last):
    headstart.errors.DataError: the label '\\ud83d' is no text that UTF-8 can write; mend it where it comes from
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = text[max(0, error.start - 20) : error.start + 20]
        raise DataError(f"{what} {shown!r} is no text that UTF-8 can write; mend it where it comes from") from None


def check_known(kind: str, name: object, known: Collection[str]) -> None:
    """Raise `unknown_name` unless ``name`` is among the ``known`` ones."""
    if name not in known:
        raise unknown_name(kind, str(name), known)


def pick(kind: str, name: str, among: Mapping[str, Value]) -> Value:
    """Return what ``among`` holds under ``name``, or raise as `check_known`."""
    check_known(kind, name, among)
    return among[name]
