"""From a configuration to tasks, model and learner."""

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from headstart.cli.app import run
from headstart.data.kind import find_kind
from headstart.errors import ConfigError, ShapeError, UsageError
from headstart.integrations.sklearn import FewShotClassifier, FewShotRegressor
from headstart.integrations.sklearn.options import options_of
from headstart.registry import find, rows
from headstart.training import build as module
from headstart.training.adapted import AdaptedModel
from headstart.training.build import build, find_device, make_learner, make_optimizer, reproducible
from headstart.training.choose import shortlist, train
from headstart.training.compare import default_methods
from headstart.training.config import resolve
from headstart.training.head_start import HeadStart
from headstart.training.loop import start


def _job(tasks: str, method: str = "maml", **parts: Any) -> module.Job:
    """Build a run; options of a part as a dictionary, ``name`` and all."""
    tree = {"tasks": {"name": tasks, **parts.pop("options", {})}, "method": {"name": method, **parts.pop("inner", {})}}
    return build(resolve({**tree, "run": {"device": "cpu"}, **parts}))


@pytest.mark.parametrize("method", [row.name for row in rows("method")])
@pytest.mark.parametrize("tasks", ["sinusoid", "curves", "icons"])
def test_every_method_is_built_for_tasks_that_it_can_do(tasks: str, method: str) -> None:
    row = find("method", method)
    if ("classification" if tasks == "icons" else "regression") not in row.targets:
        does = f"{method!r} (classifies|predicts numbers), but the tasks {tasks!r} are (regression|classification)"
        with pytest.raises(ConfigError, match=does):
            _job(tasks, method)
        return
    job = _job(tasks, method)
    meta = job.learner.init(torch.Generator())
    # cavia adds maps of the context to θ, and maml_plus_plus has what batch normalisation learns in M
    if method not in ("cavia", "maml_plus_plus"):
        of_model = (value for name, value in meta.params.items() if not name.startswith("classes."))
        assert sum(value.numel() for value in of_model) == job.parameters
    episodes = job.tasks.sample("test", [0, 1])
    adapted, _ = job.learner.adapt(meta, episodes.support)
    outputs = job.learner.predict(adapted, episodes.query.x)
    assert outputs.shape == (*episodes.query.y.shape[:2], job.tasks.output_size)


def test_options_reach_what_they_are_of() -> None:
    job = _job(
        "icons",
        options={"ways": 3, "shots": "1-2", "queries": 4, "rotations": False},
        inner={"steps": 2},
        model={"filters": 5, "norm": "none"},
    )
    episodes = job.tasks.sample("train", range(8))
    assert episodes.support.y.shape == (8, 6) and episodes.query.y.shape == (8, 12)
    assert episodes.support.mask is not None and job.learner.steps == 2
    assert job.learner.init(None).params["head.weight"].shape[0] == 3
    assert not any("norm" in name for name in job.learner.init(None).params)
    assert _job("sinusoid", model={"hidden": "7,9"}).parameters == 2 * 7 + 8 * 9 + 10


def test_frequency_and_noise_reach_the_curves() -> None:
    assert _job("sinusoid").tasks.details["frequency"] == (1, 1)
    assert _job("sinusoid", options={"frequency": "0.8-1.2"}).tasks.details["frequency"] == (0.8, 1.2)
    assert _job("sinusoid", options={"frequency": 2.0}).tasks.details["frequency"] == (2, 2)
    assert _job("curves").tasks.details["noise"] == 0.3
    assert _job("curves", options={"noise": 0.0}).tasks.details["noise"] == 0


def test_rate_and_adjoint_are_the_learners() -> None:
    losses = []
    for options in ({}, {"rate": 0.1}, {"adjoint": "checkpointed"}):
        job = _job("sinusoid", inner={"steps": 3, **options})
        meta, episodes = job.learner.init(None), job.tasks.sample("train", range(3))
        gradient, info = job.learner.gradient(job.learner, meta, episodes)  # type: ignore[misc]
        assert info.query_loss is not None
        losses.append((info.query_loss.mean(), gradient.params["head.weight"]))
    assert not torch.equal(losses[0][0], losses[1][0])
    assert torch.allclose(losses[0][1], losses[2][1])


def test_images_are_flattened_for_an_mlp_and_curves_refused_by_conv4() -> None:
    assert _job("icons", model={"name": "mlp", "hidden": "4"}).parameters == 784 * 4 + 4 + 5 * 4 + 5
    with pytest.raises(ShapeError, match=r"got inputs of shape \(1,\)"):
        _job("sinusoid", model="conv4")


def test_weights_depend_on_the_seed_alone_and_leave_the_global_generator() -> None:
    job = _job("sinusoid")
    state = torch.get_rng_state()
    first, again, other = (
        make_learner(job.config._replace(run=job.config.run._replace(seed=seed)), job.tasks, job.device)[0]
        for seed in (0, 0, 1)
    )
    assert torch.equal(state, torch.get_rng_state())
    weights = [learner.init(None).params["head.weight"] for learner in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device("auto").type == find_device("cpu").type == "cpu"
    for name in ("cuda", "mps"):
        with pytest.raises(UsageError, match=f"--device {name}: PyTorch finds no such device here; there is cpu"):
            find_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto").type == "cuda"


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_settings_are_put_back(threads: int) -> None:
    with reproducible(resolve({"tasks": "sinusoid", "run": {"threads": threads + 1}})):
        assert torch.get_num_threads() == threads + 1 and torch.backends.cudnn.deterministic
    assert torch.get_num_threads() == threads and not torch.backends.cudnn.deterministic


def test_the_outer_optimiser_has_its_rate() -> None:
    for name, kind in (("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)):
        config = resolve({"tasks": "sinusoid", "outer": {"optimizer": name, "rate": 0.25}})
        made = make_optimizer(config)([torch.zeros(1)])
        assert type(made) is kind and made.param_groups[0]["lr"] == 0.25


def test_heads_take_inputs_as_they_are_where_there_is_no_network() -> None:
    """With the model 'identity' they have what they have without a module: an intercept, alpaca its start."""
    for method in ("svm", "logistic", "ridge"):
        job = _job("icons", method, model="identity")
        adapted, _ = job.learner.adapt(job.learner.init(None), job.tasks.sample("test", [0]).support)
        assert adapted.params["offset"].any(), method
    job = _job("plateaus", "alpaca", model="identity")
    assert start(job.learner, tasks=job.tasks).meta.structure["mean"].all()
    assert _job("plateaus", "dkt", model="identity").parameters == 0


def test_a_head_with_nothing_to_learn_is_refused() -> None:
    job = _job("icons", "prototypes", model="identity")
    with pytest.raises(UsageError, match="nothing to learn"):
        start(job.learner)


def test_shots_that_vary_are_refused_under_batch_statistics() -> None:
    with pytest.raises(ConfigError, match="--norm batch would count the padding"):
        _job("icons", options={"shots": "1-3"})
    assert (
        _job("icons", options={"shots": "1-3"}, model={"norm": "group"}).tasks.sample("train", [0, 1]).support.mask
        is not None
    )
    assert _job("icons", "nearest", options={"shots": "1-3"}).config.model is None


@pytest.mark.parametrize(("target", "method"), [("day", "gaussian_process"), ("sort", "prototypes")])
def test_one_default_method_everywhere(tmp_path: Path, target: str, method: str) -> None:
    lines = [f"s{row // 6},{row % 6 + row % 7 / 10},{row * 3 % 5},{'ab'[row % 2]}" for row in range(60)]
    data = tmp_path / "shops.csv"
    data.write_text("\n".join(["shop,day,x,sort", *lines]) + "\n")
    tasks = {"name": str(data), "task_column": "shop", "target": target, "shots": 2}
    tree = {"tasks": tasks, "outer": {"steps": 1}, "run": {"test_tasks": 2}}
    assert next(iter(shortlist(tree))) == method
    assert default_methods(tree)[0] == method
    assert train(tree, tmp_path / "python").config in shortlist(tree).values()
    options = ["--task-column", "shop", "--target", target, "--shots", "2", "--steps", "1", "--test-tasks", "2"]
    own = {"gaussian_process": ["--kernel", "linear"], "prototypes": ["--hidden", "4"]}[method]
    assert run(["train", str(data), *options, *own, "--out", str(tmp_path / "shell")]) == 0
    config = json.loads((tmp_path / "shell" / "config.json").read_text())
    assert config["method"]["name"] == method
    assert config["method"].get("kernel", config.get("model", {}).get("hidden")) in ("linear", [4])
    estimator = FewShotRegressor if target == "day" else FewShotClassifier
    assert options_of(estimator().get_params(deep=False), estimator._kind).method == method


def test_values_that_hold_functions_say_how_to_get_one_in_another_process():
    config = resolve("sinusoid")
    job = build(config)
    by = HeadStart(find_kind("curves"), None, None, config, job.device, None, lambda classes: job.learner, None)
    model = AdaptedModel(by, ())
    for value, what in ((job.tasks, "a family of tasks"), (job.learner, "a learner"), (model, "an adapted model")):
        with pytest.raises(TypeError, match=f"{what} holds functions.*send the configuration"):
            pickle.dumps(value)
        assert copy.deepcopy(value) is value
    assert build(pickle.loads(pickle.dumps(config))).tasks.kind == job.tasks.kind
