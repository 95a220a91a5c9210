import contextlib
import logging
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

import headstart
from headstart.core.counting import Counted
from headstart.core.objective import backprop
from headstart.core.process import settings
from headstart.engine import record
from headstart.engine.loops import counted
from headstart.engine.record import FORMS, Forms, Recorded, Way, differing, replayed
from headstart.engine.rewrite import shorten
from headstart.engine.tracing import recorded, tensors_of
from headstart.errors import ShapeError
from headstart.testing import random_episodes
from headstart.types import Info, Meta

SOON = Way("replayed", replayed, after=1, most=5000, same=True, level=logging.WARNING)


def recording(learner, way=SOON):
    return learner._replace(gradient=Recorded(way))


def equal(one, other):
    ours, theirs = (tensors_of(gradient, random_episodes((2,))) for gradient in (one[0], other[0]))
    same = all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    return same and all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


CHANGES = "the learner changes from step to step, so far"


def net(outputs=3):
    return headstart.mlp(4, outputs, hidden=(8,)).double()


def images():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    )


LEARNERS = {
    "maml": lambda: (headstart.maml(net(), steps=2), (4,)),
    "images": lambda: (headstart.maml(images().double(), steps=2, taskmap="vmap"), (1, 4, 4)),
    "checkpointed": lambda: (headstart.maml(net(), steps=4, adjoint=headstart.Checkpointed()), (4,)),
    "meta_sgd": lambda: (headstart.meta_sgd(net(), steps=2), (4,)),
    "anil": lambda: (headstart.anil(net(), steps=2), (4,)),
    "prototypes": lambda: (headstart.prototypes(net(None), ways=3), (4,)),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_record_gives_the_same_bits_on_other_tasks_and_weights(name):
    plain, shape = LEARNERS[name]()
    learner = recording(plain)
    meta = plain.init(torch.Generator().manual_seed(0))
    for seed in range(4):
        episodes = random_episodes(shape, seed=seed)
        got = headstart.meta_gradient(learner, meta, episodes)
        assert equal(got, headstart.meta_gradient(plain, meta, episodes))
        params = {key: value - 0.1 * got[0].params[key] for key, value in meta.params.items()}
        meta = meta._replace(params=params)
    (program,) = learner.gradient.programs.values()
    assert program is not None and program.operations > 10


def test_other_shapes_have_a_record_of_their_own():
    learner = recording(headstart.maml(net(), steps=1))
    meta = learner.init(None)
    for support in (4, 5, 4, 5, 4, 5):
        headstart.meta_gradient(learner, meta, random_episodes((4,), support=support))
    assert len(learner.gradient.programs) == 2


class Spied(nn.Module):
    """Computes with a number that it reads from its inputs behind PyTorch's back."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(4, 3), how

    def forward(self, x):
        return self.layer(x) * self.how(x)


def by_numpy(x):
    return float(x.detach().numpy().sum())


def by_list(x):
    return float(sum(x.sum((-1, -2)).flatten().tolist()))


def by_python(x):
    return random.random()


def by_numpys_generator(x):
    return float(np.random.rand())


def by_branch(x):
    return 2.0 if x.sum() > 0 else 1.0


def by_chance(x):
    return torch.rand(())


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "headstart"]


def seed_all(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (by_numpy, ""),
        (by_branch, ""),
        (by_list, ""),
        (by_python, "draws from a generator"),
        (by_numpys_generator, "draws from a generator"),
        (by_chance, "draws from a generator"),
    ],
)
def test_what_depends_on_more_than_shapes_is_computed_as_it_is(how, why, caplog):
    plain = headstart.maml(Spied(how).double(), steps=1, taskmap="loop")
    learner = recording(plain)
    meta = learner.init(None)
    backprop(plain, meta, random_episodes((4,)))  # which checks the model's second derivatives, once
    for seed in range(4):
        episodes = random_episodes((4,), seed=seed)
        seed_all(seed)
        got = headstart.meta_gradient(learner, meta, episodes)
        seed_all(seed)
        assert equal(got, headstart.meta_gradient(plain, meta, episodes))
    assert list(learner.gradient.programs.values()) == [None]
    (line,) = lines(caplog)
    assert line.startswith("meta-gradient not replayed, running as it is: ") and why in line


def test_a_learner_that_changes_at_every_step_is_given_up(caplog):
    gradient = Recorded(SOON)
    episodes = random_episodes((4,))
    for step in range(12):
        plain = headstart.maml(net(), steps=1)
        meta = plain.init(torch.Generator().manual_seed(step))
        assert equal(gradient(plain, meta, episodes), backprop(plain, meta, episodes))
    assert lines(caplog) == [f"meta-gradient not replayed, running as it is: {CHANGES}"]
    assert len(gradient.forms.known) < 9 and gradient.programs == {}


def test_a_record_is_a_list_of_operations():
    learner = headstart.maml(net(), steps=1)
    meta, episodes = learner.init(None), random_episodes((4,))
    own = recorded(learner, meta, episodes)
    assert own.told == (True, True) and own.conditional
    found = own.run(*(tensor.clone() for tensor in tensors_of(meta, episodes)))
    expected = backprop(learner, meta, episodes)[0].params
    assert all(torch.equal(a, b) for a, b in zip(found, expected.values()))


def labelled(episodes, which, label):
    part = getattr(episodes, which)
    y = part.y.clone()
    y[0, 0] = label
    return episodes._replace(**{which: part._replace(y=y)})


def classifiers():
    hinge = {"loss": "squared_hinge"}
    learned = {"inner_loss": headstart.learned_loss(3, hidden=(4,))}
    return {
        "cross_entropy": headstart.maml(net(), steps=2),
        "squared_hinge": headstart.maml(net(), steps=1, **hinge),
        "learned_loss": headstart.maml(net(), steps=1, **learned),
        "prototypes": headstart.prototypes(net(None), ways=3),
        "ridge": headstart.ridge(net(None), ways=3),
    }


@pytest.mark.parametrize("name", classifiers())
def test_labels_out_of_range_are_refused_by_a_record_too(name):
    plain = classifiers()[name]
    learner, episodes = recording(plain), random_episodes((4,))
    meta = plain.init(torch.Generator().manual_seed(0))
    for _ in range(3):
        headstart.meta_gradient(learner, meta, episodes)
    (program,) = learner.gradient.programs.values()
    assert program is not None and program.conditional
    for which in ("support", "query"):
        for label in (3, -1):
            wrong = labelled(episodes, which, label)
            with pytest.raises(ShapeError, match=r"labels go from .*labels must be 0 to 2") as expected:
                headstart.meta_gradient(plain, meta, wrong)
            with pytest.raises(ShapeError) as error:
                headstart.meta_gradient(learner, meta, wrong)
            assert str(error.value) == str(expected.value)
    assert equal(headstart.meta_gradient(learner, meta, episodes), headstart.meta_gradient(plain, meta, episodes))


def test_padding_that_counts_is_refused_by_a_record_too():
    plain = headstart.maml(images().double(), steps=1, taskmap="vmap")
    learner, episodes = recording(plain), random_episodes((1, 4, 4))
    full = headstart.Episodes(*(b._replace(mask=torch.ones_like(b.y, dtype=torch.bool)) for b in episodes))
    meta = plain.init(None)
    for _ in range(3):
        headstart.meta_gradient(learner, meta, full)
    assert [program is not None for program in learner.gradient.programs.values()] == [True]
    mask = full.support.mask.clone()
    mask[0, 0] = False
    with pytest.raises(headstart.errors.UsageError, match="different numbers of examples"):
        headstart.meta_gradient(learner, meta, full._replace(support=full.support._replace(mask=mask)))


class Doubled(nn.Module):
    """Has two parameters of one derivative."""

    def __init__(self):
        super().__init__()
        self.layer, self.one, self.two = nn.Linear(4, 3), *(nn.Parameter(torch.zeros(3)) for _ in range(2))

    def forward(self, x):
        return self.layer(x) + self.one + self.two


def test_gradients_of_a_record_lie_in_memory_of_their_own():
    learner = recording(headstart.maml(Doubled().double(), steps=1, taskmap="vmap"))
    meta, episodes = learner.init(None), random_episodes((4,))
    for _ in range(3):
        found, info = headstart.meta_gradient(learner, meta, episodes)
    assert [program is not None for program in learner.gradient.programs.values()] == [True]
    assert torch.equal(found.params["one"], found.params["two"])
    tensors = [*found.params.values(), *(part for part in info)]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)


class Spare(nn.Module):
    """A layer, and a parameter that nothing depends on."""

    def __init__(self):
        super().__init__()
        self.layer, self.spare = nn.Linear(4, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.layer(x) + self.spare.pow(0.0)


def test_what_is_done_to_a_gradient_stays_out_of_the_record():
    learner = recording(headstart.maml(Spare().double(), steps=1, taskmap="vmap"))
    meta, episodes = learner.init(None), random_episodes((4,))
    found = [headstart.meta_gradient(learner, meta, episodes) for _ in range(3)][-1]
    assert [program is not None for program in learner.gradient.programs.values()] == [True]
    expected = [value.clone() for value in tensors_of(found[0], episodes)]
    for _ in range(2):
        gradient, _ = headstart.meta_gradient(learner, meta, episodes)
        assert all(map(torch.equal, tensors_of(gradient, episodes), expected))
        for value in gradient.params.values():
            value.fill_(7)  # as clipping does in its place


def test_outputs_that_lie_in_an_input_are_copied():
    way = SOON._replace(translate=lambda record: lambda *inputs: [inputs[0], inputs[0].mT, inputs[1] + 1])
    learner = headstart.maml(net(), steps=1)
    meta, episodes = learner.init(None), random_episodes((4,))
    given = tensors_of(meta, episodes)
    found = Recorded(way)._translated(recorded(learner, meta, episodes), settings(), given).run(*given)
    assert len({tensor.untyped_storage().data_ptr() for tensor in (*found, *given)}) == 3 + len(given)


def result(value, loss=1.0, dtype=torch.float32):
    gradient = Meta({"a": torch.tensor([1.0, 2.0], dtype=dtype), "b": torch.tensor([value], dtype=dtype)}, {})
    return gradient, Info(torch.ones(1, 2), torch.tensor([loss]))


@pytest.mark.parametrize(
    ("got", "where"),
    [
        (result(1.0), ""),
        (result(1.0005), ""),
        (result(1.04), "θ.b: off by 4.0e-02"),
        (result(float("nan")), "θ.b: other numbers are not finite"),
        (result(float("inf")), "θ.b: other numbers are not finite"),
        (result(1.0, loss=1.04), "query_loss: off by"),
        (result(1.0, dtype=torch.float64), "θ.a: (2,) of torch.float64"),
    ],
)
def test_results_are_compared_tensor_by_tensor(got, where):
    assert differing(got, result(1.0), 1e-3).startswith(where)
    assert bool(differing(got, result(1.0), 1e-3)) == bool(where)


def test_numbers_that_are_not_finite_have_to_be_the_same():
    nan, inf = float("nan"), float("inf")
    for value in (nan, inf, -inf):
        assert not differing(result(value), result(value), 0.0)
        for other in {1.0, inf, -inf, 0.0} - {value}:
            assert differing(result(other), result(value), 0.0)
            assert differing(result(other), result(value), 0.05)


def test_a_record_remembers_as_little_as_the_adjoint():
    learner = headstart.maml(net(), steps=9, taskmap="vmap", adjoint=headstart.Checkpointed())
    meta, episodes = learner.init(None), random_episodes((4,), support=40)
    tensors = tensors_of(meta, episodes)
    with Counted() as live:
        backprop(learner, meta, episodes)
    record = recorded(learner, meta, episodes).run
    shorten(record.graph)
    record.recompile()
    with torch.no_grad(), Counted() as replay:
        record(*tensors)
    assert replay.peak < 1.15 * live.peak


def test_what_has_too_many_operations_is_not_recorded(caplog):
    learner = recording(headstart.maml(net(), steps=2), SOON._replace(most=50))
    meta, episodes = learner.init(None), random_episodes((4,))
    for _ in range(3):
        headstart.meta_gradient(learner, meta, episodes)
    assert list(learner.gradient.programs.values()) == [None]
    (line,) = lines(caplog)
    assert "operations, more than 50" in line


def test_only_so_many_kinds_of_inputs_are_remembered(monkeypatch):
    monkeypatch.setattr(record, "REMEMBERED", 3)
    learner = recording(headstart.maml(net(), steps=1))
    meta = learner.init(None)
    for support in (4, 4, 5, 6, 7, 8):
        headstart.meta_gradient(learner, meta, random_episodes((4,), support=support))
    assert len(learner.gradient.kinds.entries) == 3
    # the program is what is kept longest
    assert [program is not None for program in learner.gradient.programs.values()] == [True]


def test_a_learner_that_settles_is_recorded_after_all():
    gradient, episodes = Recorded(SOON), random_episodes((4,))
    learners = [headstart.maml(net(), steps=1) for _ in range(12)]
    for learner in (*learners, *[learners[-1]] * 3):
        gradient(learner, learner.init(None), episodes)
    assert [program is not None for program in gradient.programs.values()] == [True]


def test_results_inside_hooks_and_modes_are_computed_as_they_are():
    learner = recording(headstart.maml(net(), steps=1))
    meta, episodes = learner.init(None), random_episodes((4,))
    for _ in range(3):
        headstart.meta_gradient(learner, meta, episodes)
    seen = []

    def keep(tensor):
        seen.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, keep):
        headstart.meta_gradient(learner, meta, episodes)
    assert seen
    with Counted() as live:
        headstart.meta_gradient(learner, meta, episodes)
    assert live.peak


def test_autocast_has_records_of_its_own():
    plain = headstart.maml(headstart.mlp(4, 3, hidden=(8,)), steps=1, taskmap="vmap")
    learner = recording(plain)
    meta, episodes = plain.init(torch.Generator().manual_seed(0)), random_episodes((4,))
    episodes = headstart.Episodes(*(batch._replace(x=batch.x.float()) for batch in episodes))
    expected = {}
    for on in (False, True) * 3:
        with torch.autocast("cpu", torch.bfloat16, enabled=on, cache_enabled=False):
            expected[on] = headstart.meta_gradient(plain, meta, episodes)
            assert equal(headstart.meta_gradient(learner, meta, episodes), expected[on])
    assert not equal(expected[False], expected[True])
    assert [program is not None for program in learner.gradient.programs.values()] == [True, True]


def test_threads_that_wait_for_a_record_compute_meanwhile():
    way = SOON._replace(translate=lambda record: started.set() or go.wait(60) and replayed(record))
    started, go = threading.Event(), threading.Event()
    learner = recording(headstart.maml(net(), steps=1), way)
    meta, episodes = learner.init(None), random_episodes((4,))
    headstart.meta_gradient(learner, meta, episodes)
    recorder = threading.Thread(target=lambda: headstart.meta_gradient(learner, meta, episodes))
    recorder.start()
    try:
        assert started.wait(60)
        headstart.meta_gradient(learner, meta, episodes)  # does not wait
        assert learner.gradient.programs == {}
    finally:
        go.set()
        recorder.join(60)
    assert [program is not None for program in learner.gradient.programs.values()] == [True]


def test_one_record_is_made_at_a_time(monkeypatch):
    """PyTorch's tracing puts functions of its own in the place of modules' own, for all threads."""
    start, inside, before = threading.Barrier(2), threading.Barrier(2), nn.Module.__call__

    def loss(outputs, batch):
        if get_proxy_mode() is not None and threading.current_thread() is not threading.main_thread():
            with contextlib.suppress(threading.BrokenBarrierError):
                inside.wait(0.5)
        return outputs.square().mean((1, 2))

    learner = recording(headstart.maml(net(), steps=1, taskmap="vmap", loss=loss))
    meta = learner.init(None)

    def steps(support, count):
        for _ in range(count):
            headstart.meta_gradient(learner, meta, random_episodes((4,), support=support))

    for support, count in ((3, 2), (4, 1), (5, 1)):  # the first one brings what is loaded once
        steps(support, count)

    def together(*given):
        start.wait(60)
        return counted(*given)

    monkeypatch.setattr(record, "counted", together)
    threads = [threading.Thread(target=steps, args=(support, 1)) for support in (4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [program is not None for program in learner.gradient.programs.values()] == [True] * 3
    assert inside.broken and nn.Module.__call__ is before


def test_images_of_one_channel_are_told_apart_by_its_stride():
    """Both are contiguous, but a convolution takes one of them for channels-last, which gives other bits."""
    learner = headstart.maml(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 3)), steps=1
    )
    recorder, meta = recording(learner), learner.init(torch.Generator().manual_seed(0))
    plain = random_episodes((1, 16, 16), tasks=1, support=80, query=80)
    plain = headstart.Episodes(*(batch._replace(x=batch.x.float()) for batch in plain))
    odd = headstart.Episodes(*(b._replace(x=b.x.squeeze(2).unsqueeze(-1).movedim(-1, 2)) for b in plain))
    assert plain.support.x.is_contiguous() and odd.support.x.is_contiguous()
    for episodes in (odd, odd, odd, plain, plain, plain):
        expected = headstart.meta_gradient(learner, meta, episodes)
        assert equal(headstart.meta_gradient(recorder, meta, episodes), expected)
    assert [program is not None for program in recorder.gradient.programs.values()] == [True, True]


def linear():
    return headstart.maml(nn.Linear(2, 1), loss="mse", steps=1)


def test_a_learner_of_the_same_functions_is_the_same_form():
    forms, learner = Forms(), linear()
    number = forms.of(learner).number
    assert forms.of(learner._replace(gradient=None, during=lambda done: learner)).number == number
    assert forms.of(learner._replace(steps=learner.steps)).number == number
    assert forms.of(linear()).number != number


def test_numbers_are_compared_and_other_objects_are_not():
    class Unequal:
        def __eq__(self, other):
            raise RuntimeError("these cannot be compared")

    forms, learner = Forms(), linear()
    number = forms.of(learner._replace(penalty=Unequal())).number
    assert forms.of(learner._replace(penalty=Unequal())).number != number
    assert forms.of(learner._replace(penalty=0.1)).number == forms.of(learner._replace(penalty=0.1)).number
    assert forms.of(learner._replace(penalty=1)).number != forms.of(learner._replace(penalty=True)).number


def test_what_comes_once_each_is_not_settled():
    forms, learners = Forms(), [linear() for _ in range(3)]
    assert [forms.of(learner).settled for learner in learners] == [True, False, False]
    assert forms.of(learners[2]).settled
    assert forms.of(linear()).settled  # what came before it came more than once


def test_forms_that_came_long_ago_are_forgotten_and_their_numbers_not_given_again():
    forms, learners = Forms(), [linear() for _ in range(2 * FORMS)]
    numbers = [forms.of(learner).number for learner in learners]
    assert len(forms.known) == FORMS
    assert forms.of(learners[-1]).number == numbers[-1]
    assert forms.of(learners[0]).number not in numbers


def test_what_gives_the_first_numbers_again_is_found_out(caplog):
    def stale(graph):
        run, found = replayed(graph), []

        def again(*tensors):
            found.append(found[0] if found else run(*tensors))
            return [value.clone() for value in found[0]]

        return again

    learner = recording(headstart.prototypes(net(None), ways=3), SOON._replace(translate=stale))
    meta = learner.init(None)
    with caplog.at_level(logging.WARNING, "headstart"):
        for seed in range(3):
            headstart.meta_gradient(learner, meta, random_episodes((4,), seed=seed))
    assert list(learner.gradient.programs.values()) == [None]
    assert "it gives something else" in lines(caplog)[0]
