"""The README tells the truth: its programs run, its commands and paths exist, and it stays short."""

import re
from pathlib import Path

import pytest

from headstart import registry

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_it_is_at_most_120_lines():
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("program", PROGRAMS)
def test_its_programs_run(program, capsys):
    exec(compile(program, "README.md", "exec"), {})


def test_it_has_programs():
    assert len(PROGRAMS) >= 2


def test_its_commands_exist():
    from headstart.cli.app import COMMANDS

    used = set(re.findall(r"^headstart (\w+)", README, re.M))
    assert used and used <= set(COMMANDS)
    targets = set(re.findall(r"^make (\w+)", README, re.M))
    makefile = (ROOT / "Makefile").read_text()
    assert targets == {"demo", "test"} and all(f"\n{target}:" in makefile for target in targets)


def test_its_links_and_pictures_exist():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_it_names_every_registered_thing():
    for kind in ("method", "task", "model"):
        for row in registry.rows(kind):
            assert f"`{row.name}`" in README or row.name == "folder", row.name
