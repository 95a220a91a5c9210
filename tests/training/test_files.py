"""Whole files or none, and data only."""

import json
import os
import pickle
import resource
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from headstart.errors import FileError
from headstart.testing.faults import Fault, injected
from headstart.training.files import (
    explained,
    from_safetensors,
    from_sealed,
    read,
    read_json,
    sealed,
    to_json,
    to_safetensors,
    unsealed,
    write,
)

GOOD = to_safetensors({"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(4, dtype=torch.int64)})


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path):
    for text in (b"one", b"two"):
        write(tmp_path / "f", text)
        assert read(tmp_path / "f") == text
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize(
    ("what", "at", "words"),
    [
        ("ENOSPC", "open", "disk is full"),
        ("ENOSPC", "sync", "disk is full"),
        ("EDQUOT", "sync", "quota is used up"),
        ("EROFS", "open", "read-only"),
        ("EACCES", "open", "permission denied"),
    ],
)
def test_a_failed_write_keeps_what_was_there(tmp_path, what, at, words):
    write(tmp_path / "f", b"old")
    with injected(Fault(what, at), tmp_path), pytest.raises(FileError, match=words):
        write(tmp_path / "f", b"new")
    assert read(tmp_path / "f") == b"old" and os.listdir(tmp_path) == ["f"]


def test_a_file_over_the_systems_limit_is_not_half_written(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(FileError, match="larger than allowed"):
            write(tmp_path / "f", bytes(4 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["1e999", "-1e999", "[1, NaN]", '{"a": 1, "a": 2}', "[" * 100_000])
def test_what_is_no_strict_json_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FileError, match="a.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_folder_that_is_a_file_cannot_be_written_to(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(FileError, match="a part of the path is a file"):
        write(tmp_path / "f" / "g", b"")


def test_only_ordinary_files_are_read(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "f")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(FileError, match="a link that leads to itself"), explained("read", tmp_path / "loop"):
        (tmp_path / "loop").resolve(strict=True)
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("link", "is a link"), ("pipe", "not an ordinary file"), ("none", "no such file")):
        with pytest.raises(FileError, match=words):
            read(tmp_path / name)
    with pytest.raises(FileError):
        read(tmp_path)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": Infinity}', "{", "[" * 100_000, "\ud800"])
def test_json_is_strict(tmp_path, text):
    (tmp_path / "f").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(FileError, match="not valid JSON"):
        read_json(tmp_path / "f")


def test_no_nan_is_written():
    with pytest.raises(ValueError):
        to_json({"a": float("nan")})


def test_tensors_come_back_bit_for_bit():
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(2).double(), "c": torch.tensor(3), "e": torch.zeros(0, 2)}
    back = from_safetensors(to_safetensors(tensors), "f")
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in tensors.items())
    assert from_safetensors(to_safetensors({}), "f") == {}
    shared = torch.arange(6.0)
    many = {"a": shared, "b": shared[2:4], "c": shared.view(2, 3).mT, "d": shared > 2, "e": shared.half()}
    for more in ({}, {"f": shared.bfloat16()}):
        back = from_safetensors(to_safetensors(many | more), "f")
        assert back.keys() == (many | more).keys()
        assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in many.items())


def test_a_sealed_file_is_read_as_it_was_written_or_not_at_all():
    told = {"step": 3, "metrics": {"bytes": 1, "sha256": "1" * 64}}
    data = sealed(unsealed({"a": torch.ones(2), "0" * 64: torch.zeros(3)}, told), "f")
    tensors, found = from_sealed(data, "f")
    assert torch.equal(tensors["a"], torch.ones(2)) and told.items() < found.items() and data == sealed(data, "f")
    for place in range(len(data)):
        for bit in range(8):
            spoilt = bytearray(data)
            spoilt[place] ^= 1 << bit
            with pytest.raises(FileError, match="f is damaged"):
                from_sealed(bytes(spoilt), "f")
    for spoilt in (*(data[:size] for size in range(len(data))), data + b"\0", GOOD):
        with pytest.raises(FileError, match="f is damaged"):
            from_sealed(spoilt, "f")


@pytest.mark.parametrize("told", [b"[", b'"\\ud800"', b"{}"])
def test_what_a_sealed_file_tells_is_read_with_care(told):
    header = b'{"__metadata__":{"headstart":"{\\"sha256\\": \\"' + b"0" * 64 + b'\\"' + told + b'"}}'
    with pytest.raises(FileError, match="f is not valid JSON|f is not a valid safetensors file"):
        from_sealed(sealed(struct.pack("<Q", len(header)) + header, "f"), "f")


def test_a_pickle_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"a": Payload()}, tmp_path / "f.pt")
    for data in (pickle.dumps(Payload()), (tmp_path / "f.pt").read_bytes()):
        with pytest.raises(FileError):
            from_safetensors(data, "f")
    assert not (tmp_path / "ran").exists()


def _with_header(header, rest=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a complete"),
        (GOOD[:-1], "cut off or has something appended"),
        (GOOD + b"x", "cut off or has something appended"),
        (struct.pack("<Q", 1 << 62) + b"{}", "not a complete"),
        (_with_header([1]), "header cannot be read"),
        (_with_header({"a": {"dtype": "F32", "shape": [1]}}), "header cannot be read"),
        (_with_header({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)), "unexpected type"),
        (
            _with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
            "not a valid safetensors",
        ),
        (to_safetensors({"a": torch.tensor([1.0, float("nan")])}), "not finite"),
    ],
)
def test_what_no_file_of_ours_looks_like_is_refused(data, words):
    with pytest.raises(FileError, match=words):
        from_safetensors(data, "f")


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 40)
)
def test_damaged_files_give_tensors_or_a_file_error(changes, cut):
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    try:
        found = from_safetensors(bytes(data[: len(data) - cut]), "f")
    except FileError:
        return
    assert all(isinstance(value, torch.Tensor) for value in found.values())
