import pytest

from headstart.errors import UsageError
from headstart.training.slurm import resources_of, slurm
from headstart.training.sweep import sweep

SMALL = {"tasks": "sinusoid", "outer": {"steps": 2}, "run": {"evaluate_tasks": 2, "test_tasks": 3, "threads": 1}}


@pytest.mark.usefixtures("unrendered")
def test_runs_are_jobs_and_one_that_fails_is_told_of_by_its_log(tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed (the extra slurm)")
    (tmp_path / "maml-seed=1").write_text("not a folder")
    found = sweep(SMALL, ["maml"], tmp_path, seeds=2, launch=slurm("local", timeout_min=5))
    assert list(found.settings[0].runs) == [0]
    assert "maml-seed=1" in str(found.failed["maml-seed=1"])


def test_what_the_scheduler_does_not_take_is_refused():
    for words in ("timeout_min", "timeout_min=", "=5", "cluster=local"):
        with pytest.raises(UsageError, match="--resources is"):
            resources_of(words)


def test_a_scheduler_that_is_not_there_is_said(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed (the extra slurm)")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="slurm cannot take the runs"):
        sweep(SMALL, ["maml"], tmp_path, seeds=1, launch=slurm())
    with pytest.raises(UsageError, match="partitionn"):
        sweep(SMALL, ["maml"], tmp_path, seeds=1, launch=slurm("local", slurm_partitionn="gpu"))
