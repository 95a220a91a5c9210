"""Tasks that are not finite: named, explained, and left out so exactly that nothing of them is in the weights."""

import json
import math
from functools import partial

import pytest
import torch

import headstart
from headstart.core.objective import meta_gradient
from headstart.data.curves.sinusoid import sinusoid
from headstart.engine.accelerate import accelerate
from headstart.errors import DataError, DivergenceError, UnknownNameError
from headstart.training import run as runs
from headstart.training.divergence import MOST_LOST
from headstart.training.loop import fit, seeded, start, tensors_of
from headstart.training.run import train
from headstart.types import Batch, Episodes, Meta
from tests.short import tree
from tests.training.test_run import NUMBERS, SINE, _same, _StopAt, _Told

SGD = partial(torch.optim.SGD, lr=0.1)
pytestmark = pytest.mark.usefixtures("unrendered")


def _spoilt(tasks, bad, value=1e30):
    """Return the tasks with targets in the ``bad`` training tasks of which no loss is finite."""

    def sample(split, numbers):
        episodes = tasks.sample(split, numbers)
        rows = [row for row, number in enumerate(numbers) if split == "train" and number in bad]
        y = episodes.support.y.clone()
        y[rows] = value
        return episodes._replace(support=episodes.support._replace(y=y))

    return tasks._replace(sample=sample)


def _learner(**options):
    body = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    return headstart.meta_sgd(body, **{"loss": "mse", "steps": 2, "taskmap": "vmap", **options})


def test_the_weights_are_those_of_a_run_that_never_had_the_tasks():
    learner, tasks, bad, size = _learner(), sinusoid(shots=4, seed=1), {5, 7, 8}, 4
    state = start(learner, seed=1)
    records = list(
        fit(
            learner, _spoilt(tasks, bad), steps=4, tasks_per_step=size, state=state, seed=1, on_nonfinite="skip"
        )
    )  # fmt: skip
    assert [[one.task for one in record.left_out] for record in records] == [[], [5, 7], [8], []]
    assert all(math.isfinite(record.loss) for record in records)

    other, gradient_of = start(learner, seed=1), accelerate(learner)
    for step in range(4):
        numbers = [number for number in range(step * size, (step + 1) * size) if number not in bad]
        episodes = seeded(tasks.sample("train", numbers), 1, numbers)
        gradient, info = meta_gradient(gradient_of, other.meta, episodes)
        assert records[step].loss == float(info.query_loss.mean())
        for value, slope in zip(tensors_of(other.meta), tensors_of(gradient)):
            value.grad = slope
        other.optimizer.step()
    assert all(map(torch.equal, tensors_of(state.meta), tensors_of(other.meta)))


def test_a_task_of_which_the_gradient_alone_is_not_finite_is_found(mean_learner, line_tasks):
    whole = mean_learner()

    def spoilt(learner, meta, episodes):
        gradient, info = whole.gradient(learner, meta, episodes)
        return (Meta({"w": gradient.params["w"] / 0}, {}) if bool((episodes.query.y == 5).any()) else gradient), info

    learner, state = whole._replace(gradient=spoilt), start(whole, optimizer=SGD)
    with pytest.raises(DivergenceError, match="the meta-gradient of task 5 is no longer a finite number in step 2"):
        list(fit(learner, line_tasks(), steps=2, tasks_per_step=4, state=state))
    (record,) = fit(learner, line_tasks(), steps=2, tasks_per_step=4, state=state, on_nonfinite="skip")
    assert [one.task for one in record.left_out] == [5]
    w = 0.1 * 1.5 / 2  # after tasks 0 … 3, as in test_loop
    assert record.gradient_norm == pytest.approx(abs(w - (4 + 6 + 7) / 3) / 2)


def test_where_no_task_alone_is_to_blame_the_run_stops(mean_learner, line_tasks):
    whole = mean_learner()

    def together(learner, meta, episodes):
        gradient, info = whole.gradient(learner, meta, episodes)
        return (Meta({"w": torch.tensor([math.inf])}, {}) if len(episodes.query.y) > 1 else gradient), info

    with pytest.raises(DivergenceError, match="the meta-gradient is no longer .* Of each task alone it is finite"):
        list(fit(whole._replace(gradient=together), line_tasks(), steps=1, on_nonfinite="skip"))


@pytest.mark.parametrize(
    ("x", "y", "rate", "words"),
    [
        (1.0, 1e18, 10.0, r"task 1 .*: its support loss is not finite before inner step 2 of 3 \(1e\+36, inf\)"),
        (1e20, 1e19, 0.1, r"task 1 .*: its weights are not finite after inner step 1 of 3 \(support loss 1e\+38\)"),
        (
            1.0,
            3.0,
            0.1,
            r"task 1 .*: its support loss is finite in all 3 inner steps \(.*\), what comes after it is not",
        ),
    ],
)
def test_where_an_inner_loop_goes_astray_is_told(line_tasks, x, y, rate, words):
    module = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(module.weight), torch.nn.init.zeros_(module.bias)
    learner = headstart.maml(module, loss="mse", steps=3, rate=rate, taskmap="vmap")

    def sample(split, numbers):
        support, query = line_tasks().sample(split, numbers)
        odd = torch.tensor([number == 1 for number in numbers]).view(-1, 1, 1)
        near = Batch(torch.where(odd, x, 0.1 * support.x), torch.where(odd, y, 0.1 * support.y))
        return Episodes(near, query._replace(y=torch.where(odd, 1e30, query.y)))

    with pytest.raises(DivergenceError, match=words):
        list(fit(learner, line_tasks()._replace(sample=sample), steps=1, tasks_per_step=3))


def test_a_step_without_any_task_leaves_all_as_it_is_and_many_in_a_row_stop(mean_learner, line_tasks):
    bad = {2, 3, *range(6, 100)}
    tasks, state = _spoilt(line_tasks(), bad, math.nan), start(mean_learner(), optimizer=torch.optim.Adam)
    records, weights = [], []
    with pytest.raises(
        DivergenceError, match=f"in {MOST_LOST} steps in a row, the last of them step 13, .* Task 24: its"
    ):
        for record in fit(mean_learner(), tasks, steps=30, tasks_per_step=2, state=state, on_nonfinite="skip"):
            records.append(record)
            weights.append(state.meta.params["w"].item())
    assert [record.state.lost for record in records[-1:]] == [MOST_LOST - 1] and len(records) == state.step == 12
    assert math.isnan(records[1].loss) and math.isnan(records[1].gradient_norm) and len(records[1].left_out) == 2
    assert weights[0] == weights[1] != weights[2] == weights[-1]
    steps = [float(held["step"]) for held in state.optimizer.state_dict()["state"].values()]
    assert steps == [2, 2]  # the optimiser knows of the steps that were taken alone
    with pytest.raises(DivergenceError, match="step 13"):  # nor does going on help
        next(fit(mean_learner(), tasks, steps=30, tasks_per_step=2, state=state, on_nonfinite="skip"))


def test_data_that_are_not_finite_are_an_error_or_left_out(mean_learner, line_tasks):
    tasks = _spoilt(line_tasks(), {1}, math.nan)
    with pytest.raises(DataError, match="split 'train', task 1,"):
        list(fit(mean_learner(), tasks, steps=1, tasks_per_step=4))
    (record,) = fit(mean_learner(), tasks, steps=1, tasks_per_step=4, on_nonfinite="skip")
    assert record.left_out == ((1, "its examples hold numbers that are not finite"),)
    with pytest.raises(UnknownNameError, match="on_nonfinite"):
        next(fit(mean_learner(), tasks, steps=1, on_nonfinite="skp"))


def test_a_run_names_and_counts_what_it_left_out_however_often_it_was_stopped(tmp_path, monkeypatch):
    build = runs.build
    monkeypatch.setattr(
        runs, "build", lambda config: (job := build(config))._replace(tasks=_spoilt(job.tasks, {5, 8, 9}, 1e25))
    )
    view, options = _Told(), tree({**SINE, "on_nonfinite": "skip"})
    train(options, tmp_path / "whole", view=view)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    left = {line["step"]: [one["task"] for one in line["left_out"]] for line in lines if "left_out" in line}
    assert left == {3: [5], 5: [8, 9]}
    assert [line["step"] for line in lines if line["step"] and "loss" not in line] == [5]
    assert json.loads((tmp_path / "whole" / "results.json").read_text())["left_out"] == {"count": 3, "tasks": [5, 8, 9]}
    assert "3 tasks left out" in (tmp_path / "whole" / "README.md").read_text()
    assert any(note.startswith("step 3 is without task 5: its support loss is not finite") for note in view.notes)
    assert any(note.endswith("training tasks 5, 8, 9") for note in view.notes)

    with pytest.raises(DivergenceError, match="task 5 is no longer a finite number in step 3"):
        train(tree(SINE), tmp_path / "parts")
    for step in (4, 5):
        assert train(options, tmp_path / "parts", view=_StopAt(step)).step == step
    train(options, tmp_path / "parts")
    _same(tmp_path / "whole", tmp_path / "parts", NUMBERS)
