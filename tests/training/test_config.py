"""Configurations: what they take, what they refuse and in which words, and how they go to files and back."""

import json
import os
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest

from headstart.cli.commands import _train
from headstart.cli.options import call
from headstart.errors import ConfigError, FileError, UnknownNameError
from headstart.registry import rows
from headstart.training.config import (
    Config,
    command,
    default_folder,
    diff,
    flag,
    flags,
    merged,
    nested,
    normal,
    read_config_file,
    resolve,
    schema_of,
    text,
)

OWN = {
    "folder": {"data": "/"},
    "domains": {"sources": ["icons", "omniglot"]},
    **dict.fromkeys(("folder", "text", "banking77", "clinc150"), {"data": "/"}),
    "table": {"data": "/a.csv", "task_column": "who", "target": "y"},
}
PAIRS = [
    (family.name, method.name) for family in rows("task") for method in rows("method") if family.name != "table"
] + [("table", "maml"), ("table", "gaussian_process")]


@pytest.mark.parametrize(("tasks", "method"), PAIRS)
def test_resolving_twice_is_resolving_once_also_by_a_file_and_by_the_command_line(tasks: str, method: str) -> None:
    once = resolve({"tasks": {"name": tasks, **OWN.get(tasks, {})}, "method": method})
    tree = json.loads(json.dumps(once.tree()))
    assert resolve(tree) == once
    assert None not in [value for part in tree.values() for value in part.values()]


EVERY = [
    *(({"tasks": {"name": one.name, **OWN.get(one.name, {})}}, ("tasks", "outer")) for one in rows("task")),
    *(({"tasks": "icons", "method": one.name}, ("method",)) for one in rows("method")),
    *(({"tasks": "icons", "model": one.name}, ("model",)) for one in rows("model")),
    ({"tasks": "icons"}, ("run",)),
]


def examples(hint: Any) -> list[Any]:
    """Return values of a type that an option can have."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        lows = [getattr(limit, "ge", getattr(limit, "gt", None)) for limit in hint.__metadata__]
        low = max((low for low in lows if low is not None), default=None)
        return [value if low is None else type(value)(low + value) for value in examples(parts[0])]
    if origin is Literal:
        return list(parts)
    if origin is tuple:
        return [[examples(part)[0] for part in parts if part is not Ellipsis]]
    if origin is not None:
        found = [value for part in parts if part is not NoneType for value in examples(part)]
        return [value for value in found if isinstance(value, list) or value != "/some"] or found
    return {bool: [True, False], int: [1], float: [0.25], str: ["/some"], Path: ["/some/where"]}[hint]


@pytest.mark.parametrize(("tree", "owners"), EVERY)
def test_every_option_can_be_given_as_a_value_a_text_and_a_flag(tree: Any, owners: tuple[str, ...]) -> None:
    parts = normal(tree)
    schema = schema_of(parts)
    options = {place: option for place, option in schema.options.items() if place.split(".")[0] in owners}
    sources = [{"name": "icons"}, {"name": "omniglot"}]
    choices = {
        place: [sources] if place == "tasks.sources" else examples(option.type) for place, option in options.items()
    }
    # of the network's inputs, the model is the network
    said = {"run.memory": ["2GiB"], "tasks.encoder": ["timm:some"], "tasks.encoded": ["features"]}
    choices |= {place: values for place, values in said.items() if place in choices}
    for turn in range(max(map(len, choices.values()), default=0)):
        values = {place: choices[place][turn % len(choices[place])] for place in options}
        texts = {place: text(value, options[place]) for place, value in values.items()}
        words = []
        for place, value in values.items():
            best = flag(place, schema)
            switch = isinstance(value, bool)
            words += [best if value else f"--no-{best[2:]}"] if switch else [best, texts[place]]
        called = call(_train, words, [schema])
        assert called is not None
        for given in (nested(values), nested(texts), called.tree):
            config = resolve(merged(parts, given))
            assert {place: config.option(place) for place in values} == values


def test_defaults_are_those_of_the_kind_of_data_the_family_and_the_method() -> None:
    def chosen(tasks: str, method: str, *names: str) -> list[Any]:
        config = resolve({"tasks": {"name": tasks, **OWN.get(tasks, {})}, "method": method})
        return [config.option(name) for name in names]

    inner = "method.steps", "method.rate"
    assert chosen("sinusoid", "maml", *inner, "outer.steps", "model.name") == [1, 0.01, 10_000, "mlp"]
    assert chosen("curves", "maml", *inner) == [5, 0.005]
    assert chosen("curves", "reptile", *inner, "outer.optimizer") == [10, 0.02, "sgd"]
    assert chosen("icons", "joint", *inner, "model.filters", "model.downsample") == [20, 0.5, 32, "stride"]
    assert chosen("icons", "imaml", *inner) == [16, 0.1]
    assert chosen("omniglot", "maml", "tasks.queries", "outer.tasks_per_step") == [5, 4]
    assert chosen("table", "alpaca", "outer.steps", "outer.rate", "outer.schedule") == [300, 0.02, "cosine"]
    assert chosen("table", "cnp", "outer.steps", "outer.schedule") == [500, "cosine"]
    assert chosen("icons", "nearest", "model.name", "outer.steps") == [None, None]
    assert resolve({"tasks": {"name": "table", **OWN["table"]}}).method.name == "gaussian_process"


def test_what_is_given_wins() -> None:
    tree = {"tasks": {"name": "sinusoid", "shots": "5"}, "method": {"rate": 0.5}, "model": {"hidden": "8"}}
    config = resolve(tree | {"outer": {"steps": 7}})
    assert (config.method.name, config.method.options["rate"], config.outer and config.outer.steps) == ("maml", 0.5, 7)
    assert config.tasks.options["shots"] == 5 and config.model and config.model.options["hidden"] == (8,)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"tasks": {"name": "sinusoid", "ways": 3}}, "unknown option --tasks.ways for the tasks 'sinusoid'"),
        ({"tasks": "sinusoid", "model": {"filters": 3}}, "; it belongs to the model conv4"),
        ({"tasks": "icons", "method": {"name": "fomaml", "adjoint": "unrolled"}}, "unknown option --method.adjoint"),
        ({"tasks": "icons", "method": {"name": "prototypes", "rate": 0.1}}, "unknown option --method.rate for"),
        ({"tasks": "icons", "method": "nearest", "model": "mlp"}, "--model does not apply to the method 'nearest'"),
        ({"tasks": "icons", "method": "scratch", "outer": {"steps": 5}}, "--steps does not apply to the method"),
        ({"tasks": "sinusoid", "outer": {"stpes": 3}}, "unknown option --outer.stpes; did you mean --steps?"),
        ({"tasks": "sinusoid", "kernel": "linear"}, "did you mean tasks: {kernel: …} or method: {kernel: …}?"),
        ({"tasks": "sinusoid", "ways": 3}, "unknown part 'ways' of a configuration; did you mean tasks: {ways: …}"),
        ({"tasks": "sinusoid", "steps": 3}, "did you mean outer: {steps: …}"),
        ({"tasks": "folder"}, "--data is missing, which the tasks 'folder' must have: "),
        ({"tasks": {"name": "table", "data": "/a.csv", "target": "y"}}, "--task-column is missing"),
        ({"tasks": "./no/such"}, "there is no such folder or file"),
        ({"method": "maml"}, "TASKS is missing"),
        ([1], "a configuration has the parts tasks, method, model, outer, run; got list"),
        ({"tasks": "icons", "run": {"memory": "much"}}, "--memory "),
        ({"tasks": "sinusoid", "outer": "sgd"}, "outer is 'sgd', but must be options by name"),
        ({"tasks": "sinusoid", "run": {"name": "mine"}}, "unknown option --run.name"),
        ({"tasks": "sinusoid", "outer": {"stpes": None}}, "unknown option --outer.stpes; did you mean --steps?"),
        ({"tasks": "sinusoid", "modle": None}, "unknown part 'modle' of a configuration; did you mean model?"),
        ({"tasks": "sinusoid", "outer": {"threads": 1}}, "unknown option --outer.threads; did you mean --threads?"),
        ({"tasks": "sinusoid", "method": {"name": 5}}, "the name of method is 5, but must be a text"),
        ({"tasks": "sinusoid", "method": ""}, "the name of method is '', but must be a text"),
        ({"tasks": "sinusoid", "run": {"save-every": 3, "save_every": 5}}, "there twice, with - and with _"),
        ({"tasks": "sinusoid", "model": {"hidden": [True]}}, "--hidden is [True], but must be"),
        ({"tasks": "sinusoid", "model": {"hidden": {2, 3}}}, "--hidden is {2, 3}, but must be"),
        ({"tasks": "sinusoid", "method": "scratch", "outer": {}, "steps": 5}, "unknown part 'steps'"),
    ],
)
def test_what_cannot_be_is_refused(tree: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(tree)
    assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("part", ["tasks", "method", "model"])
def test_an_unknown_name_is_refused_with_the_nearest(part: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown"):
        resolve({"tasks": "icons", part: "maamll"})


def test_every_bad_option_gets_a_line_with_its_file() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"tasks": {"name": "icons", "ways": 1}, "run": {"seed": -1}}, "my.yaml")
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["--ways", "--seed"]
    assert str(caught.value).count("(in my.yaml)") == 2


def test_a_folder_or_a_file_in_place_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "birds").mkdir()
    (tmp_path / "visits.csv").write_text("who,y\n")
    (tmp_path / "notes.odt").write_text("")
    monkeypatch.chdir(tmp_path)
    config = resolve("./birds")
    assert (config.tasks.name, config.tasks.options["data"]) == ("folder", str(tmp_path / "birds"))
    assert str(default_folder(config)) == "runs/birds-maml"
    found = normal({"tasks": {"name": "visits.csv", "target": "y"}})["tasks"]
    assert found == {"name": "table", "target": "y", "data": str(tmp_path / "visits.csv")}
    with pytest.raises(ConfigError, match="leave out --data"):
        resolve({"tasks": {"name": "./birds", "data": "x"}})
    with pytest.raises(ConfigError, match="no kind of data that can be read"):
        resolve("notes.odt")


def test_options_are_called_by_the_shortest_name_that_is_theirs_alone() -> None:
    options = schema_of(normal({"tasks": "gp_curves", "method": {"name": "dkt"}})).options
    assert flags("method.kernel", options) == ("--method.kernel",)  # the tasks have one, too
    assert flags("tasks.lengthscale", options) == ("--lengthscale", "--tasks.lengthscale")
    assert flags("outer.steps", options) == ("--steps", "--outer.steps")
    assert flag("method.steps") == "--inner-steps" and flag("outer.rate") == "--outer-rate"


def _changed(config: Config, **parts: dict[str, Any]) -> Config:
    tree = config.tree()
    return resolve({**tree, **{owner: {**tree[owner], **part} for owner, part in parts.items()}})


def test_diff_lists_what_changed_but_for_more_steps_and_what_is_free() -> None:
    old = resolve({"tasks": "icons", "outer": {"steps": 10}, "run": {"device": "cpu", "save_every": 1}})
    assert diff(old, old) == []
    assert diff(old, _changed(old, outer={"steps": 20}, run={"device": "cuda", "save_every": 9, "threads": 2})) == []
    assert diff(old, _changed(old, outer={"steps": 5})) == ["--steps: 10 -> 5"]
    other = _changed(old, tasks={"ways": 20}, method={"rate": 0.5}, run={"seed": 3})
    assert diff(old, other) == ["--ways: 5 -> 20", "--inner-rate: 0.1 -> 0.5", "--seed: 0 -> 3"]
    assert diff(old, _changed(old, outer={"schedule": "cosine", "steps": 20}))[0] == "--steps: 10 -> 20"
    annealed = resolve({"tasks": "icons", "method": "aware", "outer": {"steps": 10, "schedule": "constant"}})
    assert diff(annealed, _changed(annealed, outer={"steps": 20})) == ["--steps: 10 -> 20"]


def test_the_command_says_what_is_not_default() -> None:
    tree = {"tasks": {"name": "icons", "shots": "1-3", "rotations": False}, "model": {"norm": "group"}}
    config = resolve(tree | {"method": {"name": "svm", "kernel": "rbf"}, "run": {"seed": 4}})
    told = "headstart train icons --method svm --no-rotations --shots 1-3 --kernel rbf --norm group --seed 4 --out RUN"
    assert command(config) == told


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"tasks": {"name": "sinusoid"}, "method": {"rate": 1e-3}}'),
        ("a.yaml", "tasks: sinusoid\nmethod:\n  rate: 1e-3\n"),
        ("a.yml", "tasks: {name: sinusoid}\nmethod: {rate: 0.001}\n"),
        ("a.toml", 'tasks = "sinusoid"\nmethod.rate = 1e-3\n'),
    ],
)
def test_flags_win_over_a_file_and_a_file_over_defaults(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    file = read_config_file(tmp_path / name)
    config = resolve(merged(file, {"outer": {"steps": "9"}}))
    assert (config.tasks.name, config.option("method.rate"), config.option("outer.steps")) == ("sinusoid", 0.001, 9)
    assert resolve(merged(file, {"method": {"rate": "0.5"}})).option("method.rate") == 0.5


def test_what_a_file_says_of_a_part_goes_with_the_name_that_a_flag_replaces() -> None:
    file = {"tasks": {"name": "omniglot", "data": "x"}, "method": "maml"}
    assert merged(file, {"tasks": {"name": "icons"}})["tasks"] == {"name": "icons"}
    assert merged(file, {"tasks": {"name": "omniglot", "ways": 3}})["tasks"] == {**file["tasks"], "ways": 3}
    assert merged(file, {"method": {"rate": 1}})["method"] == {"name": "maml", "rate": 1}
    reptile, maml = resolve({"tasks": "icons", "method": "reptile", "outer": {"steps": 7}}), {"method": "maml"}
    for own in (reptile.tree(), json.loads(json.dumps(reptile.tree()), parse_int=str, parse_float=str)):
        assert resolve(merged(own, maml)) == resolve({"tasks": "icons", **maml, "outer": {"steps": 7}})
    chosen = {"tasks": "sinusoid", "method": "maml", "outer": {"rate": 0.001, "optimizer": "adam"}}
    outer = resolve(merged(chosen, {"method": "reptile"})).outer
    assert outer is not None and (outer.optimizer, outer.rate) == ("adam", 0.001)


def test_a_table_named_again_is_the_table_of_the_file(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("t,x,y\n1,2,3\n")
    own = resolve({"tasks": {"name": str(tmp_path / "a.csv"), "task_column": "t", "target": "y"}})
    for name in ("a.csv", "b.csv"):
        again = resolve(merged(own.tree(), {"tasks": {"name": str(tmp_path / name)}}))
        assert (again.option("tasks.target"), again.option("tasks.data")) == ("y", str(tmp_path / name))
    assert resolve({**own.tree(), "tasks": {**own.tree()["tasks"], "name": "table"}}) == own


@pytest.mark.parametrize(
    ("name", "text", "error", "words"),
    [
        ("a.json", '{"ways": 5, "ways": 6}', FileError, "a key is there twice"),
        ("a.json", "[1]", FileError, "does not hold a configuration"),
        ("a.yaml", "a: [", FileError, "not valid YAML"),
        ("a.yaml", "!!python/object/apply:os.system [exit]", FileError, "not valid YAML"),
        ("a.yaml", "outer: {steps: 1, steps: 2}", FileError, "a key is there twice"),
        ("a.yaml", "a: &a [1]\nb: [*a, *a]", FileError, "aliases are not read here"),
        ("a.yaml", "tasks: sinusoid\n" + 9999 * "#" * 200, FileError, "expected at most 1048576"),
        ("a.toml", "a = ", FileError, "not valid TOML"),
        ("a.txt", "", ConfigError, "expected a .json, .yaml, .yml or .toml file"),
    ],
)
def test_a_bad_file_is_explained(tmp_path: Path, name: str, text: str, error: type[Exception], words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(error) as caught:
        read_config_file(tmp_path / name)
    assert words in str(caught.value)
    with pytest.raises(FileError, match="no such file"):
        read_config_file(tmp_path / "none.yaml")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.yaml")
        with pytest.raises(FileError, match="not an ordinary file"):
            read_config_file(tmp_path / "pipe.yaml")


def test_values_of_yaml_are_read_as_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "tasks: {name: sinusoid, shots: 5}\nouter: {steps: 1:00}\nrun: {compile: off, threads: ~}"
    )
    with pytest.raises(ConfigError, match="--steps is '1:00'"):
        resolve(read_config_file(tmp_path / "a.yaml"))
    (tmp_path / "a.yaml").write_text("tasks: {name: sinusoid, shots: 5}\nrun: {compile: off, threads: ~}")
    config = resolve(read_config_file(tmp_path / "a.yaml"))
    assert (config.option("tasks.shots"), config.run.compile, config.run.threads) == (5, False, None)


def test_errors_of_thousands_of_options_end() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"tasks": "sinusoid", "run": {f"option{number}": 1 for number in range(60_000)}})
    assert len(str(caught.value).splitlines()) == 20
