"""How far an outer step goes through the package: the files that it enters, and how often it changes between them.

    python tools/trace_step.py [sine | conv4]

Each step is second-order `headstart.maml` with one inner step, not accelerated, on a CPU: of the sinusoid tasks by an
MLP, and of images of noise by conv4. The first gradient is not counted; it looks at what the next ones take as known.
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

import headstart
from headstart.models.conv4 import conv4 as conv4_of
from headstart.models.mlp import mlp

PACKAGE = f"{Path(headstart.__file__).parent}/"


def sine() -> Callable[[], object]:
    """Return the step of 25 sinusoid tasks, 10 examples each, by an MLP (40, 40)."""
    tasks = headstart.tasks.sinusoid(shots=10)
    learner = headstart.maml(mlp(1, 1, hidden=(40, 40)), loss="mse", steps=1)
    meta, episodes = learner.init(None), tasks.sample("train", range(25))
    return lambda: headstart.meta_gradient(learner, meta, episodes)


def conv4() -> Callable[[], object]:
    """Return the step of 4 tasks of 28 x 28 pixels, 5-way 1-shot, by a conv4 of 32 filters."""
    learner = headstart.maml(conv4_of((1, 28, 28), 5, filters=32), steps=1)
    draw, labels = torch.Generator().manual_seed(0), torch.arange(5).expand(4, -1)
    batches = [headstart.Batch(torch.rand(4, 5, 1, 28, 28, generator=draw), labels) for _ in range(2)]
    meta, episodes = learner.init(None), headstart.Episodes(*batches)
    return lambda: headstart.meta_gradient(learner, meta, episodes)


def trace(step: Callable[[], object]) -> list[str]:
    """Return the file of the package that was running after each call and each return.

    Derivatives that autograd calls when it comes to them are left out: nobody goes that way but autograd.
    """
    files: list[str] = []

    def note(frame: FrameType | None, event: str, _: object) -> None:
        if event == "return":
            frame = frame and frame.f_back
        elif event != "call":
            return
        own = None
        while frame is not None and frame.f_code.co_qualname != "BackwardCFunction.apply":
            if own is None and frame.f_code.co_filename.startswith(PACKAGE):
                own = frame.f_code.co_filename.removeprefix(PACKAGE)
            frame = frame.f_back
        if own is not None and frame is None:
            files.append(own)

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return files


def main(names: list[str]) -> None:
    steps = {"sine": sine, "conv4": conv4}
    for name in names or steps:
        step = steps[name]()
        step()
        files = trace(step)
        switches = sum(one != other for one, other in zip(files, files[1:]))
        print(f"{name}: {len(set(files))} files, {switches} switches between them")
        for file, count in Counter(files).most_common():
            print(f"  {count:5}  {file}")


if __name__ == "__main__":
    main(sys.argv[1:])
