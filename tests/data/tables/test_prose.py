"""Columns of texts in tables."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from headstart.cli.app import run
from headstart.data.tables import prose
from headstart.data.tables.kind import TABLES
from headstart.data.tables.schema import encode_features, learn_features, schema_to_json
from headstart.data.tables.table import LeftOutWarning, table
from headstart.data.text.read import CutTextWarning
from headstart.errors import DataError, FileError
from headstart.models.ngrams import Hashed
from headstart.training.adapt import adapt
from headstart.training.predictions import predict

GOOD, BAD = ("works very well", "fine and quick", "all is good"), ("broke too soon", "slow and loud", "it is bad")


def comment(row: int, good: bool) -> str:
    return f"{(GOOD if good else BAD)[row % 3]} on day {row}"


@pytest.fixture
def visits() -> dict[str, list[Any]]:
    """Twelve tasks of ten rows, whose target is known from a comment alone."""
    good = [row * 7 % 10 < 5 for row in range(120)]
    return {
        "shop": [f"s{row // 10}" for row in range(120)],
        "hours": [row * 7 % 11 for row in range(120)],
        "comment": [comment(row, own) for row, own in enumerate(good)],
        "stars": [4 * own + row * 3 % 7 / 10 for row, own in enumerate(good)],
    }


def test_the_numbers_are_the_principal_components_of_tf_idf() -> None:
    """By scikit-learn's definition of TF-IDF with log counts, and NumPy's decomposition, up to signs."""
    texts = [comment(row, row % 2 == 0) for row in range(40)]
    found, share = prose.learn_components(texts, 5)
    ids, _ = prose.in_bytes(texts, 64, lower=True)
    counts = Hashed(12, 3, 5, 1)(ids.long()).double().numpy()
    weighted = counts * (1 + np.log((1 + 40) / (1 + (counts > 0).sum(0))))
    rows = weighted / np.linalg.norm(weighted, axis=1, keepdims=True)
    left, sizes, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    wanted, own = left[:, :5] * 40**0.5, found.numbers(texts).double().numpy()
    signs = np.sign((wanted * own).sum(0))
    assert np.abs(own - wanted * signs).max() < 1e-4
    assert share == pytest.approx((sizes[:5] ** 2).sum() / (sizes**2).sum())
    again = prose.from_text(prose.to_text(found), 5)
    assert all(torch.equal(one, other) for one, other in zip(again, found))


def test_few_texts_have_few_components() -> None:
    found, share = prose.learn_components(["one two three", "four five six", "one five six"], 8)
    assert found.numbers(["one two three"]).shape == (1, 2) and share == pytest.approx(1)
    assert found.numbers([]).shape == (0, 2)


def test_a_column_of_sentences_becomes_numbers_and_a_note_says_so(in_memory: Any, visits: Any) -> None:
    columns = {name: [str(value) for value in values] for name, values in visits.items()}
    columns["comment"][3] = ""
    found = learn_features(in_memory(columns), ["hours", "comment"], strict=True, text_numbers=4)
    text = found.features[1]
    assert text.inputs == ("comment 1", "comment 2", "comment 3", "comment 4", "comment missing")
    (note,) = found.notes
    assert note.startswith("column 'comment' is of texts, 119 different ones in 119 training rows, which become 4 num")
    x = encode_features(found.features, in_memory(columns))[:, 1:]
    assert not x[3, :4].any() and x[3, 4] == 1 and x[:, 4].sum() == 1
    there = x[[row for row in range(120) if row != 3], :4]
    assert there.mean(0).abs().max() < 1e-4 and (there.std(0, correction=0) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("values", [["Ada Lovelace", "Alan Turing"], ["a1", "b2"]])
def test_names_are_no_texts(write: Callable[..., Any], visits: Any, values: list[str]) -> None:
    names = {**visits, "comment": [f"{values[row % 2]}{row}" for row in range(120)]}
    options: Any = {"task_column": "shop", "target": "stars", "shots": 3}
    with pytest.warns(LeftOutWarning, match="column 'comment': left out: text with [0-9]+ different values"):
        assert table(data=write(names), **options).details["features"] == ["hours"]
    with pytest.warns(LeftOutWarning, match="column 'comment': left out"):
        assert table(data=write(visits), text_numbers=0, **options).details["features"] == ["hours"]


def test_a_run_adapts_and_predicts_by_texts(write: Callable[..., Any], visits: Any, tmp_path: Any) -> None:
    words = "--task-column shop --target stars --shots 3 --method ridge --model identity --steps 20 --threads 1"
    more = "--text-numbers 4 --test-tasks 4 --evaluate-tasks 2 --json"
    path = write(visits)
    assert run(["train", str(path), *words.split(), *more.split(), "--out", str(tmp_path / "run")]) == 0
    assert "'comment' is of texts" in (tmp_path / "run" / "README.md").read_text()
    new = {name: values[:60] for name, values in visits.items() if name != "shop"}
    model = adapt(tmp_path / "run", write(new, "new.csv"), tmp_path / "adapted")
    ask = {"hours": [5, 5], "comment": ["works very well on day 200", "broke too soon on day 201"]}
    good, bad = predict(model, write(ask, "ask.csv"))
    assert good["prediction"] > bad["prediction"] + 1
    ask["comment"][0] += " so far" * 30_000
    with pytest.warns(CutTextWarning, match="column 'comment': 1 of 2 texts are longer than 1024 bytes"):
        assert predict(model, write(ask, "long.csv"))[1]["prediction"] == bad["prediction"]
    with pytest.raises(DataError, match="no column 'comment'"):
        predict(model, write({"hours": [1]}, "lacks.csv"))


def test_a_schema_with_texts_is_checked_whole_and_compared(write: Callable[..., Any], visits: Any) -> None:
    made = {}
    for count in (2, 3):
        tasks = table(data=write(visits), task_column="shop", target="stars", shots=3, text_numbers=count)
        made[count] = json.loads(json.dumps(tasks.details["schema"]))
    schema = TABLES.read(made[2], "here")
    assert schema_to_json(schema) == made[2] and TABLES.difference(schema, schema) == ""
    assert TABLES.difference(schema, TABLES.read(made[3], "here")) == "column 'comment'"
    text = schema.features[1]
    turned = prose.from_text(text.components, 2)
    turned = prose.to_text(turned._replace(directions=-turned.directions))
    other = schema._replace(features=(schema.features[0], text._replace(components=turned)))
    assert TABLES.difference(schema, other) == "column 'comment'"
    for change, message in (
        ({"components": "?"}, "base64"),
        ({"components": text.components[:-8]}, "bytes of components"),
        ({"numbers": 3}, "bytes of components"),
        ({"components": "", "numbers": 0}, "a text of 0 numbers"),
        ({"network": {"source": "x"}}, "network"),
    ):
        broken = json.loads(json.dumps(made[2]))
        broken["features"][1] |= change
        with pytest.raises(FileError, match=message):
            TABLES.read(broken, "here")
