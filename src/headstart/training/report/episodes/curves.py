"""Some test tasks that are curves: the points learned from, and what is predicted between them."""

from collections.abc import Callable

import torch

from headstart.training.calibration import reach
from headstart.training.evaluate import answer
from headstart.training.report.figures import BLUE, GREEN, GREY, ORANGE, RED, band, dress, new_figure, png
from headstart.types import Learner, Meta, Tasks


@torch.no_grad()
def picture(tasks: Tasks, learner: Learner, meta: Meta, truth: Callable[[int], Tasks] | None = None) -> bytes | None:
    """Draw four test tasks: the prediction before adapting, after the learner's own steps and after 10.

    ``truth(n)`` are the same tasks with n query points on the curves themselves, without noise.
    """
    if tasks.input_shape != (1,) or tasks.output_size != 1:
        return None
    support, query = tasks.sample("test", range(4))
    if truth is not None:
        query = truth(200).sample("test", range(4)).query
    line = torch.linspace(float(query.x.min()), float(query.x.max()), 200, device=query.x.device, dtype=query.x.dtype)
    own = learner.steps
    styles = {} if own is None else {0: ("--", ORANGE, "before adapting")}
    styles |= {own: ("-", BLUE, "after adapting" if own is None else _after(own))}
    styles |= {} if own in (None, 10) else {10: ("-", GREEN, _after(10))}
    answers = {
        steps: answer(learner, learner.adapt(meta, support, steps=steps)[0], line.view(1, -1, 1).expand(4, -1, -1))
        for steps in styles
    }
    at = line.cpu()
    figure = new_figure(width=9.5, height=6)
    for task, axis in enumerate(figure.subplots(2, 2, sharex=True).flat):
        if truth is not None:
            x, y = (value[task, :, 0].cpu() for value in query[:2])
            axis.plot(x.sort().values, y[x.argsort()], color=GREY, linewidth=4, alpha=0.45, label="the task's curve")
        for steps, (style, colour, label) in styles.items():
            axis.plot(at, answers[steps][0][task, :, 0].cpu(), style, color=colour, linewidth=1.6, label=label)
        found = answers[own][1]
        if found is not None:
            mean, half = (value[task, :, 0].cpu() for value in (found.mean, reach(0.9) * found.variance.sqrt()))
            band(axis, at, mean - half, mean + half, BLUE)
        there = slice(None) if support.mask is None else support.mask[task]
        points = [value[task, there, 0].cpu() for value in support[:2]]
        axis.plot(*points, "o", color=RED, markersize=5, label="learned from")
        dress(axis, f"Test task {task}", "x" if task > 1 else "", "y" if task % 2 == 0 else "")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return png(figure)


def _after(steps: int) -> str:
    return f"after {steps} step{'s' * (steps != 1)}"
