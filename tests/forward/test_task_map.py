import logging

import pytest
import torch

from headstart.core.counting import Counted
from headstart.forward import task_map as taskmap
from headstart.forward.task_map import OneTask, auto, in_turn, loop, task_count, vmap


def function(params, x):
    return {"y": torch.tanh(x @ params["w"] + params["b"]), "n": x.sum()}


def arguments(tasks=3, grad=False):
    generator = torch.Generator().manual_seed(0)
    own, shared = torch.randn(tasks, 4, 2, generator=generator), torch.randn(2, generator=generator)
    return [{"w": own.requires_grad_(grad), "b": shared}, torch.randn(tasks, 5, 4, generator=generator)]


DIMS = [{"w": 0, "b": None}, 0]


def test_vmap_and_loop_agree():
    one, other = vmap(function, DIMS, arguments()), loop(function, DIMS, arguments())
    assert one["y"].shape == (3, 5, 2) and one["n"].shape == (3,)
    torch.testing.assert_close(one, other)


def test_the_number_of_tasks_is_read_off_what_has_a_task_axis():
    assert task_count(DIMS, arguments(7)) == 7
    assert task_count([{"b": None}, 0], [{"b": torch.zeros(2)}, {"x": torch.zeros(5, 1)}]) == 5
    with pytest.raises(ValueError, match="no argument has a task axis"):
        task_count([None], [torch.zeros(2)])


def test_auto_falls_back_to_the_loop_and_says_so(caplog):
    def branching(params, x):
        return x * 2 if x.sum().item() > 0 else -x

    with caplog.at_level(logging.INFO, "headstart"):
        out = auto()(branching, DIMS, arguments())
    torch.testing.assert_close(out, loop(branching, DIMS, arguments()))
    assert "task map: loop, since vmap cannot batch this model" in caplog.text
    assert "item()" in caplog.text


def test_auto_chooses_once_for_each_shape_and_says_what(caplog, monkeypatch):
    timed = []

    def seconds(task_map, *_):
        timed.append(task_map)
        return {vmap: 2.0, loop: 1.0}[task_map]

    monkeypatch.setattr(taskmap, "_seconds", seconds)
    map_ = auto()
    with caplog.at_level(logging.INFO, "headstart"):
        for tasks in (3, 3, 4, 3, 4):
            map_(function, DIMS, arguments(tasks))
    assert timed == [vmap, loop] * 2
    assert [record.message for record in caplog.records] == [
        "task map: loop (vmap 2000.0 ms, loop 1000.0 ms for a forward and backward pass)"
    ] * 2


@pytest.mark.parametrize(("looped", "winner"), [(0.7, "loop"), (0.9, "vmap"), (1.5, "vmap")])
def test_the_loop_must_win_clearly(looped, winner, monkeypatch):
    monkeypatch.setattr(taskmap, "_seconds", lambda task_map, *_: looped if task_map is loop else 1.0)
    map_ = auto()
    map_(function, DIMS, arguments())
    (chosen,) = map_.chosen.values()
    assert chosen.__name__ == winner


def test_the_trial_of_auto_leaves_no_trace_in_the_pass_around_it():
    saved = []
    args = arguments(grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        map_ = auto()
        map_(function, DIMS, args)
        first = len(saved)
        map_(function, DIMS, args)
    assert 0 < first == len(saved) - first, "a checkpoint around it would count other tensors when it runs again"


def test_auto_gives_gradients():
    args = arguments(grad=True)
    out = auto()(function, DIMS, args)["y"].sum()
    (slope,) = torch.autograd.grad(out, args[0]["w"])
    args = arguments(grad=True)
    (expected,) = torch.autograd.grad(loop(function, DIMS, args)["y"].sum(), args[0]["w"])
    torch.testing.assert_close(slope, expected)


def scaled(params, x):
    return {"y": x * params["w"].unsqueeze(1) + params["b"], "n": x.sum((1, 2))}


@pytest.mark.parametrize("tasks", [1, 3])
def test_in_turn_gives_what_the_function_gives_at_once(tasks):
    args = [{"w": torch.randn(tasks, 4), "b": torch.randn(4)}, torch.randn(tasks, 5, 4)]
    seen = []

    def watched(params, x):
        seen.append((params["w"].shape, params["b"].shape, x.shape))
        return scaled(params, x)

    torch.testing.assert_close(in_turn(watched, DIMS, args), scaled(*args))
    assert seen == [((1, 4), (4,), (1, 5, 4))] * tasks


def test_what_is_written_for_all_tasks_is_not_tried(monkeypatch):
    monkeypatch.setattr(taskmap, "_seconds", lambda *_: pytest.fail("a trial"))
    args = [{"w": torch.randn(3, 4), "b": torch.randn(4)}, torch.randn(3, 5, 4)]
    torch.testing.assert_close(auto()(OneTask(function, scaled, sure=True), DIMS, args), scaled(*args))


def test_a_trial_is_made_once_for_numbers_of_examples_that_are_alike(caplog):
    chosen = auto()
    for examples in range(5, 28):
        params, x = arguments()
        x = x.repeat(1, 6, 1)[:, :examples]
        torch.testing.assert_close(chosen(function, DIMS, [params, x])["y"], loop(function, DIMS, [params, x])["y"])
    assert len(chosen.chosen) == 6


def test_a_trial_is_not_counted():
    chosen, counts = auto(), []
    for _ in range(2):
        with Counted() as counted:
            chosen(function, DIMS, arguments(grad=True))
        counts.append(counted.operations)
    assert counts[0] == counts[1]
