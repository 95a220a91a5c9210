"""What is asked of a suite."""

import pytest

from headstart.bench.compile import races as compile_races
from headstart.bench.compile import targets as compile_targets
from headstart.bench.plan import Plan, check, chosen, shared
from headstart.bench.speed_cases import CONTENDERS, races, targets
from headstart.errors import UsageError

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


def test_every_target_is_about_a_case_and_contenders_that_run() -> None:
    for found, wanted in ((races(), targets()), (compile_races(), compile_targets())):
        assert len({each.name for each in found}) == len(found)
        by_name = {each.name: each for each in found}
        for target in wanted:
            assert {target.ours, target.theirs} <= set(by_name[target.case].contenders), target.name
    assert {name for each in races() for name in each.contenders} <= {each.name for each in CONTENDERS}
