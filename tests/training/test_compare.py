import json
import signal

import pytest

from headstart.errors import ConfigError, DataError, UnknownNameError, UsageError
from headstart.training.compare import compare, default_methods, pictures, rows
from headstart.training.config import make_config
from headstart.training.progress import Silent

SMALL = {"tasks": "icons", "steps": 2, "tasks_per_step": 2, "filters": 4, "inner_steps": 1, "test_tasks": 4}
SMALL |= {"evaluate_tasks": 2, "threads": 1, "inner_rate": 0.1}


def test_every_method_gets_a_line_a_folder_and_a_picture(tmp_path):
    methods = ["prototypes", "maml", "scratch", "nearest"]
    entries = compare(make_config(SMALL), methods, tmp_path)
    assert [entry.method for entry in entries] == methods
    assert [row["steps"] for row in rows(entries)] == [2, 2, 0, 0]
    assert json.loads((tmp_path / "comparison.json").read_text())[1]["method"] == "maml"
    assert (tmp_path / "comparison.csv").read_text().startswith("method,accuracy,ci95")
    drawn = pictures(entries, tmp_path)
    assert tmp_path / "maml" / "episode.png" in drawn
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in drawn)


def test_all_methods_are_judged_on_the_same_tasks_and_again_gives_the_same(tmp_path):
    untrained = make_config({**SMALL, "steps": None, "tasks_per_step": None})
    first = compare(untrained, ["nearest", "scratch"], tmp_path)
    again = compare(untrained, ["nearest", "scratch"], tmp_path)
    assert [e.result.score for e in first] == [e.result.score for e in again]
    bare = {name: SMALL[name] for name in ("tasks", "test_tasks", "threads")}
    alone = compare(make_config(bare), ["nearest"], tmp_path / "alone")
    assert alone[0].result.score == first[0].result.score


def test_what_cannot_be_compared_is_refused_before_training(tmp_path):
    config = make_config(SMALL)
    with pytest.raises(UnknownNameError, match="did you mean 'maml'"):
        compare(config, ["nearest", "mamal"], tmp_path)
    with pytest.raises(UsageError, match="nearest, nearest"):
        compare(config, ["nearest", "nearest"], tmp_path)
    with pytest.raises(UsageError, match="got none"):
        compare(config, [], tmp_path)
    with pytest.raises(ConfigError, match="none of nearest takes .*--filters"):
        compare(config, ["nearest"], tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_signal_stops_the_comparison_and_keeps_the_table_before(tmp_path):
    class StopIn(Silent):
        def step(self, record, validation):
            signal.raise_signal(signal.SIGINT)

    compare(make_config(SMALL), ["prototypes", "maml"], tmp_path)
    table = (tmp_path / "comparison.json").read_bytes()
    entries = compare(make_config({**SMALL, "steps": 4}), ["prototypes", "maml"], tmp_path, view=StopIn())
    assert [(entry.method, entry.result.stopped) for entry in entries] == [("prototypes", signal.SIGINT)]
    assert (tmp_path / "comparison.json").read_bytes() == table


def test_the_methods_compared_by_default_suit_the_target_of_a_table(tmp_path):
    rows = [f"{task},{row},{'high' if row % 2 else 'low'},{row * task}" for task in range(6) for row in range(8)]
    path = tmp_path / "some.csv"
    path.write_text("\n".join(["task,x,label,value", *rows]) + "\n")
    table = {"tasks": str(path), "task_column": "task", "shots": 2, "steps": 3}
    assert default_methods(make_config({**table, "target": "label"}))[0] == "prototypes"
    assert default_methods(make_config({**table, "target": "value"}))[0] == "gaussian_process"
    assert default_methods(make_config({"tasks": "sinusoid"})) == ("maml", "joint", "scratch")
    with pytest.raises(DataError, match="no column 'lable'"):
        default_methods(make_config({**table, "target": "lable"}))
