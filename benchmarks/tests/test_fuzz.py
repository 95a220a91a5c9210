"""Spoilt files: what may come of one, and that anything else is found out."""

import os
import random
import subprocess
import time
import warnings
import zipfile
from pathlib import Path

import pytest

from benchmarks import fuzz, mutations
from headstart.errors import FileError


def _make(place):
    (place / "some.json").write_text('{"a": [1, 2], "b": {"c": "d"}}')


def _refuse(place):
    raise FileError("some.json is damaged")


def _key(place):
    raise KeyError("a")


def _warn(place):
    warnings.warn("divided by zero", RuntimeWarning, stacklevel=1)


def _run(place):
    subprocess.run(["true"], check=True)


def _elsewhere(place):
    (Path.home() / ".headstart-fuzz-elsewhere").open("a").close()
    (Path.home() / ".headstart-fuzz-elsewhere").unlink()


READERS = {
    "answer": lambda place: None,
    "FileError": _refuse,
    "FAILURE: KeyError": _key,
    "FAILURE: RuntimeWarning": _warn,
    "FAILURE: payload": _run,
    "FAILURE: written elsewhere": _elsewhere,
    "FAILURE: memory": lambda place: bytearray(2 << 30),
    "FAILURE: the process died (-9)": lambda place: os.kill(os.getpid(), 9),
    "FAILURE: no end in 1 s": lambda place: time.sleep(60),
}


@pytest.mark.parametrize("became", READERS)
def test_whatever_else_comes_of_a_file_is_found_out(became, tmp_path, monkeypatch):
    first = []

    def read(place):
        if first:  # the good files are read before, and well
            READERS[became](place)
        first.append(place)

    monkeypatch.setitem(fuzz.KINDS, "made", fuzz.Kind(_make, read))
    monkeypatch.setattr(fuzz, "SECONDS", 1.0)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    found, most = fuzz.fuzz("made", range(2), tmp_path, lambda told: None)
    assert [one.became for one in found] == [became] * 2 and [one.number for one in found] == [0, 1]
    assert most < 1 << 20


def test_a_number_makes_the_same_file_again(tmp_path):
    kind, files = fuzz.KINDS["configurations"], []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        kind.make(tmp_path / name)
        told = fuzz.spoil(tmp_path / name, kind, random.Random("configurations 7"))
        files.append((told, [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]))
    assert files[0] == files[1]


@pytest.mark.parametrize("way", sorted({*mutations.ANY, *(n for own in mutations.BY_SUFFIX.values() for n in own)}))
def test_every_way_changes_files_that_it_is_for(way, tmp_path):
    ways = dict(mutations.ANY, **{name: one for own in mutations.BY_SUFFIX.values() for name, one in own.items()})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a.png", b"\x89PNG" + bytes(60))
    files = {
        "values": b'{"a": [1, 2], "b": {"c": "d"}}',
        "zipped": (tmp_path / "a.zip").read_bytes(),
        "image_sizes": b"\x89PNG\r\n\x1a\n" + bytes(40),
    }
    data = files.get(way, b"a,b\n1,2\n3,4\n" * 9)
    changed = sum(ways[way](data, random.Random(number)) != data for number in range(40))
    assert changed >= 30
