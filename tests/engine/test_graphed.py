"""Graphs of a GPU give what the operations give that they were made of; tried on a simulated one."""

import gc
import logging
import sys
import threading
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import headstart
from headstart import Checkpointed, rules
from headstart.core import process
from headstart.core.tree import mapped
from headstart.engine import accelerate as acceleration
from headstart.engine.accelerate import REPLAYED, accelerate, graphed
from headstart.engine.graphed import Graphs, _device_of
from headstart.engine.loops import in_steps
from headstart.engine.record import Recorded, with_gradient
from headstart.errors import UsageError
from headstart.testing import random_episodes
from headstart.types import Episodes, Meta
from tests.engine.simulated_cuda import SimulatedCuda
from tests.engine.test_record import equal, images, lines, net

ATEN = torch.ops.aten


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    """A simulated GPU; what PyTorch for a CPU lacks of CUDA does nothing."""
    simulated = SimulatedCuda()
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", simulated.clear_workspaces, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *_: None, raising=False)
    return simulated


def graphing(learner, cuda, otherwise=None, kind="cpu"):
    """Return the learner with a gradient by graphs from its second call on."""
    way = graphed(Graphs(cuda, kind))._replace(after=0)
    return with_gradient(learner, Recorded(way, otherwise))


def sine(steps, adjoint=None):
    """Return regression of the shape of sine curves, with that many inner steps."""
    options = {} if adjoint is None else {"adjoint": adjoint}
    learner = headstart.maml(headstart.mlp(1, 1, hidden=(8,)), loss="mse", steps=steps, rate=0.01, **options)
    return learner, lambda seed: single(random_episodes((1,), outputs=1, regression=True, seed=seed))


def single(episodes):
    return Episodes(*(batch._replace(x=batch.x.float(), y=batch.y.float()) for batch in episodes))


def ragged(seed):
    def masked(batch):
        mask = torch.ones(batch.y.shape[:2], dtype=torch.bool)
        mask[0, -1] = mask[1, -2:] = False
        return batch._replace(mask=mask)

    return Episodes(*map(masked, random_episodes((4,), seed=seed)))


def rows(seed):
    return random_episodes((4,), seed=seed)


def pixels(seed):
    return random_episodes((1, 4, 4), seed=seed)


SCHEDULES = {
    "all": lambda steps, folder: None,
    "periodic": lambda steps, folder: Checkpointed(),
    "binomial": lambda steps, folder: Checkpointed(memory=5_000 + 250 * steps),
    "on disk": lambda steps, folder: Checkpointed(every=1, place=headstart.OnDisk(folder)),
}

LEARNERS = {
    "images": lambda: (headstart.maml(images().double(), steps=2, rate=0.1, buffers="task", taskmap="vmap"), pixels),
    "a rate a step": lambda: (headstart.maml(net(), steps=4, rule=rules.per_tensor(0.1, steps=3)), rows),
    "a rate a weight": lambda: (headstart.meta_sgd(net(), steps=3), rows),
    "adam": lambda: (headstart.maml(net(), steps=3, rule=rules.chain(rules.adam(), rules.scale(0.1))), rows),
    "curvature": lambda: (headstart.meta_curvature(net(), steps=2), rows),
    "imaml": lambda: (headstart.imaml(net(), steps=4, rate=0.1), rows),
    "masks": lambda: (headstart.maml(net(), steps=3), ragged),
    "one step": lambda: (headstart.maml(net(), steps=1), rows),
    "no step": lambda: (headstart.prototypes(net(None), ways=3), rows),
}


def check_same_bits(cuda, plain, episodes, kind="cpu"):
    """Compare graphs with what they were made of where θ and the tasks change; return their program."""
    learner = graphing(plain, cuda, kind=kind)
    meta = plain.init(torch.Generator().manual_seed(0))
    kept = []
    for seed in range(3):
        found = headstart.meta_gradient(learner, meta, episodes(seed))
        expected = in_steps(plain, meta, episodes(seed))  # as a replayed record has them, too
        assert equal(found, expected)
        kept.append((found, expected))
        meta = Meta(*({name: v - 0.1 * part[name] for name, v in own.items()} for own, part in zip(meta, found[0])))
    assert all(equal(*pair) for pair in kept), "a gradient changed after it was given"
    (program,) = learner.gradient.programs.values()
    assert program is not None
    return program


@pytest.mark.parametrize("steps", [1, 5, 100])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_graphs_have_the_bits_of_their_operations_whatever_is_remembered(schedule, steps, cuda, tmp_path):
    program = check_same_bits(cuda, *sine(steps, SCHEDULES[schedule](steps, tmp_path)))
    assert cuda.replays
    if steps > 1:
        assert cuda.captures < 8 and program.steps  # a step and its derivative, however often they are taken


@pytest.mark.parametrize("name", LEARNERS)
def test_graphs_have_the_bits_of_their_operations(name, cuda):
    check_same_bits(cuda, *LEARNERS[name]())
    assert cuda.replays


def test_autocast_and_kernels_have_graphs_of_their_own(cuda, monkeypatch):
    plain, episodes = sine(2)
    learner, meta = graphing(plain, cuda), plain.init(None)
    monkeypatch.setattr(process.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(process.torch.cuda, "get_rng_state_all", list)
    for precision in ("none", "tf32", "none"):
        before = process.torch.backends.cuda.matmul.fp32_precision
        process.torch.backends.cuda.matmul.fp32_precision = precision
        try:
            for _ in range(2):
                headstart.meta_gradient(learner, meta, episodes(0))
        finally:
            process.torch.backends.cuda.matmul.fp32_precision = before
    with torch.autocast("cpu"):
        for _ in range(2):
            headstart.meta_gradient(learner, meta, episodes(0))
    assert len(learner.gradient.programs) == 3


def straight(function, *tensors):
    """Return a record of a function, long enough that a graph is made of it."""

    def long(*given):
        for _ in range(20):
            given = (given[0] + 1, *given[1:])
        return function(*given)

    return make_fx(long, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)


LAYOUTS = {
    "expanded": lambda value: value[:, :1].expand(3, 4),
    "with gaps": lambda value: value[:, ::2],
    "transposed": lambda value: value.T,
    "later in memory": lambda value: value[1:],
    "empty": lambda value: value[:0],
    "a number": lambda value: value[0, 0],
    "whole numbers": lambda value: value.long(),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_tensors_lie_as_those_of_the_operations_do(name, cuda):
    def function(first, second):
        own = second * 2
        return [first, second, second[..., None], own, own[..., None], own[:1] if own.ndim else own, own.sum()]

    def given(seed):
        torch.manual_seed(seed)
        value = torch.randn(3, 4)
        return value[0].clone(), LAYOUTS[name](value.clone())

    record = straight(function, *given(0))
    own = Graphs(cuda, "cpu").graphed(straight(function, *given(0)))
    results = []
    for seed in (1, 2):
        found, expected = own(*given(seed)), record(*given(seed))
        results.append((found, expected))
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype and one.stride() == other.stride()
            assert one.storage_offset() == other.storage_offset()
    assert all(torch.equal(*pair) for found, expected in results for pair in zip(found, expected))
    assert cuda.captures == 1


def test_what_lies_in_an_input_lies_in_that_of_the_caller(cuda):
    weight, other = torch.randn(3, 4), torch.randn(4)
    run = Graphs(cuda, "cpu").graphed(straight(lambda one, two: [two.t(), two[1], one], other, weight))
    for start in (torch.randn(3, 4), torch.randn(6, 4)[2:5]):
        transposed, row, _ = run(other, start)
        assert transposed.untyped_storage().data_ptr() == start.untyped_storage().data_ptr()
        assert torch.equal(transposed, start.t()) and torch.equal(row, start[1])


def test_other_layouts_have_a_graph_of_their_own(cuda):
    run = Graphs(cuda, "cpu").graphed(straight(lambda one, two: [one.sum(), two * 2], torch.ones(4), torch.ones(3, 3)))
    for value in (torch.randn(3, 3), torch.randn(3, 3).t(), torch.randn(3, 3)):
        assert torch.equal(run(torch.ones(4), value)[1], value * 2)
    assert cuda.captures == 2


def test_a_part_that_gives_one_tensor_gives_it_alone(cuda):
    run = Graphs(cuda, "cpu").graphed(straight(lambda one: one * 2, torch.ones(2)))
    assert torch.equal(run(torch.ones(2)), torch.full((2,), 42.0))


def test_what_no_operation_reads_is_not_copied(cuda):
    run = Graphs(cuda, "cpu").graphed(straight(lambda one, two: [one], torch.ones(2), torch.ones(2)))
    for _ in range(2):
        assert torch.equal(run(torch.ones(2), object())[0], torch.full((2,), 21.0))


def test_what_cannot_be_captured_is_replayed_and_said_once(cuda, caplog):
    plain, episodes = sine(3)
    cuda.refused = {ATEN.stack.default, ATEN.mean.default, ATEN.sum.dim_IntList, ATEN.mul.Tensor}
    replaying = Recorded(REPLAYED._replace(after=0))
    learner = graphing(plain, cuda, replaying)
    meta = plain.init(None)
    with caplog.at_level(logging.WARNING, "headstart"):
        for seed in range(4):
            found = headstart.meta_gradient(learner, meta, episodes(seed))
            assert equal(found, headstart.meta_gradient(plain, meta, episodes(seed)))
    (line,) = lines(caplog)
    assert "not graphed" in line and "is not permitted when a stream is capturing" in line
    assert cuda.capturing is None and cuda.current_stream() is cuda.default
    assert list(learner.gradient.programs.values()) == [None] and all(replaying.programs.values())


def test_a_graph_is_captured_after_one_that_failed(cuda):
    graphs = Graphs(cuda, "cpu")
    first, second = (graphs.graphed(straight(lambda one: [one * 2], torch.ones(2))) for _ in range(2))
    first(torch.ones(2))
    cuda.refused = {ATEN.mul.Tensor}
    with pytest.raises(RuntimeError, match=r"aten.mul.Tensor is not permitted"):
        second(torch.ones(2))
    cuda.refused = set()
    for _ in range(2):
        assert torch.equal(second(torch.ones(2))[0], torch.full((2,), 42.0))
        assert torch.equal(first(torch.zeros(2))[0], torch.full((2,), 40.0))
    assert len(cuda.pools) == 2  # what the failed one took may not come back
    assert cuda.cleared == 6  # workspaces, before each and behind it


def test_numbers_that_are_not_those_in_memory_are_refused(cuda):
    run = Graphs(cuda, "cpu").graphed(straight(lambda one: [(one * 2j).conj()], torch.ones(2)))
    with pytest.raises(RuntimeError, match="but their conjugates or negatives"):
        run(torch.ones(2))


def _elsewhere(function):
    """Return a record of a function of three numbers that are not on the CPU."""
    return make_fx(function, tracing_mode="real")(torch.empty(3, device="meta"))


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda value: value + torch.ones(3).to("meta"), "_to_copy.default copies from one device to another"),
        (lambda value: value[torch.tensor([0, 2])], "copies from one device to another"),
        (lambda value: value + torch.rand_like(value), "draws random numbers"),
        (lambda value: torch.nn.functional.dropout(value), "draws random numbers"),
    ],
)
def test_operations_that_would_be_done_once_and_for_all_are_refused_before(function, why):
    with pytest.raises(RuntimeError, match=why):
        _device_of(_elsewhere(function))


def test_a_copy_to_the_cpu_is_refused_too():
    with FakeTensorMode():
        value = torch.empty(3, device="cuda")
    record = make_fx(lambda value: value.cpu(), tracing_mode="fake")(value)
    with pytest.raises(RuntimeError, match="_to_copy.default copies from one device to another"):
        _device_of(record)


def test_a_constant_number_of_another_device_and_an_index_are_none_of_them():
    for function in (lambda value: value * torch.tensor(2.0), lambda value: value[torch.ones_like(value).long()]):
        assert _device_of(_elsewhere(function)) == torch.device("meta")


def test_tensors_of_several_devices_are_refused():
    record = make_fx(lambda one, other: [one * 2, other * 2])(torch.ones(2), torch.ones(2, device="meta"))
    for node, device in zip(record.graph.nodes, ("cpu", "meta")):
        node.meta["val"] = torch.ones(2, device=device)
    with pytest.raises(RuntimeError, match="its tensors are on cpu, meta"):
        _device_of(record)


def test_two_learners_have_memory_of_their_own(cuda):
    pairs = [LEARNERS["masks"](), LEARNERS["a rate a weight"]()]
    learners = [(graphing(plain, cuda), plain, plain.init(None), episodes) for plain, episodes in pairs]
    for seed in range(3):
        for learner, plain, meta, episodes in learners:
            found = headstart.meta_gradient(learner, meta, episodes(seed))
            assert equal(found, headstart.meta_gradient(plain, meta, episodes(seed)))
    assert len(cuda.pools) == 2


def at_once(*works):
    """Run functions in threads that come in between each other as often as can be; raise the first error of any."""
    together, errors = threading.Barrier(len(works)), []

    def run(work):
        together.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run, args=(work,)) for work in works]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    finally:
        sys.setswitchinterval(before)
    if errors:
        raise errors[0]


@pytest.mark.parametrize("same", [True, False])
def test_threads_take_turns_in_the_memory_of_a_learner(same, cuda):
    """In one graph, or in two that share it."""
    graphs = Graphs(cuda, "cpu")
    runs = [graphs.graphed(straight(lambda one: [one * 2, one + 1], torch.ones(2))) for _ in range(2)]

    def work(place):
        run = runs[0 if same else place]
        for number in range(100):
            value = torch.full((2,), float(number + 1000 * place))
            twice, more = run(value)
            assert torch.equal(twice, 2 * value + 40) and torch.equal(more, value + 21)

    at_once(lambda: work(0), lambda: work(1))
    assert cuda.captures == (1 if same else 2)


@pytest.mark.parametrize("shared", [True, False])
def test_threads_with_one_learner_or_two_get_what_one_thread_gets(shared, cuda):
    pairs = [LEARNERS["masks"]()] * 2 if shared else [LEARNERS["masks"](), LEARNERS["a rate a weight"]()]
    learners = [graphing(plain, cuda) for plain, _ in pairs]
    metas = [plain.init(torch.Generator().manual_seed(0)) for plain, _ in pairs]
    expected = [
        [headstart.meta_gradient(plain, meta, episodes(seed)) for seed in range(6)]
        for (plain, episodes), meta in zip(pairs, metas)
    ]
    found = [[], []]

    def work(place):
        learner = learners[0 if shared else place]
        with cuda.stream(type(cuda.default)()):
            for seed in range(6):
                found[place].append(headstart.meta_gradient(learner, metas[place], pairs[place][1](seed)))

    at_once(lambda: work(0), lambda: work(1))
    assert all(equal(*pair) for ours, theirs in zip(found, expected) for pair in zip(ours, theirs, strict=True))
    assert all(all(learner.gradient.programs.values()) for learner in learners[: 1 if shared else 2])


def test_threads_capture_one_at_a_time_outside_of_records_too(cuda):
    runs = [Graphs(cuda, "cpu").graphed(straight(lambda one: [one * 2], torch.ones(2))) for _ in range(2)]
    at_once(*(lambda run=run: run(torch.ones(2)) for run in runs))
    assert cuda.captures == 2


def test_streams_wait_for_one_another(cuda):
    run = Graphs(cuda, "cpu").graphed(straight(lambda one: [one * 2], torch.ones(2)))
    run(torch.ones(2))
    other = type(cuda.default)()
    with cuda.stream(other):
        run(torch.ones(2))
        assert other.waited == [cuda.default]
        run(torch.ones(2))
    assert other.waited == [cuda.default]
    before = len(cuda.default.waited)
    run(torch.ones(2))
    assert cuda.default.waited[before:] == [other]


def test_memory_is_given_back_with_the_learner(cuda):
    plain, episodes = sine(3)
    learner, meta = graphing(plain, cuda), plain.init(None)
    for seed in range(2):
        headstart.meta_gradient(learner, meta, episodes(seed))
    memory = [weakref.ref(one.untyped_storage()) for graph in cuda.graphs for one in graph.memory.values()]
    assert memory and cuda.graphs
    del learner
    gc.collect()
    assert not cuda.graphs and not any(one() for one in memory)


def test_programs_that_are_forgotten_leave_no_pool_that_takes_no_more(cuda):
    plain, episodes = sine(3)
    learner, meta = graphing(plain, cuda), plain.init(None)
    for _ in range(2):
        for seed in range(2):
            headstart.meta_gradient(learner, meta, episodes(seed))
        assert cuda.graphs
        learner.gradient.forget()
        gc.collect()
        assert not cuda.graphs
    assert len(cuda.pools) == 2


def test_where_memory_runs_out_graphs_let_go_of_theirs(cuda, monkeypatch):
    monkeypatch.setattr(acceleration, "Graphs", lambda: Graphs(cuda, "cpu"))
    monkeypatch.setattr(acceleration, "graphed", lambda graphs: graphed(graphs)._replace(after=0))
    plain, episodes = sine(2)
    learner, meta = accelerate(plain, graphs=True, memory="auto", threads=1), plain.init(None)
    expected = headstart.meta_gradient(plain, meta, episodes(0))[0]
    for _ in range(3):
        headstart.meta_gradient(learner, meta, episodes(0))
    assert cuda.graphs
    limit, backward = 2, acceleration.in_steps

    def short(learner, meta, episodes):
        if len(episodes.query.y) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        assert not cuda.graphs
        return backward(learner, meta, episodes)

    monkeypatch.setattr(acceleration, "in_steps", short)
    monkeypatch.setattr("headstart.engine.record.in_steps", short)
    monkeypatch.setattr(torch.Tensor, "set_", _no_memory)
    found = headstart.meta_gradient(learner, meta, episodes(0))[0]
    for name, value in expected.params.items():
        torch.testing.assert_close(found.params[name], value)


def _no_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_on_a_cpu_graphs_are_not_made_which_is_said_once(caplog):
    plain, episodes = sine(2)
    learner, meta = accelerate(plain, graphs=True), plain.init(None)
    with caplog.at_level(logging.WARNING, "headstart"):
        for seed in range(14):
            found = headstart.meta_gradient(learner, meta, episodes(seed))
            assert equal(found, headstart.meta_gradient(plain, meta, episodes(seed)))
    (line,) = lines(caplog)
    assert "not graphed" in line and "its tensors are on the cpu, and graphs are of CUDA devices" in line


def test_graphs_are_of_a_record_that_is_not_compiled():
    with pytest.raises(UsageError, match="compile=True or graphs=True, not both"):
        accelerate(headstart.maml(net()), compile=True, graphs=True)


def test_a_learner_without_back_propagation_has_no_graphs(caplog):
    plain = headstart.reptile(net())
    assert accelerate(plain, graphs=True) is plain
    assert "not graphed: this learner's meta-gradient is not by back-propagation" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("name", LEARNERS)
def test_graphs_of_a_gpu_have_the_bits_of_their_operations(name, monkeypatch):
    monkeypatch.undo()
    with torch.device("cuda"):
        plain, episodes = LEARNERS[name]()
    check_same_bits(torch.cuda, plain, lambda seed: mapped(lambda leaf: leaf.cuda(), episodes(seed)), "cuda")
