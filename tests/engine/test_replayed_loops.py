import gc
import itertools
import logging
import random
import threading
import weakref

import pytest
import torch
from torch import nn

import headstart
from headstart import Batch, rules
from headstart.core.counting import Counted
from headstart.core.losses import cross_entropy
from headstart.core.rules import Rule
from headstart.core.tree import tensors_of
from headstart.engine import replayed_loops
from headstart.engine.accelerate import accelerate
from headstart.engine.loops import as_it_is
from headstart.engine.replayed_loops import WITHOUT_DERIVATIVES, ReplayedLoops
from headstart.errors import ShapeError


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Let records be made at the second call of a kind."""
    way = WITHOUT_DERIVATIVES._replace(after=5)
    monkeypatch.setattr(ReplayedLoops.__init__, "__defaults__", (way,))


def net():
    return headstart.mlp(4, 3, hidden=(8,))


def images():
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(12, 3))


def dropping():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


class Through(nn.Module):
    """A module of one's own, which does something to its features."""

    def __init__(self, between=torch.sin):
        super().__init__()
        self.body, self.head, self.between = nn.Linear(4, 8), nn.Linear(8, 3), between

    def forward(self, x):
        return self.head(self.between(self.body(x)))


def by_number():
    """A rate that Python finds by the number of the step."""
    return Rule(lambda m, state, grads, params, step: ({k: g * [0.1, 0.2, 0.3][step] for k, g in grads.items()}, state))


def per_step():
    return rules.chain(rules.momentum(), rules.per_tensor(0.1, steps=3))


LEARNERS = {
    "maml": lambda: headstart.maml(net(), steps=3),
    "double": lambda: headstart.maml(net().double(), steps=3),
    "anil": lambda: headstart.anil(net(), steps=3),
    "meta_sgd": lambda: headstart.meta_sgd(net(), steps=3),
    "fomaml": lambda: headstart.fomaml(net(), steps=3),
    "imaml": lambda: headstart.imaml(net(), steps=5, rate=0.1),
    "proto_maml": lambda: headstart.proto_maml(net(), steps=3),
    "meta_curvature": lambda: headstart.meta_curvature(net(), steps=3),
    "rates of steps": lambda: headstart.maml(net(), steps=3, rule=per_step()),
    "adam": lambda: headstart.maml(net(), steps=3, rule=rules.chain(rules.adam(), rules.scale(0.1))),
    "hinge": lambda: headstart.maml(net(), steps=3, loss="squared_hinge"),
    "bf16": lambda: headstart.maml(net(), steps=3, precision="bf16"),
    "dropout": lambda: headstart.maml(dropping(), steps=3),
    "a module of one's own": lambda: headstart.maml(Through(), steps=3, taskmap="loop"),
}
OF_IMAGES = {
    buffers: lambda buffers=buffers: headstart.maml(images(), steps=3, buffers=buffers, taskmap="vmap")
    for buffers in ("batch", "frozen", "task")
} | {"anil": lambda: headstart.anil(images(), steps=3)}


def supports(learner, shape=(4,), tasks=1, examples=6, masked=False):
    """Yield support sets of one kind without end."""
    dtype = next(iter(learner.init(None).params.values())).dtype
    for seed in itertools.count():
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(tasks, examples, *shape, generator=generator).to(dtype)
        y = torch.randint(0, 3, (tasks, examples), generator=generator)
        mask = torch.rand(tasks, examples, generator=generator) > 0.3
        yield Batch(x, y, mask if masked else None)


def programs(learner):
    """Return what is known of the kinds that were met; ``None`` for those that are computed as they are."""
    entries = learner.adapt.__self__.replayed.kinds.entries
    return [entry.program for entry in entries.values() if entry.done]


def equal(one, other):
    ours, theirs = (tensors_of((adapted.params, adapted.buffers, info)) for adapted, info in (one, other))
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def same_bits(learner, sets, times=4, **options):
    """Check that adapting gives the same as it is, before there is a record, when it is made, and after."""
    meta = learner.init(torch.Generator().manual_seed(0))
    for number, support in zip(range(times), sets):
        found = []
        for one in (learner, as_it_is(learner)):
            random.seed(number)
            torch.manual_seed(number)
            with torch.no_grad():
                found.append(one.adapt(meta, support, **options))
        assert equal(*found)


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("name", LEARNERS)
def test_adapting_by_a_record_gives_the_same_bits(name, tasks):
    learner = LEARNERS[name]()
    same_bits(learner, supports(learner, tasks=tasks))
    same_bits(learner, supports(learner, tasks=tasks, masked=True))
    assert len(programs(learner)) == 2 and all(programs(learner))


@pytest.mark.parametrize("name", OF_IMAGES)
def test_images_by_a_record_give_the_same_bits(name):
    learner = OF_IMAGES[name]()
    same_bits(learner, supports(learner, (1, 4, 4)))
    assert len(programs(learner)) == 1 and all(programs(learner))


def test_tasks_with_steps_of_their_own_are_replayed():
    learner = LEARNERS["maml"]()
    same_bits(learner, supports(learner, tasks=3), steps=torch.tensor([3, 0, 2]))
    assert all(programs(learner))


def test_python_does_not_come_to_the_loss_of_what_is_replayed():
    calls = []

    def loss(outputs, batch):
        calls.append(batch)
        return cross_entropy(outputs, batch)

    learner = headstart.maml(net(), steps=3, loss=loss)
    meta, sets = learner.init(None), supports(learner)
    with torch.no_grad():
        for _ in range(2):
            learner.adapt(meta, next(sets))
        before = len(calls)
        learner.adapt(meta, next(sets))
    assert before >= 6 and len(calls) == before


def by_branch(x):
    return x if x.sum() > 0 else -x


def by_list(x):
    return x * sum(x.flatten().tolist())


def by_chance(x):
    return x * torch.rand(())


def by_python(x):
    return x * random.random()


@pytest.mark.parametrize(
    "make",
    [
        lambda: headstart.maml(Through(by_branch), steps=3, taskmap="loop"),
        lambda: headstart.maml(Through(by_list), steps=3, taskmap="loop"),
        lambda: headstart.maml(Through(by_chance), steps=3, taskmap="loop"),
        lambda: headstart.maml(Through(by_python), steps=3, taskmap="loop"),
        lambda: headstart.maml(net(), steps=3, rule=by_number()),
    ],
    ids=["branch", "list", "chance", "python", "number of the step"],
)
def test_what_cannot_be_recorded_runs_as_it_is(make, caplog):
    learner = make()
    with caplog.at_level(logging.DEBUG, "headstart"):
        same_bits(learner, supports(learner))
    assert programs(learner) == [None]
    said = [line for line in caplog.records if "running as it is" in line.message]
    assert len(said) == 1 and said[0].levelno == logging.DEBUG


def test_what_takes_too_many_operations_is_not_recorded(monkeypatch):
    monkeypatch.setattr(ReplayedLoops.__init__, "__defaults__", (WITHOUT_DERIVATIVES._replace(after=5, most=10),))
    learner = LEARNERS["maml"]()
    same_bits(learner, supports(learner))
    assert programs(learner) == [None]


def test_a_record_comes_after_so_many_steps_of_a_kind():
    learner = headstart.maml(net(), steps=3)
    meta, sets = learner.init(None), supports(learner)
    with torch.no_grad():
        for steps, made in ((3, 0), (2, 0), (1, 0), (3, 1)):
            learner.adapt(meta, next(sets), steps=steps)
            assert len(programs(learner)) == made


def test_sizes_of_a_support_set_have_records_of_their_own_and_only_so_many(monkeypatch):
    monkeypatch.setattr(replayed_loops, "REMEMBERED", 2)
    learner = LEARNERS["maml"]()
    for examples in (3, 4, 5, 3):
        same_bits(learner, supports(learner, examples=examples))
    assert len(programs(learner)) == 2 == len(learner.adapt.__self__.replayed.kinds.entries)


def test_names_in_another_order_are_another_kind():
    learner = headstart.maml(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), steps=3)
    meta = learner.init(None)
    turned = meta._replace(params=dict(reversed(meta.params.items())))
    for start in (meta, turned):
        for support in itertools.islice(supports(learner), 3):
            with torch.no_grad():
                ours, theirs = learner.adapt(start, support), as_it_is(learner).adapt(start, support)
            assert equal(ours, theirs)
    assert len(programs(learner)) == 2


def test_where_derivatives_are_asked_for_nothing_is_replayed():
    learner = LEARNERS["maml"]()
    meta, support = learner.init(None), next(supports(learner))
    for value in meta.params.values():
        value.requires_grad_()
    for _ in range(4):
        adapted, _ = learner.adapt(meta, support)
    assert not programs(learner) and all(value.requires_grad for value in adapted.params.values())


@pytest.mark.parametrize(
    "inside",
    [
        Counted,
        lambda: torch.autograd.graph.saved_tensors_hooks(lambda one: one, lambda one: one),
        lambda: torch.enable_grad(),
    ],
)
def test_modes_that_see_every_operation_see_them_and_gradients_may_be_on(inside):
    learner = LEARNERS["maml"]()
    meta, sets = learner.init(None), supports(learner)
    with torch.no_grad():
        for _ in range(3):
            learner.adapt(meta, next(sets))
    support = next(sets)
    with inside():
        found = learner.adapt(meta, support)
    assert equal(found, as_it_is(learner).adapt(meta, support))


def test_labels_out_of_range_are_refused_by_a_record_too():
    learner = LEARNERS["maml"]()
    meta, sets = learner.init(None), supports(learner)
    with torch.no_grad():
        for _ in range(3):
            learner.adapt(meta, next(sets))
        wrong = next(sets)._replace(y=torch.full((1, 6), 3))
        with pytest.raises(ShapeError, match="labels go from 3 to 3"):
            learner.adapt(meta, wrong)


def test_what_is_done_to_a_result_stays_out_of_the_record():
    learner = headstart.maml(net(), steps=3, rule=rules.chain(rules.momentum(), rules.scale(0.1)))
    meta = learner.init(None)
    for support in itertools.islice(supports(learner), 5):
        with torch.no_grad():
            expected, found = as_it_is(learner).adapt(meta, support), learner.adapt(meta, support)
        assert equal(found, expected)
        for value in tensors_of((found[0].params, found[1])):
            value.fill_(7.0)


def test_no_record_is_used_where_it_is_not_to_be():
    learner = LEARNERS["maml"]()
    exact = accelerate(learner, replay=False)
    meta, sets = learner.init(None), supports(learner)
    with torch.no_grad():
        for _ in range(4):
            exact.adapt(meta, next(sets))
            assert len(list(exact.path(meta, next(sets), [0, 3]))) == 2
    assert not learner.adapt.__self__.replayed.kinds.entries


def test_threads_adapt_at_the_same_time():
    learner = LEARNERS["maml"]()
    meta, wrong = learner.init(torch.Generator().manual_seed(0)), []
    sets = {n: [*itertools.islice(supports(learner, examples=n), 8)] for n in (3, 4, 5)}
    with torch.no_grad():
        expected = {n: [as_it_is(learner).adapt(meta, one) for one in some] for n, some in sets.items()}
    together = threading.Barrier(4)

    def work(offset):
        together.wait()
        for round_ in range(6):
            n = (3, 4, 5)[(round_ + offset) % 3]
            for support, right in zip(sets[n], expected[n]):
                with torch.no_grad():
                    if not equal(learner.adapt(meta, support), right):
                        wrong.append(n)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(programs(learner)) == 3 and all(programs(learner))


def test_records_go_with_their_learner():
    learner = LEARNERS["maml"]()
    same_bits(learner, supports(learner))
    gone = weakref.ref(programs(learner)[0].step.__self__)
    del learner
    gc.collect()
    assert gone() is None


def test_a_learner_that_adapts_within_the_loss_of_another_one_has_records_of_its_own():
    inner = LEARNERS["maml"]()
    start, seen = inner.init(None), next(supports(inner))

    def loss(outputs, batch):
        with torch.no_grad():
            _, info = inner.adapt(start, seen)
        return cross_entropy(outputs, batch) * info.support_loss[-1]

    outer = headstart.maml(net(), steps=3, loss=loss)
    same_bits(outer, supports(outer))
    assert len(programs(inner)) == len(programs(outer)) == 1 and all(programs(inner))
