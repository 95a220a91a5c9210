"""What is asked of a suite, targets held against figures, and reports."""

import json

import pytest

from benchmarks.figures import Figure, Report, Target, sentence, verdicts
from benchmarks.plan import Plan, check, chosen, shared
from benchmarks.report import draw, figure_rows, notes, shortfalls, target_rows, to_markdown, to_values
from headstart.errors import UsageError


def figure(case, contender, value, unit="ms", note=""):
    return Figure(case, contender, value, 0.9 * value, 1.1 * value, 5, unit, note)


FIGURES = (
    *(figure(f"sine T={steps}", "headstart", 2.0 * steps) for steps in (1, 5, 10)),
    *(figure(f"sine T={steps}", "learn2learn", 30.0 * steps) for steps in (1, 5, 10)),
    figure("sine T=1", "JAX", 0.5, note="jitted"),
    figure("episodes", "headstart", 900.0, "episodes/s"),
    figure("episodes", "easyfsl", 100.0, "episodes/s"),
)


REPORT = Report(
    "speed",
    FIGURES,
    (
        Target("fast", "sine T=1", "headstart", "learn2learn", 10, "times faster"),
        Target("faster", "sine T=5", "headstart", "learn2learn", 20, "times faster"),
        Target("like JAX", "sine T=1", "headstart", "JAX", 1.2, "times the time"),
        Target("grows little", "sine T=10", "headstart", "headstart", 11, "times the time", against="sine T=1"),
        Target("episodes", "episodes", "headstart", "easyfsl", 20, "times the rate"),
        Target("higher", "sine T=1", "headstart", "higher", 10, "times faster"),
        Target("torchmeta", "episodes", "headstart", "torchmeta", 10, "times the rate"),
    ),
    {"torch": "2"},
    {"higher": "pip failed", "torchmeta: episodes": "ImportError"},
)


def test_ratios_go_the_way_that_the_target_says() -> None:
    found = verdicts(REPORT)
    assert [verdict.ratio and round(verdict.ratio, 6) for verdict in found] == [15, 15, 4, 10, 9, None, None]
    assert [verdict.reached for verdict in found] == [True, False, False, True, False, None, None]


def test_what_fell_short_is_said_with_how_much_or_why() -> None:
    assert shortfalls(REPORT) == [
        "faster: 15.00 times faster, at least 20 wanted: short by 25 %",
        "like JAX: 4.00 times the time, at most 1.2 wanted: over by 233 %",
        "episodes: 9.00 times the rate, at least 20 wanted: short by 55 %",
        "higher: not measured (pip failed)",
        "torchmeta: not measured (ImportError)",
    ]
    assert sentence(verdicts(REPORT)[0]).endswith(": reached")


def test_rows_put_the_quickest_first_beside_ours() -> None:
    rows = figure_rows(REPORT)
    assert rows[0] == ("sine T=1", "JAX", "0.50 ms", "0.45 to 0.55", "5", "0.25")
    assert rows[1][1:] == ("headstart", "2.00 ms", "1.80 to 2.20", "5", "")
    assert target_rows(verdicts(REPORT))[1] == ("faster", "10.0 ms", "150 ms", "15.00", "", ">= 20", "missed")
    assert notes(REPORT)[0] == "JAX, sine T=1: jitted" and "higher: left out: pip failed" in notes(REPORT)


def test_a_ratio_is_the_median_over_rounds_and_not_of_medians() -> None:
    ours, theirs = (
        figure("sine", name, value)._replace(rounds=rounds)
        for name, value, rounds in (("headstart", 2.0, (1.0, 2.0, 10.0)), ("higher", 20.0, (15.0, 20.0, 100.0)))
    )
    target = Target("t", "sine", "headstart", "higher", 10, "times faster")
    (found,) = verdicts(Report("speed", (ours, theirs), (target,), {}))
    assert (found.low, found.ratio, found.high) == (10, 10, 12.5) and found.reached
    assert target_rows([found])[0][3:5] == ("10.00", "10.00 to 12.50")
    values = to_values(Report("speed", (ours, theirs), (target,), {}))
    assert (values["targets"][0]["low"], values["figures"][0]["rounds"]) == (10, (1.0, 2.0, 10.0))
    shorter = ours._replace(rounds=(1.0, 2.0))
    (found,) = verdicts(Report("speed", (shorter, theirs), (target,), {}))
    assert (found.low, found.ratio, found.high) == (None, 10, None), "rounds that are not the same ones"


def test_what_was_disturbed_is_said() -> None:
    ours = figure("sine T=1", "headstart", 2.0)._replace(high=3.0)
    report = REPORT._replace(figures=(ours, *FIGURES[3:]))
    assert notes(report)[0] == "headstart, sine T=1: disturbed: the quartiles span more than half of the median"
    assert target_rows(verdicts(report))[0][-1] == "reached, disturbed"
    assert target_rows(verdicts(REPORT))[0][-1] == "reached"
    like_jax = next(line for line in shortfalls(report) if line.startswith("like JAX"))
    assert like_jax.endswith("over by 233 %; disturbed, measure again")


def test_rates_are_sorted_fastest_first_and_more_than_one_is_always_worse() -> None:
    rows = [row for row in figure_rows(REPORT) if row[0] == "episodes"]
    assert [(row[1], row[-1]) for row in rows] == [("headstart", ""), ("easyfsl", "9.00")]


def test_the_page_says_how_it_came_about_and_what_it_lacks() -> None:
    page = to_markdown(
        REPORT._replace(command="python -m benchmarks speed --cases 'sine*'", partial="some cases alone")
    )
    assert "`python -m benchmarks speed --cases 'sine*'`" in page and "Not the whole suite: some cases alone." in page
    assert "Not the whole" not in to_markdown(REPORT) and "`python -m benchmarks speed`" in to_markdown(REPORT)
    assert to_values(REPORT._replace(partial="some"))["partial"] == "some"


def test_markdown_and_json_hold_figures_targets_and_failures() -> None:
    page = to_markdown(REPORT)
    assert "| faster | 10.0 ms | 150 ms | 15.00 |  | >= 20 | missed |" in page and "short by 25 %" in page
    values = json.loads(json.dumps(to_values(REPORT), allow_nan=False))
    assert len(values["figures"]) == len(FIGURES) and values["targets"][0]["reached"] is True
    assert values["failed"]["higher"] == "pip failed"


@pytest.mark.parametrize("report", [REPORT, REPORT._replace(figures=()), REPORT._replace(figures=FIGURES[:1])])
def test_the_picture_is_a_png(report: Report) -> None:
    assert draw(report).startswith(b"\x89PNG")


NAMES = ["sine T=1", "sine T=10", "conv4 T=1"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), NAMES),
        (("sine T=1",), NAMES[:1]),
        (("sine*",), NAMES[:2]),
        (("T=1",), NAMES),
        (("conv4", "T=10"), NAMES[1:]),
    ],
)
def test_cases_are_chosen_by_name_pattern_or_part(patterns: tuple[str, ...], expected: list[str]) -> None:
    assert chosen(Plan(cases=patterns), NAMES) == expected


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="no case answers to 'cosine'; there are: sine T=1; "):
        chosen(Plan(cases=("cosine",)), NAMES)
    for plan in (Plan(threads=-1), Plan(repeats=0), Plan(seconds=0.0), Plan(seconds=float("nan"))):
        with pytest.raises(UsageError):
            check(plan)
    assert check(Plan()).threads >= 1


def test_suites_share_the_patterns() -> None:
    suites = {"speed": NAMES, "memory": ["MLP T=1"], "sampler": ["icons"]}
    assert shared((), suites) == suites
    assert shared(("T=1",), suites) == {"speed": NAMES, "memory": ["MLP T=1"], "sampler": []}
    assert shared(("sine*", "icons"), suites) == {"speed": NAMES[:2], "memory": [], "sampler": ["icons"]}
    with pytest.raises(UsageError, match="no case answers to 'cosine'"):
        shared(("sine*", "cosine"), suites)
