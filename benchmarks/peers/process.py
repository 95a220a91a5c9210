"""The side of a `worker` that asks."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import headstart
from headstart.errors import HeadstartError


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


class PeerError(HeadstartError):
    """A contender failed, or did not answer in time."""


class Worker:
    """A contender's process: ask it, and close it.

    Args:
        target: ``module:function``, a `Prepare`.
        python: the interpreter; by default the one that runs this.
        threads: of the contender, whatever library it uses.
        cores: numbers of the processor's cores that it may use; ``None``: the first ``threads`` of those that this
            process may; empty: all of those. Where the system cannot hold a process to cores, only the number of
            threads is set.
        variables: more of the process's environment.

    It has a session of its own, so that it ends with all that it has started, and an interrupt at the terminal reaches
    only whoever asks it.
    """

    def __init__(
        self,
        target: str,
        *,
        python: Path | None = None,
        threads: int = 1,
        cores: Sequence[int] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.target = target
        self._said = tempfile.TemporaryFile()
        chosen = available_cores()[:threads] if cores is None else cores
        self._process = subprocess.Popen(
            [str(python or sys.executable), "-m", "benchmarks.peers.worker", target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**_environment(threads), **(variables or {})},
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        if chosen and hasattr(os, "sched_setaffinity"):
            # before it has imported anything: libraries make as many threads as they find cores
            os.sched_setaffinity(self._process.pid, chosen)
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put("")

    def send(self, request: Mapping[str, Any]) -> None:
        """Send a request without waiting; `receive` takes the reply."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # ValueError: the pipe is closed
            raise PeerError(f"{self.target} has ended: {self.said()}") from None

    def receive(self, seconds: float) -> dict[str, Any]:
        """Return the reply to what was sent.

        Raises:
            PeerError: the contender failed, ended, or took longer; then it is ended.
        """
        try:
            line = self._replies.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise PeerError(f"no answer within {seconds:.0f} s") from None
        if not line:
            raise PeerError(f"the process ended (exit code {self._process.wait()}): {self.said()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply

    def ask(self, request: Mapping[str, Any], seconds: float = 120.0) -> dict[str, Any]:
        """Send a request and return the reply; raises as `receive` does."""
        self.send(request)
        return self.receive(seconds)

    def said(self, characters: int = 400) -> str:
        """Return the end of what the process wrote to standard error."""
        if self._said.closed:
            return "it was ended"
        self._said.seek(0)
        return " ".join(self._said.read().decode(errors="replace")[-characters:].split())

    @property
    def number(self) -> int:
        """The system's number of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process, and what it has started."""
        end(self._process)
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what could not be written to it any more
                    continue
        self._said.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def available_cores() -> list[int]:
    """Return the numbers of the cores that this process may use; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _environment(threads: int) -> dict[str, str]:
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    # headstart and this package, whichever interpreter runs them
    path = os.pathsep.join(
        filter(
            None,
            [
                str(Path(headstart.__file__).parents[1]),
                str(Path(__file__).parents[2]),
                os.environ.get("PYTHONPATH", ""),
            ],
        )
    )
    return {**os.environ, **counts, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
