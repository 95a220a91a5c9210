"""What every kind of data promises, and what each makes of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from headstart import tasks as families
from headstart.data.kind import find_kind, kind_of_family, number_answers
from headstart.data.text.clinc150 import DOMAINS
from headstart.errors import DataError, FileError, UnknownNameError
from headstart.registry import rows
from headstart.types import Tasks

KINDS = [row.name for row in rows("data")]


def made(family: str, folder: Path) -> Tasks:
    if family == "omniglot":
        pytest.skip("needs a download")
    options: dict[str, Any] = {}
    if family == "table":
        data = folder / "rows.csv"
        data.write_text("task,x,y\n" + "".join(f"{t},{x},{t + x * x}\n" for t in range(6) for x in range(8)))
        options = {"data": data, "task_column": "task", "target": "y"}
    if family == "folder":
        for place in range(30):
            (folder / f"class {place}").mkdir()
            for shade in range(2):
                Image.new("L", (5, 5), 5 * place + shade).save(folder / f"class {place}" / f"{shade}.png")
        options = {"data": folder, "queries": 1}
    if family == "domains":
        options = {"sources": ["icons"]}
    if family == "text":
        data = folder / "texts.csv"
        data.write_text("text,label\n" + "".join(f"text {n} of {c},class {c}\n" for c in range(30) for n in range(2)))
        options = {"data": data, "queries": 1}
    if family == "banking77":
        lines = ["text,category", *(f"{n} of {c},class {c}" for c in range(77) for n in range(2))]
        (folder / "train.csv").write_text("\n".join(lines))
        (folder / "test.csv").write_text("\n".join(lines[:2]))
        options = {"data": folder, "queries": 1}
    if family == "clinc150":
        asked = [(f"{n} of {own}", own) for names in DOMAINS.values() for own in names for n in range(2)]
        parts = ("val", "test", "oos_train", "oos_val", "oos_test")
        (folder / "data_full.json").write_text(json.dumps({"train": asked, **dict.fromkeys(parts, [])}))
        options = {"data": folder, "queries": 1}
    return getattr(families, family)(**options)


@pytest.mark.parametrize("family", [row.name for row in rows("task")])
def test_a_preparation_comes_back_and_says_what_a_learner_needs(family: str, tmp_path: Path) -> None:
    kind, tasks = kind_of_family(family), made(family, tmp_path)
    prepared = kind.read(kind.preparation(tasks), "here")
    assert kind.difference(prepared, prepared) == ""
    like = kind.like(prepared, 0)
    assert like[2:5] == tasks[2:5] and like.unit == tasks.unit
    with pytest.raises(DataError, match="there is none to sample"):
        like.sample("test", [0])
    shots = str(tasks.details.get("shots", 5)).strip("()").replace(", ", "-")
    assert shots in kind.task(tasks) and kind.predicts(prepared)
    for wrong in (None, 3, {}, {**(kind.preparation(tasks) or {}), "classes": "few"}):
        with pytest.raises(FileError):
            kind.read(wrong, "here")


def test_kinds_and_families_are_found_by_name() -> None:
    assert [find_kind(name).name for name in KINDS] == KINDS
    with pytest.raises(UnknownNameError, match="unknown kind of data 'image'; did you mean 'images'"):
        find_kind("image")


def test_sources_are_told_apart(tmp_path: Path) -> None:
    pictures, empty, others = tmp_path / "pictures", tmp_path / "empty", tmp_path / "others"
    for folder in (pictures / "cat", empty / "cat", others / "cat"):
        folder.mkdir(parents=True)
    (pictures / "cat" / "1.JPG").write_bytes(b"")
    (others / "cat" / "1.wav").write_bytes(b"")
    (tmp_path / "rows.tsv").write_text("a\tb\n")
    (tmp_path / "texts.jsonl").write_text('{"text": "a b", "label": "c"}')
    (tmp_path / "book.XLSX").write_bytes(b"PK")
    expected = {
        pictures: "images",
        empty: "images",
        others: None,
        tmp_path / "rows.tsv": "tables",
        tmp_path / "book.XLSX": "tables",
        tmp_path / "texts.jsonl": "texts",
        tmp_path / "x": None,
    }
    for path, kind in expected.items():
        assert [name for name in KINDS if find_kind(name).recognises(path)] == ([] if kind is None else [kind])


def test_tasks_that_no_file_can_hold_have_no_preparation() -> None:
    icons, sines = made("icons", Path()), made("sinusoid", Path())
    assert kind_of_family("icons").preparation(sines) is None and kind_of_family("sinusoid").preparation(icons) is None
    assert kind_of_family("sinusoid").preparation(sines._replace(output_size=2)) is None
    assert kind_of_family("icons").preparation(icons._replace(input_shape=(3, 4, 5))) is None


def test_rounding_is_no_other_table_and_other_categories_are(tmp_path: Path) -> None:
    kind, tasks = kind_of_family("table"), made("table", tmp_path)
    schema = kind.read(kind.preparation(tasks), "here")
    [feature] = schema.features
    assert kind.difference(schema, schema._replace(mean=schema.mean * (1 + 1e-13))) == ""
    assert kind.difference(schema, schema._replace(mean=schema.mean * (1 + 1e-6))) == "column 'y'"
    assert kind.difference(schema, schema._replace(features=(feature._replace(missing=True),))) == "column 'x'"
    other = schema._replace(features=(feature._replace(column="other"),))
    assert kind.difference(schema, other) == "which columns are features"


def test_public_names_are_lazy_and_listed() -> None:
    assert {"icons", "curves", "table", "few_shot", "Rows"} <= set(dir(families))
    assert all(callable(getattr(families, name)) for name in dir(families))
    with pytest.raises(AttributeError, match="module 'headstart.tasks' has no attribute 'icon'"):
        _ = families.icon


@pytest.mark.parametrize(
    ("mean", "scale", "told"), [(0.0, 1.0, "0.123456789"), (1e6, 1.0, "1000000.12345679"), (2e9, 1e9, "2.12345679e+09")]
)
def test_numbers_are_told_as_exactly_as_they_differ(mean: float, scale: float, told: str) -> None:
    (row,) = number_answers(torch.tensor([[0.12345678912345]], dtype=torch.float64), None, mean, scale)
    assert str(row["prediction"]) == told and float(told) == row["prediction"]
