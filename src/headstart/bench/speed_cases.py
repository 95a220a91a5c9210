"""The cases of the speed suite, who runs them, and what is to come out."""

from headstart.bench.figures import Target
from headstart.bench.peers.case import Case
from headstart.bench.peers.rounds import Contender, Race

_FILES = "headstart.bench.peers.contenders"

OURS, COMPILED, LOOP = "headstart", "headstart compiled", "PyTorch loop"

CONTENDERS = (
    Contender(LOOP, f"{_FILES}.loop:prepare"),
    Contender(OURS, f"{_FILES}.ours:prepare"),
    Contender(COMPILED, f"{_FILES}.ours:prepare_compiled", compiles=True),
    Contender("learn2learn", f"{_FILES}.learn2learn:prepare", "learn2learn"),
    Contender("higher", f"{_FILES}.higher:prepare", "higher"),
    Contender("TorchOpt", f"{_FILES}.torchopt:prepare", "torchopt"),
    Contender("iteryne", f"{_FILES}.iteryne:prepare", "iteryne"),
    Contender("parallel-metalearn", f"{_FILES}.parallel_metalearn:prepare", "parallel-metalearn"),
    Contender("JAX", f"{_FILES}.jax:prepare", "jax", compiles=True),
)

_LOOPS = ("learn2learn", "higher", "TorchOpt", "iteryne")
_ALL = (LOOP, OURS, *_LOOPS, "parallel-metalearn", "JAX")
_FEW = (LOOP, OURS, "learn2learn")


def sine(steps: int, tasks: int = 25) -> Case:
    """Return the regression of sine curves, 10 points to learn from and 10 to be judged on, by the MLP 1-40-40-1."""
    name = f"sine T={steps}" + (f", {tasks} task{'s' * (tasks > 1)}" if tasks != 25 else "")
    return Case(name, "mlp", tasks, support=10, query=10, steps=steps, rate=0.01)


def conv4(shots: int, tasks: int, steps: int) -> Case:
    """Return the classification of 28 x 28 images, 5 ways, 5 queries a class, by conv4 with 64 filters."""
    name = f"conv4 {shots}-shot T={steps}, {tasks} task{'s' * (tasks > 1)}"
    return Case(name, "conv4", tasks, support=5 * shots, query=25, steps=steps, rate=0.1, ways=5)


ANIL = conv4(1, 8, 5)._replace(name="ANIL conv4 5-shot T=5, 8 tasks", support=25, what="anil")
LARGE_IMAGES = Case("conv4 84x84 1-shot T=5, 4 tasks", "conv4", 4, 5, 25, 5, 0.01, 5, 84, 3, 32)
RESNET = Case("ResNet-12 84x84 1-shot T=1, 2 tasks", "resnet12", 2, 5, 5, 1, 0.01, 5, 84, 3)
TRANSFORMER = Case("transformer, adapters T=3, 8 tasks", "transformer", 8, 10, 10, 3, 0.1, 5, 24, what="adapters")
ADAPT = conv4(1, 1, 5)._replace(name="adapt one task, conv4 1-shot T=5", what="adapt")


def races(with_peers: bool = True) -> list[Race]:
    """Return the cases, the quick ones first; without the peers the loop stands in for learn2learn."""
    pair = ("learn2learn", OURS) if with_peers else (LOOP, OURS)
    found = [_race(sine(steps), _ALL, 9) for steps in (1, 5)]
    # JAX compiles the unrolled steps: beyond a few of them that takes minutes
    found += [_race(sine(10), _ALL[:-1], 7), _race(sine(100), pair, 3)]
    found += [_race(sine(5, tasks), pair, 5) for tasks in (1, 4, 16, 64, 256)]
    found += [_race(ADAPT, (LOOP, OURS), 15), _race(TRANSFORMER, (LOOP, OURS), 7), _race(ANIL, (*_FEW, "iteryne"), 5)]
    found += [_race(conv4(1, 8, 1), _ALL, 5), _race(conv4(1, 8, 5), (*_FEW, "TorchOpt", "parallel-metalearn"), 4)]
    found += [_race(conv4(1, tasks, 1), pair, 4) for tasks in (1, 2, 4, 16)]
    found += [_race(conv4(5, 8, 1), _FEW, 4), _race(LARGE_IMAGES, _FEW, 3), _race(conv4(1, 32, 1), pair, 4)]
    found += [_race(conv4(5, 32, 1), pair, 3), _race(conv4(5, 8, 5), _FEW, 3), _race(conv4(1, 32, 5), pair, 3)]
    return [*found, _race(RESNET, _FEW, 2), _race(conv4(5, 32, 5), pair, 2)]


def _race(case: Case, contenders: tuple[str, ...], rounds: int) -> Race:
    return Race(case.name, case._asdict(), contenders, rounds)


def targets() -> tuple[Target, ...]:
    """Return what eager headstart is to reach."""
    found = [_faster(sine(steps).name, peer, 10.0) for steps in (1, 5) for peer in _LOOPS]
    for steps in (1, 5):
        for shots in (1, 5):
            found += [
                _faster(conv4(shots, tasks, steps).name, "learn2learn", 1.3 if tasks == 32 else 1.0)
                for tasks in (8, 32)
            ]
    found += [_faster(conv4(1, tasks, 1).name, "learn2learn", 1.0) for tasks in (1, 2, 4, 16)]
    found += [_faster(ANIL.name, "learn2learn", 3.0), _faster(ADAPT.name, LOOP, 1.0)]
    return tuple(found)


def _faster(case: str, theirs: str, ratio: float) -> Target:
    return Target(f"{case}, against {theirs}", case, OURS, theirs, ratio, "times faster")
