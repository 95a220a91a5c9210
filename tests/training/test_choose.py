"""The method that nobody names: the best of a short list on the validation tasks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headstart
from headstart import registry
from headstart.errors import ConfigError, UsageError
from headstart.training.choose import shortlist

SHORT = ({"name": "gaussian_process"}, {"name": "mixed_effects", "trend": "spline"}, {"name": "one_model_per_task"})


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Tasks of a slope each, in time of which there are four values: too few for the spline's knots."""
    kinds = tuple(k._replace(methods=SHORT) if k.name == "tables" else k for k in registry.KINDS)
    monkeypatch.setitem(registry._ROWS, "data", kinds)
    registry.rows.cache_clear()
    draw, lines = np.random.default_rng(0), ["farm,year,yield"]
    for farm in range(40):
        slope = draw.normal()
        lines += [f"f{farm},{year},{slope * year + 0.01 * draw.normal():.4f}" for year in range(4)]
    (tmp_path / "farms.csv").write_text("\n".join(lines))
    yield {
        "tasks": {
            "name": str(tmp_path / "farms.csv"), "task_column": "farm", "target": "yield", "shots": 2, "order": "first",
            "time_column": "year",
        },
        "outer": {"steps": 2},
    }  # fmt: skip
    monkeypatch.undo()
    registry.rows.cache_clear()


def test_the_best_on_validation_tasks_is_kept_and_told_with_the_others(table: Any, tmp_path: Path) -> None:
    result = headstart.train(table, tmp_path / "run")
    choice = json.loads((tmp_path / "run/choice.json").read_text())
    assert result.config.method.name == choice["chosen"] == "one_model_per_task"
    # the spline was left out, since it cannot be fitted
    assert [row["name"] for row in choice["candidates"]] == ["gaussian_process", "one_model_per_task"]
    assert choice["candidates"][0]["more"] > choice["candidates"][0]["more_ci95"] > 0
    card = (tmp_path / "run/README.md").read_text()
    assert "| Chosen | one_model_per_task, by the mse on 8 validation tasks: gaussian_process" in card
    assert not list((tmp_path / "run/candidates").glob("*/results.json"))
    before = (tmp_path / "run/best.safetensors").read_bytes()
    assert headstart.train(table, tmp_path / "run").score == result.score
    assert (tmp_path / "run/best.safetensors").read_bytes() == before
    assert result.score is not None and result.score.calibration is not None
    for name in ("choice.json", "config.json"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(ConfigError, match="made with other options"):  # and is no candidate to be left out
        headstart.train({**table, "run": {"seed": 1}}, tmp_path / "run")


def test_the_list_is_of_what_takes_the_options_given(table: Any, tmp_path: Path) -> None:
    assert list(shortlist(table)) == ["gaussian_process", "mixed_effects-spline", "one_model_per_task"]
    assert list(shortlist({**table, "method": {"kernel": "linear"}})) == ["gaussian_process"]
    assert shortlist({**table, "method": "maml"}) == {}
    assert shortlist("sinusoid") == {}
    few = {**table["tasks"], "columns": "year"}
    with pytest.raises(UsageError, match="as many different times"):
        headstart.train({"tasks": few, "method": {"name": "mixed_effects", "trend": "spline"}}, tmp_path / "other")
