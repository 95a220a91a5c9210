import json
import os
import signal
import threading
import time

import pytest

from headstart.errors import ConfigError, DataError, FileError, UnknownNameError, UsageError
from headstart.training.compare import compare, configs_of, default_methods, pictures, rows
from headstart.training.progress import Plain, View

pytestmark = pytest.mark.usefixtures("unrendered")

RUN = {"evaluate_tasks": 2, "test_tasks": 4, "threads": 1}
SMALL = {"tasks": "icons", "method": {"steps": 1, "rate": 0.1}, "model": {"filters": 4}, "run": RUN}
SMALL |= {"outer": {"steps": 2, "tasks_per_step": 2}}
NETWORKS = {owner: part for owner, part in SMALL.items() if owner != "method"}


def test_options_of_the_sources_of_a_mixture_are_taken():
    tasks = {"name": "domains", "sources": ["icons"], "channels": 3, "rotations": False}
    for config in configs_of({"tasks": tasks}, ["prototypes", "nearest"]).values():
        assert (config.tasks.options["rotations"], config.tasks.options["channels"]) == (False, 3)


def test_every_method_gets_a_line_a_folder_and_a_picture(tmp_path, monkeypatch):
    monkeypatch.undo()  # to look at its pictures
    methods = ["prototypes", "maml", "scratch", "nearest"]
    entries = compare(SMALL, methods, tmp_path)
    assert [entry.name for entry in entries] == methods
    assert [row["steps"] for row in rows(entries)] == [2, 2, 0, 0]
    assert json.loads((tmp_path / "comparison.json").read_text())[1]["method"] == "maml"
    assert (tmp_path / "comparison.csv").read_text().startswith("method,accuracy,ci95")
    drawn = pictures(entries, tmp_path)
    assert tmp_path / "maml" / "episode.png" in drawn
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in drawn)


def test_all_methods_are_judged_on_the_same_tasks_and_again_gives_the_same(tmp_path):
    untrained = {owner: part for owner, part in SMALL.items() if owner != "outer"}
    first = compare(untrained, ["nearest", "scratch"], tmp_path)
    again = compare(untrained, ["nearest", "scratch"], tmp_path)
    assert [e.result.score for e in first] == [e.result.score for e in again]
    alone = compare({"tasks": "icons", "run": RUN}, ["nearest"], tmp_path / "alone")
    assert alone[0].result.score == first[0].result.score


def test_what_cannot_be_compared_is_refused_before_training(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'maml'"):
        compare(SMALL, ["nearest", "mamal"], tmp_path)
    with pytest.raises(UsageError, match="nearest, nearest"):
        compare(SMALL, ["nearest", "nearest"], tmp_path)
    with pytest.raises(UsageError, match="got none"):
        compare(SMALL, [], tmp_path)
    with pytest.raises(ConfigError, match="none of nearest takes .*--model.filters"):
        compare(SMALL, ["nearest"], tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_signal_stops_the_comparison_and_keeps_the_table_before(tmp_path):
    class StopIn(View):
        def step(self, record, validation):
            signal.raise_signal(signal.SIGINT)

    compare(SMALL, ["prototypes", "maml"], tmp_path)
    table = (tmp_path / "comparison.json").read_bytes()
    entries = compare(
        {**SMALL, "outer": {"steps": 4, "tasks_per_step": 2}}, ["prototypes", "maml"], tmp_path, view=StopIn()
    )
    assert [(entry.name, entry.result.stopped) for entry in entries] == [("prototypes", signal.SIGINT)]
    assert (tmp_path / "comparison.json").read_bytes() == table


def test_the_methods_compared_by_default_suit_the_target_of_a_table(tmp_path):
    rows = [f"{task},{row},{'high' if row % 2 else 'low'},{row * task}" for task in range(6) for row in range(8)]
    path = tmp_path / "some.csv"
    path.write_text("\n".join(["task,x,label,value", *rows]) + "\n")
    table = {"name": str(path), "task_column": "task", "shots": 2}
    assert default_methods({"tasks": {**table, "target": "label"}, "outer": {"steps": 3}})[0] == "prototypes"
    assert default_methods({"tasks": {**table, "target": "value"}})[0] == "gaussian_process"
    assert default_methods("sinusoid") == ("maml", "joint", "scratch")
    with pytest.raises(DataError, match="no column 'lable'"):
        default_methods({"tasks": {**table, "target": "lable"}})


def test_methods_side_by_side_get_what_they_get_one_after_the_other(tmp_path, capfd):
    methods = ["prototypes", "nearest"]
    one, two = (compare(NETWORKS, methods, tmp_path / str(jobs), jobs=jobs, view=Plain()) for jobs in (1, 2))
    assert [entry.name for entry in two] == methods
    assert [entry.result.score for entry in one] == [entry.result.score for entry in two]
    assert "prototypes: testing on 4 tasks" in capfd.readouterr().err


def test_side_by_side_an_error_or_a_signal_stops_all(tmp_path):
    without_end = {**NETWORKS, "outer": {"steps": 10**6}, "run": {**RUN, "compile": False}}
    (tmp_path / "error").mkdir()
    (tmp_path / "error" / "nearest").write_text("not a folder")
    with pytest.raises(FileError, match="nearest"):
        compare(without_end, ["prototypes", "nearest"], tmp_path / "error", jobs=2)

    def stop():
        while not (tmp_path / "signal" / "prototypes" / "metrics.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    entries = compare(without_end, ["prototypes", "nearest"], tmp_path / "signal", jobs=2)
    thread.join()
    found = {entry.name: entry.result for entry in entries}
    assert entries[-1].result.stopped == found["prototypes"].stopped == signal.SIGTERM
    assert found["prototypes"].step > 0
