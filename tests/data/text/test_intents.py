"""BANKING77 and CLINC150: on small copies with their classes, and on the files themselves where they are there."""

import csv
import json

import pytest

from headstart.data.text import banking77 as bank, clinc150 as clinc
from headstart.data.text.banking77 import banking77
from headstart.data.text.clinc150 import DOMAINS, clinc150, read_clinc150
from headstart.errors import DataError, FileError

BANK = [f"class {n:02}" for n in range(77)]
CLINC = sorted(name for names in DOMAINS.values() for name in names)
SMALL = {"ways": 3, "queries": 2, "length": 32}


def bank_files(folder, classes=BANK):
    for name, numbers in (("train.csv", range(2)), ("test.csv", range(2, 4))):
        with (folder / name).open("w", newline="") as file:
            rows = [(f"{own}, asked {n}", own) for own in classes for n in numbers]
            csv.writer(file).writerows([("text", "category"), *rows])
    return folder


def clinc_file(folder, classes=CLINC):
    rows = {part: [(f"{own} {part}", own) for own in classes] for part in ("train", "val", "test")}
    others = {f"oos_{part}": [(f"what {part}", "oos")] for part in rows}
    (folder / "data_full.json").write_text(json.dumps(rows | others))
    return folder


@pytest.mark.parametrize(
    ("make", "files", "sizes", "options"),
    [
        (banking77, bank_files, (25, 25, 27), {}),
        (clinc150, clinc_file, (50, 50, 50), {}),
        (clinc150, clinc_file, (60, 45, 45), {"split": "domains"}),
    ],
)
def test_the_classes_of_each_fold_are_split_as_said(tmp_path, make, files, sizes, options):
    data, seen = files(tmp_path), set()
    for fold in range(1, 6):
        tasks = make(data, fold=fold, **SMALL, **options)
        assert tuple(tasks.details["classes"][split] for split in ("train", "validation", "test")) == sizes
        names = tasks.details["class_names"]
        seen.add(tuple(names["test"]))
        assert len({name for own in names.values() for name in own}) == sum(sizes)
        if options:
            homes = [{d for d, own in DOMAINS.items() if set(own) & set(names[split])} for split in names]
            assert [*map(len, homes)] == [4, 3, 3] and len(set.union(*homes)) == 10
    assert len(seen) == 5


def test_the_folds_are_whole():
    assert all(sorted(map(fold.count, "tve")) == [25, 25, 27] for fold in bank.FOLDS)
    assert all([*map(fold.count, "tve")] == [50, 50, 50] for fold in clinc.FOLDS)
    assert len(CLINC) == 150 and len(DOMAINS) == 10 and all(len(names) == 15 for names in DOMAINS.values())


def test_questions_of_no_intent_are_had_and_in_no_task(tmp_path):
    found = read_clinc150(clinc_file(tmp_path))
    assert found.out_of_scope == ["what train", "what val", "what test"]
    assert len(found.texts.texts) == 450 and not set(found.out_of_scope) & set(found.texts.texts)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileError, match="no such file"):
        banking77(tmp_path)
    with pytest.raises(DataError, match="has 76 classes; expected the 77"):
        banking77(bank_files(tmp_path, BANK[1:]))
    with pytest.raises(FileError, match="cannot read"):
        clinc150(tmp_path)
    with pytest.raises(DataError, match="does not hold the 150 intents"):
        clinc150(clinc_file(tmp_path, CLINC[1:]))
    (tmp_path / "data_full.json").write_text("{}")
    with pytest.raises(DataError, match="does not hold the lists"):
        clinc150(tmp_path)
    (tmp_path / "data_full.json").write_text("{")
    with pytest.raises(FileError, match="is not JSON"):
        clinc150(tmp_path)


def test_the_files_themselves_are_read(shared_data):
    tasks = banking77(shared_data / "banking77", fold=2)
    assert sum(tasks.details["texts"].values()) == 13_083
    assert "card_arrival" in {name for names in tasks.details["class_names"].values() for name in names}
    found = read_clinc150(shared_data / "clinc150")
    assert (len(found.texts.texts), len(found.out_of_scope)) == (22_500, 1_200)
