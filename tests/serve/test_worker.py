"""What a worker does to its process."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/lib64/ld-linux-x86-64.so.2").exists(), reason="of GNU's C library")
def test_memory_that_is_kept_need_not_come_anew():
    program = """
import ctypes, resource, sys, torch
from headstart.serve.worker import keep_memory
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page would count as one of 512 faults
if sys.argv[1:] == ["keep"]:
    keep_memory()
torch.set_num_threads(1)
x = torch.ones(2**20)
for _ in range(3):
    [x + 1, x + 2]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    [x + 1, x + 2]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def faults(*words):
        return int(subprocess.run([sys.executable, "-c", program, *words], capture_output=True, check=True).stdout)

    assert 2 * faults("keep") < faults()
