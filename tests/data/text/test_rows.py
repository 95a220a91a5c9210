"""Many small text data sets as tasks, and numbers that texts are to tell."""

import json
from collections import Counter

import pytest
import torch

from headstart.cli.app import run
from headstart.data.text.kind import TEXTS
from headstart.data.text.read import SameTextWarning, read_texts
from headstart.data.text.rows import as_numbers
from headstart.data.text.text import text
from headstart.errors import ConfigError, DataError, FileError, UsageError
from headstart.training.adapt import adapt
from headstart.training.adapted import open_adapted
from headstart.training.build import build
from headstart.training.config import resolve
from headstart.training.predictions import predict

WORDS = "card money rate pin loan fee cash bank visa app code name".split()


def tickets(path, shops=8, texts=4, more=""):
    """A file of shops, each of 2 or 3 topics, whose names are those of other topics elsewhere."""
    lines = ["shop,text,label"]
    for shop in range(shops):
        for topic in range(2 + shop % 2):
            word = WORDS[(5 * shop + topic) % 12]
            lines += [f"s{shop},{WORDS[n]} about {word} here,topic {topic}" for n in range(texts)]
    path.write_text("\n".join(lines) + more)
    return path


def scores(path, shops=None, texts=60, values=lambda row, good: 3 + 2 * good + row % 3 / 10):
    lines = ["text,score" + (",shop" if shops else "")]
    for row in range(texts):
        good = row * 7 % 5
        told = " ".join(("good",) * good + ("bad",) * (4 - good))
        lines.append(f"{told} number {row},{values(row, good)}" + (f",s{row % shops}" if shops else ""))
    path.write_text("\n".join(lines))
    return path


def said(x):
    return [bytes(row.tolist()).rstrip(b"\0").decode() for row in x]


def test_each_value_of_the_column_is_a_task_with_labels_of_its_own(tmp_path):
    path = tickets(tmp_path / "a.csv")
    tasks = text(path, task_column="shop", shots=2)
    known = {tuple(line.split(",")) for line in path.read_text().splitlines()[1:]}
    orders, seen = set(), {}
    for split, count in tasks.counts.items():
        for t in range(2 * count):
            episodes, names = tasks.sample(split, [t]), tasks.names(split, t)
            halves = []
            for batch in episodes:
                there = torch.ones_like(batch.y, dtype=torch.bool) if batch.mask is None else batch.mask
                halves.append(list(zip(said(batch.x[there]), [names[k] for k in batch.y[there]])))
            support, query = halves
            shops = set.intersection(*({shop for shop, *row in known if tuple(row) == one} for one in support + query))
            assert len(shops) == 1 and len({*support, *query}) == len(support + query) == 4 * len(names)
            assert Counter(name for _, name in support) == dict.fromkeys(names, 2)
            seen.setdefault(split, set()).update(shops)
            orders.add(names)
    assert seen == {split: set(names) for split, names in tasks.details["task_names"].items()}
    assert not (seen["train"] & seen["test"] or seen["train"] & seen["validation"] or seen["validation"] & seen["test"])
    assert len(orders) > 3, "the place of a class must say nothing"
    assert tasks.details["ways"] == (2, 3) and not tasks.shared_classes and tasks.integers


def test_a_task_does_not_depend_on_those_beside_it(tmp_path):
    tasks = text(tickets(tmp_path / "a.csv"), task_column="shop", shots=2)
    together, alone = tasks.sample("train", range(4)), tasks.sample("train", [2])
    for many, one in zip(together, alone):
        assert all(torch.equal(a[2:3], b) for a, b in zip(many, one) if a is not None)


def test_a_target_is_standardised_by_training_texts(tmp_path):
    tasks = text(scores(tmp_path / "a.csv", shops=6), target="score", task_column="shop", shots=3)
    batch = tasks.sample("train", range(tasks.counts["train"]))
    y = torch.cat([part.y.flatten(0, 1)[part.mask.flatten()] if part.mask is not None else part.y.flatten(0, 1)
                   for part in batch])  # fmt: skip
    assert tasks.kind == "regression" and abs(y.mean()) < 1e-6 and y.std(correction=0) == pytest.approx(1)
    assert tasks.limits == pytest.approx((float(y.min()), float(y.max())))
    told = said(batch.query.x[0])[0]
    assert batch.query.y[0, 0, 0] * tasks.unit + tasks.details["scale"]["mean"] == pytest.approx(
        3 + 2 * told.count("good") + int(told.split()[-1]) % 3 / 10, abs=1e-5
    )


def test_without_a_column_of_tasks_each_draw_of_texts_is_one(tmp_path):
    tasks = text(scores(tmp_path / "a.csv"), target="score", shots=5)
    found = {split: {*said(tasks.sample(split, [0]).query.x[0])} for split in ("train", "validation", "test")}
    assert tasks.counts is None and len(found["train"]) == 31 and len(found["test"]) == 7
    assert not found["train"] & found["test"] and not found["train"] & found["validation"]
    assert not torch.equal(*(tasks.sample("train", [t]).support.x for t in (0, 1)))


def test_texts_in_several_splits_and_columns_that_are_not_read_are_told_of(tmp_path):
    rows = [f"text {n % 12},{n},{part},9" for n, part in enumerate(["train"] * 20 + ["val"] * 10 + ["test"] * 10)]
    (tmp_path / "a.csv").write_text("\n".join(["text,score,split,age", *rows]))
    notes = text(tmp_path / "a.csv", text="text", target="score", shots=2).details["notes"]
    assert notes[0] == "columns that are not read: age"
    assert notes[1].startswith("12 texts are in more than one split, with other numbers")


def test_numbers_may_have_a_decimal_comma(tmp_path):
    rows = [f"some words {n};{n},{n:03d}" for n in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["text;score", *rows]))
    assert as_numbers(read_texts(tmp_path / "a.csv", label="score")).tolist() == [n + n / 1000 for n in range(40)]
    assert text(tmp_path / "a.csv", target="score").kind == "regression"


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        ("", {"task_column": "Shop"}, r"no column 'Shop' \(--task-column\); did you mean 'shop'"),
        ("", {"task_column": "label", "label": "label"}, "column 'label' is asked for twice"),
        ("\ns99,one more text,a", {"task_column": "shop"}, "task 's99' has one class only.*--on-short skip"),
        ("\n,one more text,a", {"task_column": "shop"}, "line 82: the task is empty"),
        ("", {"target": "label"}, "line 2: the target 'label' is 'topic 0', which is no number .so are [0-9]+ more"),
        ("", {"target": "label", "label": "label"}, "name one of them"),
        ("", {"task_column": "shop", "ways": 3}, "--ways does not go with --task-column"),
        ("", {"task_column": "shop", "shots": (1, 3)}, "--shots LOW-HIGH does not go with"),
        ("", {"task_column": "shop", "sampler": "meta_dataset"}, "--sampler does not go with"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, more, options, message):
    with pytest.raises((DataError, UsageError), match=message):
        text(tickets(tmp_path / "a.csv", more=more), **options)


def test_few_tasks_constant_targets_and_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="2 tasks only; expected at least 3"):
        text(tickets(tmp_path / "a.csv", shops=2), task_column="shop")
    with pytest.raises(DataError, match="the target is always 3"):
        text(scores(tmp_path / "b.csv", values=lambda row, good: 3), target="score")
    (tmp_path / "folder" / "x").mkdir(parents=True)
    (tmp_path / "folder" / "x" / "a.txt").write_text("a text")
    with pytest.raises(DataError, match="has no columns, such as 'shop'"):
        text(tmp_path / "folder", task_column="shop")


def test_small_tasks_are_skipped_and_repeated_texts_left_out_and_both_are_counted(tmp_path):
    more = "\ns99,one more text,a\ns0,card about  CARD here,topic 0\ns0,card about card here,topic 1"
    with pytest.warns(SameTextWarning, match="1 text is there with several labels"):
        tasks = text(tickets(tmp_path / "a.csv", more=more), task_column="shop", on_short="skip")
    assert sum(tasks.details["skipped"].values()) == 1
    assert any(note.startswith("1 texts that are there again") for note in tasks.details["notes"])


def test_a_column_of_splits_places_whole_tasks(tmp_path):
    rows = [f"s{n % 6},{w} is text {n},{'ab'[n // 6 % 2]}" for n in range(24) for w in WORDS[:2]]
    for wrong in (False, True):
        split = [("train", "train", "val", "val", "test", "test")[int(row[1])] for row in rows]
        split[0] = "test" if wrong else split[0]
        lines = ["shop,text,label,split", *(f"{row},{own}" for row, own in zip(rows, split))]
        (tmp_path / "a.csv").write_text("\n".join(lines))
        if wrong:
            with pytest.raises(DataError, match="task 's0' is in the splits test and train"):
                text(tmp_path / "a.csv", task_column="shop")
        else:
            found = text(tmp_path / "a.csv", task_column="shop").details["task_names"]
            assert found == {"train": ["s0", "s1"], "validation": ["s2", "s3"], "test": ["s4", "s5"]}


FEW = "--shots 2 --steps 2 --test-tasks 4 --evaluate-tasks 2 --threads 1 --length 64 --json"


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    words = ["train", str(tickets(folder / "a.csv")), "--task-column", "shop", "--bits", "8"]
    assert run([*words, "--out", str(folder / "run"), *FEW.split()]) == 0
    return folder


def test_new_tasks_are_those_of_the_column_or_one(learned, tmp_path):
    rows = ["the cat sat,cat", "a cat eats,cat", "stocks fell,news", "stocks rise,news"]
    (tmp_path / "one.csv").write_text("\n".join(["text,label", *rows]))
    more = ["q,where is my card,x", "q,my card is lost,x", "q,the app is slow,y", "q,app and phone,z"]
    (tmp_path / "two.csv").write_text("\n".join(["shop,text,label", *(f"p,{row}" for row in rows), *more]))
    one = adapt(learned / "run", tmp_path / "one.csv", tmp_path / "one")
    assert [row["prediction"] for row in predict(one, ["a cat sat", "stocks"])] == ["cat", "news"]
    adapt(learned / "run", tmp_path / "two.csv", tmp_path / "two")
    two = open_adapted(tmp_path / "two")
    assert [(task.name, task.labels, task.counts) for task in two.tasks] == [
        ("p", ("cat", "news"), (2, 2)),
        ("q", ("x", "y", "z"), (2, 1, 1)),
    ]
    (tmp_path / "ask.csv").write_text("shop,text\nq,my card is lost\np,a cat eats\n")
    found = predict(two, tmp_path / "ask.csv")
    assert [row["prediction"] for row in found] == ["x", "cat"] and set(found[1]["probabilities"]) == {"cat", "news"}
    (tmp_path / "odd.csv").write_text("shop,text,label\np,a text,x\np,another one,y\nq,a third,x\n")
    with pytest.raises(DataError, match="task 'q' of .* has one class only, 'x'"):
        adapt(learned / "run", tmp_path / "odd.csv", tmp_path / "odd")


def test_a_method_for_one_number_of_classes_is_refused_without_words_of_samplers(learned):
    tree = {"tasks": {"name": str(learned / "a.csv"), "task_column": "shop"}, "method": "maml"}
    with pytest.raises(ConfigError, match="have 2 to 3 classes, and the method 'maml'.*; take a method that"):
        build(resolve(tree))


@pytest.mark.parametrize("model", [["ngrams", "--bits", "8"], ["convolution", "--depth", "1"]], ids=lambda m: m[0])
def test_numbers_are_predicted_in_their_own_unit(tmp_path, model):
    words = ["train", str(scores(tmp_path / "a.csv")), "--target", "score", "--width", "4", "--model", *model]
    assert run([*words, "--out", str(tmp_path / "run"), *FEW.split()]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"]["name"] == "alpaca"
    adapted = adapt(tmp_path / "run", scores(tmp_path / "new.csv", texts=20), tmp_path / "adapted")
    good, bad = predict(adapted, ["good good good good number 1", "bad bad bad bad number 1"])
    assert good["low"] < good["prediction"] < good["high"] and good["prediction"] > bad["prediction"] + 1
    adapt(tmp_path / "adapted", scores(tmp_path / "more.csv", texts=5), tmp_path / "more")
    both = (
        scores(tmp_path / "new.csv", texts=20).read_text()
        + "\n"
        + (tmp_path / "more.csv").read_text().split("\n", 1)[1]
    )
    (tmp_path / "both.csv").write_text(both)
    one, other = (
        predict(model, ["good bad number 1"])[0]["prediction"]
        for model in (
            open_adapted(tmp_path / "more"),
            adapt(tmp_path / "run", tmp_path / "both.csv", tmp_path / "both"),
        )
    )
    assert one == pytest.approx(other, abs=1e-4)
    adapt(tmp_path / "run", None, tmp_path / "unknown")
    nothing = predict(open_adapted(tmp_path / "unknown"), ["good good"])
    assert 2 < nothing[0]["prediction"] < 12
    (tmp_path / "odd.csv").write_text("text,score\ngood,much\n")
    with pytest.raises(DataError, match="line 2: the target 'score' is 'much', which is no number"):
        adapt(tmp_path / "run", tmp_path / "odd.csv", tmp_path / "odd")


def test_a_preparation_that_is_not_whole_is_refused(learned):
    told = json.loads((learned / "run" / "preparation.json").read_text())["preparation"]
    assert TEXTS.read(told, "here").task == "shop"
    for change in ({"scale": {"mean": 1.0}}, {"task": 3}, {"classes": 1}):
        with pytest.raises(FileError, match="does not say how texts are prepared"):
            TEXTS.read({**told, **change}, "here")
