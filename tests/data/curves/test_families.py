"""What all families of curves promise, and what they refuse."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from headstart import tasks as families
from headstart.errors import UnknownNameError, UsageError
from headstart.testing import check_tasks
from headstart.types import Tasks

CASES: list[tuple[str, dict[str, Any]]] = [
    ("sinusoid", {}),
    ("sinusoid", {"frequency": (0.8, 1.2)}),
    ("curves", {}),
    ("curves", {"noise": 0.0}),
    ("curves", {"kinds": ("line",)}),
    ("gp_curves", {}),
    ("gp_curves", {"kernel": "matern"}),
    ("gp_curves", {"kernel": "periodic"}),
    ("gp_curves", {"shots": 5, "noise": 0.0}),
    ("gp_curves", {"lengthscale": 1.0}),
    ("plateaus", {}),
    ("plateaus", {"noise": 0.0}),
    ("plateaus", {"features": 1, "relevant": 1, "depth": 1, "trees": 1}),
]
FAMILIES = list(dict.fromkeys(name for name, _ in CASES))


def factory(name: str) -> Callable[..., Tasks]:
    return getattr(families, name)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_contract_is_kept(name: str, options: dict[str, Any]) -> None:
    check_tasks(lambda seed: factory(name)(seed=seed, **{"queries": 6, **options}), numbers=[*range(15), 2**40])


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_learned_from_does_not_depend_on_the_number_of_queries(name: str) -> None:
    few, many = (factory(name)(queries=q, dtype=torch.float64).sample("test", range(20)).support for q in (1, 80))
    assert torch.equal(few.x, many.x)
    torch.testing.assert_close(few.y, many.y, rtol=0, atol=1e-6 if name == "gp_curves" else 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_tasks_say_of_themselves(name: str) -> None:
    tasks = factory(name)(shots=5)
    features = 8 if name == "plateaus" else 1
    assert tasks[0] == name and tasks[2:5] == ("regression", (features,), 1)
    assert tasks.counts is None and tasks.unit == 1
    support, query = tasks.sample("test", [0])
    assert support.x.dtype == query.y.dtype == torch.float32 and support.mask is None
    assert support.x.shape == (1, 5, features) and query.y.shape == (1, tasks.details["queries"], 1)
    noise = tasks.details.get("noise", 0)
    assert tasks.details.get("noise_variance", 0) == noise**2


@pytest.mark.parametrize("name", ["sinusoid", "curves", "gp_curves"])
def test_points_are_made_on_the_device(name: str) -> None:
    for batch in factory(name)(device="meta", dtype=torch.float64).sample("train", range(4)):
        assert batch.x.device.type == batch.y.device.type == "meta" and batch.x.dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        *((name, {"queries": 0}, "queries must be at least 1, got 0") for name in FAMILIES),
        *((name, {"seed": seed}, "seed") for name in FAMILIES for seed in (-1, 2**32)),
        *(
            (name, {"noise": noise}, f"noise must be a standard deviation of 0 or more, got {noise}")
            for name in ("curves", "gp_curves", "plateaus")
            for noise in (-0.1, math.nan, math.inf)
        ),
        *((name, {"shots": 0}, "shots must be at least 1, got 0") for name in FAMILIES if name != "gp_curves"),
        *(
            ("sinusoid", {"frequency": wrong}, "frequency must be a pair")
            for wrong in ((0, 1), (-1, 1), (1.2, 0.8), (1, math.inf), (math.nan, 1), (1,), (1, 2, 3), 1.0, "ab")
        ),
        ("curves", {"kinds": ()}, "kinds must be one or more of sine, line, quadratic"),
        ("curves", {"kinds": ("line", "line")}, "none of them twice"),
        ("curves", {"kinds": ("lines",)}, "unknown kind of curve 'lines'; did you mean 'line'"),
        ("gp_curves", {"shots": 0}, "shots must be a number from 1 up"),
        ("gp_curves", {"shots": (5, 3)}, r"got \(5, 3\)"),
        ("gp_curves", {"shots": (1, 2, 3)}, "pair"),
        ("gp_curves", {"lengthscale": 0.0}, "lengthscale must be a number above 0"),
        ("gp_curves", {"kernel": "rbv"}, "unknown kernel 'rbv'; did you mean 'rbf'"),
        ("plateaus", {"depth": 0}, "depth must be at least 1"),
        ("plateaus", {"relevant": 9}, "relevant must be at most the number of features, 8, got 9"),
        ("plateaus", {"common": 1.5}, "common must be a share from 0 to 1, got 1.5"),
        ("plateaus", {"offset": math.inf}, "offset must be a standard deviation of 0 or more, got inf"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        factory(name)(**options)


@pytest.mark.parametrize("name", FAMILIES)
def test_unknown_splits_are_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown split"):
        factory(name)().sample("testing", [0])
