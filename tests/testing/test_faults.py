"""Faults that come when they are asked to, and moments that are told of."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from headstart.errors import ConfigError, FileError, UnknownNameError
from headstart.testing.faults import Fault, check_fault, flip, from_text, injected, moved, truncate
from headstart.training.files import write


def step():
    value = torch.zeros(1, requires_grad=True)
    value.grad = torch.ones(1)
    torch.optim.SGD([value], 0.1).step()


def died(work):
    """Return by which signal a process dies that does some work, 0 where it does not."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_every_moment_of_a_folder_is_told_and_none_of_another(tmp_path):
    folder = tmp_path / "run"
    with injected(None, folder, tmp_path / "log") as moments:
        folder.mkdir()
        write(folder / "a", b"1")
        write(tmp_path / "elsewhere", b"1")
        place = folder / "checkpoints" / "step-000000007.safetensors"
        place.parent.mkdir()
        write(place, b"1")
        step()
        place.rename(place.with_name(f"damaged-abc-{place.name}"))
        (folder / "a").read_bytes()
        (folder / "a").unlink()
    expected = ["open .", "open .tmp-*-a", "sync .tmp-*-a", "rename a", "sync .", "open checkpoints"]
    expected += ["open checkpoints/.tmp-*-step-*", "sync checkpoints/.tmp-*-step-*", "rename checkpoints/step-*"]
    expected += ["sync checkpoints", "step", "rename checkpoints/damaged-*", "remove a"]
    assert moments == expected
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == moments
    assert abs(float(lines[0].split()[0]) - time.time()) < 60
    (folder / "b").write_bytes(b"")
    step()
    assert len(moments) == len(lines)  # nothing is told behind it


@pytest.mark.parametrize(
    ("fault", "left"),
    [
        (Fault("SIGKILL", "open"), []),
        (Fault("SIGKILL", "sync", name=".tmp-*"), [".tmp-a"]),
        (Fault("SIGKILL", "rename", name="a"), [".tmp-a"]),
        (Fault("SIGKILL", "sync", name="."), ["a"]),
        (Fault("SIGTERM", "change", 6), ["a"]),
        (Fault("SIGKILL", "rename", 2, "a"), ["a"]),
        (Fault("SIGKILL", "step", 2), ["a"]),
        (Fault("SIGKILL", "step", 3), ["a"]),
        (Fault("SIGKILL", "open", name="*/a"), ["a"]),
    ],
    ids=str,
)
def test_a_process_dies_when_it_is_to(tmp_path, fault, left):
    def work():
        with injected(fault, tmp_path):
            write(tmp_path / "a", b"1")
            step(), step()
            write(tmp_path / "a", b"2")

    never = fault.count == 3 or fault.name == "*/a"
    assert died(work) == (0 if never else -signal.Signals[fault.what])
    found = sorted(name if not name.startswith(".tmp-") else ".tmp-a" for name in os.listdir(tmp_path))
    if fault.at == "rename" and fault.count == 2:
        assert found == [".tmp-a", "a"] and (tmp_path / "a").read_bytes() == b"1"
    elif fault.at == "change":
        assert (tmp_path / "a").read_bytes() == b"1"
    else:
        assert found == left


def test_a_power_cut_takes_what_was_not_brought_to_the_disk(tmp_path):
    (tmp_path / "before").write_bytes(b"kept")

    def work():
        with injected(Fault("power", "rename", name="named"), tmp_path):
            with (tmp_path / "synced").open("wb") as synced, (tmp_path / "grown").open("wb") as file:
                for one in (synced, file):
                    one.write(bytes(1000))
                    one.flush()
                    os.fsync(one.fileno())
                file.write(bytes(1000))
                file.flush()
                (tmp_path / "never").write_bytes(bytes(1000))
                os.system(f"head -c 1000 /dev/zero > {tmp_path}/elsewhere")
                os.replace(tmp_path / "synced", tmp_path / "named")

    assert died(work) == -signal.SIGKILL
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes["elsewhere"] == 1000
    assert sizes["before"] == 4 and sizes["synced"] == 1000 and 1000 <= sizes["grown"] < 2000 and sizes["never"] < 1000


def test_a_full_disk_stays_full_and_lets_files_be_removed(tmp_path):
    write(tmp_path / "old", b"1")
    with injected(Fault("ENOSPC", "rename", name="a"), tmp_path):
        (tmp_path / "b").write_bytes(b"1")
        os.replace(tmp_path / "b", tmp_path / "a")
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                (tmp_path / "c").write_bytes(b"")
        (tmp_path / "old").unlink()
    assert os.listdir(tmp_path) == ["a"]
    with injected(Fault("EIO", "remove"), tmp_path), pytest.raises(OSError) as told:
        (tmp_path / "a").unlink()
    assert told.value.errno == errno.EIO and os.listdir(tmp_path) == ["a"]


def test_a_process_is_slowed_and_its_folder_moved(tmp_path):
    with injected(Fault("slow", "step", 2, seconds=0.1), tmp_path):
        began = time.monotonic()
        for _ in range(3):
            step()
    assert 0.2 <= time.monotonic() - began < 5
    folder = tmp_path / "run"
    folder.mkdir()
    with injected(Fault("move", "step"), folder):
        step()
    assert os.listdir(tmp_path) == ["run-moved"] and moved(folder) == str(tmp_path / "run-moved")


def test_files_are_damaged_as_drawn(tmp_path):
    (tmp_path / "a").write_bytes(bytes(100))
    place = flip(tmp_path / "a", seed=3)
    data = (tmp_path / "a").read_bytes()
    assert len(data) == 100 and sum(byte.bit_count() for byte in data) == 1 and data[place]
    assert truncate(tmp_path / "a", seed=3) == (tmp_path / "a").stat().st_size < 100


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ('{"what": "kill"}', UnknownNameError, "unknown fault 'kill'"),
        ('{"at": "now"}', ConfigError, "is no fault: at"),
        ('{"count": 0}', ConfigError, "counted from 1"),
        ('{"what": "ENOSPC"}', ConfigError, "answer to a change of a file"),
        ('{"when": 3}', ConfigError, "is no fault"),
        ("17", ConfigError, "is no fault"),
    ],
)
def test_what_is_no_fault_is_refused(text, error, words):
    with pytest.raises(error, match=words):
        from_text(text)
    with pytest.raises(UnknownNameError, match="did you mean 'step'"):
        check_fault(Fault(at="steps"))  # type: ignore[arg-type]


def test_a_module_is_run_under_a_fault_of_its_rank(tmp_path):
    (tmp_path / "writes.py").write_text("import os, sys\nopen(sys.argv[1], 'w').close()\nos.unlink(sys.argv[1])\n")
    own, out = [sys.executable, "-m", "headstart.testing.faults", "--folder"], tmp_path / "run"
    out.mkdir()
    words = [*own, str(out), "--moments", str(tmp_path / "log"), "--fault", '{"at": "remove", "rank": 1}']
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "RANK": "1"}
    done = subprocess.run([*words, "writes", str(out / "a")], env=environment)
    assert done.returncode == -signal.SIGKILL and os.listdir(out) == ["a"]
    told = [line.partition(" ")[2] for line in (tmp_path / "log.1").read_text().splitlines()]
    assert told == ["open a", "remove a"]


def test_what_the_system_refuses_is_an_error_of_ours(tmp_path):
    with injected(Fault("EROFS", "open"), tmp_path), pytest.raises(FileError, match="the disk is read-only"):
        write(tmp_path / "a", b"1")
    assert os.listdir(tmp_path) == []
