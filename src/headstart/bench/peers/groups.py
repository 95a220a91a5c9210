"""Processes that are ended with all that they have started."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence


def end(process: "subprocess.Popen[str]") -> None:
    """End a process that was started in a session of its own, and whatever it started, and wait for it."""
    # a process that has been waited for may have lent its number to another one since
    if process.poll() is None:
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.wait()


def completed(command: Sequence[str], seconds: float) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end and return what it printed.

    Raises:
        subprocess.TimeoutExpired: it took longer; it is ended, as at any other interruption.
        OSError: it cannot be started.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            end(process)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)
