"""What a worker does to its process."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/lib64/ld-linux-x86-64.so.2").exists(), reason="of GNU's C library")
def test_memory_that_is_kept_need_not_come_anew():
    program = """
import ctypes, resource, sys
from headstart.serve.worker import keep_memory
library = ctypes.CDLL(None)
library.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page would count as one of 512 faults
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
if sys.argv[1:] == ["keep"]:
    keep_memory()
def feature_maps():
    parts = [library.malloc(2**24) for _ in range(4)]
    for part in parts:
        ctypes.memset(part, 1, 2**24)
    for part in parts:
        library.free(part)
feature_maps()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
feature_maps()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def faults(*words):
        return int(subprocess.run([sys.executable, "-c", program, *words], capture_output=True, check=True).stdout)

    assert faults("keep") < 2**10 < 2**13 < faults()
