"""Processes that end with all that they have started."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headstart.bench.peers.groups import completed
from headstart.bench.peers.process import Worker

CHILD = "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
posix = pytest.mark.skipif(os.name != "posix", reason="needs process groups")


def gone(number: int) -> bool:
    """Whether a process has ended, or is about to be forgotten by whoever took it over."""
    for _ in range(200):
        try:
            if Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
            os.kill(number, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_a_command_gives_what_it_printed() -> None:
    done = completed([sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"], 60)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


@posix
def test_what_a_late_command_has_started_ends_with_it(tmp_path: Path) -> None:
    told = tmp_path / "child"
    code = f"{CHILD}open({str(told)!r}, 'w').write(str(child.pid))\nchild.wait()"
    with pytest.raises(subprocess.TimeoutExpired):
        completed([sys.executable, "-c", code], 5.0)
    assert gone(int(told.read_text()))


@posix
def test_what_a_worker_has_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parent.py").write_text(
        f"{CHILD}from headstart.bench.peers.prepared import Prepared\n"
        "def prepare(values):\n    return Prepared(lambda: None, note=str(child.pid))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("parent:prepare") as worker:
        number = int(worker.ask({"do": "prepare", "case": {}})["note"])
        assert not Path(f"/proc/{number}/stat").exists() or os.getsid(number) != os.getsid(0)
    assert gone(number)
