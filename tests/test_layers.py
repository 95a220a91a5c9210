"""Imports point down only."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "headstart"

FLOORS = {
    "types": 0,
    "errors": 0,
    "registry": 0,
    "schema": 0,
    "cache": 0,
    "core": 1,
    "kernels": 1,
    "forward": 2,
    "engine": 3,
    "algorithms": 4,
    "data": 4,
    "tasks": 4,
    "models": 4,
    "testing": 5,
    "training": 6,
    "integrations": 7,
    "exporting": 7,
    "cli": 8,
    "serve": 8,
}
#: What a part may import of headstart, where its floor says too little.
ALLOWED = {
    "types": set(),
    "errors": set(),
    "registry": {"errors"},
    "schema": {"errors"},
    "cache": set(),
    "core": {"core", "types", "errors", "schema"},
    "kernels": {"kernels", "cache"},
    "forward": {"forward", "core", "types", "errors", "schema"},
    "engine": {"engine", "forward", "kernels", "core", "types", "errors", "schema"},
    "tasks": {"registry"},
    "data": {"data", "models", "core", "types", "errors", "schema", "registry", "cache"},
    "models": {"models", "forward", "core", "types", "errors", "schema", "registry"},
}
#: What core may import besides: the standard library's modules that do no input or output, and torch.
CORE_OUTSIDE = {"torch", "collections", "contextlib", "copy", "dataclasses", "difflib", "fnmatch", "functools"}
CORE_OUTSIDE |= {"concurrent", "contextvars", "logging", "math", "operator", "os", "random", "re", "sys", "threading"}
CORE_OUTSIDE |= {"inspect", "itertools", "time", "typing", "warnings", "weakref"}

FILES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem in FLOORS)


def imports(path):
    """Return the modules that a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            # `from headstart import tasks` imports headstart.tasks
            bare = node.module == "headstart"
            found += [f"headstart.{alias.name}" for alias in node.names] if bare else [node.module]
    return found


def part_of(module):
    return module.split(".")[1] if module.startswith("headstart.") else None


def part_of_file(path):
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def test_every_part_has_a_floor():
    assert {part_of_file(path) for path in FILES} <= FLOORS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path):
    own = part_of_file(path)
    for module in imports(path):
        part = part_of(module)
        if part is None:
            continue
        assert part in FLOORS, f"{path} imports {module}, which has no floor"
        assert FLOORS[part] <= FLOORS[own], f"{path} on floor {FLOORS[own]} imports {module} on floor {FLOORS[part]}"
        assert part in ALLOWED.get(own, FLOORS), f"{path} imports {module}"


@pytest.mark.parametrize("path", sorted((SOURCE / "core").rglob("*.py")), ids=lambda path: path.stem)
def test_core_imports_torch_and_no_other_package(path):
    outside = {module.partition(".")[0] for module in imports(path)} - {"headstart"}
    assert outside <= CORE_OUTSIDE


def test_the_reader_of_imports_sees_all_kinds(tmp_path):
    file = tmp_path / "some.py"
    file.write_text("import a.b\nfrom c import d\nfrom headstart import tasks\ndef f():\n    import headstart.cli.app")
    assert imports(file) == ["a.b", "c", "headstart.tasks", "headstart.cli.app"]
