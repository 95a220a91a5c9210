"""Pictures of tasks: what is drawn is what was learned from, what is true, and what was predicted."""

import csv

import pytest
import torch

from headstart.data.curves.curves import curves
from headstart.training.build import build
from headstart.training.config import resolve
from headstart.training.report.episodes import curves as curve_pictures, images, tables
from headstart.training.report.figures import new_figure, png
from headstart.training.report.report import draw_episode
from tests.short import tree


@pytest.fixture
def drawn(monkeypatch):
    """Return what draws a job's episode, and returns the job and the figure, of which a PNG file can be made."""

    def draw(**options):
        job = build(resolve(tree({"device": "cpu", **options})))
        figures = []
        for owner in (curve_pictures, images, tables, tables.kit):
            monkeypatch.setattr(owner, "png", lambda figure: figures.append(figure) or b"", raising=False)
        assert draw_episode(job, job.learner.init(None)) == b""
        assert len(png(figures[0])) > 5000
        return job, figures[0]

    return draw


def _labelled(axis):
    return {str(line.get_label()): torch.tensor(line.get_xydata()) for line in axis.lines}


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_the_curve_is_drawn_without_noise_and_the_points_with_it(noise, drawn):
    _, figure = drawn(tasks="curves", noise=noise, shots=6, seed=3)
    learned = curves(shots=6, noise=noise, seed=3).sample("test", range(4)).support
    true = curves(shots=6, queries=200, noise=0, seed=3).sample("test", range(4)).query
    for task, axis in enumerate(figure.axes):
        shown = _labelled(axis)
        points = torch.cat((learned.x[task], learned.y[task]), 1).double()
        assert torch.equal(shown["learned from"], points)
        curve = torch.cat((true.x[task], true.y[task]), 1).double()
        assert torch.equal(shown["the task's curve"], curve[curve[:, 0].argsort()])
        assert {"before adapting", "after 5 steps", "after 10 steps"} < set(shown)


def test_images_stand_beside_the_names_of_their_classes(drawn):
    job, figure = drawn(tasks="icons", method="nearest", ways=9, shots=2, queries=4)
    names = job.tasks.names("test", 0)
    support, query = job.tasks.sample("test", [0])
    outputs = job.learner.predict(job.learner.adapt(job.learner.init(None), support)[0], query.x)[0]
    guesses, chances = outputs.argmax(-1), outputs.softmax(-1).amax(-1).tolist()
    cells = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_ylabel() for axis in cells if axis.get_ylabel()] == list(names)
    pixels = torch.tensor(cells[0].images[0].get_array().filled())
    assert torch.equal(pixels, support.x[0, 0, 0])
    asked = [axis for place, axis in enumerate(cells) if place % 6 > 1]
    answers = zip(guesses, chances, query.y[0])
    wrong = ["" if guess == label else f"{names[guess]}\n{chance:.0%}" for guess, chance, label in answers]
    assert [axis.get_xlabel() for axis in asked] == wrong and any(wrong)


@pytest.mark.parametrize(
    ("target", "columns", "time", "title"),
    [
        ("reaction", "day", None, "person a"),
        ("reaction", "dose,day", "day", "person a"),
        ("reaction", "dose,born", "born", "person a"),
        ("reaction", "day,dose", None, "Query rows of test tasks, 90 % intervals"),
        ("tired", "day,dose", None, "Query rows of test tasks"),
    ],
)
def test_a_table_is_drawn_in_its_own_units(target, columns, time, title, drawn, tmp_path):
    with (tmp_path / "people.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["person", "day", "dose", "reaction", "tired", "born"])
        for number, person in enumerate("abcdefgh"):
            for day in range(9):
                reaction = 300 + 10 * day * number + 7 * (day % 3)
                tired, born = "yes" if (day + number) % 2 else "no", f"1970-01-0{day + 1}"
                rows.writerow([person, day, (day + number) % 4, reaction, tired, born])
    options = {"task_column": "person", "target": target, "columns": columns, "time_column": time, "shots": 3}
    method = "nearest" if target == "tired" else "gaussian_process"
    job, figure = drawn(tasks=str(tmp_path / "people.csv"), method=method, **options)
    axis = figure.axes[0]
    tested = job.tasks.details["task_names"]["test"]
    assert axis.get_title() == title.replace("person a", f"person {tested[0]}")
    if target == "tired":
        assert [label.get_text() for label in axis.get_yticklabels()] == tested
        assert axis.get_xlim() == (0, 100)
    elif title == "person a":
        learned, line = (_labelled(axis)[name] for name in ("learned from", "predicted"))
        # with other features it is known at the rows alone
        assert len(line) == (200 if time is None else 9) and bool((line[1:, 0] > line[:-1, 0]).all())
        assert learned[:, 0].round().sort().values.unique().numel() == 3 and learned[:, 1].min() >= 300
        assert learned[:, 0].min() > -1e-5 and learned[:, 0].max() < 8 + 1e-5
    else:
        assert max(axis.get_xlim()) > 500 and len(axis.containers) == len(tested)


def test_what_cannot_be_pictured_is_left_out(mean_learner):
    learner = mean_learner()
    for tasks in (curves()._replace(input_shape=(2,)), curves()._replace(output_size=2)):
        assert curve_pictures.picture(tasks, learner, learner.init(None)) is None
    assert images.picture(curves(), learner, learner.init(None)) is None


def test_letters_that_no_font_has_are_told_once():
    with pytest.warns(UserWarning) as told:
        png(new_figure(2, 2, "a 収入"))
    assert [str(one.message).partition(",")[0] for one in told] == ["the fonts of pictures lack 入 収"]
