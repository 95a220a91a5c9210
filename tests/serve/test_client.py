"""The same calls as at home, of a service."""

import csv

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.serve.client import ServiceError
from tests.serve.conftest import drawing

WORDS = {"card": ["where is my card", "my card is lost"], "refund": ["give me my money back", "i want a refund"]}


@pytest.fixture(scope="module")
def client(service):
    found = headstart.Client(service[0].url)
    yield found
    found.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of class folders of drawings, and one of others to tell apart."""
    place = tmp_path_factory.mktemp("drawings")
    for shape in ("bar", "cross", "square"):
        for seed in range(4):
            path = place / ("asked" if seed == 3 else f"shown/{shape}") / f"{shape}{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(drawing(shape, seed))
    return place


def test_images_are_learned_as_at_home(client, folder, demo_run, tmp_path):
    task = client.adapt("icons", folder / "shown", name="shapes")
    model = headstart.adapt(demo_run, folder / "shown", tmp_path / "adapted")
    assert (task.labels, task.counts) == (model.tasks[0].labels, model.tasks[0].counts) and task.name == "shapes"
    rows, same = client.predict(task, folder / "asked"), headstart.predict(model, folder / "asked")
    assert [row["image"] for row in rows] == [row["image"] for row in same]
    for row, other in zip(rows, same, strict=True):
        assert row["prediction"] == other["prediction"]
        assert row["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    shares = {"reject": 0.2, "unknown_share": 0.1}
    rows, same = client.predict(task, folder / "asked", **shares), headstart.predict(model, folder / "asked", **shares)
    for row, other in zip(rows, same, strict=True):
        assert row["prediction"] == other["prediction"]
        assert row["unknown"] == pytest.approx(other["unknown"], abs=1e-5)


def test_images_as_values(client, folder):
    shown = {path.name: list(path.iterdir()) for path in (folder / "shown").iterdir()}
    task = client.adapt("icons", shown)
    picture = Image.open(folder / "asked" / "cross3.png")
    for asked in (picture, np.asarray(picture), (folder / "asked" / "cross3.png").read_bytes()):
        assert [row["prediction"] for row in client.predict(task, [asked])] == ["cross"]


def test_texts_and_rows(client, tmp_path):
    task = client.adapt("ngrams", WORDS)
    assert [row["prediction"] for row in client.predict(task.id, ["my card", "a refund"])] == ["card", "refund"]
    few = tmp_path / "few.csv"
    with few.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("text", "label"), *((text, own) for own, texts in WORDS.items() for text in texts)]
        )
    assert client.adapt("ngrams", few).counts == task.counts
    assert [row["text"] for row in client.predict(task, few)] == [text for texts in WORDS.values() for text in texts]
    rows = [{"x": x, "y": 2 * x} for x in range(5)]
    line = client.adapt("curves", rows)
    (row,) = client.predict(line, [{"x": 2}])
    assert row["x"] == 2 and row["low"] < row["prediction"] < row["high"]


def test_a_task_grows_shrinks_is_listed_and_deleted(client):
    task = client.adapt("ngrams", WORDS)
    grown = client.add(task, {"hours": ["when do you open", "open on sunday"]})
    assert grown.labels == ("card", "hours", "refund") and client.remove(grown, "hours").labels == task.labels
    assert task.id in [one.id for one in client.tasks()]
    client.delete(task)
    with pytest.raises(ServiceError, match="no task") as told:
        client.predict(task.id, ["card"])
    assert told.value.status == 404


def test_more_inputs_than_a_request_may_have_are_several_requests(client):
    task = client.adapt("ngrams", WORDS)
    assert len(client.predict(task, ["my card"] * 1001)) == 1001


def test_what_is_wrong_is_said_as_at_home(client, tmp_path):
    with pytest.raises(DataError, match="one class only"):
        client.adapt("ngrams", {"card": ["a"]})
    with pytest.raises(UnknownNameError, match="icons"):
        client.adapt("icon", WORDS)
    with pytest.raises(UnknownNameError):
        client.adapt(None, WORDS)
    with pytest.raises(UsageError, match="mapping from labels"):
        client.adapt("ngrams", ["a", "b"])
    with pytest.raises(DataError, match="class folders"):
        client.adapt("icons", tmp_path / "none")
    for url in ("localhost:8000", "ftp://a", ""):
        with pytest.raises(UsageError, match="no address"):
            headstart.Client(url)


def test_a_service_that_is_not_there_is_told_of(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(ServiceError, match="does it run"):
        headstart.Client("http://127.0.0.1:9").limits()
