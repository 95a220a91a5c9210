"""Texts as tasks, and as a kind of data from a file to predictions."""

import gzip
import warnings

import pytest
import torch

from headstart.cli.app import run
from headstart.data.kind import find_kind
from headstart.data.text.kind import TEXTS
from headstart.data.text.read import CutTextWarning
from headstart.data.text.text import text
from headstart.errors import ConfigError, DataError, LeakageError, ShortClassError, UsageError
from headstart.registry import rows
from headstart.training.adapt import adapt
from headstart.training.adapted import open_adapted
from headstart.training.config import normal
from headstart.training.elsewhere import evaluate_on
from headstart.training.predictions import predict

WORDS = "card money rate pin loan fee cash bank visa app code name".split()


def intents(path, classes=10, texts=6, split=None):
    lines = ["text,label" + (",split" if split else "")]
    for c in range(classes):
        for n in range(texts):
            lines.append(f"{WORDS[n]} question {WORDS[c]} number {n},{WORDS[c]}" + (f",{split(c)}" if split else ""))
    path.write_text("\n".join(lines))
    return path


def said(x):
    return [bytes(row.tolist()).rstrip(b"\0").decode() for row in x.flatten(0, 1)]


def test_episodes_hold_the_texts_of_their_classes(tmp_path):
    tasks = text(intents(tmp_path / "a.csv"), ways=2, queries=2, length=40)
    assert tasks.input_shape == (40,) and tasks.kind == "classification"
    for split in ("train", "validation", "test"):
        episodes = tasks.sample(split, range(5))
        for batch in episodes:
            own = [name for t in range(5) for name in [tasks.names(split, t)[k] for k in batch.y[t]]]
            assert all(f"question {name} " in told for told, name in zip(said(batch.x), own))
            assert set(own) <= set(tasks.details["class_names"][split])
        assert not {*said(episodes.support.x[:1])} & {*said(episodes.query.x[:1])}


def test_a_column_of_splits_is_followed_and_no_class_may_be_in_two(tmp_path):
    split = lambda c: ("train", "train", "val", "test")[c % 4]  # noqa: E731
    tasks = text(intents(tmp_path / "a.csv", classes=12, split=split), ways=2, queries=1)
    assert tasks.details["class_names"]["validation"] == sorted(WORDS[c] for c in (2, 6, 10))
    path = intents(tmp_path / "b.csv", classes=12, split=split)
    path.write_text(path.read_text() + "\none more text,card,test")
    with pytest.raises(LeakageError, match="share class 'card'"):
        text(path, ways=2, queries=1)
    with pytest.raises(DataError, match="line 2: the split is 'later'; expected train"):
        text(intents(tmp_path / "c.csv", split=lambda c: "later"))
    with pytest.raises(DataError, match="no text in the split test"):
        text(intents(tmp_path / "d.csv", split=lambda c: ("train", "val")[c % 2]))


def test_what_is_cut_or_short_is_said(tmp_path):
    tasks = text(intents(tmp_path / "a.csv"), length=16)
    assert any(note.startswith("60 of 60 texts are longer than 16 bytes") for note in tasks.details["notes"])
    path = intents(tmp_path / "b.csv")
    said_before, name = path.read_text().splitlines()[1].split(",")
    path.write_text(path.read_text() + f"\n {said_before.upper()},{name}")
    assert any("1 of 61 texts is there before in the same class" in note for note in text(path).details["notes"])
    path.write_text(path.read_text() + f"\n{said_before} goes on,{name}")  # where it is cut it is the same
    for length, again in ((len(said_before), 2), (64, 1)):
        assert any(f"{again} of 62 texts" in note for note in text(path, length=length).details["notes"])
    path.write_text(path.read_text() + "\none text alone,alone")
    with pytest.raises(ShortClassError, match="class 'alone' of split '\\w+' has 1 texts"):
        text(path)
    assert text(path, on_short="skip").details["skipped_classes"] == 1
    with pytest.raises(ShortClassError, match="has 4 classes"):
        text(intents(tmp_path / "c.csv", classes=4))
    (tmp_path / "d.csv").write_text("text\nno label here\n")
    with pytest.raises(DataError, match="no column that tells it is the labels"):
        text(tmp_path / "d.csv")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("text,label\nwhere is it,a\nwho is it,a\n", "texts"),
        ("id;sentence;intent\n1;where is it;a\n2;who is it;b\n", "texts"),
        ("a\tb\nwhere is it\tx\nwho is it\tx\nwhat is it\ty\nwhy is it\ty\n", "texts"),
        ("customer,text,label\na,where is it,x\na,who is it,y\nb,what is it,x\nb,why is it,y\n", "texts"),
        ("a,text,score\n1,where is it,3.5\n1,who is it,4\n2,what is it,1\n2,why is it,2\n", "tables"),
        ("text,score\nwhere is it,3.5\nwho is it,4\n", "texts"),
        ("text;score\nwhere is it;3,5\nwho is it;4,0\n", "texts"),
        ("a,b\n我的卡在哪里,卡\n我的卡丢了吗,卡\n怎么转账给你,转账\n什么时候转账,转账\n", "texts"),
        ("id,note\n1,3\n2,4\n", "tables"),
        ("text,label,age\nwhere is it,a,3\nwho is it,b,4\n", "tables"),
        ("task,x,y\na,1,2\na,2,3\n", "tables"),
        ("content,category\n0.3,a\n0.4,b\n0.5,a\n", "tables"),
        ("shop,note,price\n1,not so good,3\n1,very good too,4\n2,cheap but fine,5\n2,it is ok,6\n", "tables"),
    ],
)
def test_a_file_of_texts_is_told_from_a_table(tmp_path, content, kind):
    path = tmp_path / "a.csv"
    path.write_text(content)
    assert next(row.name for row in rows("data") if find_kind(row.name).recognises(path)) == kind
    # a column of texts that is named leaves no doubt
    assert normal({"tasks": {"name": str(path), "text": "id"}})["tasks"]["name"] == "text"


def test_the_named_column_of_texts_says_what_a_file_is(tmp_path, capsys):
    rows = [f"{n},{name}{n},{name}" for name in "abcdefghij" for n in range(4)]
    (tmp_path / "a.csv").write_text("\n".join(["row,word,of", *rows]))
    assert run(["train", str(tmp_path / "a.csv"), "--out", str(tmp_path / "run")]) == 2
    assert "--text says which column" in " ".join(capsys.readouterr().err.split())
    for option in ("--text", "--tasks.text"):
        assert run(["train", str(tmp_path / "a.csv"), option, "word", "--label", "of", "--help"]) == 0
        assert "Tasks: text" in capsys.readouterr().out


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A folder with a run of twelve intents, and what it has learned of two others."""
    folder = tmp_path_factory.mktemp("texts")
    words = ["train", str(intents(folder / "intents.csv")), "--out", str(folder / "run"), "--json"]
    few = "--ways 2 --queries 2 --steps 2 --test-tasks 4 --evaluate-tasks 2 --bits 8 --threads 1 --length 64"
    assert run([*words, *few.split()]) == 0
    lines = ["message,kind", "the cat sat on a mat,cat", "a cat eats,cat", "stocks fell today,news", "stocks rise,news"]
    (folder / "new.csv").write_text("\n".join(lines))
    adapt(folder / "run", folder / "new.csv", folder / "adapted")
    return folder


def test_a_run_adapts_to_labelled_texts_and_predicts_others(learned, tmp_path, capsys):
    model = open_adapted(learned / "adapted")
    assert model.tasks[0].labels == ("cat", "news") and model.tasks[0].counts == (2, 2)
    found = predict(model, ["the cat sat on a mat", "will stocks fall today?"])
    assert [row["prediction"] for row in found] == ["cat", "news"]
    assert all(abs(sum(row["probabilities"].values()) + row.get("unknown", 0) - 1) < 1e-6 for row in found)
    assert predict(model, "the cat sat on a mat")[0]["probability"] == pytest.approx(found[0]["probability"])
    (learned / "ask.csv").write_text("nr,message\n7,the cat sat on a mat\n8,\n9,will stocks fall today?\n")
    capsys.readouterr()
    assert run(["predict", str(learned / "adapted"), str(learned / "ask.csv")]) == 3
    printed = capsys.readouterr()
    assert [line.split(",")[:3] for line in printed.out.splitlines()[1:]] == [
        ["7", "the cat sat on a mat", "cat"],
        ["9", "will stocks fall today?", "news"],
    ]
    assert "line 3: the text is empty" in printed.err
    (tmp_path / "ask.csv.gz").write_bytes(gzip.compress(b"text\nthe cat sat on a mat\n"))
    assert [row["prediction"] for row in predict(model, tmp_path)] == ["cat"]


def test_the_report_says_first_what_a_pretrained_network_would_add(learned):
    lines = (learned / "run" / "README.md").read_text().splitlines()
    assert lines[2].startswith("No pretrained network was used")


def test_a_run_is_judged_on_texts_of_another_source(learned, tmp_path):
    other = intents(tmp_path / "other.csv", classes=9)
    other.write_text(other.read_text().replace(" question ", " answer "))
    found = evaluate_on(learned / "run", str(other), episodes=20)
    assert found.on == "other" and found.score.mean > 0.6
    with pytest.raises(ConfigError, match="read by .'length': 32, .* in the run it is .'length': 64"):
        evaluate_on(learned / "run", {"name": str(other), "length": 32}, episodes=2)


def test_a_string_is_a_text_unless_a_file_is_meant(learned, tmp_path):
    model = open_adapted(learned / "adapted")
    (learned / "one.txt").write_text("stocks fell today")
    assert predict(model, learned / "one.txt")[0]["prediction"] == "news"
    for missing in ("texts.csv", "some/folder", "x.jsonl"):
        with pytest.raises((DataError, UsageError, OSError), match=missing):
            predict(model, missing)
    with pytest.raises(UsageError, match="some of both"):
        predict(model, ["a text", str(learned / "new.csv")])
    for empty in (" ", ""):
        with pytest.raises(DataError, match="text 1 is empty"):
            predict(model, ["a text", empty])
    (tmp_path / "two.csv").write_text("body,title\na long one,a short one\n")
    with pytest.raises(DataError, match="which column is the text.*; call it 'text', as it was"):
        predict(model, tmp_path / "two.csv")
    with pytest.raises(DataError, match="text 1, 'half .ud83d' is no text that UTF-8 can write"):
        predict(model, ["a text", "half \ud83d"])
    with pytest.raises(DataError, match="a int is no text"):
        predict(model, [3])
    assert len(predict(model, ["what / why?", "x" * 5])) == 2


def test_a_long_text_is_read_in_part_with_a_warning(learned):
    model = open_adapted(learned / "adapted")
    with pytest.warns(CutTextWarning, match="1 of 2 texts is longer than 64 bytes"):
        long, _ = predict(model, ["stocks fell " + "x" * 100_000, "short"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same = predict(model, ["stocks fell " + "x" * 52])
    assert long["probabilities"] == pytest.approx(same[0]["probabilities"])


def test_one_class_or_no_labels_teach_nothing(learned, tmp_path):
    prepared = TEXTS.read(open_adapted(learned / "adapted").by.preparation, "here")
    (tmp_path / "a.csv").write_text("text,label\none text,a\ntwo texts,a\n")
    with pytest.raises(DataError, match="one class only, 'a'"):
        adapt(learned / "run", tmp_path / "a.csv", tmp_path / "out")
    (tmp_path / "b.csv").write_text("text\none text\ntwo texts\n")
    with pytest.raises(DataError, match="no column of labels"):
        TEXTS.support(prepared, tmp_path / "b.csv", True)
    with pytest.raises(DataError, match="learned from texts"):
        TEXTS.support(prepared, None, True)
    assert torch.equal(*(TEXTS.support(prepared, learned / "new.csv", s)[0][1].x for s in (True, False)))
