"""The cases of the speed suite, who runs them, and what is to come out."""

from headstart.bench.figures import Target
from headstart.bench.peers.answers import CLOSE, LOOSE
from headstart.bench.peers.case import Case, held
from headstart.bench.peers.contender import Contender
from headstart.bench.peers.rounds import Race
from headstart.bench.peers.stable import REFERENCE

_FILES = "headstart.bench.peers.contenders"

OURS, COMPILED, LOOP = "headstart", "headstart compiled", REFERENCE.name
UNRECORDED = "headstart, in its first 50 steps"


def one_thread(name: str) -> str:
    """Return what a library with one thread goes by."""
    return f"{name}, 1 thread"


_LOOPS = (
    Contender("learn2learn", f"{_FILES}.learn2learn:prepare", "learn2learn"),
    Contender("higher", f"{_FILES}.higher:prepare", "higher"),
    Contender("TorchOpt", f"{_FILES}.torchopt:prepare", "torchopt"),
    Contender("iteryne", f"{_FILES}.iteryne:prepare", "iteryne"),
)

CONTENDERS = (
    REFERENCE,
    Contender(OURS, f"{_FILES}.ours:prepare"),
    Contender(UNRECORDED, f"{_FILES}.ours:prepare_unrecorded"),
    Contender(COMPILED, f"{_FILES}.ours:prepare_compiled"),
    *_LOOPS,
    *(each._replace(name=one_thread(each.name), threads=1) for each in _LOOPS),
    Contender("parallel-metalearn", f"{_FILES}.parallel_metalearn:prepare", "parallel-metalearn"),
    Contender("JAX", f"{_FILES}.jax:prepare", "jax"),
)

_PEERS = tuple(each.name for each in _LOOPS)
_SINE = (LOOP, OURS, UNRECORDED, *_PEERS, *map(one_thread, _PEERS), "parallel-metalearn", "JAX")
_FEW = (LOOP, OURS, "learn2learn")


def sine(steps: int, tasks: int = 25) -> Case:
    """Return the regression of sine curves, 10 points to learn from and 10 to be judged on, by the MLP 1-40-40-1."""
    name = f"sine T={steps}" + (f", {tasks} task{'s' * (tasks > 1)}" if tasks != 25 else "")
    return Case(name, "mlp", tasks, support=10, query=10, steps=steps, rate=held(0.01))


def conv4(shots: int, tasks: int, steps: int) -> Case:
    """Return the classification of 28 x 28 images, 5 ways, 5 queries a class, by conv4 with 64 filters."""
    name = f"conv4 {shots}-shot T={steps}, {tasks} task{'s' * (tasks > 1)}"
    return Case(name, "conv4", tasks, support=5 * shots, query=25, steps=steps, rate=held(0.1), ways=5)


ANIL = conv4(1, 8, 5)._replace(name="ANIL conv4 5-shot T=5, 8 tasks", support=25, what="anil")
LARGE_IMAGES = Case("conv4 84x84 1-shot T=5, 4 tasks", "conv4", 4, 5, 25, 5, held(0.01), 5, 84, 3, 32)
RESNET = Case("ResNet-12 84x84 1-shot T=1, 1 task", "resnet12", 1, 5, 5, 1, held(0.01), 5, 84, 3)
TRANSFORMER = Case("transformer, adapters T=3, 8 tasks", "transformer", 8, 10, 10, 3, held(0.1), 5, 24, what="adapters")
ADAPT = conv4(1, 1, 5)._replace(name="adapt one task, conv4 1-shot T=5", what="adapt")


def races(with_peers: bool = True) -> list[Race]:
    """Return the cases, those with targets first; without the peers the loop stands in for learn2learn."""
    pair = ("learn2learn", OURS) if with_peers else (LOOP, OURS)
    found = [_race(sine(steps), _SINE, 7) for steps in (1, 5)]
    found += [_race(ADAPT, (LOOP, OURS), 15), _race(ANIL, _FEW, 5)]
    found += [_race(conv4(1, 8, 1), (*_FEW, "higher", "TorchOpt", "iteryne", "parallel-metalearn"), 5)]
    found += [_race(conv4(1, 8, 5), _FEW, 4), _race(conv4(5, 8, 1), _FEW, 5)]
    found += [_race(conv4(1, 32, 1), pair, 5), _race(conv4(5, 8, 5), pair, 4), _race(conv4(5, 32, 1), pair, 4)]
    found += [_race(conv4(1, 32, 5), pair, 4), _race(conv4(5, 32, 5), pair, 4)._replace(warm=False)]
    found += [_race(conv4(1, tasks, 1), pair, 4) for tasks in (1, 4, 16)]
    return found + [each._replace(growth=True, least=2) for each in _growth(pair)]


def _growth(pair: tuple[str, ...]) -> list[Race]:
    """Return the cases without targets."""
    found = [_race(LARGE_IMAGES, pair, 3), _race(TRANSFORMER, (LOOP, OURS), 5)]
    found += [_race(sine(5, tasks), pair, 5) for tasks in (1, 16, 256)]
    found += [_race(sine(10), (*_FEW, "parallel-metalearn", "JAX"), 5), _race(sine(100), (*pair, "JAX"), 3)]
    # of 84 x 84 images in double precision the check would take longer than all rounds
    return [*found, _race(RESNET, pair, 2)._replace(small={"size": 32}, warm=False)]


def _race(case: Case, contenders: tuple[str, ...], rounds: int) -> Race:
    close = CLOSE if case.model == "mlp" else LOOSE
    return Race(case.name, case._asdict(), tuple(dict.fromkeys(contenders)), rounds, min(rounds, 4), close=close)


def targets() -> tuple[Target, ...]:
    """Return what eager headstart is to reach."""
    found = [_faster(sine(steps).name, peer, 10.0) for steps in (1, 5) for peer in _PEERS]
    for steps in (1, 5):
        for shots in (1, 5):
            found += [
                _faster(conv4(shots, tasks, steps).name, "learn2learn", 1.3 if tasks == 32 else 1.0)
                for tasks in (8, 32)
            ]
    found += [_faster(conv4(1, tasks, 1).name, "learn2learn", 1.0) for tasks in (1, 4, 16)]
    found += [_faster(ANIL.name, "learn2learn", 3.0), _faster(ADAPT.name, LOOP, 1.0)]
    return tuple(found)


def _faster(case: str, theirs: str, ratio: float) -> Target:
    return Target(f"{case}, against {theirs}", case, OURS, theirs, ratio, "times faster")
