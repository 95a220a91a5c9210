"""A test task of images: one row a class, framed green where it was recognised and red where not."""

from collections.abc import Callable

import torch

from headstart.training.report.figures import GREEN, GREY, RED, image, new_figure, png, short
from headstart.types import Batch, Learner, Meta, Tasks

_MOST_CLASSES, _MOST_SHOTS, _MOST_QUERIES = 10, 5, 8
#: Letters of a name left of a row, and below an image.
_LETTERS, _FEW = 24, 14


@torch.no_grad()
def picture(tasks: Tasks, learner: Learner, meta: Meta, truth: Callable[[int], Tasks] | None = None) -> bytes | None:
    """Draw the first test task: of each class what was learned from, and as what its query images were recognised."""
    if tasks.kind != "classification" or len(tasks.input_shape) != 3:
        return None
    support, query = tasks.sample("test", [0])
    chances, guesses = learner.predict(learner.adapt(meta, support)[0], query.x)[0].softmax(-1).max(-1)
    names = tasks.names("test", 0) if tasks.names else [f"class {label}" for label in range(tasks.output_size)]
    learned, asked = _by_class(support, support.x[0]), _by_class(query, query.x[0])
    taken, sure = _by_class(query, guesses), _by_class(query, chances)
    labels = sorted(asked)[:_MOST_CLASSES]
    shots = min(_MOST_SHOTS, max(len(learned[label]) for label in labels))
    queries = min(_MOST_QUERIES, max(len(asked[label]) for label in labels))
    right = sum(int((found == label).sum()) for label, found in taken.items())
    figure = new_figure(
        0.8 * (shots + queries) + 0.9 + 0.08 * min(_LETTERS, max(map(len, names))), 0.85 * len(labels) + 0.9,
        f"Test task 0: {right} of {sum(map(len, taken.values()))} right (red: what it was taken for, how surely)",
        size=10,
    )  # fmt: skip
    columns = [1] * shots + [0.3] + [1] * queries
    grid = figure.subplots(len(labels), len(columns), squeeze=False, width_ratios=columns)
    for axis in grid.flat:
        axis.set_visible(False)
    for row, label in zip(grid, labels):
        cells = [(axis, one, None, 0.0) for axis, one in zip(row[:shots], learned[label])]
        cells += zip(row[shots + 1 :], asked[label], taken[label].tolist(), sure[label].tolist())
        for axis, pixels, guess, chance in cells:
            axis.set_visible(True)
            image(axis, pixels, GREY if guess is None else GREEN if guess == label else RED, thick=guess is not None)
            if guess is not None and guess != label:
                axis.set_xlabel(f"{short(names[guess], _FEW)}\n{chance:.0%}", color=RED, fontsize=6, labelpad=1)
        row[0].set_ylabel(short(names[label], _LETTERS), fontsize=9, rotation=0, ha="right", va="center")
    grid[0][0].set_title("learned from", fontsize=8)
    grid[0][shots + 1].set_title("predicted", fontsize=8)
    return png(figure)


def _by_class(batch: Batch, values: torch.Tensor) -> dict[int, torch.Tensor]:
    labels = batch.y[0]
    there = torch.ones_like(labels, dtype=torch.bool) if batch.mask is None else batch.mask[0]
    return {int(label): values[there & (labels == label)] for label in labels[there].unique()}
