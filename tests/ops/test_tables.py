import csv
import io
import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelwave.errors import InputError
from voxelwave.ops.tables import as_csv, read_checked, read_csv


def test_what_is_not_known_is_an_empty_cell_and_infinity_is_a_number():
    rows = [{"a": None, "b": math.nan}, {"b": math.inf}, {"a": 0, "b": 0.5, "c": 1}]
    assert as_csv(["a", "b"], rows) == "a,b\n,\n,inf\n0,0.5\n"


def test_rows_alone_are_what_is_appended_to_a_table():
    assert as_csv(["a"], [{"a": 1}], header=False, line_end="\r\n") == "1\r\n"


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=2))
def test_any_text_comes_back_from_a_table_whose_line_end_has_both_signs(cells):
    table = as_csv(["a", "b"], [dict(zip("ab", cells, strict=True))], line_end="\r\n")
    assert list(csv.reader(io.StringIO(table, newline="")))[1] == cells


def test_rows_are_read_with_the_numbers_of_their_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n\r\n1,"x\n y"\r\n2\n')
    assert list(read_csv(path)) == [(1, ["a", "b"]), (4, ["1", "x\n y"]), (5, ["2"])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n" + b"x" * 140_000, "line 2, cannot be read as CSV: field larger than field limit"),
        (b"a\n\xff", "cannot be read as a CSV text in UTF-8"),
    ],
)
def test_what_is_no_csv_is_one_line(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_csv(tmp_path / "a.csv"))


ROWS = [{"a": "x, y", "b": 0.5}, {"a": "", "b": None}, {"a": "ü\n", "b": 7}]


@pytest.fixture
def checked(tmp_path):
    """A table with a checksum for each row."""
    path = tmp_path / "a.csv"
    path.write_text(as_csv("ab", ROWS, line_end="\r\n", checked=True), newline="")
    return path


def read(path):
    return [row for _, row in read_checked(path, ["a", "b"], otherwise="is another table")]


def test_a_checked_table_is_read_as_it_was_written(checked):
    assert read(checked) == [{"a": "x, y", "b": "0.5"}, {"a": "", "b": ""}, {"a": "ü\n", "b": "7"}]


def test_no_flipped_bit_of_a_checked_table_is_taken_for_what_was_written(checked):
    content, known = checked.read_bytes(), read(checked)
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        checked.write_bytes(flipped)
        with suppress(InputError):
            assert read(checked) == known


def test_a_row_that_was_edited_is_taken_where_its_checksum_is_emptied(checked):
    lines = checked.read_bytes().split(b"\r\n")
    lines[1] = b"z,3," + lines[1].rpartition(b",")[2]
    checked.write_bytes(b"\r\n".join(lines))
    with pytest.raises(InputError, match=r"a\.csv, line 2, is damaged, or was edited: restore it, or, .*'crc32'"):
        read(checked)
    lines[1] = b"z,3,"
    checked.write_bytes(b"\r\n".join(lines))
    assert read(checked)[0] == {"a": "z", "b": "3"}


def test_a_table_from_before_there_were_checksums_is_read(tmp_path):
    (tmp_path / "a.csv").write_text(as_csv("ab", ROWS))
    assert len(read(tmp_path / "a.csv")) == 3
    (tmp_path / "a.csv").write_text(as_csv("abc", ROWS))
    with pytest.raises(InputError, match=r"a\.csv is another table$"):
        read(tmp_path / "a.csv")
