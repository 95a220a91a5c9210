"""Runs that are judged on other sources than they were trained on."""

import pytest
import torch
from PIL import Image

from headstart.data.images.kind import IMAGES
from headstart.errors import ConfigError, LeakageError
from headstart.tasks import icons
from headstart.training import run as running
from headstart.training.build import build, make_tasks
from headstart.training.config import resolve
from headstart.training.elsewhere import elsewhere, evaluate_on, refuse_trained_on, target_config
from headstart.training.run import open_run, train

RUN = {"evaluate_tasks": 2, "test_tasks": 6, "threads": 1}
SIZES = {"ways": 3, "queries": 2, "image_size": 8, "channels": 1}


def classes(path, names):
    for place, name in enumerate(names):
        (path / name).mkdir(parents=True)
        for shade in range(3):
            Image.new("RGB", (20, 10), 3 * (12 * place + 3 * shade,)).save(path / name / f"{shade}.png")
    return path


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    return classes(tmp_path_factory.mktemp("shades") / "shades", [f"shade {n}" for n in range(15)])


@pytest.fixture(scope="module")
def run(tmp_path_factory, shades):
    tree = {"tasks": {"name": str(shades), **SIZES}, "method": "nearest", "run": RUN}
    return train(tree, tmp_path_factory.mktemp("runs") / "shades").run


def test_other_tasks_are_made_such_as_the_run_was_trained_on(run, tmp_path):
    other = str(classes(tmp_path / "others", [f"other {n}" for n in range(15)]))
    options = target_config(open_run(run)[0], other).tasks.options
    assert [options[name] for name in ("ways", "shots", "queries", "image_size", "channels")] == [3, 1, 2, 8, 1]
    found = evaluate_on(run, other, episodes=20)
    assert (found.trained_on, found.on, found.score.episodes, found.notes) == ("shades", "others", 20, ())
    assert found.score.mean > 0.9
    assert evaluate_on(run, "icons", episodes=4).on == "icons"  # 28 x 28 pixels, made 8 x 8


def test_images_get_the_shape_colours_and_polarity_of_those_that_were_trained_on():
    own = icons(ways=3)
    dark = own._replace(
        sample=lambda split, numbers: own.sample(split, numbers)._replace(
            query=_negative(own.sample(split, numbers).query)
        ),
        details={**own.details, "light_on_dark": False},
    )
    made = IMAGES.elsewhere.fitted(own, dark).sample("test", range(4)).query.x
    borders = own.sample("test", range(4)).query.x[..., 0, :].mean((2, 3)) < 0.2  # of those that tell their polarity
    assert torch.allclose(made[borders], own.sample("test", range(4)).query.x[borders], atol=1e-6)
    assert borders.float().mean() > 0.8


def _negative(batch):
    return batch._replace(x=1 - batch.x)


def test_a_runs_own_source_gives_its_own_score(run, shades):
    job, checkpoint = open_run(run)
    assert evaluate_on(run, str(shades), episodes=6).score == running.test(job, checkpoint.best.meta)


def test_only_a_method_for_any_ways_may_be_judged_on_others(run, shades):
    two = {"name": str(shades), "ways": 2}
    assert evaluate_on(run, two, episodes=4).score.mean > 0.5
    tree = {"tasks": {"name": str(shades), **SIZES}, "model": "mlp", "method": "maml"}
    job = build(resolve(tree))
    with pytest.raises(ConfigError, match="trained with maml for 3 classes, but tasks of folder have 2; give --ways 3"):
        elsewhere(job, make_tasks(target_config(job, two), job.device))


def test_other_kinds_of_data_are_refused(run):
    with pytest.raises(ConfigError, match="the run is of images, and 'sinusoid' is curves"):
        evaluate_on(run, "sinusoid")


def test_what_is_learned_of_a_table_is_of_its_own_columns(tmp_path):
    rows = [f"{task},{row},{row * task}" for task in range(8) for row in range(8)]
    (tmp_path / "some.csv").write_text("\n".join(["task,x,y", *rows]) + "\n")
    table = {"name": str(tmp_path / "some.csv"), "task_column": "task", "target": "y"}
    job = build(resolve({"tasks": table, "method": "gaussian_process"}))
    with pytest.raises(ConfigError, match="tables is of their own columns alone"):
        target_config(job, table)


def test_curves_are_judged_on_others_of_the_same_numbers():
    job = build(resolve({"tasks": {"name": "sinusoid", "shots": 4}, "method": "gaussian_process"}))
    config = target_config(job, "curves")
    assert config.option("tasks.shots") == 4
    tasks = make_tasks(config, job.device)
    assert elsewhere(job, tasks).tasks is tasks
    with pytest.raises(ConfigError, match="the numbers in and out of the tasks differ"):
        elsewhere(job, make_tasks(target_config(job, "plateaus"), job.device))


def test_another_split_of_what_was_trained_on_is_refused_and_classes_called_alike_are_told_of(run, shades, tmp_path):
    job, _ = open_run(run)
    config, names = target_config(job, str(shades)), job.tasks.details["class_names"]
    tasks = job.tasks._replace(details={**job.tasks.details, "class_names": {**names, "test": names["train"][:2]}})
    with pytest.raises(LeakageError, match="2 of the 2 test classes of shades, such as .* were trained on"):
        refuse_trained_on(job, config, tasks, "test")
    assert refuse_trained_on(job, config, job.tasks, "test") == ()
    others = target_config(job, str(classes(tmp_path / "others", ["a", "b"])))
    (note,) = refuse_trained_on(job, others, tasks, "test")
    assert "2 of the 2 test classes of others" in note and "are called as classes that were trained on" in note
