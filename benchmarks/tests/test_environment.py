"""The environment of peers, without a network."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from benchmarks.peers import environment
from benchmarks.peers.environment import Package, build, default_folder, existing
from headstart.errors import FileError, UsageError


def archive_of(place: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(place, "w:gz") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without a real interpreter, and a pip that knows of one archive and one package alone."""
    folder = tmp_path / "peers"

    def create(self: object, folder: Path) -> None:
        python = environment._python(folder)
        python.parent.mkdir(parents=True)
        python.write_text("")
        own = environment.sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        Path(own).mkdir(parents=True)

    def named(words: tuple[str, ...]) -> str:
        return Path(words[-1]).read_text() if words[-2:-1] == ("--requirement",) else words[-1]

    def required(package: Package, place: Path) -> list[str]:
        (place / "requirements.txt").write_text(package.name)
        return ["--require-hashes", "--requirement", str(place / "requirements.txt")]

    monkeypatch.setattr(environment, "_required", required)

    def pip(folder: Path, *words: str) -> None:
        name = named(words)
        if name == "unreachable":
            raise environment._InstallError("pip failed: no network")
        if words[0] == "download":
            member = "../../evil.py" if name == "evil" else f"{name}-1.2/{name}/__init__.py"
            archive_of(Path(words[words.index("--dest") + 1]) / f"{name}-1.2.tar.gz", {member: b"answer = 42"})

    monkeypatch.setattr(environment.venv.EnvBuilder, "create", create)
    monkeypatch.setattr(environment, "_pip", pip)
    monkeypatch.setattr(environment, "_install", lambda folder, package: pip(folder, package.name) or "1.0")
    return folder


def test_what_cannot_be_installed_is_named_and_tried_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = (Package("packed", source=True), Package("unreachable"), Package("evil", source=True), Package("plain"))
    monkeypatch.setattr(environment, "PACKAGES", packages)
    said: list[str] = []
    found = build(made, said.append)
    assert found.versions == {"packed": "1.2", "plain": "1.0"}
    assert set(found.failed) == {"unreachable", "evil"} and "no network" in found.failed["unreachable"]
    assert (made / "sources" / "packed-1.2" / "packed" / "__init__.py").read_text() == "answer = 42"
    assert not (made.parent / "evil.py").exists() and not (made / "evil.py").exists()
    assert any("peers 2/4: installing unreachable" in line for line in said)
    assert existing(made) == found

    said.clear()
    assert build(made, said.append) == found and not said, "not again within a day"
    assert build(made, said.append, again=True) == found
    assert sum("installing" in line for line in said) == 2
    said.clear()
    mark = json.loads((made / "peers.json").read_text())
    (made / "peers.json").write_text(json.dumps({**mark, "tried": mark["tried"] - 90_000}))
    assert build(made, said.append) == found
    assert sum("installing" in line for line in said) == 2


def test_a_build_that_was_broken_off_goes_on(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", (Package("one"), Package("two")))
    whole = environment._install

    def interrupted(folder: Path, package: Package) -> str:
        if package.name == "two":
            raise KeyboardInterrupt
        return whole(folder, package)

    monkeypatch.setattr(environment, "_install", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(made, print)
    monkeypatch.setattr(environment, "_install", whole)
    said: list[str] = []
    assert build(made, said.append).versions == {"one": "1.0", "two": "1.0"}
    assert [line for line in said if "installing" in line] == [f"peers 1/1: installing two in {made}"]


def test_a_whole_environment_is_not_touched_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", (Package("plain"),))
    assert not build(made, print).failed
    monkeypatch.setattr(environment, "_install", lambda *given: pytest.fail("installed again"))
    assert build(made, print).versions == {"plain": "1.0"}


def test_one_that_was_built_for_another_torch_is_not_used(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", (Package("plain"),))
    build(made, print)
    mark = json.loads((made / "peers.json").read_text())
    (made / "peers.json").write_text(json.dumps({**mark, "key": "another"}))
    assert existing(made) is None


def test_headstarts_own_folder_is_emptied_and_filled_anew(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", (Package("plain"),))
    build(made, print)
    mark = json.loads((made / "peers.json").read_text())
    (made / "peers.json").write_text(json.dumps({**mark, "key": "another"}))
    (made / "left over").mkdir()
    (made / "left over" / "file").write_text("old")
    assert build(made, print).versions == {"plain": "1.0"}
    assert not (made / "left over").exists() and existing(made) is not None


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.txt": "mine"},
        {"pyvenv.cfg": "home = /usr/bin", "bin/python": ""},
        {"pyvenv.cfg": "", "peers.json": "[]"},
        {"pyvenv.cfg": "", "peers.json": '{"key": "abc", "vers'},
        {"pyvenv.cfg": "", "peers.json": '{"key": 3, "versions": {}, "failed": {}}'},
        {"pyvenv.cfg": "", "peers.json": '{"key": "abc", "versions": [], "failed": {}}'},
    ],
)
def test_a_folder_that_headstart_did_not_make_is_refused_and_left(files: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match="--peers"):
        build(tmp_path, print)
    assert {name: (tmp_path / name).read_text() for name in files} == files


def test_the_running_environment_and_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "peers.json").write_text('{"key": "", "versions": {}, "failed": {}}')
    monkeypatch.setattr(environment.sys, "prefix", str(tmp_path))
    with pytest.raises(UsageError, match="that headstart runs in"):
        build(tmp_path, print)
    with pytest.raises(UsageError, match="is a file"):
        build(tmp_path / "peers.json", print)
    with pytest.raises(FileError, match="a part of the path is a file"):
        build(tmp_path / "peers.json" / "deeper", print)


@pytest.mark.parametrize(
    ("error", "told"),
    [(subprocess.TimeoutExpired("pip", 1), "longer than 900 s"), (FileNotFoundError(2, "gone"), "cannot be run: gone")],
)
def test_a_pip_that_hangs_or_is_not_there_is_a_package_less(
    error: Exception, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def completed(command: object, seconds: float) -> None:
        raise error

    monkeypatch.setattr(environment, "completed", completed)
    with pytest.raises(environment._InstallError, match=told):
        environment._install(tmp_path, Package("higher"))


def test_the_folder_is_that_of_the_variable_or_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_PEERS", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("HEADSTART_PEERS")
    first = default_folder()
    assert first.parts[-2] == "headstart" and first.name.startswith("peers-")
    monkeypatch.setattr(environment, "version", lambda name: "0.0")
    assert default_folder() != first, "another torch has another environment"


def test_everything_is_asked_for_by_its_hashes_but_what_goes_with_torch(tmp_path: Path) -> None:
    for package in environment.PACKAGES:
        words = environment._required(package, tmp_path)
        if package.name == "torchvision":
            assert words[0].startswith("torchvision==0.")
            continue
        lines = (tmp_path / "requirements.txt").read_text().splitlines()
        assert words[0] == "--require-hashes" and len(lines) == 1 + len(package.needs)
        for name, line in zip((package.name, *package.needs), lines):
            assert line.startswith(f"{name}==") and " --hash=sha256:" in line
    text = environment.REQUIREMENTS.read_text()
    assert "torch==" not in text and "numpy==" not in text and "://" not in text
