"""The picture of a matrix of transfer."""

import io
from itertools import product

import numpy as np
import pytest
from PIL import Image

from headstart.training.report.matrix_plot import draw_matrix


def table(ahead, methods=("maml",), sources=("a", "b"), **more):
    """Return rows of a matrix in which every run is so far ahead of what learns nothing."""
    return [
        {"method": method, "trained_on": one, "on": on, "ci95": 0.01, "than_untrained": ahead, "accuracy": 0.5, **more}
        for method, one, on in product(methods, sources, sources)
    ]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3).astype(int)


@pytest.mark.parametrize(("ahead", "stronger", "weaker"), [(0.2, 2, 0), (-0.2, 0, 2)])
def test_colours_tell_whether_a_run_is_better_than_what_learns_nothing(ahead, stronger, weaker):
    seen = pixels(draw_matrix(table(ahead)))
    assert (seen[:, stronger] > seen[:, weaker] + 50).mean() > 0.2
    assert not (seen[:, weaker] > seen[:, stronger] + 50).any()


def test_what_learns_nothing_is_a_map_of_its_own_and_four_stand_abreast():
    def size(*methods, **more):
        untrained = [row | {"trained_on": None, "method": "nearest"} for row in table(None, sources=("a",))]
        return Image.open(io.BytesIO(draw_matrix(table(0.1, methods, **more) + untrained))).size

    (across, down), larger = size("maml"), size("maml", "anil", "boil", "aware")
    assert larger == (2 * across, 2 * down)


def test_errors_are_drawn_without_a_bar_and_where_a_score_is_missing():
    rows = [{key: value for key, value in row.items() if key != "accuracy"} for row in table(None, mse=0.25)]
    assert draw_matrix([*rows[:-1], rows[-1] | {"mse": None}])[:4] == b"\x89PNG"
