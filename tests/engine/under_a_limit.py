"""Meta-gradients in a process of little memory: prints what is said of one, and whether another way gives the same.

A process of its own, since memory that a process was given once is not taken back from it.
"""

import gc
import json
import logging
import re
import resource
from pathlib import Path

import torch

import headstart
from headstart.core.objective import meta_gradient
from headstart.core.tree import tensors_of
from headstart.engine.accelerate import accelerate
from headstart.errors import OutOfMemoryError
from headstart.types import Batch, Episodes

TASKS, ROOM = 4096, 80 * 2**20


def episodes(tasks: int) -> Episodes:
    """Tasks of small operations, which are all taken together."""
    x = torch.linspace(-1, 1, 10 * tasks).view(tasks, 10, 1)
    return Episodes(Batch(x, x.sin()), Batch(x, x.cos()))


def used() -> int:
    """Return the bytes of this process's address space."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmSize"))


class Said(logging.Handler):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


torch.set_num_threads(1)
logging.getLogger("headstart").addHandler(said := Said())
learner = headstart.maml(headstart.mlp(1, 1, hidden=(40, 40)), loss="mse", steps=1, taskmap="vmap")
meta = learner.init(torch.Generator().manual_seed(0))
meta_gradient(accelerate(learner), meta, episodes(1))  # what is made once
given = episodes(TASKS)
gc.collect()
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used() + ROOM, hard))
told = ""
try:
    meta_gradient(accelerate(learner), meta, given)
except OutOfMemoryError as error:
    told = str(error)
advised = re.findall(r"--memory ([\d.]+\w+)", told)[0]
meta_gradient(accelerate(learner, memory=advised), meta, given)
frugal = accelerate(learner, memory="auto")
passes = []
while len(passes) < 2 or passes[-1][0] != passes[-2][0]:  # what fits once may not fit in what is free the next time
    found = tensors_of(meta_gradient(frugal, meta, given))
    passes.append((len(said.messages), found))
found, again = (found for _, found in passes[-2:])
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
expected = tensors_of(meta_gradient(accelerate(learner), meta, given))
gap = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected))
print(json.dumps({"told": told, "said": said.messages, "gap": gap, "same": all(map(torch.equal, found, again))}))
