"""Many processes that work on one run: each on its part of every step's tasks, with one sum of the gradients a step.

``torchrun`` starts the same program several times and says in the environment which process each one is (``RANK``), how
many there are (``WORLD_SIZE``), and where they meet (``MASTER_ADDR``, ``MASTER_PORT``). Within `processes` they are a
`Group`: the training loop, evaluation and runs in a folder then share their work. All have the same θ, M and optimiser
and take the same decisions; the first one (rank 0) alone reads and writes the run's files. What processes send each
other are tensors, never code.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from importlib import import_module
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from headstart import errors
from headstart.core.objective import at
from headstart.core.tree import mapped, tensors_of
from headstart.errors import HeadstartError, ProcessError, ShapeError, UsageError
from headstart.training.files import to_safetensors
from headstart.training.launched import described
from headstart.training.shared_memory import SharedMemory, meet
from headstart.training.signals import SIGNALS, Stop
from headstart.types import Episodes, Indivisible, Info, Learner, Meta, MetaGradient, Params

Value = TypeVar("Value")
Numbers = TypeVar("Numbers", bound=Sequence[Any])

#: Seconds after which a process that does not answer is given up, where nobody says.
HUNG_AFTER = 600.0
#: θ, M and the optimiser's tensors are compared whenever so many outer steps have been taken.
COMPARED_EVERY = 100
#: How long to look for the place where processes tell of errors, in seconds.
_MEETING = 10.0


class Group:
    """The processes of a run, of which this is number ``rank`` of ``size``; by default it is alone.

    What is shared is a matter of all: every process calls the same methods in the same order.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, hung_after: float = HUNG_AFTER, memory: SharedMemory | None = None
    ) -> None:
        self.rank, self.size, self.hung_after, self.memory = rank, size, hung_after, memory
        self.stop = Stop()

    @property
    def first(self) -> bool:
        """Whether this is the process that reads and writes files."""
        return self.rank == 0

    def part(self, numbers: Numbers, rank: int | None = None) -> Numbers:
        """Return this process's part of a sequence: pieces that follow one another, of sizes that differ by 1 at most.

        So what each process gives stands in order when it is put together, and a range stays a range.
        """
        rank, count = self.rank if rank is None else rank, len(numbers)
        found: Any = numbers[rank * count // self.size : (rank + 1) * count // self.size]
        return found

    def heed(self, stop: Stop) -> None:
        """Let a signal that comes to any of the processes stop all of them, after the same step."""
        self.stop, stop.shared = stop, self.size > 1

    def agree(self) -> None:
        """Tell all processes of signals that came to any, between steps."""
        if self.size > 1:
            flags = self.flags()
            self.sum([flags])
            self.agreed(flags)

    def flags(self) -> Tensor:
        """Return, for each of the `SIGNALS`, 1 where it came to this process."""
        return torch.tensor([float(self.stop.asked == number) for number in SIGNALS])

    def agreed(self, flags: Tensor) -> None:
        """Take the sums of all processes' flags."""
        came = [number for number, count in zip(SIGNALS, flags.tolist()) if count]
        self.stop.number = came[0] if came else None

    def sum(self, tensors: Sequence[Tensor], largest: bool = False) -> None:
        """Put the sums over all processes, or the largest, in these tensors' places."""
        if self.size == 1:
            return
        import torch.distributed as dist

        operation = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
        with self._explained():
            for tensor in tensors:
                if self.memory is not None and self.memory.takes(tensor):
                    self.memory.sum(tensor, largest, self.hung_after)
                    continue
                own = tensor.cpu() if tensor.device.type not in ("cpu", "cuda") else tensor
                dist.all_reduce(own, operation)
                if own is not tensor:
                    tensor.copy_(own)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        found = values.clone()
        self.sum([found])
        return found

    def says(self, number: int) -> int:
        """Return the first process's number, in all of them."""
        if self.size == 1:
            return number
        import torch.distributed as dist

        told = torch.tensor([int(number)])
        with self._explained():
            dist.broadcast(told, 0)
        return int(told)

    def sent(self, tensors: Params | None) -> Params:
        """Return the first process's tensors, in memory of the CPU; what others give counts nothing."""
        if self.size == 1:
            return tensors or {}
        import torch.distributed as dist

        data = to_safetensors(tensors or {}) if self.first else b""
        with self._explained():
            size = torch.tensor([len(data)])
            dist.broadcast(size, 0)
            buffer = _bytes(data, longest=int(size))
            dist.broadcast(buffer, 0)
        return (tensors or {}) if self.first else safetensors.torch.load(buffer.numpy().tobytes())

    def gathered(self, tensors: Params) -> list[Params]:
        """Return every process's tensors, by rank, in memory of the CPU."""
        if self.size == 1:
            return [tensors]
        import torch.distributed as dist

        data = to_safetensors(tensors)
        with self._explained():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(data)]))
            longest = int(max(sizes))
            parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(parts, _bytes(data, longest=longest))
        whole = (part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes))
        return [safetensors.torch.load(one) for one in whole]

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.sum([torch.zeros(1)])

    def alone(self, work: Callable[[], Value]) -> Value | None:
        """Let the first process do something by itself, and the others wait, however long; they return ``None``.

        They give it up only where it neither ends nor lets a thread of its own tell that it is alive. An error of
        headstart's is one of all.
        """
        if self.size == 1:
            return work()
        if not self.first:
            while (told := self.says(-1)) == _ALIVE:
                pass
            if told == _FAILED:
                raise _error(bytes(self.sent(None)["error"].tolist()))
            return None
        done = threading.Event()

        def alive() -> None:
            with contextlib.suppress(ProcessError):  # the next exchange tells of it
                while not done.wait(self.hung_after / 4):
                    self.says(_ALIVE)

        thread = threading.Thread(target=alive, name="headstart-alive", daemon=True)
        thread.start()
        _groups.append(Group())  # nobody takes part in what is done here
        found: Value | HeadstartError
        try:
            found = work()
        except HeadstartError as error:
            found = error
        finally:
            _groups.pop()
            done.set()
            thread.join()
        if isinstance(found, HeadstartError):
            self.says(_FAILED)
            self.sent({"error": _bytes(json.dumps([type(found).__name__, str(found)]).encode())})
            raise found
        self.says(_DONE)
        return found

    def by_first(self, work: Callable[[], Meta], like: Meta) -> Meta:
        """Return the θ and M that the first process works out by itself, in all of them, on the devices of ``like``."""
        if self.size == 1:
            return work()
        found = self.alone(work)
        sent = self.sent(None if found is None else _named(found))
        parts = zip(Meta._fields, like)
        return found or Meta(
            *({n: sent[f"{part}.{n}"].to(own.device) for n, own in values.items()} for part, values in parts)
        )

    def compare(self, step: int, tensors: Sequence[Tensor]) -> None:
        """Raise `ProcessError` where these tensors are not the same, bit for bit, in all processes."""
        if self.size == 1:
            return
        sums = hashlib.blake2b(str(step).encode(), digest_size=8)
        for tensor in tensors:
            numbers = tensor.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
            sums.update(numbers.view(torch.uint8).numpy().data)
        own = torch.frombuffer(bytearray(sums.digest()), dtype=torch.int64)
        found = [int(one["own"]) for one in self.gathered({"own": own})]
        usual, often = Counter(found).most_common(1)[0]
        if often < self.size:
            others = [rank for rank, one in enumerate(found) if one != usual] if often > 1 else [*range(self.size)]
            told = f"process{'es' * (len(others) > 1)} {', '.join(map(str, others))}"
            raise ProcessError(
                f"after step {step} the weights of {told} differ{' from those of the others' * (often > 1)}; all need"
                " the same code, PyTorch, options, data and kind of machine. Mend that, and go on from a checkpoint"
                " before, with the same command"
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in words that help why an exchange failed."""
        try:
            yield
        except RuntimeError as error:
            told = _told(self.rank)
            if told is not None and told["rank"] != self.rank:
                raise ProcessError(f"process {told['rank']} has ended: {told['text']}", told["code"]) from error
            reason = str(error).rpartition("]")[2].strip().partition(".")[0] or type(error).__name__
            raise ProcessError(
                f"another process of the run has ended, or has not answered for {self.hung_after:g} seconds"
                f" (--hung-after): {reason}. The same command goes on from the last checkpoint"
            ) from error


#: What the first process tells of what it does alone.
_DONE, _ALIVE, _FAILED = range(3)


def _error(data: bytes) -> HeadstartError:
    """Return an error of the first process, as this one's own."""
    name, text = json.loads(data)
    return getattr(errors, name, ProcessError)(text)


def _bytes(data: bytes, longest: int | None = None) -> Tensor:
    found = torch.zeros(len(data) if longest is None else longest, dtype=torch.uint8)
    if data:
        found[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return found


def _named(meta: Meta) -> Params:
    return {f"{part}.{name}": value for part, values in meta._asdict().items() for name, value in values.items()}


#: The innermost last; the first is this process alone.
_groups: list[Group] = [Group()]

_stores: list[Any] = []
"""Where processes meet, once it has been found, and within that, where they last have, and tell of errors."""
_joins: list[int] = []
"""How often they have: each time anew, since what is left there of one time would confuse the next."""
_heard: list[dict[str, Any]] = []
"""The error that was told there, once it has been heard."""


def group() -> Group:
    """Return the processes that work together here and now."""
    return _groups[-1]


def share(numbers: Numbers) -> Numbers:
    """Return the tasks of a step that are this process's, or the first one where there are fewer than processes.

    Then they count nothing here (`distributed` knows); they are worked on all the same, so that all processes do alike.

    >>> share(range(4))
    range(0, 4)
    """
    first: Any = numbers[:1]
    return group().part(numbers) or first


@contextlib.contextmanager
def processes(*, device: str | torch.device = "cpu", hung_after: float = HUNG_AFTER) -> Iterator[Group]:
    """Within it, the processes that torchrun has started work together; where there are none, nothing changes.

    `fit`, `evaluate` and `headstart.train` share their tasks among them. Where torchrun has left one thread to each
    process, each gets its share of the machine's cores. At the end they wait for one another.

    Args:
        device: where θ and M are: ``"cuda"`` is the GPU of this process's place on its machine (``LOCAL_RANK``), and
            exchanges go by NCCL; else by gloo.
        hung_after: seconds after which a process that does not answer is given up, by all.

    Raises:
        UsageError: an environment that describes no such processes, or a PyTorch that cannot join them.
        ProcessError: another process ended, does not answer, or never came.

    >>> with processes() as group:
    ...     group.rank, group.size
    (0, 1)
    """
    told = described()
    if told is None or group().size > 1:
        yield group()
        return
    joined, threads = _joined(*told, torch.device(device), hung_after), torch.get_num_threads()
    import torch.distributed as dist

    _groups.append(joined)
    torch.set_num_threads(_threads())
    try:
        yield joined
        joined.wait()  # the first may be where the others meet
    except Exception as error:
        _tell(error, joined.rank)
        raise
    finally:
        torch.set_num_threads(threads)
        _groups.pop()
        if joined.memory is not None:
            joined.memory.close()
        dist.destroy_process_group()  # others that wait for this one are let go


def _joined(rank: int, size: int, device: torch.device, hung_after: float) -> Group:
    import torch.distributed as dist

    if not dist.is_available():
        raise UsageError(f"this PyTorch cannot work in {size} processes: it was built without torch.distributed")
    if dist.is_initialized():
        raise UsageError("torch.distributed has a process group already; enter headstart.processes() without one")
    backend, local = "gloo", int(os.environ.get("LOCAL_RANK", rank))
    if device.type == "cuda":
        there = torch.cuda.device_count()
        torch.cuda.set_device(local % there)
        # NCCL takes no GPU twice
        backend = f"cpu:gloo,cuda:{'nccl' if int(os.environ.get('LOCAL_WORLD_SIZE', size)) <= there else 'gloo'}"
    limit = timedelta(seconds=hung_after)
    try:
        _joins.append(len(_joins))
        # imported later, as by optimisers, it would hold the group in default arguments for good, and the group its
        # threads, one of which may abort the process where the interpreter ends before it
        import_module("torch.distributed.nn.functional")
        _store(hung_after)
        store = dist.PrefixStore(f"headstart {_joins[-1]}", _stores[0])
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        memory = meet(store, rank, size)
    except (RuntimeError, ValueError) as error:
        raise ProcessError(
            f"process {rank} of {size} could not meet the others at MASTER_ADDR={os.environ.get('MASTER_ADDR')},"
            f" MASTER_PORT={os.environ.get('MASTER_PORT')} within {hung_after:g} seconds: {error}"
        ) from error
    _stores[1:] = [store]
    _heard.clear()  # whoever comes here has got over what was told before
    alone = Group(rank, size, hung_after)
    everyone = int(alone.total(torch.tensor([int(memory is not None)]))) == size
    if memory is not None and not everyone:
        memory.close()
    return alone if not everyone else Group(rank, size, hung_after, memory)


def _store(seconds: float) -> Any:
    """Return the place where processes tell of errors; by the environment, where they have not met."""
    if not _stores:
        from torch.distributed import rendezvous

        _stores.append(next(rendezvous("env://", timeout=timedelta(seconds=seconds)))[0])
    return _stores[-1]


def _threads() -> int:
    """Return how many threads this process is to use: its share of the cores, unless somebody has said how many."""
    told, local = os.environ.get("OMP_NUM_THREADS", ""), os.environ.get("LOCAL_WORLD_SIZE", "")
    # where nobody says, torchrun says 1
    if not local.isdecimal() or (told and not (told == "1" and "TORCHELASTIC_RUN_ID" in os.environ)):
        return torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(local))


def first_to_tell(error: BaseException) -> bool:
    """Tell the other processes of an error, and return whether none of them has told of one before.

    An error of all, such as a wrong option, is thus told once; and those that only see that one is gone say nothing.
    """
    try:
        mine = described()
    except UsageError:
        mine = None
    if mine is None:
        return True
    rank, size = mine
    told = _tell(error, rank)
    if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        _until_heard(size)  # where they meet ends with this process
    return told is None or told["rank"] == rank


def _tell(error: BaseException, rank: int) -> dict[str, Any] | None:
    """Return what `_told` does when this error is told."""
    return _told(rank, json.dumps({"rank": rank, "text": str(error), "code": getattr(error, "exit_code", 1)}))


def _told(rank: int, own: str = "") -> dict[str, Any] | None:
    """Return the first error that any process has told of, by telling ``own`` where none has; ``None`` for none."""
    if _heard:
        return _heard[0]
    try:
        store = _store(_MEETING)
        if not own and not store.check(["error"]):
            return None
        _heard.append(json.loads(store.compare_set("error", "", own) if own else store.get("error")))
        store.set(f"heard {rank}", "")
    except (RuntimeError, ValueError):  # the place is gone, or never was
        return None
    return _heard[0]


def _until_heard(size: int) -> None:
    """Wait a little until the others have heard of the error."""
    with contextlib.suppress(RuntimeError, ValueError):
        store, until = _store(_MEETING), time.monotonic() + _MEETING / 2
        while time.monotonic() < until and not store.check([f"heard {rank}" for rank in range(size)]):
            time.sleep(0.02)


def distributed(learner: Learner, *, tasks_per_step: int, same_bits: bool = False) -> Learner:
    """Return the learner whose meta-gradient is that of all processes' tasks, in the course of training, too.

    Each process gives it its `share` of the ``tasks_per_step`` tasks of a step, and gets the gradient and the losses of
    all of them, in their order: one message of θ, M and the losses. Without other processes the learner is returned as
    it is. The mean over tasks is that of the processes' means, weighted by their numbers of tasks; a penalty counts
    once. A meta-gradient that is no such mean says itself what it is in several processes, or that it cannot be
    (`headstart.types.Indivisible`).

    For loops of one's own; `headstart.fit` does it by itself::

        with headstart.processes():
            learner = headstart.distributed(learner, tasks_per_step=16)
            for step in range(1000):
                numbers = headstart.share(range(16 * step, 16 * step + 16))
                gradient, info = headstart.meta_gradient(learner, meta, tasks.sample("train", numbers))

    Args:
        learner: the method, as `accelerate` returns it where that is wanted.
        tasks_per_step: of all processes together.
        same_bits: sum in a way that neither the order nor the number of processes changes: each task's gradient is
            taken alone, rounded to 2⁻⁶² of the largest number of its tensor (a little more with many tasks), and
            added as a whole number. The result has the same bits with any number of processes, one included.

    Raises:
        UsageError: with several processes, or ``same_bits``, a meta-gradient that cannot be had so.
        ProcessError: as the gradient of the first step, where processes begin with other θ or M.

    >>> import headstart
    >>> learner = headstart.maml(headstart.mlp(1, 1), loss="mse")
    >>> distributed(learner, tasks_per_step=16) is learner
    True
    """
    together = group()
    if together.size == 1 and not same_bits:
        return learner
    counts = tuple(len(together.part(range(tasks_per_step), rank)) for rank in range(together.size))

    weight, begun = counts[together.rank] / tasks_per_step, list[int]()

    def own(stage: Learner) -> Learner:
        gradient = stage.gradient
        if gradient is None:
            return stage
        if isinstance(gradient, Indivisible):
            if same_bits:
                raise UsageError(
                    f"the meta-gradient of this method ({type(gradient).__name__}) is no mean over tasks, so it cannot"
                    " be summed task by task; leave out --same-bits"
                )
            gradient = gradient.among(together.total, weight)
        return stage._replace(gradient=_Shared(gradient, together, counts, same_bits, begun))

    during = learner.during
    return own(learner)._replace(during=None if during is None else lambda done: own(at(learner, done)))


class _Shared(NamedTuple):
    """The `MetaGradient` of all processes' tasks."""

    gradient: MetaGradient
    """Of this process's."""
    group: Group
    counts: tuple[int, ...]
    """How many tasks each process has; one that has none works on another's."""
    same_bits: bool
    begun: list[int]
    """Not empty where θ and M have been compared."""

    def __call__(self, learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Meta, Info]:
        if not self.begun:
            self.group.compare(0, tensors_of(meta))
            self.begun.append(0)
        own, tasks, given = self.counts[self.group.rank], sum(self.counts), len(episodes.query.y)
        if given != max(own, 1):
            raise ShapeError(
                f"process {self.group.rank} got {given} tasks, but its share of {tasks} is {max(own, 1)}; sample"
                " headstart.share(numbers), with as many numbers as distributed(tasks_per_step=) says"
            )
        if self.same_bits:
            parts = [self.gradient(learner, meta, one) for one in _each(episodes)]
            slopes = _exactly_summed(self.group, [_slopes(part[0], meta) for part in parts][:own], meta, tasks)
            infos = [info for _, info in parts]
            info = Info(*(None if None in told else torch.cat(told, -1) for told in zip(*infos)))  # pyrefly: ignore
        else:
            gradient, info = self.gradient(learner, meta, episodes)
            slopes = [own / tasks * slope for slope in _slopes(gradient, meta)]
        if info.query_loss is None:
            raise UsageError("the learner's gradient must return Info with query_loss, the loss of each task (B,)")
        before = sum(self.counts[: self.group.rank])
        losses = info.query_loss.new_zeros(tasks)
        losses[before : before + own] = info.query_loss[:own]
        sent = [losses, self.group.flags().to(losses)]
        losses, flags, *rest = _summed(self.group, sent if self.same_bits else [*sent, *slopes])
        self.group.agreed(flags)
        named = iter(rest or slopes)
        return Meta(*({name: next(named) for name in part} for part in meta)), info._replace(query_loss=losses)


def _slopes(gradient: Meta, meta: Meta) -> list[Tensor]:
    """Return the derivatives in the order of θ and M, which is the same in all processes."""
    return [part[name] for part, values in zip(gradient, meta) for name in values]


def _each(episodes: Episodes) -> Iterator[Episodes]:
    for task in range(len(episodes.query.y)):
        yield mapped(itemgetter(slice(task, task + 1)), episodes)


def _summed(group: Group, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors' sums over all processes: one message for each type of numbers, which mostly is one."""
    kinds: dict[Any, list[int]] = {}
    for place, tensor in enumerate(tensors):
        kinds.setdefault((tensor.dtype, tensor.device), []).append(place)
    found = list(tensors)
    for places in kinds.values():
        message = torch.cat([tensors[place].reshape(-1) for place in places])
        group.sum([message])
        for place, part in zip(places, message.split([tensors[place].numel() for place in places])):
            found[place] = part.view(tensors[place].shape)
    return found


#: So many bits may the whole numbers have, with their sign, that stand for a sum over tasks.
_BITS = 62


def _exactly_summed(group: Group, slopes: Sequence[Sequence[Tensor]], meta: Meta, tasks: int) -> list[Tensor]:
    """Return the mean of all tasks' derivatives, in bits that depend on no order: sums of whole numbers do not.

    Args:
        group: who has the other tasks.
        slopes: of each of this process's tasks.
        meta: what they are derivatives with respect to.
        tasks: how many there are in all.
    """
    like = tensors_of(meta)
    columns = list(zip(*slopes)) or [(torch.zeros_like(value),) for value in like]
    largest = torch.stack(
        [
            torch.stack([one.abs().max() if one.numel() else one.new_zeros(()) for one in own]).max().double()
            for own in columns
        ]
    )
    largest = largest.nan_to_num(nan=torch.inf, posinf=torch.inf)
    group.sum([largest], largest=True)
    # each is below 2^power, so that all of them together have no more than `_BITS`
    power = _BITS - (tasks - 1).bit_length() - torch.frexp(largest.nan_to_num(posinf=0.0))[1]
    power = power.clamp(max=1000).tolist()
    numbers = [sum((_whole(one, bits) for one in own[1:]), _whole(own[0], bits)) for own, bits in zip(columns, power)]
    found = _summed(group, numbers)
    means = [(total.double() * 2.0**-bits / tasks).to(value) for total, bits, value in zip(found, power, like)]
    return [torch.where(most.isfinite(), mean, torch.nan) for mean, most in zip(means, largest)]


def _whole(slope: Tensor, bits: int) -> Tensor:
    return (slope.double() * 2.0**bits).round().nan_to_num(0.0, 0.0, 0.0).to(torch.int64)
