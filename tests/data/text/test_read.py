import gzip
import json

import pytest

from headstart.data.kind import LeftOutWarning
from headstart.data.text.read import AlikeLabelsWarning, SameTextWarning, by_class, encoded, read_texts, start_of
from headstart.errors import DataError, FileError

ROWS = [
    ("Where is my card?", "card"),
    ("Send me money", "transfer"),
    ("My card, it is lost", "card"),
    ("Pay Bo", "transfer"),
]


def written(path, rows=ROWS, header=("text", "label"), separator=","):
    lines = [separator.join(header), *(separator.join(f'"{value}"' for value in row) for row in rows)]
    data = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def folder(path):
    for number, (text, label) in enumerate(ROWS):
        (path / label).mkdir(exist_ok=True, parents=True)
        (path / label / f"{number}.txt").write_text(text)
    return path


def lines(path):
    path.write_text("\n\n".join(json.dumps({"text": text, "label": label, "n": [1]}) for text, label in ROWS))
    return path


def parquet(path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}), path)
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv", written),
        ("a.tsv", lambda path: written(path, separator="\t")),
        ("a.csv.gz", written),
        ("a.jsonl", lines),
        ("a.parquet", parquet),
        ("classes", folder),
    ],
)
def test_texts_and_labels_are_read_of_every_format(tmp_path, name, write):
    found = read_texts(write(tmp_path / name))
    assert sorted(zip(found.texts, found.labels)) == sorted(ROWS) and found.splits == []
    assert str(tmp_path / name) in found.where(0)


@pytest.mark.parametrize(
    ("header", "text", "label"),
    [
        (("Utterance", "Intent"), "Utterance", "Intent"),
        (("a", "b"), "a", "b"),
        (("text", "b"), "text", "b"),
        (("label", "text"), "text", "label"),
        (("text", "query"), "text", "query"),
    ],
)
def test_columns_are_found_by_their_names_and_else_by_what_is_in_them(tmp_path, header, text, label):
    rows = [row[::-1] for row in ROWS] if header[0] == "label" else ROWS
    if header[1] == "query":
        with pytest.raises(DataError, match="which column is the text"):
            read_texts(written(tmp_path / "a.csv", [(one, one) for one, _ in ROWS], header))
        return
    found = read_texts(written(tmp_path / "a.csv", rows, header))
    assert (found.text, found.label, found.texts) == (text, label, [one for one, _ in ROWS])


def test_columns_that_do_not_tell_are_asked_for(tmp_path):
    rows = [(text, text[::-1], label, label.upper()) for text, label in ROWS]
    path = written(tmp_path / "a.csv", rows, ("a", "b", "c", "d"))
    with pytest.raises(DataError, match="which column is the text\\? 'a' and 'b' may be; say it with --text"):
        read_texts(path)
    with pytest.raises(DataError, match="which column is the label\\? 'c' and 'd' may be; say it with --label"):
        read_texts(path, text="b")
    assert read_texts(path, "b", "d").labels == ["CARD", "TRANSFER", "CARD", "TRANSFER"]
    for named in ({"text": "e"}, {"text": "a", "label": "e"}):
        with pytest.raises(DataError, match=f"no column 'e' .--{[*named][-1]}.* It has: 'a', 'b', 'c', 'd'"):
            read_texts(path, **named)
    with pytest.raises(DataError, match="None of 'x', 'y' tells"):
        read_texts(written(tmp_path / "b.csv", [(n, n) for n in range(9)], ("x", "y")))


@pytest.mark.parametrize(
    ("name", "data", "error", "match"),
    [
        ("a.csv", b"text,label\nWhere is it,a\n ,b\n,c\n", DataError, "line 3: the text is empty \\(so are 1 more\\)"),
        ("a.csv", b"text,label\nWhere is it,a\nAnd now,\n", DataError, "line 3: the label is empty"),
        ("a.csv", "text,label\nWo\xdf,a\n".encode("latin-1"), DataError, "line 2: byte 0xdf is not UTF-8"),
        (
            "a.csv",
            b"My card,a\nYour cat,b\nA cat,a\nA dog,b\nA cow,a\n",
            DataError,
            "the first line has to name the columns",
        ),
        ("a.csv", b"", DataError, "is empty"),
        ("a.csv", b"text,label\n", DataError, "no rows"),
        ("a.jsonl", b'{"text": "a b"\n', DataError, "line 1 is not JSON"),
        ("a.jsonl", b"3\n", DataError, "line 1 is '3'; expected an object"),
        ("a.jsonl", b"\n", DataError, "has no rows"),
        ("a.jsonl", b'{"text": "\xff"}', DataError, "is not UTF-8"),
        ("a.jsonl", b'{"text": "so \\ud83d"}', DataError, "line 1: 'so .ud83d' is no text that UTF-8 can write"),
        ("a.csv", b"text,label\nWhere is it,None\n", DataError, "label is empty .or one of NA, .*None, which say"),
        ("a.jsonl", b'{"text": "so it is", "label": NaN}', DataError, "line 1: the label is empty .or null"),
        ("a.jsonl", b'{"text": "so it is", "label": ["a", "b"]}', DataError, "line 1: 'label' is a list"),
        ("a.json", b'[{"text": "so it is", "label": "a"}]', DataError, "JSON lines, one object a line, are read"),
        ("a.txt", b"fine\nW\xf6rter", DataError, "line 2: byte 0xf6 is not UTF-8; save .* iconv"),
        ("a.txt", "fine".encode("utf-16-le"), DataError, "has zero bytes, as UTF-16 without its mark"),
        ("b.txt", None, FileError, "cannot read"),
        ("b.jsonl", None, FileError, "cannot read"),
        ("b.csv", None, FileError, "there is no such file"),
    ],
)
def test_bad_files_are_refused_with_their_place(tmp_path, name, data, error, match):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=match):
        read_texts(tmp_path / name)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "classes"])
def test_the_mark_of_utf_16_is_enough(tmp_path, name):
    path = tmp_path / name
    {"a.csv": written, "a.jsonl": lines, "classes": folder}[name](path)
    for file in path.rglob("*.txt") if path.is_dir() else [path]:
        file.write_text(file.read_text(), "utf-16")
    found = read_texts(path)
    assert sorted(zip(found.texts, found.labels)) == sorted(ROWS)
    assert name != "a.csv" or start_of(path) == {"text": found.texts, "label": found.labels}


def test_columns_of_lists_are_left_out_of_parquet(tmp_path):
    path = parquet(tmp_path / "a.parquet")
    from pyarrow import array
    from pyarrow.parquet import read_table, write_table

    write_table(read_table(path).append_column("numbers", array([[1.0, 2.0]] * len(ROWS))), path)
    assert list(read_texts(path).columns) == list(start_of(path)) == ["text", "label"]
    with pytest.raises(DataError, match="'numbers' is a list or an object"):
        read_texts(path, label="numbers")


def test_a_text_may_be_enormous(tmp_path):
    long = "so much " * 40_000
    path = written(tmp_path / "a.csv", [(long, "a"), ("little", "b")])
    assert read_texts(path).texts == [long.strip(), "little"] and len(start_of(path)["text"]) == 2


def test_labels_in_lines_of_json_have_no_spaces_around_them(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": " a b ", "label": "x "}\n{"text": "c d", "label": 1}')
    found = read_texts(tmp_path / "a.jsonl")
    assert found.texts == ["a b", "c d"] and found.labels == ["x", "1"]


def test_what_is_no_text_of_a_class_is_told_of(tmp_path):
    path = folder(tmp_path / "classes")
    (path / "card" / "6.TXT").write_text("Card?")
    assert len(read_texts(path).texts) == 5
    (path / "card" / "deep").mkdir()
    (path / "empty").mkdir()
    for name in ("card/deep/7.txt", "card/8.md", ".hidden", "notes.md"):
        (path / name).write_text("another")
    with pytest.warns(LeftOutWarning, match=r"left out of .*: 2 files that .*8.md.; folders without a .txt: empty"):
        assert len(read_texts(path).texts) == 5


def test_a_column_that_is_asked_for_is_no_column_of_splits(tmp_path):
    found = read_texts(written(tmp_path / "a.csv", ROWS, ("text", "split")), label="split")
    assert set(found.labels) == {"card", "transfer"} and not found.splits


def test_labels_that_seem_to_be_one_are_told_of(tmp_path):
    rows = [("where is it", "Lost"), ("is it lost", "lost"), ("one", "1"), ("two", "01"), ("three", "other")]
    with pytest.warns(AlikeLabelsWarning, match="'Lost' and 'lost' differ only in .*so do 1 more"):
        assert len(by_class(read_texts(written(tmp_path / "a.csv", rows)), lower=True)) == 5


def test_a_folder_without_texts_is_refused(tmp_path):
    with pytest.raises(DataError, match="no class folder of .txt files"):
        read_texts(tmp_path)


def test_a_text_of_several_classes_is_counted(tmp_path):
    found = read_texts(written(tmp_path / "a.csv", [*ROWS, ("where is  my card?", "lost")]))
    assert by_class(found, lower=False) == {"card": [0, 2], "transfer": [1, 3], "lost": [4]}
    with pytest.warns(SameTextWarning, match="1 text is there with several labels.*line 2.*is card and lost"):
        by_class(found, lower=True)


def test_a_letter_is_never_cut_in_two_and_what_is_cut_is_counted():
    ids, cut = encoded(["é" * 5, "abc", "x" * 10_000], 5)
    assert cut == 2 and bytes(ids[0].tolist()).rstrip(b"\0").decode() == "éé"
    assert bytes(ids[1].tolist()) == b"abc\0\0"
    ids, cut = encoded([" " * 10_000 + "abc", "a" + " " * 10_000 + "bc" * 5], 5)  # its start does not tell
    assert cut == 1 and [bytes(row.tolist()) for row in ids] == [b"abc\0\0", b"a bcb"]


def test_a_damaged_gzip_file_has_no_columns(tmp_path):
    data = bytearray(gzip.compress(b"text,label\n" + bytes(range(32, 127)) * 50))
    data[14:18] = b"\xff" * 4
    (tmp_path / "a.csv").write_bytes(data)
    assert start_of(tmp_path / "a.csv") == {}
