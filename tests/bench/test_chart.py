"""The pictures of suites: everything on them is there to be read."""

import math

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.text import Text

from headstart.bench.chart import ACROSS, bar_groups, curve_groups, draw, picture
from headstart.bench.figures import Figure, Report
from headstart.bench.memory_cases import cells, of_memory
from headstart.bench.speed_cases import CONTENDERS, races

LONG = "headstart, one process x one thread, half of the tasks after the other"


def figure(case, contender, value, unit="ms", spread=0.1):
    return Figure(case, contender, value, (1 - spread) * value, (1 + spread) * value, 5, unit)


def report(figures, suite="speed", **more) -> Report:
    return Report(suite, tuple(figures), (), {}, **more)


def race(case="sine T=1", unit="ms", **values: float) -> list[Figure]:
    return [figure(case, name.replace("_", " "), value, unit) for name, value in values.items()]


WHOLE_SPEED = report(
    [
        figure(each.name, name, 3.7 ** (place % 7) * (1 + number))
        for number, each in enumerate(races())
        for place, name in enumerate(each.contenders)
    ]
)
WHOLE_MEMORY = report(
    [
        figure(of_memory(cell.case.name), name, 4.1**place, "MB", spread=0.0)
        for cell in cells()
        for place, name in enumerate(cell.contenders)
    ],
    "memory",
    failed={of_memory(cell.case.name): "no time" for cell in cells()},
)
EVERY_CONTENDER = report(
    [
        figure(f"sine T={steps}", each.name, 1.01**place * steps)
        for steps in (1, 10, 100)
        for place, each in enumerate(CONTENDERS)
    ]
)
MANY_CASES = report(
    [
        figure(f"case {'with a name of many words ' * 5}{n}", f"{who} {n}", 10.0**n)
        for n in range(9)
        for who in (LONG, "higher")
    ],
    partial="; ".join(["some cases alone"] * 12),
)
REPORTS = {
    "speed": WHOLE_SPEED,
    "memory": WHOLE_MEMORY,
    "all contenders": EVERY_CONTENDER,
    "many long names": MANY_CASES,
    "rates": report(race("episodes", "episodes/s", headstart=12844, easyfsl=167.55, torchmeta=451), "sampler"),
    "without ours": report(race(higher=3, JAX=1)),
    "ours alone": report(race(headstart=3)),
    "nothing at all": report([]),
    "nothing but failures": report([], failed={"JAX": "pip failed"}, partial="without JAX"),
    "zeros": report([figure(f"sine T={t}", who, 0.0) for t in (1, 5, 10) for who in ("headstart", "JAX", "higher")]),
    "unlike values": report(race(headstart=1e-6, JAX=1e9, higher=3e7)),
    "near counts": report(
        [figure(f"MLP, {n:,} parameters", who, n) for n in (1_000_000, 1_000_001, 1_000_100) for who in ("headstart",)]
    ),
}


@pytest.fixture(params=REPORTS, scope="module")
def drawn(request) -> Picture:
    found = picture(REPORTS[request.param])
    found.draw_without_rendering()
    return found


def texts(found: Picture) -> list[Text]:
    """Return every text that is seen."""
    seen = [text for text in found.texts if text.get_text()]
    for axis in found.axes:
        seen += [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts]
        seen += axis.get_legend().get_texts() if axis.get_legend() else []
        for each in (axis.xaxis, axis.yaxis):
            low, high = sorted(each.get_view_interval())
            ticks = [*each.get_major_ticks(), *each.get_minor_ticks()]
            seen += [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]
    return [text for text in seen if text.get_text()]


def bar_axes(found: Picture) -> list[Axes]:
    return [axis for axis in found.axes if axis.patches]


def test_no_text_leaves_the_picture(drawn: Picture) -> None:
    for text in texts(drawn):
        box = text.get_window_extent()
        assert drawn.bbox.x0 <= box.x0 and box.x1 <= drawn.bbox.x1, text.get_text()
        assert drawn.bbox.y0 <= box.y0 and box.y1 <= drawn.bbox.y1, text.get_text()


def test_no_text_covers_another(drawn: Picture) -> None:
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(drawn)]
    for place, (name, box) in enumerate(boxes):
        for other, its in boxes[place + 1 :]:
            inside = min(box.x1, its.x1) - max(box.x0, its.x0), min(box.y1, its.y1) - max(box.y0, its.y0)
            assert min(inside) <= 0.5, f"{name!r} and {other!r} share {inside} pixels"


def test_no_text_or_legend_lies_on_what_is_drawn(drawn: Picture) -> None:
    for axis in drawn.axes:
        for text in texts(drawn):
            assert not axis.bbox.padded(-1).overlaps(text.get_window_extent()), text.get_text()
        if axis.get_legend():
            assert not axis.bbox.overlaps(axis.get_legend().get_window_extent())


def test_panels_lie_beside_each_other(drawn: Picture) -> None:
    boxes = [axis.bbox for axis in drawn.axes]
    assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[place + 1 :])
    rows: dict[int, int] = {}
    for box in boxes:
        rows[round(box.y1)] = rows.get(round(box.y1), 0) + 1
    assert all(many <= ACROSS for many in rows.values())


@pytest.mark.parametrize("name", REPORTS)
def test_every_figure_is_drawn(name: str) -> None:
    each = REPORTS[name]
    found = picture(each)
    assert sum(len(axis.patches) for axis in found.axes) == sum(map(len, bar_groups(each.figures).values()))
    curves = [axis for axis in found.axes if not axis.patches]
    assert len(curves) == len(curve_groups(each.figures))


def test_axes_say_what_they_count_and_in_which_unit() -> None:
    for found, unit in ((WHOLE_SPEED, "time (ms)"), (WHOLE_MEMORY, "memory (MB)")):
        for axis in picture(found).axes:
            assert unit == (axis.get_xlabel() if axis.patches else axis.get_ylabel())
    (axis,) = picture(REPORTS["rates"]).axes
    assert axis.get_xlabel() == "episodes per second"


def test_bars_begin_at_zero_and_show_all_of_the_quartiles() -> None:
    (axis,) = picture(report([figure("sine", "headstart", 1.0, spread=0.9), figure("sine", "JAX", 0.001)])).axes
    assert axis.get_xscale() == "linear" and axis.get_xlim()[0] == 0 and axis.get_xlim()[1] >= 1.9
    assert [bar.get_width() for bar in axis.patches] == [0.001, 1.0]


def test_the_line_where_the_ratio_is_one_is_ours() -> None:
    (axis,) = picture(report(race(headstart=2, headstart_compiled=1, JAX=0.5))).axes
    (line,) = axis.get_lines()
    assert list(line.get_xdata()) == [2, 2]
    assert {"0.25", "0.50", "to ours"} <= {text.get_text() for text in axis.texts}
    (axis,) = picture(REPORTS["without ours"]).axes
    assert not axis.get_lines() and "to ours" not in {text.get_text() for text in axis.texts}


def test_rates_have_the_fastest_first() -> None:
    (axis,) = picture(REPORTS["rates"]).axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["headstart", "torchmeta", "easyfsl"]
    places = [bar.get_y() for bar in axis.patches]
    assert places == sorted(places) and axis.yaxis_inverted(), "the first is at the top"


def test_growth_is_drawn_in_logarithms_and_ours_before_the_others() -> None:
    curves = [axis for axis in picture(WHOLE_SPEED).axes if not axis.patches]
    assert len(curves) == len(curve_groups(WHOLE_SPEED.figures)) > 2
    for axis in curves:
        assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
        ours = next(line for line in axis.get_lines() if line.get_label() == "headstart")
        others = [line for line in axis.get_lines() if line is not ours]
        assert all(ours.get_linewidth() > line.get_linewidth() for line in others)
        assert all(ours.get_zorder() > line.get_zorder() for line in others)


def test_one_point_is_in_a_curve_only_where_it_has_no_bar() -> None:
    grown = [figure(f"sine T={steps}", who, steps) for steps in (1, 5, 10) for who in ("headstart", "higher")]
    barred, else_lost = figure("sine T=5", "JAX", 1.0), figure("sine T=100", "iteryne", 1.0)
    _, axis = picture(report([*grown, barred, else_lost])).axes
    assert [line.get_label() for line in axis.get_lines()] == ["headstart", "higher", "iteryne"]


def test_cases_stand_by_their_numbers() -> None:
    shuffled = [each for steps in (1, 100, 10) for each in race(f"memory, T={steps}", headstart=steps, a=1, b=2)]
    titles = [axis.texts[-1].get_text() for axis in bar_axes(picture(report(shuffled)))]
    assert titles == ["memory, T=1", "memory, T=10", "memory, T=100"]


def test_what_is_missing_is_said() -> None:
    said = [text.get_text() for text in picture(REPORTS["nothing but failures"]).texts]
    assert "Nothing was measured." in said and "Left out: JAX." in said and "Not the whole suite: without JAX." in said


def test_the_picture_is_the_file() -> None:
    found, data = picture(REPORTS["rates"]), draw(REPORTS["rates"])
    size = [int.from_bytes(data[at : at + 4], "big") for at in (16, 20)]
    assert all(math.isclose(pixels, 130 * inches, abs_tol=1.5) for pixels, inches in zip(size, found.get_size_inches()))
