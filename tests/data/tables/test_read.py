"""Reading CSV and Parquet files as text."""

import gzip
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from headstart.data.tables import read
from headstart.data.tables.read import (
    MARKS,
    are_booleans,
    as_numbers,
    available_memory,
    booleans,
    common_date_format,
    date_format,
    dates,
    numbers,
    read_table,
    strings,
    to_number,
)
from headstart.data.tables.table import _Roles
from headstart.errors import DataError, FileError, UsageError

Write = Any


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(content: str | bytes, name: str = "some.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return made


def test_values_are_text_and_what_is_missing_is_empty(write: Write) -> None:
    table = read_table(write("task,x,y\na, 1 ,NA\nb,,N/A\nc,null,None\nd,nan,NaN\ne,none,na\n"))
    assert table.header == ("task", "x", "y") and table.size == 5
    assert table.columns["x"].tolist() == ["1", "", "", "", "none"]
    assert table.columns["y"].tolist() == ["", "", "", "", "na"]
    assert table.lines.tolist() == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found_out(write: Write, separator: str) -> None:
    text = "\n".join(separator.join(row) for row in (["task", "x", "a text"], ["a", "1", "b"], ["b", "2", "c"]))
    table = read_table(write(text))
    assert {name: texts.tolist() for name, texts in table.columns.items()} == {
        "task": ["a", "b"], "x": ["1", "2"], "a text": ["b", "c"]
    }  # fmt: skip


def test_decimal_commas_do_not_hide_a_semicolon(write: Write) -> None:
    table = read_table(write("task;x\na;1,5\nb;2,5\n"))
    assert table.columns["x"].tolist() == ["1,5", "2,5"]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_byte_order_marks_blank_lines_and_quotes_are_understood(write: Write, ending: str) -> None:
    lines = ['"task","x, y"', '"a ""b""","two', 'lines"', "", "c,3"]
    table = read_table(write(b"\xef\xbb\xbf" + ending.join(lines).encode()))
    assert table.columns["task"].tolist() == ['a "b"', "c"]
    assert table.columns["x, y"].tolist() == [f"two{ending}lines", "3"]
    assert table.lines.tolist() == [2, 5]


@given(
    st.lists(
        st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=8)] * 3),
        min_size=1, max_size=20,
    )
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_what_csv_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]) -> None:
    import csv

    path = tmp_path_factory.mktemp("csv") / "some.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("one", "two", "three"), *rows])
    table = read_table(path)
    missing = {"NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None"}
    for place, name in enumerate(table.header):
        expected = [row[place].strip() for row in rows]
        assert table.columns[name].tolist() == ["" if text in missing else text for text in expected]


def test_many_chunks_are_one_table(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_CHUNK", 7)
    table = read_table(write("task,x\n" + "".join(f"{n % 3},{n}\n" + "\n" * (n % 2) for n in range(50))))
    assert table.columns["x"].tolist() == [str(n) for n in range(50)]
    assert table.lines.tolist() == [2 + n + n // 2 for n in range(50)]


def test_a_file_of_one_column_is_read_unless_another_is_needed(write: Write) -> None:
    path = write("week;food\n1;2\n3;4\n".replace(";", ":"))
    assert read_table(path).columns["week:food"].tolist() == ["1:2", "3:4"]
    with pytest.raises(DataError, match="no column 'week' .*It has: 'week:food' only; columns are separated by commas"):
        read_table(path, lambda name, header: read.find_columns(name, header, [("a feature", "week")]) or header)


def test_only_the_chosen_columns_are_kept_and_asked_for_before_rows_are_read(write: Write) -> None:
    path = write("task,x,y\na,1,2\nragged\n")

    def refuse(name: str, header: tuple[str, ...]) -> list[str]:
        raise DataError(f"{Path(name).name} {header}")

    with pytest.raises(DataError, match=r"some.csv \('task', 'x', 'y'\)"):
        read_table(path, refuse)
    table = read_table(write("task,x,y\na,1,2\n"), lambda name, header: ["y", "task"])
    assert list(table.columns) == ["y", "task"] and table.header == ("task", "x", "y")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; expected a header row"),
        ("task,x\n", "has a header but no rows"),
        ("task,x,x\na,1,2\n", "more than one column 'x'; rename"),
        ("task,x\na,1\nb,2,3\n", "line 3: 3 values, but the header has 2 columns"),
        ("task,x\na,1\n\nb\n", "line 4: 1 values, but the header has 2 columns"),
        ('task,x\na,"1\nb,2\n', "line 2: .*is a quote not closed"),
        (b"task,x\na,1\nb\xe9,2\n", "line 3: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (b"task,x\n\0\0,1\n", "is not text"),
        (b"PK\x03\x04rest", "is a zip archive or an Excel workbook; expected CSV in UTF-8, or Parquet"),
        (b"PK\x03\x04rest", r"python -c \"import pandas; pandas.read_excel\('some.csv'\).to_csv\('some.csv'"),
        (b"task,x\na,1\nb\xe9,2\n", "iconv -f WINDOWS-1252 -t UTF-8 some.csv > utf8-some.csv"),
        (gzip.compress(b"task,x\na,1\nb\xe9,2\n", mtime=0), "line 3: byte 0xe9 is not UTF-8"),
        (b"\x1f\x8brest", "is not a whole gzip file"),
        (gzip.compress(b"task,x\na,1\n", mtime=0)[:-4], "is not a whole gzip file"),
        ("task,x\n".encode("utf-16"), "has a header but no rows"),
        ("task,x\na,1\n".encode("utf-16")[:-1], "is not whole UTF-16 text|is not UTF-8"),
        (b"PAR1rest", "is not a whole Parquet file"),
    ],
)
def test_what_is_no_table_is_refused(write: Write, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_table(write(content))
    assert "some.csv" in str(caught.value)


def test_a_byte_that_is_not_utf8_is_found_far_down(write: Write) -> None:
    with pytest.raises(DataError, match="line 40002: byte 0xff"):
        read_table(write(b"task,x\n" + b"a,1\n" * 40_000 + b"\xff,1\n"))


def test_a_zero_byte_is_found_far_down(write: Write) -> None:
    with pytest.raises(DataError, match="line 40002: it has a zero byte"):
        read_table(write(b"task,x\n" + b"a,1\n" * 40_000 + b"b\0,1\n"))


def test_the_time_for_columns_grows_no_faster_than_their_number(write: Write) -> None:
    names = ["t", "y", *(f"c{place}" for place in range(20_000))]
    path, begun = write(",".join(names) + 2 * ("\n" + ",".join(map(str, range(len(names)))))), time.monotonic()
    found = read_table(path, _Roles("t", "y", None, None).needed)
    assert _Roles("t", "y", None, None).features(found) == names[2:]
    read.find_columns("p", names, [("", name) for name in names])
    assert time.monotonic() - begun < 10  # it was minutes


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="none.csv: there is no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(FileError, match="cannot read the table"):
        read_table(tmp_path)


def test_a_file_larger_than_the_memory_is_refused_with_the_numbers(write: Write) -> None:
    path = write("task,x\n" + "a,1\n" * 1000)
    with pytest.raises(DataError, match=r"needs about 0.00 GiB of memory, but 0.00 GiB are free; keep fewer rows"):
        read_table(path, available=1000)
    assert read_table(path, available=10**9).size == 1000
    found = available_memory()
    assert found is None or found > 10**6


def test_memory_is_estimated_from_above(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(read, "_CHUNK", 2048)
    rows = 40_000
    path = write("task,x,y\n" + "".join(f"{n % 7},{n * 0.137:.4f},{n * n % 1013}\n" for n in range(rows)))
    tracemalloc.start()
    read_table(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 16 * 3 * rows < peak < 10 * path.stat().st_size


class TestParquet:
    def test_columns_of_all_kinds_become_text(self, tmp_path: Path) -> None:
        pandas = pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
        frame = pandas.DataFrame(
            {
                "task": pandas.Categorical(["a", "b", None]),
                "whole": [1, 2, 3],
                "number": [0.1, float("nan"), 1e30],
                "flag": [True, False, True],
                "day": pandas.to_datetime(["2020-01-31", "2021-02-28", None]),
                "text": ["x ", None, "NA"],
            }
        )
        frame.to_parquet(tmp_path / "some.parquet")
        table = read_table(tmp_path / "some.parquet")
        columns = {name: texts.tolist() for name, texts in table.columns.items()}
        assert columns["task"] == ["a", "b", ""] and columns["whole"] == ["1", "2", "3"]
        assert [float(text) if text else None for text in columns["number"]] == [0.1, None, 1e30]
        assert columns["flag"] == ["true", "false", "true"] and columns["text"] == ["x", "", ""]
        assert columns["day"][0].startswith("2020-01-31") and columns["day"][2] == ""
        assert table.unit == "row" and table.lines.tolist() == [1, 2, 3]

    def test_lists_empty_files_and_large_ones_are_refused(self, tmp_path: Path) -> None:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "some.parquet"
        parquet.write_table(pyarrow.table({"task": ["a"], "list": [[1, 2]]}), path)
        with pytest.raises(DataError, match="column 'list': values of type list.* leave it out"):
            read_table(path, lambda name, header: header)
        assert list(read_table(path).columns) == ["task"]
        with pytest.raises(DataError, match="GiB of memory"):
            read_table(path, available=10)
        parquet.write_table(pyarrow.table({"task": [], "x": []}), path)
        with pytest.raises(DataError, match="has no rows"):
            read_table(path)

    def test_without_pyarrow_the_extra_is_named(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(UsageError, match=r"pip install headstart\[tabular\]"):
            read_table(write(b"PAR1rest"))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_are_read_back_exactly(values: list[float]) -> None:
    found = as_numbers(strings([repr(value) for value in values]))
    assert found is not None and found.tolist() == values


@given(st.lists(st.text(max_size=6)))
def test_text_is_a_number_where_each_part_is(texts: list[str]) -> None:
    there = [text for text in texts if text]
    known = (text in MARKS or to_number(text) is not None for text in there)
    assert (as_numbers(strings(texts)) is not None) == all(known)


def test_what_is_no_number_is_named(in_memory: Any) -> None:
    table = in_memory({"x": ["1", "", "1_000", "b"]})
    with pytest.raises(
        DataError, match=r"csv, line 4, column 'x': '1_000' is not a number \(2 such values: '1_000', 'b'\); mend it"
    ):
        numbers(table, "x", "mend it")
    with pytest.raises(DataError, match="line 2, .*a decimal comma is read in files that semicolons separate; mend it"):
        numbers(in_memory({"x": ["1,5"]}), "x", "mend it")
    with pytest.raises(DataError, match="line 3, .*'inf' is not a finite number"):
        numbers(in_memory({"x": ["1", "inf"]}), "x", "mend it")
    found = numbers(in_memory({"x": ["1", "", "-2.5e3"]}), "x", "mend it").tolist()
    assert found[0] == 1 and math.isnan(found[1]) and found[2] == -2500


def test_booleans_are_told_in_either_case(in_memory: Any) -> None:
    assert booleans(in_memory({"x": ["Yes", "no", "TRUE", "f"]}), "x").tolist() == [1, 0, 1, 0]
    assert are_booleans(["true", "N"]) and not are_booleans(["true", "maybe"])
    with pytest.raises(DataError, match="line 3, column 'x': 'maybe' is not true or false"):
        booleans(in_memory({"x": ["yes", "maybe"]}), "x")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2020-02-29", "date"), ("2020-02-29T12:30", "date and time"), ("2020-02-29 12:30:05.25", "date and time"),
        ("2020-02-29T12:30:00Z", "date and time with zone"), ("2020-02-29 12:30+02:00", "date and time with zone"),
        ("29/02/2020", "other"), ("29.2.20", "other"), ("2/29/2020 12:30", "other"), ("2020/02/29", "other"),
        ("red", None), ("1.5", None), ("192.168.0.1", None), ("", None),
    ],
)  # fmt: skip
def test_formats_of_dates_are_told_apart(text: str, found: str | None) -> None:
    assert date_format(text) == found


def test_dates_are_days(in_memory: Any) -> None:
    table = in_memory({"x": ["1970-01-02", "1969-12-31", "2020-02-29", ""]})
    assert common_date_format(table, "x") == "date"
    found = dates(table, "x", "date").tolist()
    assert found[:3] == [1, -1, 18321] and math.isnan(found[3])
    table = in_memory({"x": ["1970-01-01T12:00", "1970-01-02 00:00:00.000000000"]})
    assert dates(table, "x", "date and time").tolist() == [0.5, 1]
    table = in_memory({"x": ["1970-01-01T12:00Z", "1970-01-01T12:00 -06:00"]})
    assert dates(table, "x", "date and time with zone").tolist() == [0.5, 0.75]


def test_dates_in_several_formats_are_refused(in_memory: Any) -> None:
    table = in_memory({"x": ["2020-01-31", "2020-02-01", "01/02/2020", "2020-02-03"]})
    assert common_date_format(table, "x") == "date"
    with pytest.raises(DataError, match="some.csv, line 4, column 'x': '01/02/2020' is not a date, as the column's"):
        dates(table, "x", "date")
    with pytest.raises(DataError, match="line 2, .*'01/02/2020' is a date that is not ISO 8601 .*; write all"):
        dates(in_memory({"x": ["01/02/2020", "02/02/2020"]}), "x", "other")
    with pytest.raises(DataError, match="line 3, column 'x': '2020-01-01T12:00' is not a date, as"):
        dates(in_memory({"x": ["2020-01-01", "2020-01-01T12:00", "2020-01-02"]}), "x", "date")
    with pytest.raises(DataError, match="line 2, column 'x': '2020-02-30' is no day of the calendar"):
        dates(in_memory({"x": ["2020-02-30"]}), "x", "date")
    assert common_date_format(in_memory({"x": ["2020-01-01", "red", "blue", ""]}), "x") is None


@pytest.mark.parametrize(
    ("text", "comma", "value"),
    [
        ("1,273.9", False, 1273.9), ("-1,273", False, -1273), ("1,273,000", False, 1_273_000), ("0,123", False, None),
        ("1,5", False, None), ("1,27,300", False, None), ("1.2.3", False, None), ("45.0%", False, 0.45),
        ("$12.30", False, 12.3), ("-$12.30", False, -12.3), ("€ 7", False, 7), ("12 €", False, 12), ("$-1", False, -1),
        ("-$-1", False, None), ("1 273.5", False, 1273.5), ("1'273", False, 1273), ("1\u00a0273", False, 1273),
        ("2e3", False, 2000), ("$", False, None), (".", False, None), ("12 34", False, None), ("1_000", False, None),
        ("1,5", True, 1.5), ("1.273,9", True, 1273.9), ("1.273", True, 1273), ("-1.273.000", True, -1_273_000),
        ("45,5 %", True, 0.455), ("1,273.9", True, None), ("1,5,2", True, None), ("1 273,5", True, 1273.5),
    ],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(text: str, comma: bool, value: float | None) -> None:
    assert to_number(text, comma) == (None if value is None else pytest.approx(value, rel=1e-15))


def test_marks_and_commas_go_by_the_column(write: Write) -> None:
    table = read_table(write("task;x;y;z;w\na;1.273;1,5;-;0.5\nb;2.000,5;?;3;1.273\n"))
    read = {name: numbers(table, name, "").tolist() for name in "xyzw"}
    assert table.commas == {"x", "y"} and table.rows([0]).commas == table.commas
    assert read["x"] == [1273, 2000.5] and read["w"] == [0.5, 1.273]
    assert read["y"][0] == 1.5 and math.isnan(read["y"][1]) and math.isnan(read["z"][0])
    with pytest.raises(DataError, match="line 2, column 'x': '1.273' could be 1273, or have a decimal point"):
        read_table(path := write("task;x;y\na;1.273;1,5\nb;2;2\n"))
    for commas, value in ({"x", "y"}, 1273), ({"y"}, 1.273):  # where training has told
        assert numbers(read_table(path, commas=commas), "x", "")[0] == value
    with pytest.raises(DataError, match="'2,5' is not a number"):
        numbers(read_table(write("task;x;y\na;1.5;1,5\nb;2,5;2\n")), "x", "")
    with pytest.raises(DataError, match="'1.5' is not a number"):
        numbers(read_table(path, commas={"x"})._replace(columns={"x": strings(["1.5"])}), "x", "")
    assert numbers(read_table(write("task;x\na;1.273\nb;2\n")), "x", "").tolist() == [1.273, 2]


@pytest.mark.parametrize("encode", [lambda t: t.encode("utf-16"), lambda t: gzip.compress(t.encode(), mtime=0)])
def test_other_encodings_that_say_so_are_read(write: Write, encode: Any) -> None:
    table = read_table(write(encode("task,x\nZürich,1\n")), missing=("Zürich",))
    assert table.columns["task"].tolist() == [""] and table.columns["x"].tolist() == ["1"]


def test_a_gzip_file_that_grows_too_large_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="of memory"):
        read_table(write(gzip.compress(b"task,x\n" + b"a,1\n" * 1_000_000, mtime=0)), available=10_000_000)


@pytest.mark.parametrize(
    ("texts", "told", "first"),
    [
        (["31/01/2020", "01/02/2020", ""], "day, month, year", "2020-01-31"),
        (["01/31/2020", "01/02/2020", "?"], "month, day, year", "2020-01-31"),
        (["1.2.2020", "3.4.2020"], "other", None),
        (["13/01/2020", "01/13/2020"], "other", None),
        (["31/01/2020 12:00", "01/02/2020"], "day, month, year", "2020-01-31 12:00"),
    ],
)
def test_days_above_twelve_say_which_number_is_the_month(in_memory: Any, texts: Any, told: str, first: Any) -> None:
    table = in_memory({"x": texts})
    assert common_date_format(table, "x") == told
    if first is None:
        with pytest.raises(DataError, match="write all dates alike"):
            dates(table, "x", told)
    else:
        other = in_memory({"x": [first]})
        assert dates(table, "x", told)[0] == dates(other, "x", common_date_format(other, "x") or "")[0]
        with pytest.raises(DataError, match="no day of the calendar"):
            dates(in_memory({"x": ["13/13/2020"]}), "x", told)
