"""Functions in C are translated once, kept on disk, and what goes wrong is said."""

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from headstart.kernels import library
from headstart.kernels.library import loaded

TEXT = "void kernel(void **tensors) { ((double *)tensors[1])[0] = %s * ((double *)tensors[0])[0]; }\n"


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    """A folder for kernels, and no memory of the compiler that was found."""
    monkeypatch.delenv("HEADSTART_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget()
    yield tmp_path / "headstart" / "kernels"
    monkeypatch.undo()
    forget()


def forget():
    for one in vars(library).values():
        if hasattr(one, "cache_clear"):
            one.cache_clear()


def product(run, number):
    given, found = ctypes.c_double(number), ctypes.c_double()
    run((ctypes.c_void_p * 2)(ctypes.addressof(given), ctypes.addressof(found)))
    return found.value


def test_a_function_is_kept_in_the_folder_for_caches(own_folder):
    assert product(loaded(TEXT % 3), 2.0) == 6
    assert [one.suffix for one in own_folder.iterdir()] == [".so"]
    assert product(loaded(TEXT % 4), 2.0) == 8
    assert len([*own_folder.iterdir()]) == 2


def test_it_is_translated_once(own_folder, monkeypatch):
    loaded(TEXT % 5)
    (made,) = own_folder.iterdir()
    monkeypatch.setattr(library, "_translate", lambda *_: pytest.fail("it is translated again"))
    assert product(loaded(TEXT % 5), 2.0) == 10
    assert [*own_folder.iterdir()] == [made]


def test_the_text_that_a_compiler_refuses_is_said_why(own_folder):
    with pytest.raises(RuntimeError, match="(?s)refuses a kernel.*undeclared"):
        loaded("void kernel(void **tensors) { tensors[0] = unknown; }")
    assert not [*own_folder.iterdir()]


def test_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "/nonexistent")
    monkeypatch.setenv("PATH", str(tmp_path))
    forget()
    with pytest.raises(RuntimeError, match="no C compiler"):
        loaded(TEXT % 6)


def test_a_compiler_of_ones_own(monkeypatch, tmp_path, own_folder):
    """What CC names is asked before others."""
    own = tmp_path / "own-compiler"
    own.write_text("#!/bin/sh\necho of my own >&2\nexit 3\n")
    own.chmod(0o700)
    monkeypatch.setenv("CC", str(own))
    forget()
    with pytest.raises(RuntimeError, match="own-compiler refuses a kernel: of my own"):
        loaded(TEXT % 7)


def test_several_processes_translate_the_same_at_once(own_folder):
    code = "import sys; from headstart.kernels.library import loaded; loaded(sys.argv[1]); print('loaded')"
    words = [sys.executable, "-c", code, TEXT % 8]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(2)]
    assert [one.communicate(timeout=120)[0].strip() for one in running] == ["loaded"] * 2
    assert len([*own_folder.iterdir()]) == 1
    assert product(loaded(TEXT % 8), 2.0) == 16


def test_several_threads_translate_the_same_at_once(own_folder):
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(loaded, [TEXT % 9] * 4)]
    assert [product(one, 2.0) for one in found] == [18] * 4
    assert len([*own_folder.iterdir()]) == 1
