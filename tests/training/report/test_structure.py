"""What was learned about a model: M in plain numbers, movement, and the files that tell of them."""

import csv
import io
import json
import math
import os

import pytest
import torch
from PIL import Image
from torch import Generator, nn

import headstart
from headstart import registry
from headstart.core.parameters import Context, Structural
from headstart.core.rules import Rule, per_tensor
from headstart.data.tables.schema import Feature, Schema
from headstart.errors import ConfigError
from headstart.forward.mixture import Mixture, Skip
from headstart.registry import rows as registered
from headstart.training.build import build
from headstart.training.config import resolve
from headstart.training.report.report import report
from headstart.training.report.structure import (
    Findings,
    find,
    last_step,
    learned,
    movement,
    random_effects,
    summary,
    write_findings,
)
from headstart.training.report.structure_plot import _place_name, draw_structure
from headstart.training.run import open_run, train
from headstart.types import Meta
from tests.short import tree

SMALL = {
    "tasks": "sinusoid", "hidden": "6,5", "steps": 4, "threads": 1, "evaluate_tasks": 4, "test_tasks": 4,
    "evaluate_every": 4, "tasks_per_step": 2,
}  # fmt: skip
ICONS = {
    "tasks": "icons", "filters": 2, "ways": 2, "queries": 2, "rotations": False, "steps": 2, "threads": 1,
    "evaluate_tasks": 4, "test_tasks": 4, "tasks_per_step": 2,
}  # fmt: skip
FILES = {"structure.json", "structure.csv", "structure.png"}


def _job(learner, tasks=None):
    job = build(resolve(tree({**SMALL, "device": "cpu"})))
    return job._replace(learner=learner, tasks=tasks or job.tasks)


def _picture(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _by_name(found):
    return {f"{row['part']}|{row['tensor']}": row for row in found}


@pytest.mark.parametrize("has_path", [True, False])
def test_movement_is_what_the_steps_by_hand_give(has_path, line_tasks):
    """Task t has x = 1 and y = t, the model is w x with w = 2: each step of rate 0.1 takes 0.2 of w − t away."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    learner = headstart.maml(model, loss="mse", steps=3, rate=0.1, taskmap="vmap")
    if not has_path:
        learner = learner._replace(path=None)
    found = movement(_job(learner, line_tasks()), learner.init(None), episodes=12)
    assert [(row["tensor"], row["step"], row["tasks"], row["size"]) for row in found] == [
        ("weight", step, 12, 1) for step in range(4)
    ]
    for step, row in enumerate(found):
        distances = torch.tensor([abs(2.0 - task) * (1 - 0.8**step) for task in range(12)], dtype=torch.float64)
        assert row["mean"] == pytest.approx(float(distances.mean()) / 2, abs=1e-6)
        assert row["distance"] == pytest.approx(float(distances.mean()), abs=1e-6)
        assert row["ci95"] == pytest.approx(2.2009852 * float(distances.std()) / 2 / math.sqrt(12), abs=1e-6)
        assert row["relative"]


class _Shifted(nn.Module):
    """w x + c, with w = 0 in θ and a context c that starts at 3."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.line.weight)
        self.own = Context()
        self.own.shift = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x):
        return self.line(x) + self.own.shift


def test_a_context_and_a_tensor_of_zeros_move_by_their_distance_itself(line_tasks):
    learner = headstart.maml(_Shifted(), loss="mse", steps=1, rate=0.1, taskmap="vmap")
    found = movement(_job(learner, line_tasks()), learner.init(None), episodes=4)
    expected = sum(0.2 * abs(3 - task) for task in range(4)) / 4
    ended = last_step(found)
    assert {row["tensor"] for row in ended} == {"line.weight", "own.shift"}
    for row in ended:
        assert row["mean"] == row["distance"] == pytest.approx(expected) and not row["relative"]
    assert all(row["mean"] == 0 for row in found if row["step"] == 0)
    assert draw_structure(Findings([], found), "context") is not None


def test_movement_is_of_what_moves_and_needs_steps_and_tasks(line_tasks):
    model = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1))
    anil = headstart.anil(model, loss="mse", steps=1, taskmap="vmap")
    found = movement(_job(anil, line_tasks()), anil.init(None), episodes=2)
    assert {row["tensor"] for row in found} == {"1.weight", "1.bias"}
    still = headstart.maml(model, loss="mse", steps=0, taskmap="vmap")
    assert movement(_job(still, line_tasks()), still.init(None), episodes=2) == []
    with pytest.raises(ConfigError, match="at least 2"):
        movement(_job(anil, line_tasks()), anil.init(None), episodes=1)


def test_what_diverges_is_no_number_and_is_not_drawn(line_tasks, tmp_path):
    learner = headstart.maml(nn.Linear(1, 1), loss="mse", steps=40, rate=1e8, taskmap="vmap")
    found = Findings([], movement(_job(learner, line_tasks()), learner.init(None), episodes=3))
    assert last_step(found.movement)[0]["mean"] is None
    write_findings(tmp_path, found)
    assert json.loads((tmp_path / "structure.json").read_text())["movement"] == found.movement
    assert draw_structure(found, "diverged") is None


def test_rates_by_step_are_those_of_m_after_the_exponential():
    learner = headstart.maml(headstart.mlp(1, 1, hidden=(4,)), loss="mse", rule=per_tensor(0.1, steps=4, positive=True))
    meta = learner.init(None)
    drawn = {name: torch.randn(4, generator=Generator().manual_seed(len(name))) for name in meta.structure}
    found = learned(learner, Meta(meta.params, drawn))
    table = {(row["tensor"], row["step"]): row["mean"] for row in found}
    assert {(row["kind"], row["part"], row["size"]) for row in found} == {("rate", "rate", 1)}
    assert len(found) == len(table) == 4 * len(meta.params)
    for name in meta.params:
        for step in range(4):
            assert table[name, step] == pytest.approx(math.exp(float(drawn[f"log_rate.{name}"][step])))


def test_rates_of_weights_are_summed_up_with_their_signs():
    learner = headstart.meta_sgd(nn.Linear(2, 2), loss="mse", steps=2)
    values = {"rate.weight": torch.tensor([[0.1, -0.3], [0.2, 0.4]]), "rate.bias": torch.tensor([0.5, -0.5])}
    found = _by_name(learned(learner, Meta(learner.init(None).params, values)))
    weight, bias = found["rate|weight"], found["rate|bias"]
    assert (weight["size"], weight["step"], weight["negative"]) == (4, None, 0.25)
    assert [weight[key] for key in ("mean", "min", "max", "std")] == pytest.approx([0.1, -0.3, 0.4, 0.065**0.5])
    assert weight["values"] is None and bias["values"] == [0.5, -0.5] and bias["step"] is None


def test_matrices_are_measured_from_the_identity_that_they_start_as():
    learner = headstart.meta_curvature(nn.Linear(3, 2), loss="mse", steps=1)
    meta = learner.init(None)
    meta.structure["curvature.output.weight"][0, 1] = 2.0
    meta.structure["curvature.diagonal.bias"][0] = 4.0
    found = _by_name(learned(learner, meta))
    assert {row["kind"] for row in found.values()} == {"matrix"}
    assert found["curvature.output|weight"]["from_identity"] == pytest.approx(2 / math.sqrt(2))
    assert found["curvature.input|weight"]["from_identity"] == 0
    assert found["curvature.diagonal|bias"]["from_identity"] == pytest.approx(3 / math.sqrt(2))


def _users_rule(**changes):
    """A mask, a temperature that the rule does not tell of, and something of its own that it shows."""

    def structure(params, generator):
        return {f"open.{name}": torch.zeros_like(value) for name, value in params.items()} | {
            "warmth": torch.tensor(0.5), "own.knots": torch.arange(3.0), "own.square": torch.ones(20, 20),
        }  # fmt: skip

    def shown(m):
        masks = {f"mask.{name[5:]}": value.sigmoid() for name, value in m.items() if name.startswith("open.")}
        return {**masks, "own.knots": 2 * m["own.knots"]}

    def update(m, state, grads, params, step):
        return {name: 0.1 * m[f"open.{name}"].sigmoid() * grad for name, grad in grads.items()}, state

    return Rule(update, structure=structure, shown=shown)._replace(**changes)


def test_parts_of_a_rule_of_ones_own_appear_shown_or_as_they_stand():
    learner = headstart.maml(nn.Linear(2, 1), loss="mse", rule=_users_rule())
    meta = learner.init(None)
    meta.structure["open.weight"][0, 0] = 5.0
    found = _by_name(learned(learner, meta))
    assert set(found) == {"mask|weight", "mask|bias", "own|knots", "own|square", "warmth|"}
    assert (found["mask|weight"]["kind"], found["mask|weight"]["open"]) == ("mask", 0.5)
    assert found["mask|weight"]["max"] == pytest.approx(1 / (1 + math.exp(-5)))
    assert found["own|knots"]["values"] == [0, 2, 4] and found["own|knots"]["kind"] == "other"
    assert (found["own|square"]["size"], found["own|square"]["values"]) == (400, None)
    assert found["warmth|"]["mean"] == 0.5
    unshown = headstart.maml(nn.Linear(2, 1), loss="mse", rule=_users_rule(shown=lambda m: {}))
    assert {name.split("|")[0] for name in _by_name(learned(unshown, unshown.init(None)))} == {"open", "own", "warmth"}
    assert "own (403 numbers)" in summary(Findings(learned(learner, meta), []))
    assert draw_structure(Findings(list(found.values()), []), "own") is not None


def test_gates_of_mixtures_and_structural_layers_appear():
    model = nn.Sequential(Mixture({"wide": nn.Linear(2, 2), "skip": Skip()}), Structural(nn.Linear(2, 1)))
    learner = headstart.maml(model, loss="mse", steps=1)
    meta = learner.init(None)
    meta.structure["0.gates.logits"][0] = math.log(3)
    found = _by_name(learned(learner, meta))
    assert found["0.gates|wide"]["mean"] == pytest.approx(0.75) and found["0.gates|skip"]["mean"] == pytest.approx(0.25)
    assert {row["kind"] for name, row in found.items() if name.startswith("0.gates")} == {"gate"}
    assert len(found) == 4 and found["1|layer.bias"]["values"] == pytest.approx(model[1].layer.bias.tolist())


def test_looking_changes_nothing():
    learner = headstart.meta_curvature(nn.Linear(1, 1), loss="mse", steps=1)
    meta = learner.init(None)
    before = {name: value.clone() for part in meta for name, value in part.items()}
    assert find(_job(learner), meta).any()
    for part in meta:
        for name, value in part.items():
            assert torch.equal(value, before[name]) and value.grad is None and not value.requires_grad


def test_files_hold_the_same_numbers_and_the_picture_shows_something(tmp_path):
    train(tree({**SMALL, "method": "meta_curvature", "inner_steps": 2}), tmp_path)
    assert set(os.listdir(tmp_path)) >= FILES
    told = json.loads((tmp_path / "structure.json").read_text())
    with (tmp_path / "structure.csv").open(newline="") as file:
        flat = list(csv.DictReader(file))
    assert len(flat) == len(told["learned"]) + len(told["movement"]) and told["learned"] and told["movement"]
    for row, cells in zip([*told["learned"], *told["movement"]], flat):
        for name, value in row.items():
            written = "" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)
            assert cells[name] == written, name
    assert {row["tasks"] for row in told["movement"]} == {4}
    with Image.open(tmp_path / "structure.png") as image:
        assert image.width > 600 and image.height > 250 and len(image.getcolors(1 << 24)) > 50
    card = (tmp_path / "README.md").read_text()
    assert "| Learned about the model | curvature.output (" in card and "](structure.png)" in card
    assert "in 2 inner steps test tasks move " in card and "None" not in card
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    job, checkpoint = open_run(tmp_path)
    for name in FILES:
        (tmp_path / name).unlink()
    paths = report(tmp_path, job, checkpoint.best.meta)
    assert {path.name for path in paths} >= FILES and all(path.is_file() for path in paths)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before


def test_the_summary_of_a_model_of_which_only_the_start_is_learned(line_tasks):
    learner = headstart.maml(nn.Linear(1, 1), loss="mse", steps=1, rate=0.1, taskmap="vmap")
    meta = Meta({"weight": torch.ones(1, 1), "bias": torch.tensor([4.0])}, {})
    found = Findings([], movement(_job(learner, line_tasks()), meta, episodes=2))
    # tasks 0 and 1: the gradients of (5 - t)^2 are 2 (5 - t), so both move by 0.9 in the mean
    assert summary(found) == (
        "nothing but where it starts; in 1 inner step test tasks move weight most, by 90 % of its length,"
        " and bias least, by 22 %"
    )


@pytest.mark.parametrize("method", ["prototypes", "nearest"])
def test_methods_without_steps_and_structure_write_no_such_file(method, tmp_path):
    drop = {"filters", "steps", "tasks_per_step"} if method == "nearest" else set()
    train(tree({k: v for k, v in ICONS.items() if k not in drop} | {"method": method}), tmp_path)
    assert draw_structure(Findings([], []), "nothing") is None and not Findings([], []).any()
    assert not FILES & set(os.listdir(tmp_path))
    card = (tmp_path / "README.md").read_text()
    assert "structure" not in card and "Learned about" not in card


@pytest.mark.parametrize("method", [row.name for row in registered("method")])
def test_every_method_has_findings_that_can_be_drawn(method):
    drop = {"steps", "tasks_per_step"} | (
        {"filters"} if method in {row.name for row in registered("method") if row.model == "none"} else set()
    )
    options = {name: value for name, value in ICONS.items() if name not in drop}
    if "classification" not in registry.find("method", method).targets:
        options = {"tasks": "sinusoid", "test_tasks": 4}
    job = build(resolve(tree({**options, "method": method, "device": "cpu"})))
    meta = job.learner.init(Generator().manual_seed(0))
    found = find(job, meta)
    assert bool(found.learned) == bool(meta.structure) and bool(found.movement) == bool(job.learner.steps)
    assert all(math.isfinite(row["mean"]) for row in found.learned + found.movement)
    if found.learned:
        data = draw_structure(found, method)
        assert data is not None and len(_picture(data).getcolors(1 << 24) or ()) > 20


def _rates(tensors, steps, low, high):
    values = torch.logspace(math.log10(high), math.log10(max(low, 1e-4)), tensors * steps).view(tensors, steps)
    if low < 0:
        values[0, 0] = low
    module = nn.ModuleDict(
        {f"quite_a_long_layer_name_{index}": nn.Linear(1, 1, bias=False) for index in range(tensors)}
    )
    names = [name for name, _ in module.named_parameters()]
    m = {f"rate.{name}": row for name, row in zip(names, values)}
    learner = headstart.nearest()._replace(shown=lambda meta: meta.structure)
    return learned(learner, Meta(dict(module.named_parameters()), m))


@pytest.mark.parametrize(
    ("tensors", "steps", "low", "high"), [(4, 1, 0.1, 0.1), (60, 2, 1e-3, 1.0), (101, 1, -0.1, 0.2)]
)
def test_pictures_grow_with_the_model_and_stay_readable(tensors, steps, low, high):
    found = _rates(tensors, steps, low, high)
    assert len(found) == tensors * steps
    data = draw_structure(Findings(found, []), "rates")
    assert data is not None
    image = _picture(data)
    # a row is about a quarter of an inch, at 130 dots each, and no more than 100 rows are drawn
    assert image.height == pytest.approx(130 * (0.24 * max(3, min(tensors, 100)) + 1.45), abs=3)
    assert len(image.getcolors(1 << 24) or ()) > 20


def test_a_module_s_own_part_is_named_by_its_path():
    own = {"part": "hidden1.after.layer", "tensor": "weight", "step": None}
    of_a_rule = {"part": "curvature.output", "tensor": "hidden1.weight", "step": None}
    assert _place_name(own, several=True) == "hidden1.after.layer.weight"
    assert _place_name(of_a_rule, several=True) == "hidden1.weight (output)"


@pytest.mark.parametrize("name", ["effects.inputs", "effects.time"])
def test_random_effects_are_told_in_the_tables_units(mean_learner, name):
    day = Feature("day", "number", 4.5, 3.0)
    schema = Schema("who", "reaction", "day", "regression", (day,), 300.0, 50.0)
    factor = torch.tensor([[0.5, 0.0], [0.06, 0.08]])
    learner = mean_learner()._replace(shown=lambda meta: {name: factor @ factor.T})
    intercept, slope = random_effects(learner, learner.init(None), schema)
    assert (intercept["effect"], intercept["sd"], intercept["correlations"]) == ("intercept", pytest.approx(25), [])
    # 0.1 of 50 for 3 days
    assert (slope["effect"], slope["sd"], slope["correlations"]) == ("day", pytest.approx(5 / 3), [pytest.approx(0.6)])
    bent = mean_learner()._replace(shown=lambda meta: {name: torch.eye(3)})
    assert [row["effect"] for row in random_effects(bent, learner.init(None), schema)][2] == "day squared"
    assert random_effects(mean_learner(), learner.init(None), schema) == []
