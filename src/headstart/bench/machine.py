"""What measurements were made on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import headstart
from headstart.bench.peers.environment import PACKAGES
from headstart.bench.plan import Plan


def machine(plan: Plan) -> dict[str, str]:
    """Return the processor, threads, and versions of Python, torch and every peer."""
    found = {
        "processor": processor(),
        "cores": str(os.cpu_count() or 1),
        "threads of each contender": str(plan.threads),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "headstart": headstart.__version__,
        "torch": version("torch"),
        "numpy": version("numpy"),
    }
    there = plan.environment.versions if plan.environment else {}
    return found | {each.name: there[each.name] for each in PACKAGES if each.compared and each.name in there}


def processor() -> str:
    """Return the processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
