"""What nobody should give a command, and somebody does: only errors that say what is wrong come out."""

import contextlib
import io
import json
import os
import random
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from headstart.cli.app import main, run
from headstart.errors import FileError
from headstart.training.files import MANIFEST, fingerprint, sealed

SMALL = "--steps 1 --hidden 4 --test-tasks 2 --evaluate-tasks 2 --threads 1".split()
LONG = "x" * 300


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run, an adapted model, a table and a configuration."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "points.csv").write_text("x,y\n1,2\n2,3\n3,5\n")
    (folder / "config.yaml").write_text("tasks: sinusoid\nouter: {steps: 1}\nmodel: {hidden: [4]}\n")
    assert run(["train", "sinusoid", *SMALL, "--out", str(folder / "run")]) == 0
    assert run(["adapt", str(folder / "run"), str(folder / "points.csv"), "--out", str(folder / "adapted")]) == 0
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of it, which is the working folder."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def explained(words: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    """Return the exit code of a command, which must end as the others do, and say why where it fails."""
    code = run(words)
    told = capsys.readouterr().err
    assert code in (0, 1, 2, 3) and max(map(len, told.split("\n"))) < 1100, words
    assert "unexpected" not in told and "\x1b" not in told, (words, told)
    assert code == 0 or "error: " in told, words
    return code


@pytest.mark.parametrize("name", [LONG, f"{LONG}/{LONG}", "a\0b", "points.csv", "points.csv/a", "/dev/null"])
def test_names_that_are_none(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["train", "sinusoid", *SMALL, "--out", name],
        ["train", "--config", name + ".json"],
        ["train", name + ".csv"],
        ["compare", "sinusoid", "--methods", "maml", *SMALL, "--out", name],
        ["evaluate", name],
        ["report", name],
        ["adapt", name, "points.csv", "--out", "new"],
        ["adapt", "run", name + ".", "--out", "new"],
        ["adapt", "run", "points.csv", "--out", name],
        ["predict", name, "points.csv"],
        ["predict", "adapted", name + "."],
        ["predict", "adapted", "points.csv", "--out", name + "/a.csv"],
    ):
        assert explained(words, capsys) != 0, words


READERS = {
    "run": (["evaluate", "run", "--episodes", "2"], ["report", "run"], ["adapt", "run", "points.csv", "--out", "new"],
            ["train", "sinusoid", *SMALL, "--out", "run"]),
    "adapted": (["predict", "adapted", "points.csv"],),
    "points.csv": (["adapt", "run", "points.csv", "--out", "new"], ["predict", "adapted", "points.csv"]),
    "config.yaml": (["train", "--config", "config.yaml", "--out", "other"],),
}  # fmt: skip


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("seed", range(30))
def test_damaged_files(seed: int, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(seed)
    owner = draw.choice(list(READERS))
    files = sorted(path for path in (here / owner).rglob("*") if path.is_file()) or [here / owner]
    path = draw.choice(files)
    data = bytearray(path.read_bytes())
    path.unlink()
    how = draw.choice(["flip", "cut", "gone", "folder", "pipe", "empty", "link", "number", "tail", "bytes", "name"])
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "link":
        path.symlink_to("/dev/zero")
    elif how != "gone":
        place = draw.randrange(len(data) + 1)
        word = {
            "number": b"1e999",
            "name": b'"\\u001b[31m"',
            "bytes": draw.randbytes(5),
            "tail": b"}]" + b"[" * 3000,
        }.get(how)
        if how == "flip" and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        numbers = [at for at, one in enumerate(data) if one in b"0123456789"]
        at = draw.choice(numbers or [place]) if how in ("number", "name") else len(data) if how == "tail" else place
        path.write_bytes(
            {"cut": data[:place], "empty": b"", "flip": data}.get(how, data[:at] + (word or b"") + data[at + 1 :])
        )
        listed, believed = path.parent / MANIFEST, draw.random() < 0.7  # as one who wants to be believed would
        if path.suffix == ".safetensors" and believed:
            with contextlib.suppress(FileError):  # what is none of those that are sealed, or no longer
                path.write_bytes(sealed(path.read_bytes(), path.name))
        if listed.exists() and path != listed and believed:
            told = json.loads(listed.read_text())
            told["files"][path.name] = fingerprint(path.read_bytes())
            listed.write_text(json.dumps(told))
    explained(draw.choice(READERS[owner]), capsys)
    if path.is_symlink():
        path.unlink()


FORGED = {
    "wide": ("model", "hidden", [100_000, 100_000], "asks for 40001600004"),
    "deep": ("model", "hidden", [1] * 200_000, "at most 98"),
    "shots": ("tasks", "shots", 10**9, "up to 100000"),
    "word": ("method", "name", "9" * 5000, " … "),
    "memory": ("run", "memory", "9" * 5000, "must be a size such as 2GiB"),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_is_too_large_is_refused_before_it_is_made(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owner, option, value, reason = FORGED[name]
    path = here / "run" / "config.json"
    told = json.loads(path.read_text())
    told[owner][option] = value
    path.write_text(json.dumps(told))
    for words in (["evaluate", "run"], ["adapt", "run", "points.csv", "--out", "new"]):
        code = run(words)
        assert code and reason in capsys.readouterr().err


@pytest.mark.parametrize("name", ["points.csv", "points.parquet", "points.csv.gz", "points.jsonl", "points.txt"])
def test_a_pipe_is_no_table(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / name).unlink(missing_ok=True)
    os.mkfifo(here / name)
    for words in (READERS["points.csv"][0], READERS["points.csv"][1], ["train", "points.csv", "--target", "y"]):
        assert explained([name if word == "points.csv" else word for word in words], capsys) in (1, 2, 3)


def test_too_little_memory_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(["train", "gp_curves", *SMALL, "--queries", "100000", "--out", "new"], capsys) == 1


def test_what_moves_a_cursor_is_spelt_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["evaluate", "\x1b[31m"], ["predict", "adapted", "\x1b["], ["train", "\x1b[2J"]):
        assert explained(words, capsys) != 0


@pytest.mark.parametrize("flag", ["encrypted", "packed"])
def test_zips_that_cannot_be_opened(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("images_background.zip", "images_evaluation.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("set/alphabet/character/1.png", b"x" * 50)
        data = bytearray((tmp_path / name).read_bytes())
        entry = data.index(b"PK\1\2")
        for place, value in {"encrypted": ((6, 1), (entry + 8, 1)), "packed": ((8, 99), (entry + 10, 99))}[flag]:
            data[place] = value
        (tmp_path / name).write_bytes(data)
    assert run(["train", "omniglot", "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 1
    told = capsys.readouterr().err
    assert "images_background.zip is damaged at set/alphabet/character/1.png" in told and "unexpected" not in told


def test_a_terminal_without_the_letters_is_spelt_to(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, part in ((["evaluate", "run", "--episodes", "2"], b" +- "), (["predict", "adapted", "ä"], b"\\xe4")):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit):
            main(words)
        for stream in (out, err):
            stream.flush()
        assert part in out.buffer.getvalue() + err.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_full_disk_behind_the_output_is_told(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["list", "methods"], ["list", "methods", "--json"]):
        with open("/dev/full", "w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert run(words) == 1
        assert capfd.readouterr().err == "error: cannot use the standard output: No space left on device\n"
