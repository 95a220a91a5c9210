"""Who computes, and whether it is there."""

from typing import NamedTuple

from headstart.bench.peers.environment import Environment


class Contender(NamedTuple):
    """Who computes."""

    name: str
    target: str
    """``module:function``, a `Prepare`."""
    package: str = ""
    """The package that must be there; empty for our own."""
    threads: int = 0
    """Threads that it has; 0: those of the plan."""


def missing(contender: Contender, environment: Environment | None) -> str:
    """Return why a contender cannot run, or nothing."""
    if not contender.package:
        return ""
    if environment is None:
        return "left out: there is no environment with other libraries"
    if contender.package in environment.versions:
        return ""
    return environment.failed.get(contender.package, "not installed")
