import resource
import subprocess
import sys
import textwrap

import pytest

from headstart.training import kept_memory as module
from headstart.training.kept_memory import kept_memory

GNU = pytest.mark.skipif(module._library() is None, reason="memory is not managed by the GNU C library's defaults")

PROGRAM = """
    import contextlib, resource, sys, threading
    import torch
    from headstart.training.kept_memory import kept_memory

    def work(times):
        for _ in range(times):
            parts = [torch.empty(2**20).fill_(1.0) for _ in range(8)]
            del parts

    def faults():
        work(3)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        work(10)
        found.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

    torch.set_num_threads(1)
    found = []
    with kept_memory() if sys.argv[1] == "kept" else contextlib.nullcontext():
        faults()
        other = threading.Thread(target=faults)
        other.start()
        other.join()
        print(sum(found))
    rss = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
    print(rss)
"""


def told(how, **environment):
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), how]
    out = subprocess.run(program, capture_output=True, text=True, check=True, env={**module.os.environ, **environment})
    return [int(number) for number in out.stdout.split()]


@GNU
def test_the_system_is_asked_for_memory_once_and_gets_it_back():
    (kept, after), (usual, before) = told("kept"), told("usual")
    assert kept * 2 < usual
    assert after < before + 8 * 2**20, "what is free at the end goes back"


@GNU
def test_what_environment_variables_say_stays(monkeypatch):
    for name, value in (("MALLOC_TRIM_THRESHOLD_", "1000000"), ("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            assert module._library() is None
            with kept_memory():
                pass


def test_it_changes_nothing_where_the_library_is_another_one(monkeypatch):
    monkeypatch.setattr(module.os, "confstr", lambda name: None)
    assert module._library() is None
    with kept_memory(), kept_memory():
        assert resource.getpagesize() > 0
