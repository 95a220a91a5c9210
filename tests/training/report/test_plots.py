"""Pictures of tasks: what is drawn is what was learned from, and what is true."""

from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from headstart.data.curves.curves import curves
from headstart.training.build import build
from headstart.training.config import TrainConfig
from headstart.training.defaults import resolve
from headstart.training.report.plots import draw_episode, pictured
from headstart.training.report.report import plots


def _drawn(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Figure:
    """Return the figure of a job's episode picture."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "png", lambda figure: figures.append(figure) or b"")
    job = build(resolve(TrainConfig(device="cpu", **options)))
    draw_episode(job, job.learner.init(None))
    return figures[0]


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_the_curve_is_drawn_without_noise_and_the_points_with_it(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = _drawn(monkeypatch, tasks="curves", noise=noise, shots=6, seed=3)
    learned = curves(shots=6, noise=noise, seed=3).sample("test", range(4)).support
    true = curves(shots=6, queries=200, noise=0, seed=3).sample("test", range(4)).query
    for task, axis in enumerate(figure.axes):
        shown = {str(line.get_label()): torch.tensor(line.get_xydata()) for line in axis.lines}
        points = torch.cat((learned.x[task], learned.y[task]), 1).double()
        assert torch.equal(shown["learned from"], points)
        curve = torch.cat((true.x[task], true.y[task]), 1).double()
        assert torch.equal(shown["the task's curve"], curve[curve[:, 0].argsort()])
        assert {"before adapting", "after 5 steps", "after 10 steps"} < set(shown)


def test_what_can_be_pictured() -> None:
    tasks = curves()
    assert pictured(tasks) == "curves"
    assert pictured(tasks._replace(kind="classification", input_shape=(3, 28, 28))) == "images"
    assert pictured(tasks._replace(input_shape=(2,))) is pictured(tasks._replace(output_size=2)) is None
