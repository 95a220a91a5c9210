"""A contender in a process of its own: ``python -m benchmarks.peers.worker MODULE:FUNCTION``.

It speaks JSON, one value a line, on standard input and output; whatever else prints goes to standard error. Asked:

``{"do": "prepare", "case": {…}, "answer": PATH}``  calls FUNCTION with the case; PATH (.npz) is for the answer, or null
``{"do": "run", "steps": k}``                       runs k steps: ``{"seconds": [one a step]}``
``{"do": "answer", "answer": PATH}``                 writes the answer in PATH (.npz)
``{"do": "memory"}``                                ``{"now": bytes, "peak": bytes}`` of resident memory
``{"do": "forget peak"}``                           starts the peak anew; ``{"done": false}`` where that is impossible
``{"do": "drop"}``                                  lets go of the case

What fails is answered by ``{"error": "…"}``, and the process goes on.
"""

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from benchmarks.peers.prepared import Prepare, Prepared


def serve(target: str, requests: IO[str], replies: IO[str]) -> None:
    """Answer requests until there are no more."""
    contender = _Contender(target)
    for line in requests:
        request = json.loads(line)
        try:
            reply = contender.answers[request["do"]](request)
        except Exception as error:  # a peer may raise anything; whoever asked decides what becomes of it
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


class _Contender:
    """What is prepared, and the answers to requests."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.prepared: Prepared | None = None
        self.answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "prepare": self.prepare,
            "run": self.run,
            "answer": self.answer,
            "memory": lambda request: {"now": resident(), "peak": peak()},
            "forget peak": lambda request: {"done": forget_peak()},
            "drop": self.drop,
        }

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        self.drop(request)
        began = time.perf_counter()
        module, function = self.target.split(":")
        make: Prepare = getattr(importlib.import_module(module), function)
        _limit_threads()
        self.prepared = make(request["case"])
        if request.get("answer") is not None and self.prepared.answer is not None:
            self.answer(request)
        return {"seconds": time.perf_counter() - began, "note": self.prepared.note}

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.prepared is None:
            raise ValueError("nothing is prepared")
        seconds = []
        for _ in range(request["steps"]):
            if self.prepared.meet is not None:
                self.prepared.meet()
            began = time.perf_counter()
            self.prepared.step()
            seconds.append(time.perf_counter() - began)
        return {"seconds": seconds}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.prepared is None or self.prepared.answer is None:
            raise ValueError("nothing is prepared that has an answer")
        import numpy

        found: dict[str, Any] = self.prepared.answer()
        numpy.savez(request["answer"], **found)
        return {}

    def drop(self, request: dict[str, Any]) -> dict[str, Any]:
        self.prepared = None
        gc.collect()
        return {}


def _limit_threads() -> None:
    """Hold PyTorch, where the contender has imported it, to the threads that the process was given."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    if threads and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def resident() -> int:
    """Return the memory that this process holds now, in bytes; 0 where the system does not tell."""
    return _status("VmRSS")


def peak() -> int:
    """Return the most memory that this process has held, in bytes."""
    # not ru_maxrss where it can be helped: on Linux that counts what the parent held before it started this process
    if found := _status("VmHWM"):
        return found
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def forget_peak() -> bool:
    """Let the peak start anew from what is held now; return whether the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)


def main() -> None:
    """Serve on standard input and output."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not come between the replies
    with open(0, encoding="utf-8", closefd=False) as requests:
        serve(sys.argv[1], requests, replies)


if __name__ == "__main__":
    main()
