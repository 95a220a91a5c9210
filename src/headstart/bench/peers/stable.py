"""The processes of the contenders, and the answers of the one that all others are held against."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headstart.bench.peers.answers import read
from headstart.bench.peers.contender import Contender, missing
from headstart.bench.peers.prepared import Arrays
from headstart.bench.peers.process import PeerError, Worker
from headstart.bench.plan import Plan

#: The plain loop of PyTorch: what it answers is right.
REFERENCE = Contender("PyTorch loop", "headstart.bench.peers.contenders.loop:prepare")


class Stable:
    """The processes of the contenders, each started when it is first asked for.

    Args:
        plan: what is asked of the suite.
        contenders: those that may be asked for.
        variables: more of the processes' environment.
        reference: whose answers are right.
    """

    def __init__(
        self,
        plan: Plan,
        contenders: Sequence[Contender],
        variables: Mapping[str, str] | None = None,
        reference: Contender = REFERENCE,
    ) -> None:
        self.plan, self.variables, self.reference = plan, variables, reference
        self.contenders = {each.name: each for each in (reference, *contenders)}
        self.workers: dict[str, Worker] = {}
        self._right: dict[str, Arrays | str] = {}
        self._checked: dict[tuple[str, str], str] = {}

    def worker(self, name: str) -> Worker:
        """Return the process of a contender, anew where the last one has ended."""
        known = self.workers.get(name)
        if known is not None and known.alive:
            return known
        if known is not None:
            known.close()
        each = self.contenders[name]
        threads = each.threads or self.plan.threads
        self.workers[name] = Worker(each.target, python=self.plan.python, threads=threads, variables=self.variables)
        return self.workers[name]

    def missing(self, name: str) -> str:
        """Return why a contender cannot run, or nothing."""
        return missing(self.contenders[name], self.plan.environment)

    def answer(self, name: str, case: Mapping[str, Any], timeout: float) -> tuple[Arrays, str]:
        """Prepare a case and return what the contender answers, and its note; raises `PeerError`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "answer.npz"
            request = {"do": "prepare", "case": case, "answer": str(path)}
            note = str(self.worker(name).ask(request, timeout)["note"])
            return read(path), note

    def right(self, case: Mapping[str, Any], timeout: float) -> Arrays:
        """Return the reference's answer; raises `PeerError`."""
        key = _key(case)
        if key not in self._right:
            try:
                self._right[key] = self.answer(self.reference.name, case, timeout)[0]
            except PeerError as error:
                self._right[key] = f"{self.reference.name}, which it would be compared with, failed: {error}"
        found = self._right[key]
        if isinstance(found, str):
            raise PeerError(found)
        return found

    def remembered(self, name: str, case: Mapping[str, Any]) -> bool:
        """Return whether a contender has had this case checked; raise `PeerError` where it failed then."""
        why = self._checked.get((name, _key(case)))
        if why:
            raise PeerError(why)
        return why is not None

    def remember(self, name: str, case: Mapping[str, Any], why: str = "") -> None:
        """Remember that a contender passed the check of a case, or why not."""
        self._checked[name, _key(case)] = why

    def drop(self) -> None:
        """Let all contenders let go of their cases."""
        for worker in self.workers.values():
            if worker.alive:
                try:
                    worker.ask({"do": "drop"})
                except PeerError:  # it will be started anew
                    worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers.values():
            worker.close()


def _key(case: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in case.items() if name != "name"}, sort_keys=True)
