"""Runs in a folder: complete, exact when resumed, and careful with what is there."""

import csv
import itertools
import json
import os
import shlex
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from headstart.algorithms.prototypes import nearest
from headstart.cli.commands import _train
from headstart.cli.options import call, first_look
from headstart.engine import accelerate as accelerate_module
from headstart.errors import ConfigError, DivergenceError, FileError, OutOfMemoryError
from headstart.testing.faults import truncate
from headstart.training import checkpoint as checkpoints, run as runs
from headstart.training.checkpoint import Keep
from headstart.training.config import (
    command,
    default_folder,
    merged,
    normal,
    read_config_file,
    resolve,
    schema_of,
    together,
)
from headstart.training.evaluate import evaluate
from headstart.training.files import read_json
from headstart.training.progress import View
from headstart.training.run import open_run, read_config, test as judge, train
from tests.short import tree

SMALL = {
    "threads": 1, "evaluate_tasks": 4, "test_tasks": 4, "evaluate_every": 4, "save_every": 3, "tasks_per_step": 2
}  # fmt: skip
SINE = {"tasks": "sinusoid", "hidden": "8", "steps": 10, **SMALL}
CURVES = {**SINE, "tasks": "curves", "noise": 0.5}
ICONS = {
    "tasks": "icons", "filters": 2, "ways": 2, "queries": 2, "inner_steps": 1, "rotations": False, "steps": 8, **SMALL
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("unrendered")

NUMBERS = ("last.safetensors", "best.safetensors", "metrics.jsonl", "results.csv", "test.csv", "results.json")


class _Told(View):
    """Keep what is told."""

    def __init__(self):
        self.notes, self.looks = [], []

    def note(self, text):
        self.notes.append(text)

    def step(self, record, validation):
        self.looks.append((record.step, validation))


class _StopAt(View):
    """Ask for a stop, as a user would, when a step has been taken."""

    def __init__(self, step, number=signal.SIGTERM):
        self.at, self.number = step, number

    def step(self, record, validation):
        if record.step == self.at:
            os.kill(os.getpid(), self.number)


def _same(a, b, names=NUMBERS):
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.mark.parametrize("options", [SINE, CURVES, ICONS, {**ICONS, "method": "prototypes", "inner_steps": None}])
def test_a_run_folder_is_complete(options, tmp_path, monkeypatch):
    monkeypatch.undo()  # to look at its pictures
    result = train(tree(options), tmp_path)
    assert result.score is not None and result.stopped is None and result.step == options["steps"]
    assert set(NUMBERS) < set(os.listdir(tmp_path))
    for name in ("results.png", "episode.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 300 and len(image.getcolors(1 << 24)) > 20
    card = (tmp_path / "README.md").read_text()
    assert "None" not in card and "TODO" not in card and "{" not in card and "± " in card
    assert options["tasks"] in card and "4 test tasks" in card and "licence" in card and "seed 0" in card
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(options["steps"] + 1))
    assert [line["step"] for line in lines if "validation" in line] == sorted({0, 4, 8, options["steps"]})
    assert len((tmp_path / "test.csv").read_text().splitlines()) == 5
    if result.config.option("method.steps") is not None:
        assert json.loads((tmp_path / "results.json").read_text())["by_inner_step"]["0"]["mean"] is not None


def test_a_card_says_what_the_curves_are(tmp_path):
    for place, (values, words) in enumerate(
        [
            ({**SINE, "frequency": "0.8-1.2"}, ("frequency 0.8-1.2", "1707.09835", "--frequency 0.8-1.2")),
            (CURVES, ("noise 0.5, so that no expected error is below 0.25", "1910.13616", "--noise 0.5")),
        ]
    ):
        train(tree({**values, "steps": 0}), tmp_path / str(place))
        card = (tmp_path / str(place) / "README.md").read_text()
        for word in (
            *words,
            "licence: none needed",
            "the first test tasks before and after adapting",
            "RUN POINTS.csv",
        ):
            assert word in card


def test_the_best_weights_are_tested(tmp_path):
    train(tree({**SINE, "outer_rate": 0.5}), tmp_path)  # so large a rate that later weights are worse
    job, checkpoint = open_run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    looks = {line["step"]: line["validation"]["mse"] for line in lines if "validation" in line}
    assert checkpoint.best.step == min(looks, key=looks.__getitem__) != checkpoint.step
    written = json.loads((tmp_path / "results.json").read_text())
    assert judge(job, checkpoint.best.meta).mean == written["mean"] != judge(job, checkpoint.meta).mean


def test_the_same_configuration_gives_the_same_bits_and_its_file_is_taken_back(tmp_path):
    train(tree(SINE), tmp_path / "a")
    train((read_config_file(tmp_path / "a" / "config.json")), tmp_path / "b")
    _same(tmp_path / "a", tmp_path / "b", (*NUMBERS, "config.json", "README.md"))
    train(tree({**SINE, "seed": 1}), tmp_path / "c")
    assert (tmp_path / "a" / "last.safetensors").read_bytes() != (tmp_path / "c" / "last.safetensors").read_bytes()


def test_the_cards_command_means_the_same_run(tmp_path):
    for values in (
        SINE,
        {**SINE, "frequency": "0.8-1.2"},
        CURVES,
        ICONS,
        {"tasks": "icons", "method": "reptile", "model": "mlp", "shots": "1-3"},
        {"tasks": {"name": "domains", "sources": ["icons", "omniglot"], "data": "/some", "weights": "2,1"}},
    ):
        config = resolve(values if isinstance(values["tasks"], dict) else tree(values))
        words = shlex.split(command(config))
        assert words[:2] == ["headstart", "train"]
        sources, names = first_look(words[2:])
        base = {"tasks": together(sources), "method": names["method"], "model": names.get("model")}
        called = call(_train, words[2:], [schema_of(normal(base))])
        assert called is not None and resolve(merged(base, called.tree)) == config


@pytest.mark.parametrize("options", [SINE, ICONS, {**SINE, "method": "reptile"}, {**SINE, "method": "meta_sgd"}])
def test_stopping_twice_changes_nothing(options, tmp_path):
    train(tree(options), tmp_path / "whole")
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run where it is ignored
    for step, number in ((2, signal.SIGTERM), (5, signal.SIGINT), (7, signal.SIGHUP)):
        stopped = train(tree(options), tmp_path / "parts", view=_StopAt(step, number))
        assert stopped.stopped == number and stopped.step == step and stopped.score is None
    assert not (tmp_path / "parts" / "results.json").exists()
    train(tree(options), tmp_path / "parts")
    _same(tmp_path / "whole", tmp_path / "parts")


def test_a_stop_while_testing_leaves_the_test_for_the_next_call(tmp_path):
    class StopWhileTesting(View):
        def note(self, text):
            if text.startswith("testing"):
                os.kill(os.getpid(), signal.SIGTERM)

    stopped = train(tree(SINE), tmp_path, view=StopWhileTesting())
    assert (stopped.stopped, stopped.step, stopped.score) == (signal.SIGTERM, SINE["steps"], None)
    assert not (tmp_path / "results.json").exists()
    assert train(tree(SINE), tmp_path).score is not None


def test_a_second_signal_stops_at_once_and_handlers_are_put_back(request):
    from headstart.training.signals import stop_signals

    # a process that was started in the background may ignore SIGINT
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.number == signal.SIGINT and stop.requested
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_damaged_newest_checkpoint_costs_some_steps_and_no_bits(tmp_path):
    train(tree(SINE), tmp_path / "whole")
    train(tree(SINE), tmp_path / "parts", view=_StopAt(7))
    newest = tmp_path / "parts" / "checkpoints" / "step-000000007.safetensors"
    truncate(newest, 50)
    with pytest.warns(UserWarning, match="checkpoint step-000000007.safetensors cannot be used, going back"):
        train(tree(SINE), tmp_path / "parts")
    _same(tmp_path / "whole", tmp_path / "parts")
    assert len(list(newest.parent.glob(f"damaged-*-{newest.name}"))) == 1


@pytest.mark.parametrize(("how", "when"), [("moved", "step"), ("deleted", "step"), ("replaced", "test")])
def test_a_folder_that_goes_away_while_training_is_saved_elsewhere(tmp_path, how, when):
    class Away(View):
        def step(self, record, validation):
            if when == "step" and record.step == 5:
                self.go()

        def note(self, text):
            if when == "test" and text.startswith("testing"):
                self.go()

        def go(self):
            if how == "moved":
                (tmp_path / "run").rename(tmp_path / "elsewhere")
            else:
                shutil.rmtree(tmp_path / "run")
            if how == "replaced":
                (tmp_path / "run").mkdir()

    (tmp_path / "run").mkdir()
    with pytest.raises(FileError, match=f"{'moved to .*elsewhere' if how == 'moved' else 'deleted'} while training"):
        train(tree({**SINE, "save_every": 6}), tmp_path / "run", view=Away())
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())
    saved = next(path for path in tmp_path.iterdir() if path.name != "run")
    assert open_run(saved)[1].step == (6 if when == "step" else 10)
    if how == "deleted":
        for run in (saved, tmp_path / "whole"):
            train(tree(SINE), run)
        _same(saved, tmp_path / "whole")


@pytest.mark.parametrize("at", [6, 10])
def test_a_disk_that_is_full_stops_the_run_soon_and_what_is_saved_goes_on(tmp_path, monkeypatch, at):
    own, steps = checkpoints.write, []

    def write(run, step, data, keep=Keep()):
        if step == at:
            raise FileError("cannot write the checkpoint: the disk is full")
        return own(run, step, data, keep)

    class Slow(View):
        def step(self, record, validation):
            steps.append(record.step)
            time.sleep(0.02)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "write", write)
        with pytest.raises(FileError, match="the disk is full"):
            train(tree(SINE), tmp_path / "run", view=Slow())
    assert steps[-1] == min(at + 1, 10) and open_run(tmp_path / "run")[1].step == {6: 3, 10: 9}[at]
    for name in ("run", "whole"):
        train(tree(SINE), tmp_path / name)
    _same(tmp_path / "run", tmp_path / "whole")


def test_a_folder_that_goes_away_while_it_is_written_to_is_told_as_such(tmp_path, monkeypatch):
    own = checkpoints.write

    def write(run, step, data, keep=Keep()):
        if step == 6 and run.name == "run":
            run.rename(run.with_name("elsewhere"))
        return own(run, step, data, keep)

    monkeypatch.setattr(checkpoints, "write", write)
    with pytest.raises(FileError, match="moved to .*elsewhere while training"):
        train(tree(SINE), tmp_path / "run")
    assert os.listdir(tmp_path) == ["elsewhere"] and open_run(tmp_path / "elsewhere")[1].step >= 7


def test_a_folder_that_goes_away_while_scores_are_written_is_told_as_such(tmp_path, monkeypatch):
    def moved(*given):
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        return {}

    monkeypatch.setattr(runs, "_trusted", moved)
    with pytest.raises(FileError, match="moved to .*elsewhere while training"):
        train(tree(SINE), tmp_path / "run")
    assert os.listdir(tmp_path) == ["elsewhere"] and open_run(tmp_path / "elsewhere")[1].step == 10


def test_checkpoints_are_saved_by_time_too_and_kept_as_said(tmp_path, monkeypatch):
    ticks = itertools.count(step=1000)  # three looks at the clock are 50 minutes
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=ticks.__next__))
    options = {**SINE, "save_every": "50min", "keep_every": 5, "keep_last": 3}
    train(tree(options), tmp_path / "run", view=_StopAt(8))
    kept = sorted(os.listdir(tmp_path / "run" / "checkpoints"))
    assert [int(name[5:14]) for name in kept] == [0, 3, 5, 8]
    train(tree({**SINE, "save_every": 1}), tmp_path / "run")
    train(tree(SINE), tmp_path / "whole")
    _same(tmp_path / "run", tmp_path / "whole")


def test_where_one_task_asks_for_too_much_auto_goes_on_with_a_checkpointed_adjoint(tmp_path, monkeypatch):
    def too_much(learner, meta, episodes):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    options, build, view = {**SINE, "inner_steps": 3}, runs.build, _Told()
    train(tree(options), tmp_path / "plenty")
    monkeypatch.setattr(
        runs, "build", lambda config: (job := build(config))._replace(learner=job.learner._replace(objective=too_much))
    )
    with pytest.raises(OutOfMemoryError, match=r"out of memory with 2 .*\(tried to allocate 2.00 GiB\); not even one"):
        train(tree(options), tmp_path / "run")
    train(tree({**options, "memory": "auto"}), tmp_path / "run", view=view)
    assert "out of memory with one task at a time: from now on with --adjoint checkpointed" in view.notes
    one, other = (load_file(str(tmp_path / name / "last.safetensors")) for name in ("run", "plenty"))
    assert one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    with pytest.raises(OutOfMemoryError):  # it has no other adjoint
        train(tree({**options, "method": "fomaml", "memory": "auto"}), tmp_path / "first_order")


@pytest.mark.parametrize("damage", ["gone", "line"])
def test_damaged_metrics_cost_no_step_and_are_told(tmp_path, damage):
    train(tree(SINE), tmp_path, view=_StopAt(7))
    path = tmp_path / "metrics.jsonl"
    data = path.read_bytes()
    path.unlink()
    if damage == "line":
        path.write_bytes(data.replace(b'{"step": 2', b'{"st\xffp": 2'))
    with pytest.warns(UserWarning, match="metrics.jsonl is not what it was after step 7"):
        train(tree(SINE), tmp_path)
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == ([8, 9, 10] if damage == "gone" else [0, 1, *range(3, 11)])
    path.unlink()  # of a run that has ended
    with pytest.warns(UserWarning, match="metrics.jsonl is not what it was after step 10"):
        train(tree(SINE), tmp_path)


def test_more_steps_go_on_with_the_run_and_results_of_fewer_do_not_outlive_them(tmp_path):
    train(tree({**SINE, "steps": 4}), tmp_path / "a")
    assert (tmp_path / "a" / "results.json").exists()
    assert train(tree(SINE), tmp_path / "a", view=_StopAt(8)).stopped is not None
    assert not any((tmp_path / "a" / name).exists() for name in ("results.json", "test.csv", "README.md"))
    for name in "ab":
        train(tree(SINE), tmp_path / name)
    _same(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ConfigError, match="--steps: 10 -> 4"):
        train(tree({**SINE, "steps": 4}), tmp_path / "a")
    # where the rates would change, none are added
    train(tree({**SINE, "steps": 1, "schedule": "linear"}), tmp_path / "c")
    with pytest.raises(ConfigError, match="--steps: 1 -> 6"):
        train(tree({**SINE, "steps": 6, "schedule": "linear"}), tmp_path / "c")


def test_a_finished_run_is_not_trained_again(tmp_path):
    train(tree(SINE), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in NUMBERS}
    result = train(tree(SINE), tmp_path, view=_StopAt(1))  # no step is taken, so nothing is stopped
    assert result.stopped is None
    assert before == {name: (tmp_path / name).read_bytes() for name in NUMBERS}


def test_another_configuration_is_refused_with_what_differs(tmp_path):
    train(tree({**SINE, "steps": 1}), tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ConfigError) as caught:
        train(tree({**SINE, "steps": 1, "inner_rate": 0.5, "seed": 3}), tmp_path)
    assert "--inner-rate: 0.01 -> 0.5" in str(caught.value) and "--seed: 0 -> 3" in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before and read_config(tmp_path).run.seed == 0


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        train(tree(SINE), tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_mistake_in_the_configuration_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="classifies"):
        train({"tasks": "sinusoid", "method": "prototypes"}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_divergence_is_an_error_and_the_run_can_be_read(tmp_path):
    with pytest.raises(DivergenceError, match="in step"):
        train(tree({**SINE, "outer_rate": 100, "optimizer": "sgd", "steps": 200}), tmp_path)
    job, checkpoint = open_run(tmp_path)
    assert judge(job, checkpoint.best.meta, episodes=2).mean > 0


def test_two_writers_are_refused(tmp_path):
    from headstart.training.signals import only_writer

    with only_writer(tmp_path), pytest.raises(ConfigError, match="another process is training"):
        with only_writer(tmp_path):
            pass
    with only_writer(tmp_path):
        pass


def test_what_is_no_run_is_explained(tmp_path):
    with pytest.raises(FileError, match="holds no run"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text('{"tasks": "sinusoid"}')
    with pytest.raises(FileError, match="has no checkpoint yet"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text('{"tasks": {"name": "icons", "ways": 1}}')
    with pytest.raises(ConfigError, match="--ways is 1.*config.json"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text('{"tasks": "icons", "ways": 5}')
    with pytest.raises(ConfigError, match="unknown part 'ways'.*config.json"):
        open_run(tmp_path)


@pytest.mark.parametrize("method", ["scratch", "nearest"])
def test_methods_that_learn_nothing_across_tasks_are_judged_at_once(method, tmp_path):
    drop = {"steps", "tasks_per_step"} | ({"filters", "inner_steps"} if method == "nearest" else set())
    result = train(tree({k: v for k, v in ICONS.items() if k not in drop} | {"method": method}), tmp_path)
    assert result.step == 0 and result.score is not None and (tmp_path / "results.png").exists()


def test_default_folders_are_named_by_tasks_and_method(tmp_path):
    assert default_folder(resolve("sinusoid")) == Path("runs/sinusoid-maml")
    (tmp_path / "birds").mkdir()
    assert default_folder(resolve(str(tmp_path / "birds"))) == Path("runs/birds-maml")
    (tmp_path / "visits.csv").write_text("patient,day,pressure\n")
    table = {"name": str(tmp_path / "visits.csv"), "task_column": "patient", "target": "pressure"}
    assert default_folder(resolve({"tasks": table})) == Path("runs/visits-gaussian_process")


@pytest.mark.parametrize("how", [{"compile": True}, {"memory": "64KiB"}], ids=str)
def test_how_a_step_is_computed_may_change_when_a_run_goes_on(how, tmp_path):
    options = {**SINE, "steps": 4, "hidden": "4", "inner_steps": 1, "tasks_per_step": 6}
    train(tree({**options, **how}), tmp_path / "run", view=_StopAt(2))
    assert not (tmp_path / "run" / "results.json").exists()
    for name in ("run", "plain"):
        train(tree(options), tmp_path / name)
    one, other = (load_file(str(tmp_path / name / "last.safetensors")) for name in ("run", "plain"))
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        assert (one[name].double() - tensor.double()).abs().max() < 1e-4, name


def test_what_repays_is_compiled_and_a_run_that_was_cut_off_has_the_same_bits(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(accelerate_module, "COMPILING", 0.0)
    monkeypatch.setattr(accelerate_module, "TRANSLATING", 0.0)
    monkeypatch.setattr(accelerate_module, "FEW_STEPS", 1)
    options = {**SINE, "steps": 4, "hidden": "4", "inner_steps": 2, "tasks_per_step": 6}
    told = _Told()
    with caplog.at_level("INFO", "headstart"):
        train(tree(options), tmp_path / "told", view=told)
        train(tree(options), tmp_path / "run", view=_StopAt(2))
    assert "meta-gradient compiled" in caplog.text and any("compiling a step" in note for note in told.notes)
    for name, how in (("run", {}), ("whole", {}), ("plain", {"compile": False})):
        train(tree({**options, **how}), tmp_path / name)
    run, whole, plain = (load_file(str(tmp_path / name / "last.safetensors")) for name in ("run", "whole", "plain"))
    assert all(torch.equal(run[name], tensor) for name, tensor in whole.items())
    assert all((run[name] - tensor).abs().max() < 1e-4 for name, tensor in plain.items())


def test_a_look_is_told_with_its_step_and_nearest_is_scored_once(tmp_path):
    view = _Told()
    train(tree({**ICONS, "evaluate_every": None, "queries": 3}), tmp_path / "run", view=view)
    assert [int(text.rpartition(" at step ")[2]) for _, text in view.looks] == [0, 2, 2, 4, 4, 6, 6, 8]
    results = read_json(tmp_path / "run" / "results.json")
    raw = nearest()
    tasks = open_run(tmp_path / "run")[0].tasks
    assert results["nearest"]["mean"] == evaluate(raw, raw.init(None), tasks, episodes=4, split="test").mean
    (told,) = [note for note in view.notes if "nearest" in note]
    percent = f"{100 * results['nearest']['mean']:.2f}"
    assert percent in told and f"learns nothing, has {percent} %" in (tmp_path / "run" / "README.md").read_text()


def test_what_is_taken_for_what_is_counted_and_a_card_is_called_as_its_folder(tmp_path):
    for number in range(12):
        (tmp_path / "flags" / f"c{number}").mkdir(parents=True)
        for image in range(3):  # of any colour, so that classes are mistaken for each other
            shade = (71 * number % 256, 97 * (number + 5 * image) % 256, 151 * (7 * image + number) % 256)
            Image.new("RGB", (4, 4), shade).save(tmp_path / "flags" / f"c{number}" / f"{image}.png")
    small = {"image_size": 8, "evaluate_tasks": 2, "test_tasks": 40, "method": "nearest"}
    train(tree({"tasks": str(tmp_path / "flags"), **small}), tmp_path / "run")
    with (tmp_path / "run" / "confusions.csv").open() as file:
        rows = list(csv.DictReader(file))
    card = (tmp_path / "run" / "README.md").read_text()
    # two classes are for testing, so that each is in every task
    assert {row["class"] for row in rows} <= {path.name for path in (tmp_path / "flags").iterdir()}
    assert all(row["of"] == "200" and row["class"] != row["taken for"] for row in rows)
    wrong = 1 - read_json(tmp_path / "run" / "results.json")["mean"]
    assert 0 < wrong < 1
    first = rows[0]
    assert card.startswith("# nearest on flags\n")
    assert f"{first['class']} for {first['taken for']} ({first['times']} of {first['of']})" in card
