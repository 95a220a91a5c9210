"""Learning a new task from a table's rows, and predicting others."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headstart.cli.app import run as command
from headstart.data.tables import UnseenValueWarning
from headstart.errors import ConfigError, DataError, DivergenceError, FileError, HeadstartError
from headstart.training.adapted_table import (
    adapt,
    is_table_model,
    open_adapted,
    predict,
)
from headstart.training.config import make_config
from headstart.training.run import train
from headstart.training.table_schema import is_table_run, read_schema, write_schema
from headstart.types import Adapted, Gaussian, Tree

BASE: dict[str, Any] = {
    "task_column": "pig", "columns": "week,food", "shots": 3, "threads": 1, "evaluate_tasks": 2, "test_tasks": 2,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "maml": {"method": "maml", "target": "weight"},
    "maml of classes": {"method": "maml", "target": "ill", "shots": 1},
    "prototypes": {"method": "prototypes", "target": "ill", "shots": 1},
    "nearest": {"method": "nearest", "target": "ill", "shots": 1},
    # what it has learned of a task is as large as its support set, and it knows what it does not know
    "gaussian_process": {"method": "gaussian_process", "target": "weight"},
}
REGRESSION = ("maml", "gaussian_process")
Columns = dict[str, list[Any]]


def pigs(count: int = 9) -> Columns:
    rows = range(8 * count)
    return {
        "pig": [f"p{row // 8}" for row in rows],
        "week": [row % 8 + row // 8 * 0.01 for row in rows],
        "food": [("corn", "oats", "rye")[row * 7 // 5 % 3] for row in rows],
        "weight": [20 + 6 * (row % 8) + row // 8 for row in rows],
        "ill": ["yes" if row % 3 else "no" for row in rows],
    }


def write(path: Path, columns: Columns) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values())])
    return path


def without(columns: Columns, *names: str) -> Columns:
    return {name: values for name, values in columns.items() if name not in names}


def rows_of(columns: Columns, first: int, last: int) -> Columns:
    return {name: values[first:last] for name, values in columns.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, made = tmp_path_factory.mktemp("runs"), {}
    data = write(folder / "pigs.csv", pigs())
    for name, options in METHODS.items():
        steps = {} if name == "nearest" else {"steps": 2, "tasks_per_step": 2}
        made[name] = folder / name.replace(" ", "-")
        train(make_config({"tasks": str(data), **BASE, **steps, **options}), made[name])
    data.unlink()  # adapting must not need it
    made["sinusoid"] = folder / "sinusoid"
    train(make_config({"tasks": "sinusoid", "steps": 0, "test_tasks": 2, "evaluate_tasks": 2}), made["sinusoid"])
    return made


@pytest.fixture
def new(tmp_path: Path) -> dict[str, Path]:
    """A new pig's first rows, and its later ones."""
    columns = pigs(1)
    columns["pig"] = ["new"] * 8
    return {
        "support": write(tmp_path / "support.csv", rows_of(columns, 0, 4)),
        "query": write(tmp_path / "query.csv", without(rows_of(columns, 4, 8), "pig", "weight", "ill")),
    }


@pytest.mark.parametrize("method", list(METHODS))
def test_what_was_adapted_predicts_the_same_when_read_back(
    runs: dict[str, Path], new: dict[str, Path], tmp_path: Path, method: str
) -> None:
    out = tmp_path / "out"
    model = adapt(runs[method], new["support"], out)
    found, again = predict(model, new["query"]), predict(open_adapted(out), new["query"], tmp_path / "found.csv")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "adapted.safetensors", "config.json"]
    assert is_table_run(runs[method]) and is_table_model(out) and not is_table_model(runs[method])
    assert "None" not in (out / "README.md").read_text()
    if method in REGRESSION:
        assert found.prediction == pytest.approx(again.prediction, rel=1e-6) and len(found.prediction) == 4
        assert found.probability is None and (found.low is None) == (found.high is None) == (method == "maml")
    else:
        assert found.prediction == again.prediction and set(found.prediction) <= {"yes", "no"}
        assert found.probabilities is not None and found.probability is not None
        for row, name in enumerate(found.prediction):
            both = [values[row] for values in found.probabilities.values()]
            assert sum(both) == pytest.approx(1)
            assert max(both) == found.probability[row] == found.probabilities[str(name)][row]
    with (tmp_path / "found.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["week"] for row in written] == ["4.0", "5.0", "6.0", "7.0"]
    assert [row["prediction"] for row in written] == [
        f"{value:.9g}" if isinstance(value, float) else value for value in again.prediction
    ]
    names = {"maml": [], "gaussian_process": ["low", "high"]}.get(
        method, ["probability", "probability of no", "probability of yes"]
    )
    assert list(written[0]) == ["week", "food", "prediction", *names]


def test_predictions_are_in_the_targets_own_units(runs: dict[str, Path], new: dict[str, Path], tmp_path: Path) -> None:
    model = adapt(runs["maml"], new["support"], tmp_path / "out")
    schema = read_schema(runs["maml"])
    x = torch.tensor([[4.0, 0], [5.0, 2]])
    week = schema.features[0]
    inputs = torch.zeros(1, 2, len(schema.inputs))
    inputs[0, :, 0] = (x[:, 0] - week.mean) / week.scale
    for row, food in enumerate(("corn", "rye")):
        inputs[0, row, schema.inputs.index(f"food={food}")] = 1
    with torch.no_grad():
        expected = model.learner.predict(model.adapted, inputs)[0, :, 0].double() * schema.scale + schema.mean
    path = write(tmp_path / "two.csv", {"food": ["corn", "rye"], "other": [1, 2], "week": [4, 5]})
    assert predict(model, path).prediction == pytest.approx(expected.tolist(), rel=1e-5)


def test_an_interval_holds_nine_tenths_of_a_normal_distribution(
    runs: dict[str, Path], new: dict[str, Path], tmp_path: Path
) -> None:
    model = adapt(runs["maml"], new["support"], tmp_path / "out")

    def distribution(adapted: Adapted, x: Tree) -> Gaussian:
        return Gaussian(model.learner.predict(adapted, x), torch.full((*x.shape[:2], 1), 4.0))

    sure = model._replace(learner=model.learner._replace(distribution=distribution))
    found = predict(sure, new["query"])
    assert found.low is not None and found.high is not None
    normal = torch.distributions.Normal(0.0, 2.0 * model.schema.scale)
    for mean, low, high in zip(found.prediction, found.low, found.high):
        ends = normal.cdf(torch.tensor([low - float(mean), high - float(mean)])).tolist()
        assert ends == pytest.approx([0.05, 0.95], abs=1e-4)
    assert list(found.columns())[-3:] == ["prediction", "low", "high"]


def test_a_process_is_surer_where_it_has_seen_rows(runs: dict[str, Path], new: dict[str, Path], tmp_path: Path) -> None:
    found = predict(adapt(runs["gaussian_process"], new["support"], tmp_path / "out"), new["query"])
    assert found.low is not None and found.high is not None
    widths = [high - low for low, high in zip(found.low, found.high)]
    assert 0 < widths[0] < widths[3]
    for low, mean, high in zip(found.low, found.prediction, found.high):
        assert float(mean) - low == pytest.approx(high - float(mean), rel=1e-4)


def test_company_does_not_matter(runs: dict[str, Path], new: dict[str, Path], tmp_path: Path) -> None:
    model = adapt(runs["maml"], new["support"], tmp_path / "out")
    together = predict(model, new["query"]).prediction
    columns = rows_of(without(pigs(1), "weight", "pig"), 6, 7)
    assert predict(model, write(tmp_path / "one.csv", columns)).prediction == pytest.approx(together[2:3], rel=1e-5)


def test_many_rows_are_predicted_in_parts(
    runs: dict[str, Path], new: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapt(runs["maml"], new["support"], tmp_path / "out")
    expected = predict(model, new["query"]).prediction
    monkeypatch.setattr("headstart.training.adapted_table._CHUNK", 3)
    assert predict(model, new["query"]).prediction == pytest.approx(expected, rel=1e-5)


def test_a_class_may_be_absent_from_the_support(runs: dict[str, Path], tmp_path: Path) -> None:
    columns = rows_of(pigs(1), 0, 2)
    columns["ill"] = ["yes", "yes"]
    support = write(tmp_path / "support.csv", columns)
    model = adapt(runs["prototypes"], support, tmp_path / "out")
    assert model.counts == (0, 2)
    for opened in (model, open_adapted(tmp_path / "out")):
        found = predict(opened, support)
        assert found.prediction == ["yes", "yes"] and found.probabilities is not None
        assert found.probabilities["no"] == [0, 0]


def changed(**columns: list[Any]) -> Columns:
    return rows_of(pigs(1), 0, 4) | {"pig": ["new"] * 4} | columns


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (changed(pig=["a", "a", "b", "b"]), "line 4, column 'pig': 'b' is another task than 'a' before it"),
        (without(changed(), "food"), r"no column 'food' \(a feature of the run\)"),
        (without(changed(), "weight"), r"no column 'weight' \(the target of the run\)"),
        (changed(weight=[1, "", 3, 4]), "line 3, column 'weight': the target is missing"),
        (changed(weight=[1, 2, "x", 4]), "line 4, column 'weight': 'x' is not a number"),
        (changed(week=[1, 2, "x", 4]), "line 4, column 'week': 'x' is not a number; the column's other values are"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    runs: dict[str, Path], tmp_path: Path, columns: Columns, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        adapt(runs["maml"], write(tmp_path / "support.csv", columns), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_categories_warn_and_unknown_classes_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.warns(UnseenValueWarning, match="column 'food': 'hay' in line 3 is in no training task"):
        adapt(runs["maml"], write(tmp_path / "a.csv", changed(food=["corn", "hay", "rye", "rye"])), tmp_path / "a")
    with pytest.raises(DataError, match="line 2, column 'ill': class 'maybe' is not among those learned: no, yes"):
        adapt(runs["nearest"], write(tmp_path / "b.csv", changed(ill=["maybe", "no", "no", "yes"])), tmp_path / "b")


def test_the_task_column_is_not_needed(runs: dict[str, Path], new: dict[str, Path], tmp_path: Path) -> None:
    named = predict(adapt(runs["maml"], new["support"], tmp_path / "a"), new["query"])
    support = write(tmp_path / "b.csv", without(changed(), "pig"))
    assert predict(adapt(runs["maml"], support, tmp_path / "b"), new["query"]).prediction == named.prediction


def test_rows_of_another_task_than_the_learned_one_are_refused(
    runs: dict[str, Path], new: dict[str, Path], tmp_path: Path
) -> None:
    model = adapt(runs["maml"], new["support"], tmp_path / "out")
    others = write(tmp_path / "others.csv", changed(pig=["another"] * 4))
    with pytest.raises(DataError, match="'another' is another task than .* from whose rows this model was learned"):
        predict(open_adapted(tmp_path / "out"), others)
    assert model.task is not None and open_adapted(tmp_path / "out").task == model.task
    unnamed = write(tmp_path / "unnamed.csv", without(changed(), "pig"))
    assert predict(model, unnamed).prediction


def test_other_runs_and_filled_folders_are_refused(runs: dict[str, Path], new: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is of sinusoid; a table's rows are for runs on tables"):
        adapt(runs["sinusoid"], new["support"], tmp_path / "out")
    with pytest.raises(ConfigError, match="is not empty"):
        adapt(runs["maml"], new["support"], tmp_path)
    with pytest.raises(FileError, match="holds no run"):
        adapt(tmp_path, new["support"], tmp_path / "out")
    with pytest.raises(FileError, match="holds no run on a table: there is no table.json"):
        read_schema(runs["sinusoid"])


def test_a_column_that_is_called_as_the_predictions_is_refused(
    runs: dict[str, Path], new: dict[str, Path], tmp_path: Path
) -> None:
    model = adapt(runs["maml"], new["support"], tmp_path / "out")
    path = write(tmp_path / "named.csv", changed(prediction=[1, 2, 3, 4]))
    with pytest.raises(DataError, match="has a column 'prediction', as the predictions are called; rename it"):
        predict(model, path, tmp_path / "found.csv")
    assert not (tmp_path / "found.csv").exists()


def test_numbers_that_are_not_finite_are_refused(
    runs: dict[str, Path], new: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapt(runs["maml"], new["support"], tmp_path / "out")

    def nothing(adapted: Adapted, x: Tree) -> Tensor:
        return torch.tensor([[[1.0], [2.0], [float("nan")], [4.0]]])

    with pytest.raises(DivergenceError, match="query.csv, line 4: the prediction is not finite"):
        predict(model._replace(learner=model.learner._replace(predict=nothing)), new["query"])
    spoiled = Adapted(model.adapted.meta, {"w": torch.full((1, 2), torch.nan)}, {}, None)
    learner = model.learner._replace(adapt=lambda meta, support, /, steps=None: (spoiled, None))
    monkeypatch.setattr("headstart.training.adapted_table._learner", lambda *_: learner)
    with pytest.raises(DivergenceError, match=r"adapting gives numbers that are not finite \(adapted.w\)"):
        adapt(runs["maml"], new["support"], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_schema_is_written_and_read_back(runs: dict[str, Path], tmp_path: Path) -> None:
    value = json.loads((runs["maml"] / "table.json").read_text())
    write_schema(tmp_path, value)
    assert read_schema(tmp_path) == read_schema(runs["maml"])
    with pytest.raises(FileError, match="the tasks' schema does not describe a table: extra is unknown"):
        write_schema(tmp_path, {**value, "extra": 1})


def test_damaged_folders_are_refused(runs: dict[str, Path], new: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    adapt(runs["maml"], new["support"], out)
    described = json.loads((out / "config.json").read_text())
    weights = (out / "adapted.safetensors").read_bytes()
    for change in (
        {"format": "headstart-adapted-1"}, {"rows": [1, 2]}, {"rows": [0]}, {"rows": [10**9]}, {"rows": "four"},
        {"table": {}}, {"table": {**described["table"], "features": described["table"]["features"][:1]}},
        {"base": {"method": "maml"}}, {"base": 1},
    ):  # fmt: skip
        (out / "config.json").write_text(json.dumps({**described, **change}))
        with pytest.raises(HeadstartError):
            open_adapted(out)
    (out / "config.json").write_text(json.dumps(described))
    for data in (weights[:-3], b"", weights[:100] + b"\xff" * 100):
        (out / "adapted.safetensors").write_bytes(data)
        with pytest.raises(FileError):
            open_adapted(out)
    with pytest.raises(FileError, match="holds no adapted model"):
        open_adapted(tmp_path / "nowhere")


class TestCommands:
    def test_adapt_and_predict_take_tables(
        self, runs: dict[str, Path], new: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out, found = tmp_path / "out", tmp_path / "found.csv"
        assert command(["adapt", str(runs["maml"]), str(new["support"]), "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"learned 'weight' from 4 rows: {out}\n"
        assert command(["predict", str(out), str(new["query"])]) == 0
        printed = capsys.readouterr().out
        assert printed.splitlines()[0] == "week,food,prediction" and len(printed.splitlines()) == 5
        assert command(["predict", str(out), str(new["query"]), "--out", str(found)]) == 0
        assert capsys.readouterr().out == f"predicted 4 rows: {found}\n" and found.read_text() == printed
        assert command(["predict", str(out), str(new["query"]), "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["week"] for row in rows] == ["4.0", "5.0", "6.0", "7.0"]
        assert all(isinstance(row["prediction"], float) for row in rows)

    def test_json_tells_the_classes(
        self, runs: dict[str, Path], new: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        assert command(["adapt", str(runs["nearest"]), str(new["support"]), "--out", str(out), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told == {"out": str(out), "target": "ill", "rows": 4, "classes": ["no", "yes"]}

    @pytest.mark.parametrize(
        ("words", "code", "message"),
        [
            (["adapt", "RUN", "SUPPORT", "--out", "NEW", "--strict"], 2, "--strict is for folders of images"),
            (["predict", "OUT", "QUERY", "QUERY"], 2, "takes one file of rows; got 2"),
            (["predict", "OUT", "NONE"], 1, "there is no such file"),
        ],
    )
    def test_wrong_uses_are_refused(
        self,
        runs: dict[str, Path],
        new: dict[str, Path],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        words: list[str],
        code: int,
        message: str,
    ) -> None:
        adapt(runs["maml"], new["support"], tmp_path / "out")
        places = {
            "RUN": runs["maml"], "SUPPORT": new["support"], "QUERY": new["query"], "OUT": tmp_path / "out",
            "NEW": tmp_path / "new", "NONE": tmp_path / "none.csv",
        }  # fmt: skip
        assert command([str(places.get(word, word)) for word in words]) == code
        assert message in capsys.readouterr().err
