"""The environment of peers, without a network."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from headstart.bench.peers import environment
from headstart.bench.peers.environment import Package, build, default_folder, existing
from headstart.errors import UsageError


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

    def make(folder: Path, note: object) -> None:
        python = environment._python(folder)
        python.parent.mkdir(parents=True)
        python.write_text("")

    def pip(folder: Path, *words: str) -> None:
        name = words[-1]
        if name == "unreachable":
            raise environment._InstallError("pip failed: no network")
        if words[0] == "download":
            member = "../../evil.py" if name == "evil" else f"{name}-1.2/{name}/__init__.py"
            archive_of(Path(words[words.index("--dest") + 1]) / f"{name}-1.2.tar.gz", {member: b"answer = 42"})

    monkeypatch.setattr(environment, "_make", make)
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
    assert build(made, said.append) == found
    assert sum("installing" in line for line in said) == 2


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


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="--peers"):
        build(tmp_path, print)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_the_folder_is_that_of_the_variable_or_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_PEERS", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("HEADSTART_PEERS")
    assert default_folder().parts[-2:] == ("headstart", "peers")
