"""A manifest gives back the rows that were written, and what was cut off is left out; splits follow from names."""

from __future__ import annotations

import csv
import math
import os
from contextlib import suppress

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from voxelwave.data.listing.manifest import COLUMNS, Row, as_csv, read_manifest, split_of, write_manifest
from voxelwave.errors import InputError
from voxelwave.ops import tables

names = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=9) | st.text(
    'a,"\r\n', max_size=5
)
sides = st.integers(1, 4096)
lengths = st.sampled_from([0.5, 1.0, 0.9375, 5.62741, 12.0])
outputs = st.just("") | names.map(lambda name: "mri/" + name.replace("/", "_") + ".vxw")
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
rows = st.builds(
    Row,
    file=names.filter(bool),
    subject=names,
    modality=st.sampled_from(["", "mri", "ct", "label"]),
    told_by=names,
    shape=st.lists(sides, max_size=5).map(tuple),
    spacing_mm=st.just(()) | st.tuples(lengths, lengths, lengths),
    minimum=numbers,
    maximum=numbers,
    mean=numbers,
    std=numbers,
    nonfinite=st.integers(0, 10**9),
    status=st.sampled_from(["accepted", "refused"]),
    reason=names,
    damaged=st.booleans(),
    note=names,
    label_for=names,
    output=outputs,
    stored_shape=st.just(()) | st.tuples(sides, sides, sides, st.just(3)),
    file_bytes=st.integers(0, 2**50),
    file_mtime_ns=st.integers(0, 2**62),
)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(rows, max_size=4))
def test_rows_come_back_as_they_were_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("manifest") / "manifest.csv"
    write_manifest(path, rows)
    assert read_manifest(path) == rows


@settings(deadline=None, max_examples=100)
@given(rows=st.lists(rows, min_size=1, max_size=3), share=st.floats(0, 1, exclude_max=True))
def test_a_manifest_cut_anywhere_behind_its_header_keeps_every_whole_row(tmp_path_factory, rows, share):
    path = tmp_path_factory.mktemp("manifest") / "manifest.csv"
    write_manifest(path, [])
    header = path.read_bytes()
    ends = [len(header)]
    for count in range(1, len(rows) + 1):
        write_manifest(path, rows[:count])
        ends.append(path.stat().st_size)
    cut = ends[0] + int(share * (ends[-1] - ends[0]))
    path.write_bytes(path.read_bytes()[:cut])
    # The end of a line within a name is the case of the next test.
    assume(cut in ends or not path.read_bytes().endswith(b"\r\n"))
    assert read_manifest(path) == rows[: sum(end <= cut for end in ends) - 1]


def test_a_cut_within_a_name_of_several_lines_leaves_its_row_out(tmp_path):
    path, kept = tmp_path / "manifest.csv", Row(file="0", status="accepted")
    write_manifest(path, [kept])
    first = path.stat().st_size
    write_manifest(path, [kept, Row(file="0", status="accepted", output="mri/\r\n\n.vxw")])
    whole = path.read_bytes()
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        if cut > first and whole[:cut].endswith(b"\r\n"):
            # Nothing tells this from a line with one quote too many, which is damage.
            with pytest.raises(InputError, match="is damaged"):
                read_manifest(path)
        else:
            assert read_manifest(path) == [kept]


def test_bytes_that_are_no_utf8_are_written_out(tmp_path):
    write_manifest(tmp_path / "m.csv", [Row(file=os.fsdecode(b"/M\xfcller.nii"), status="accepted")])
    assert read_manifest(tmp_path / "m.csv")[0].file == "/M\\udcfcller.nii"


def test_any_reader_of_csv_reads_it(tmp_path):
    odd = Row(file='/a, "b"\nü.nii', status="refused", reason="x,y", shape=(3, 4, 5), spacing_mm=(0.5, 1, 2.25))
    write_manifest(tmp_path / "m.csv", [odd])
    with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as stream:
        (line,) = csv.DictReader(stream)
    assert line["file"] == odd.file
    assert (line["shape"], line["spacing_mm"], line["minimum"]) == ("3x4x5", "0.5x1x2.25", "")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a manifest of this version"),
        (b"path,modality\na.nii,mri\n", "not a manifest of this version"),
        ((",".join(COLUMNS[:-1]) + "\n").encode(), "not a manifest of this version"),
        ((",".join(COLUMNS) + "\na.nii,mri\n").encode(), "line 2, is damaged, or was edited"),
        (
            as_csv([Row(file="a", status="refused")], header=True).replace("refused", "lost").encode(),
            "line 2, is damaged, or was edited",
        ),
        (
            tables.as_csv(COLUMNS, [Row(file="a", status="refused").model_dump() | {"status": "lost"}]).encode(),
            "line 2, is not a row",
        ),
    ],
    ids=["empty", "a list", "a column short", "a short row", "a changed value", "a wrong value"],
)
def test_what_is_no_manifest_is_refused(tmp_path, content, reason):
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_manifest(tmp_path / "m.csv")
    with pytest.raises(InputError, match="cannot read the manifest"):
        read_manifest(tmp_path / "none.csv")


SUBJECTS = [f"site{number % 7}/sub-{number:04d}" for number in range(4000)]


@pytest.mark.parametrize("holdout", [0.0, 0.1, 0.5])
def test_the_share_of_test_subjects_is_the_one_asked_for(holdout):
    share = sum(split_of(subject, holdout=holdout) == "test" for subject in SUBJECTS) / len(SUBJECTS)
    assert abs(share - holdout) <= 3 * math.sqrt(holdout * (1 - holdout) / len(SUBJECTS))


def test_a_split_depends_on_the_subject_alone_and_grows_with_the_share():
    small, large = ({s for s in SUBJECTS if split_of(s, holdout=share) == "test"} for share in (0.1, 0.3))
    assert small < large
    # What later versions must not change, or subjects would move from one side to the other.
    assert [number for number in range(40) if SUBJECTS[number] in large] == [
        0,
        3,
        4,
        11,
        19,
        20,
        24,
        25,
        29,
        32,
        33,
        36,
        37,
    ]
    assert small != {s for s in SUBJECTS if split_of(s, holdout=0.1, seed=1) == "test"}


@pytest.mark.parametrize("output", ["../thesis.txt", "/etc/passwd", "mri/../../x.vxw", ".", "out/x.vxw"])
def test_an_output_beyond_the_data_set_is_refused(tmp_path, output):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    write_manifest(folder / "manifest.csv", [Row(file="/a.nii", status="accepted", modality="mri", output=output)])
    with pytest.raises(InputError, match=f"'{output}' does not lie below {folder}"):
        read_manifest(folder / "manifest.csv")


def test_a_cell_without_end_is_one_line(tmp_path):
    path = tmp_path / "manifest.csv"
    write_manifest(path, [Row(file="/" + "a" * 200_000, status="refused")])
    with pytest.raises(InputError, match="line 2, cannot be read as CSV: field larger than field limit") as caught:
        read_manifest(path)
    assert len(str(caught.value)) < 400


@settings(deadline=None, max_examples=120)
@given(
    row=rows,
    place=st.floats(0, 1, exclude_max=True),
    inserted=st.sampled_from(
        ["", ",", '"', "\n", "\0", "../", "9" * 5000, "1e999", "x" * 200_000, "\x1b", "=", "accepted"]
    ),
    cut=st.integers(0, 9),
)
def test_any_change_of_a_manifest_is_rows_or_an_error(tmp_path_factory, row, place, inserted, cut):
    path = tmp_path_factory.mktemp("manifest") / "manifest.csv"
    write_manifest(path, [row])
    text = path.read_bytes()
    at = int(place * len(text))
    path.write_bytes(text[:at] + inserted.encode() + text[at + cut :])
    with suppress(InputError):
        for of in read_manifest(path):
            assert not of.output or (path.parent / of.output).resolve().is_relative_to(path.parent.resolve())


def test_no_flipped_bit_of_a_manifest_is_taken_for_what_was_written(tmp_path):
    rows = [
        Row(file=f'/scans/{name}"x.nii', status="accepted", output=f"mri/{name}.vxw", subject=name) for name in "ab"
    ]
    path = tmp_path / "m.csv"
    write_manifest(path, rows)
    content = path.read_bytes()
    begins = content.index(b"\r\n")  # of the rows; what is wrong with a header is told by its names
    for place in range(8 * begins, 8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with suppress(InputError):
            assert read_manifest(path) == rows, place
