"""Tasks whose examples are values in memory: of each kind the same as from files."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.data.images.kind import IMAGES
from headstart.data.tables.kind import TABLES
from headstart.data.tables.schema import Feature, Schema
from headstart.data.text.kind import TEXTS
from headstart.errors import DataError

UNSEEN = {"image_size": 28, "channels": 1, "fit": "crop"}
SCHEMA = Schema(
    "patient",
    "grade",
    None,
    "classification",
    (Feature("age", "number", 50.0, 10.0), Feature("sex", "category", categories=("f", "m"))),
    classes=("bad", "good"),
    commas=("age",),
)


def png(shade):
    file = io.BytesIO()
    Image.new("L", (30, 20), shade).save(file, "PNG")
    return file.getvalue()


def same(task, support):
    assert (task[0].labels, task[0].counts) == (support[0].labels, support[0].counts)
    torch.testing.assert_close(task[1].x, support[1].x, rtol=0, atol=0)
    torch.testing.assert_close(task[1].y, support[1].y)


def test_images_as_bytes_are_as_in_a_folder(tmp_path):
    prepared = IMAGES.read(IMAGES.untrained.preparation(None, UNSEEN, None), "here")
    shades = {"dark": (10, 20), "light": (200, 210, 220)}
    for label, own in shades.items():
        (tmp_path / label).mkdir()
        for shade in own:
            (tmp_path / label / f"{shade}.png").write_bytes(png(shade))
    given = [(label, png(shade)) for label, own in reversed(shades.items()) for shade in own]
    task = IMAGES.taught(prepared, [value for _, value in given], [label for label, _ in given])
    same(task, IMAGES.support(prepared, tmp_path, True)[0])


@pytest.mark.parametrize("value", [b"", b"GIF89a", png(0)[:50], np.zeros((3, 3))])
def test_what_is_no_image_is_called_by_its_place(value):
    prepared = IMAGES.read(IMAGES.untrained.preparation(None, UNSEEN, None), "here")
    if isinstance(value, bytes):
        with pytest.raises(DataError, match="image 1"):
            list(IMAGES.values(prepared, [png(0), value]))
    else:
        assert len(list(IMAGES.values(prepared, [png(0), value]))) == 1


def test_texts_are_as_in_a_file(tmp_path):
    options = {"text": None, "label": None, "task_column": None, "length": 32, "lower": True}
    prepared = TEXTS.read(TEXTS.untrained.preparation(None, options, None), "here")
    (tmp_path / "few.csv").write_text("text,label\nthe card,card\nmoney back,refund\nmy card,card\n")
    task = TEXTS.taught(prepared, ["the card", "money back", "my card"], ["card", "refund", "card"])
    same(task, TEXTS.support(prepared, tmp_path / "few.csv", True)[0])


def test_rows_are_as_in_a_file(tmp_path):
    (tmp_path / "rows.csv").write_text("age;sex;grade\n50,5;f;good\n;m;bad\n61;;good\n")
    rows = [
        {"age": 50.5, "sex": "f", "grade": "good"},
        {"age": None, "sex": "m", "grade": "bad", "note": "not read"},
        {"age": "61", "sex": "", "grade": "good"},
    ]
    with pytest.warns(UserWarning, match="missing"):
        task, support = TABLES.taught(SCHEMA, rows, ()), TABLES.support(SCHEMA, tmp_path / "rows.csv", True)[0]
    same(task, support)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"sex": "f", "grade": "good"}, "row 0 has no column 'age'"),
        ({"age": float("nan"), "sex": "f", "grade": "good"}, "column 'age': got a float"),
        ({"age": 10**400, "sex": "f", "grade": "good"}, "column 'age': got a int"),
        ({"age": [1], "sex": "f", "grade": "good"}, "column 'age': got a list"),
        ({"age": "old", "sex": "f", "grade": "good"}, "'age'"),
        ({"age": 1, "sex": "\ud800", "grade": "good"}, "UTF-8"),
        ({"age": 1, "sex": "f", "grade": "fair"}, "'fair' is not among those learned"),
        ([1, "f", "good"], "row 0 is a list"),
    ],
)
def test_a_row_that_cannot_be_is_refused(row, told):
    with pytest.raises(DataError, match=told):
        TABLES.taught(SCHEMA, [row], ())


def test_rows_of_several_tasks_or_with_labels_are_refused():
    rows = [{"age": 1, "sex": "f", "grade": "good", "patient": name} for name in "ab"]
    with pytest.raises(DataError, match="2 different patient"):
        TABLES.taught(SCHEMA, rows, ())
    with pytest.raises(DataError, match="leave the labels out"):
        TABLES.taught(SCHEMA, rows[:1], ("good",))
