"""Several processes that share a run: what they compute, what they lose, and how they end together."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import headstart
from headstart import registry
from headstart.errors import UsageError
from headstart.training import distributed
from headstart.training.distributed import Group, _exactly_summed, share
from headstart.training.launched import described
from headstart.types import Meta
from tests.training.several import CHOICES, FEW, PARTS, SINE

pytestmark = pytest.mark.timeout(900)
LEARNED = [row.name for row in registry.METHODS if row.outer]
#: They are differences of numbers that are nearly the same, which single precision does not hold as well.
ROUGH = ("reptile", "es_maml", "es_maml by ranks")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What many processes did, once for all workers of these tests."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "several"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
            words = [sys.executable, str(Path(__file__).with_name("several.py")), str(folder)]
            done = subprocess.run(words, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
            (folder / "done").write_text(done.stderr)
            assert done.returncode == 0, done.stderr
    return lambda part: (json.loads((folder / f"{part}.json").read_text()), folder / part)


def gaps(found, key, name):
    told = found("gradients")[0][key]
    return {case: gap for case, gap in told.items() if case.startswith(f"{name}, ")}


@pytest.mark.parametrize("name", [*LEARNED, *CHOICES])
def test_the_gradient_of_three_processes_is_that_of_one(found, name):
    own = gaps(found, "3 torch.float64", name)
    assert own, f"{name} was not tried"
    # five tasks are uneven, and of two one process has none
    assert {case.rpartition(", ")[2] for case in own} == {"5", "2"}
    assert max(own.values()) <= 1e-12, own


@pytest.mark.parametrize(("dtype", "most"), [("torch.float64", 1e-12), ("torch.float32", 1e-6)])
@pytest.mark.parametrize("name", FEW)
def test_the_gradient_of_two_processes_is_that_of_one(found, name, dtype, most):
    own = gaps(found, f"2 {dtype}", name)
    assert own and max(own.values()) <= (1e-5 if dtype == "torch.float32" and name in ROUGH else most), own


def sampled(folder, name):
    """Return the numbers of the tasks that were trained on by 2, 1 and 3 processes, one run after another."""
    texts = [folder.joinpath(f"{name}-{size}.log").read_text().split() for size in (2, 1, 3)]
    return [sorted(map(int, text)) for text in texts]


@pytest.mark.parametrize("name", ["maml", "same bits", "prior"])
def test_a_run_that_goes_on_with_other_numbers_of_processes_sees_every_task_once(found, name):
    ended, folder = found("runs")
    # a signal to one of two stopped both after the same step
    assert [part["codes"] for part in ended[name]] == [[143, 143], [143], [0, 0, 0]]
    steps, tasks = SINE["steps"], SINE["tasks_per_step"]
    assert sum(sampled(folder, name), []) == [*range(steps * tasks)]
    assert sampled(folder, name)[0] == [*range(3 * tasks)]


def test_the_weights_of_such_a_run_are_those_of_one_process_to_rounding(found):
    folder = found("runs")[1]
    ours, theirs = (load_file(folder / name / "last.safetensors") for name in ("maml", "maml whole"))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["same bits", "prior"])
def test_with_same_bits_such_a_run_has_the_bytes_of_one_process(found, name):
    folder = found("runs")[1]

    def contents(run):
        paths = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"]
        return {str(path.relative_to(run)): path.read_bytes() for path in paths}

    ours, theirs = contents(folder / name), contents(folder / f"{name} whole")
    assert ours.keys() == theirs.keys() and {"results.json", "README.md", "last.safetensors"} < ours.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_a_process_that_is_killed_or_hangs_ends_all_and_the_run_goes_on_to_the_same_bytes(found, how):
    told, folder = found("strikes")
    ended = told[how]["ended"]
    assert ended["codes"] == ([1, -9] if how == "killed" else [1, None])
    assert ended["said"].count("error: another process of the run has ended, or has not answered for") == 1
    assert told[how]["again"]["codes"] == [0, 0]
    for name in ("last.safetensors", "best.safetensors", "metrics.jsonl", "results.json"):
        assert (folder / how / name).read_bytes() == (folder / "undisturbed" / name).read_bytes()


@pytest.mark.parametrize("size", ["2", "3"])
def test_tasks_that_are_not_finite_are_left_out_of_all_processes(found, size):
    told = found("left_out")[0]
    assert [[task for task, _ in lost] for lost in told[size]["lost"]] == [[], [5, 7], [8, 9], []]
    assert told[size]["lost"] == told["1"]["lost"]
    ours, theirs = ({name: torch.tensor(value) for name, value in told[n]["weights"].items()} for n in (size, "1"))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_group_ends_with_its_threads_whatever_is_imported_meanwhile():
    """A thread that outlives the interpreter may abort the process."""
    program = (
        "import headstart, pathlib\n"
        "with headstart.processes():\n"
        "    import torch.distributed.nn.functional\n"  # as optimisers do
        "print([name for name in pathlib.Path('/proc/self/task').glob('*/comm') if 'gloo' in name.read_text()])"
    )
    if not Path("/proc/self/task").exists():
        pytest.skip("this system does not tell of threads")
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, **where, "RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = [one.communicate(timeout=120) for one in both]
    assert [out for out, _ in said] == ["[]\n"] * 2, said
    assert [one.returncode for one in both] == [0, 0]


def test_an_error_of_one_process_is_told_once_and_ends_all_alike(found):
    told = found("errors")[0]["one"]
    assert told["codes"] == [3, 3] and told["said"] == "error: this task is spoilt\n"


def test_a_loop_of_ones_own_that_begins_with_other_weights_is_told(found):
    assert found("errors")[0]["apart"]["codes"] == [3, 3]


def test_who_gets_over_an_error_hears_of_the_next_one_as_well(found):
    assert found("errors")[0]["again"]["codes"] == [2, 2]


@pytest.mark.parametrize(("size", "who"), [(2, "processes 0, 1 differ;"), (3, "process 2 differ from those of")])
def test_other_weights_in_a_process_stop_the_run_and_it_is_named(found, size, who):
    told = found("errors")[0]["differing"][size - 2]
    assert told["codes"] == [70] * size and f"after step 4 the weights of {who}" in told["said"]


def test_what_processes_cannot_share_is_refused(found):
    assert found("errors")[0]["refused"]["codes"] == [13, 13]


def test_scores_have_the_same_bits_in_three_processes(found):
    told = found("scores")[0]
    assert told["1"] == told["3"] and "Calibration" in told["1"]["gaussian_process"][0]


def test_waiting_for_what_the_first_process_does_alone_is_no_hanging(found):
    assert found("waiting")[0]["codes"] == [0, 0]


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("option", 2, "error: unknown option --stpes; did you mean --steps?\n"),
        ("help", 0, "Meta-train on a family of tasks, or go on with a run."),
        ("adapt", 2, "error: headstart adapt works in one process, but 2 were started"),
        ("taken", 2, "is not empty and holds no run"),
        ("train", 0, "on 40 test tasks (mean and 95 % interval)"),
        ("evaluate", 0, '"episodes": 40'),
    ],
)
def test_a_command_says_once_what_it_has_to_say(found, command, code, says):
    told = found("commands")[0][command]
    assert told["codes"] == [code, code] and told["said"].count(says) == 1


def test_every_part_is_asked_for():
    text = Path(__file__).read_text()
    assert [name for name in PARTS if f'found("{name}")' not in text] == []


def test_shares_follow_one_another_and_are_never_empty():
    for size in (1, 2, 3, 7):
        parts = [Group(rank, size).part(range(10, 15)) for rank in range(size)]
        assert [number for part in parts for number in part] == [*range(10, 15)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert Group(0, 4).part(range(2)) == range(0) and share(range(2)) == range(2)


@pytest.mark.parametrize(
    ("rank", "size", "found"), [(None, None, None), ("0", "1", None), ("1", "2", (1, 2)), ("0", None, None)]
)
def test_the_environment_says_which_process_this_is(monkeypatch, rank, size, found):
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert described() == found


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("one", "2"), ("0", "0")])
def test_an_environment_that_is_wrong_is_refused(monkeypatch, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UsageError, match=f"RANK={rank} and WORLD_SIZE={size}; expected"), headstart.processes():
        pass


def test_a_sum_in_whole_numbers_is_right_in_any_order_and_for_any_size():
    draw = torch.Generator().manual_seed(0)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        for scale in (1e-30, 1.0, 1e30):
            tasks = [
                [scale * torch.randn(3, 4, generator=draw, dtype=dtype), torch.zeros(2, dtype=dtype)] for _ in range(7)
            ]
            meta = Meta({"a": tasks[0][0], "b": tasks[0][1]}, {})
            ours = _exactly_summed(Group(), tasks, meta, 7)
            again = _exactly_summed(Group(), tasks[::-1], meta, 7)
            assert all(map(torch.equal, ours, again))
            wanted = torch.stack([one[0].double() for one in tasks]).mean(0)
            assert float((ours[0].double() - wanted).abs().max() / wanted.abs().max()) <= tolerance
            assert not ours[1].any() and ours[0].dtype == dtype


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_sum_in_whole_numbers_tells_of_what_is_not_finite(bad):
    tasks = [[torch.tensor([1.0, 2.0]), torch.tensor([1.0])], [torch.tensor([1.0, bad]), torch.tensor([2.0])]]
    first, second = _exactly_summed(Group(), tasks, Meta({"a": tasks[0][0], "b": tasks[0][1]}, {}), 2)
    assert first.isnan().all() and second == 1.5


def test_alone_a_learner_stays_as_it_is_and_same_bits_change_rounding_only():
    learner = headstart.maml(headstart.mlp(1, 1, hidden=(4,)).double(), loss="mse", steps=1)
    assert headstart.distributed(learner, tasks_per_step=4) is learner
    meta, episodes = learner.init(None), headstart.tasks.sinusoid(dtype=torch.float64).sample("train", range(4))
    plain = headstart.meta_gradient(learner, meta, episodes, reduction="sum")
    exact = headstart.meta_gradient(
        headstart.distributed(learner, tasks_per_step=4, same_bits=True), meta, episodes, reduction="sum"
    )
    torch.testing.assert_close(exact[0], plain[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(exact[1], plain[1], rtol=1e-12, atol=1e-14)


def test_without_other_processes_nothing_of_torch_distributed_is_asked(monkeypatch):
    monkeypatch.setattr(distributed, "_store", lambda seconds: pytest.fail("nobody is there to meet"))
    with headstart.processes() as group:
        assert (group.rank, group.size, group.first) == (0, 1, True)
        group.wait()
        group.compare(0, [torch.ones(1)])
        assert group.says(3) == 3 and group.alone(lambda: 4) == 4 and group.gathered({}) == [{}]


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"}, 4),
        ({"LOCAL_WORLD_SIZE": "2"}, 4),
        ({"LOCAL_WORLD_SIZE": "99"}, 1),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "3", "TORCHELASTIC_RUN_ID": "x"}, "own"),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, "own"),
        ({}, "own"),
    ],
)
def test_a_process_takes_its_share_of_the_cores_where_nobody_says_more(monkeypatch, given, threads):
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert distributed._threads() == (torch.get_num_threads() if threads == "own" else threads)
