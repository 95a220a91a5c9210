"""New tasks are learned by a network as it is, where there is no run."""

import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

import headstart
from headstart.cli import app
from headstart.errors import ConfigError, DataError, FileError, HeadstartError
from headstart.training.adapted import AdaptedModel

adapt = partial(headstart.adapt, cross_validate=False)
NETWORKS = """
import headstart, torch
from torch import nn

def texts():
    body = nn.EmbeddingBag(128, 128, mode="sum", padding_idx=0)
    body.load_state_dict({"weight": torch.eye(128).index_fill(0, torch.tensor([0]), 0)})

    def tokenize(texts):
        ids = [list(text.encode())[:40] for text in texts]
        return torch.tensor([row + [0] * (max(map(len, ids)) - len(row)) for row in ids])

    return headstart.of_texts(body, tokenize, pad=0)

def images():
    return headstart.of_images(nn.AvgPool2d(14), size=14, mean=(0.5,) * 3, std=(0.5,) * 3)
"""
COLOURS = {"red": (200, 30, 30), "green": (20, 180, 40), "blue": (30, 40, 190)}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORKS)
    old = ["the quick zebra,animal", "a zebra zigzags,animal", "my lazy zebra,animal"]
    new = ["open the vat,tool", "a vat of oil,tool", "zebras graze,animal"]
    for name, rows in {"old": [*old, "hammer it in,verb", "hammers hum,verb"], "new": new}.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "all.csv").write_text((tmp_path / "old.csv").read_text() + "\n" + "\n".join(new))
    (tmp_path / "amounts.csv").write_text("text,label\na cat,1.5\na dog,2\n")
    (tmp_path / "odd.csv").write_text('text,label\nthis one,"a\nb"\nthat one,c\n')
    (tmp_path / "table.csv").write_text("patient,age,pressure\n1,30,120\n2,40,130\n")
    for name, colour in COLOURS.items():
        for number in range(2):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            shade = tuple(part + 9 * number for part in colour)
            Image.new("RGB", (24, 16), shade).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("network", ["net.py:texts", "ngrams"])
def test_texts_are_learned_at_once_and_added_to(place, network):
    one = adapt(network, place / "old.csv", place / "one")
    assert one.tasks[0].counts == (3, 2)
    added = adapt(place / "one", place / "new.csv", place / "added")
    whole = adapt(network, place / "all.csv", place / "whole")
    assert added.tasks[0].labels == ("animal", "tool", "verb") and added.tasks[0].counts == whole.tasks[0].counts
    asked = ["zebra", "vat of oil", "hammer hammers"]
    found, at_once = (headstart.predict(model, asked) for model in (added, headstart.open_adapted(place / "whole")))
    assert [row["prediction"] for row in found] == ["animal", "tool", "verb"]
    for row, other in zip(found, at_once, strict=True):  # what all inputs say is read again where some are added
        assert row["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    (place / "alone.csv").write_text("text,label\nfar away,place\n")  # a class by itself is something to add
    assert adapt(place / "one", place / "alone.csv", place / "two").tasks[0].counts == (3, 1, 2)
    with pytest.raises(DataError, match="alone.csv has one class only, 'place'"):
        adapt(network, place / "alone.csv", place / "three")
    named = network if network == "ngrams" else place / network
    assert f"on {named} as it is" in (place / "added" / "README.md").read_text()
    assert "calibrated by these\nexamples themselves" in (place / "added" / "README.md").read_text()
    (place / "one_each.csv").write_text("text,label\na zebra,animal\na vat,tool\n")
    adapt(network, place / "one_each.csv", place / "bare", names=False)
    assert "the model's own and not\ncalibrated" in (place / "bare" / "README.md").read_text()


#: What is asked is said in no example, but in the name of the class.
NAMED = {
    "card_arrival": ("where is my card", "the card is late"),
    "exchangeRate": ("the rate of the euro", "what rate is the dollar"),
    "forgotten-pin": ("my pin is gone", "i do not know my pin"),
    "loan": ("a loan for a house", "may i have a loan"),
}
ASKED, MEANT = ("arrival", "exchange", "forgotten"), ["card_arrival", "exchangeRate", "forgotten-pin"]


def named(place: Path, file: str, classes: dict[str, str]) -> Path:
    rows = [f"{text},{classes[name]}" for name, texts in NAMED.items() if name in classes for text in texts]
    (place / file).write_text("\n".join(["text,label", *rows]))
    return place / file


def answers(model: AdaptedModel) -> list[str]:
    return [row["prediction"] for row in headstart.predict(model, ASKED)]


def test_the_names_of_classes_are_examples_where_they_tell(place: Path, capsys):
    source = named(place, "named.csv", {name: name for name in NAMED})
    model = adapt("ngrams", source, place / "told")
    assert model.named and model.tasks[0].counts == (2, 2, 2, 2) and answers(model) == MEANT
    assert "the name of each class an example more" in (place / "told" / "README.md").read_text()
    assert answers(headstart.open_adapted(place / "told")) == MEANT
    assert model.by.kind.names is not None
    how = model.by.kind.read(model.by.preparation, "the model")
    said, meant = (
        model.by.kind.names(how, names)
        for names in (list(NAMED), ["card arrival", "exchange rate", "forgotten pin", "loan"])
    )
    assert said.equal(meant), "names are read as they are said"
    assert not adapt("ngrams", source, place / "without", names=False).named
    numbers = named(place, "numbers.csv", {name: f"{n}" for n, name in enumerate(NAMED)})
    assert not adapt("ngrams", numbers, place / "numbered").named, "such names say nothing"
    assert app.run(["adapt", "ngrams", str(numbers), "--names", "--out", str(place / "asked")]) == 0
    assert ", and the names of the classes:" in capsys.readouterr().out


def test_names_are_examples_of_what_is_added_too(place: Path):
    first, last = dict(list(zip(NAMED, NAMED))[:2]), dict(list(zip(NAMED, NAMED))[2:])
    adapt("ngrams", named(place, "first.csv", first), place / "first", names=True)
    added = adapt(place / "first", named(place, "last.csv", last), place / "added")
    whole = adapt("ngrams", named(place, "whole.csv", first | last), place / "whole", names=True)
    assert added.named and added.tasks[0].counts == whole.tasks[0].counts == (2, 2, 2, 2) and answers(added) == MEANT
    found, at_once = (headstart.predict(model, ASKED) for model in (added, whole))
    for row, other in zip(found, at_once, strict=True):
        assert row["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)


def test_classes_of_images_have_no_names_to_learn_from(place: Path):
    with pytest.raises(ConfigError, match="only of classes of texts"):
        adapt("net.py:images", place / "photos", place / "out", names=True)
    assert not (place / "out").exists()


def test_images_from_the_command_line(place, capsys):
    assert app.run(["adapt", "net.py:images", "photos", "--fit", "pad", "--out", "mine"]) == 0
    out = capsys.readouterr().out
    assert "3 classes (blue, green, red) from 6 images" in out and "6 of 6 images are told right by the others" in out
    assert "| blue | 2 | 2 of 2 |" in (place / "mine" / "README.md").read_text()
    assert json.loads((place / "mine" / "config.json").read_text())["preparation"]["fit"] == "pad"
    assert app.run(["predict", "mine", "photos", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 6 and all(row["prediction"] == Path(row["image"]).parent.name for row in rows)
    assert app.run(["adapt", "ngrams", "old.csv", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ("--text", "--label", "--head")) and "--ways" not in told


@pytest.mark.parametrize(
    ("network", "source", "error", "told"),
    [
        ("conv4", "photos", ConfigError, "'conv4' knows nothing before it is trained"),
        ("mlp", "table.csv", ConfigError, "'mlp' knows nothing before it is trained"),
        ("ngrams", "table.csv", DataError, "which column is the text"),
        ("net.py:images", "old.csv", DataError, "a CSV file of images has"),
        ("ngrams", "amounts.csv", DataError, "column 'label': the values are numbers, and no two the same"),
        ("ngrams", "odd.csv", DataError, "has a task or class .*, whose name is none to print"),
        ("ngrams", None, ConfigError, "name the examples to learn from"),
        ("ngrams", "nowhere.csv", FileError, "there is no nowhere.csv"),
    ],
)
def test_what_cannot_be_learned_so_is_refused(
    place: Path, network: str, source: str | None, error: type[HeadstartError], told: str
):
    with pytest.raises(error, match=told):
        adapt(network, source, place / "out")
    assert not (place / "out").exists()


def test_names_are_learned_from_and_not_judged(place):
    model = headstart.adapt("ngrams", place / "old.csv", place / "out", names=True)
    assert model.named and model.told[0].judged == (3, 2)
    assert model.told[0].right == (3, 2), "hammers are a verb by the other one"


@pytest.mark.parametrize("name", ["photos", "net.py", "nowhere"])
def test_what_is_neither_a_run_nor_a_network_is_told_what_it_may_be(place, name):
    with pytest.raises(FileError, match=f"{name} is neither a run nor a network; .* FILE.py:FUNCTION"):
        adapt(name, "photos", place / "out")
    (place / "photos" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FileError, match="but a pretrained network, which is called hf:photos"):
        adapt("photos", "old.csv", place / "out")


def test_columns_that_are_named_must_be_there(place):
    tree = {"model": "ngrams", "tasks": {"label": "lable"}}
    with pytest.raises(DataError, match="no column 'lable'"):
        adapt(tree, place / "old.csv", place / "out")
    model = adapt({**tree, "tasks": {"label": "label"}}, place / "old.csv", place / "out")
    assert model.by.preparation["text"] == "text" and model.tasks[0].labels == ("animal", "verb")


def test_each_task_of_a_column_is_learned(place):
    rows = ["who,text,label", "bo,a cat,pet", "bo,a car,thing", "al,a cat,no", "al,a car,yes"]
    (place / "tasks.csv").write_text("\n".join(rows))
    model = adapt({"model": "ngrams", "tasks": {"task_column": "who"}}, place / "tasks.csv", place / "out")
    assert [(task.name, task.labels) for task in model.tasks] == [("bo", ("pet", "thing")), ("al", ("no", "yes"))]
    assert headstart.predict(model, ["my cat"], task="al")[0]["prediction"] == "no"


def test_too_few_classes_to_train_on_are_told_the_way(place):
    with pytest.raises(headstart.errors.ShortClassError, match="headstart adapt NETWORK"):
        headstart.tasks.text(place / "all.csv")
