import tracemalloc
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from voxelwave.jobs.prepare.contact_sheet import SIDE, Entry, contact_sheet, save_strip, three_slices

HOSTILE = 's<u>b 50%/"T1"&\'#?é\u202e\n.nii'
NO_UTF8 = "caf\udce9.nii"


def cut(strip):
    """Part a strip into its sagittal, coronal and axial square."""
    assert strip.shape == (SIDE, 3 * SIDE)
    return np.split(strip, 3, axis=1)


def box(square):
    """Return top, bottom, left and right of what is not black."""
    rows, columns = np.nonzero(square)
    return rows.min(), rows.max(), columns.min(), columns.max()


# Toward where the volume is bright, and which side of the sagittal, coronal and axial square then is.
SEEN = {
    "right": (0, None, "left", "left"),
    "anterior": (1, "left", None, "top"),
    "superior": (2, "top", "top", None),
}


@pytest.mark.parametrize("direction", SEEN)
def test_slices_lie_as_radiologists_see_them(direction):
    axis, *sides = SEEN[direction]
    volume = np.full((1, 32, 32, 32), 0.4, dtype=np.float32)
    np.moveaxis(volume[0], axis, 0)[16:] = 1.0
    for square, side in zip(cut(three_slices(volume, (1.0, 1.0, 1.0))), sides, strict=True):
        if side is not None:
            bright = square > 178
            half = bright[: SIDE // 2] if side == "top" else bright[:, : SIDE // 2]
            assert half.mean() > 0.9
            assert bright.sum() - half.sum() < 0.03 * half.sum()


def test_slices_pass_through_the_middle_of_what_is_bright():
    volume = np.zeros((1, 200, 100, 60), dtype=np.float32)
    volume[0, 140:160, 20:40, 44:50] = 1.0
    sagittal, coronal, axial = cut(three_slices(volume, (1.0, 1.0, 1.0)))
    scale = 108 / 200
    # From the middle of the volume, where the squares have theirs: 50 mm to the right, 20 behind, 17 above.
    at = {"right": 56 - 50 * scale, "anterior": 56 + 20 * scale, "superior": 56 - 17 * scale}
    axes = ((sagittal, "superior", "anterior"), (coronal, "superior", "right"), (axial, "anterior", "right"))
    for square, row, column in axes:
        top, bottom, left, right = box(square > 100)
        assert (top + bottom + 1) / 2 == pytest.approx(at[row], abs=1.01)
        assert (left + right + 1) / 2 == pytest.approx(at[column], abs=1.01)


def test_proportions_are_those_of_the_body_and_not_of_the_voxels():
    volume = np.ones((1, 256, 200, 20), dtype=np.float32)
    extent_mm = np.array([256 * 0.8, 200 * 0.9, 20 * 6.5])
    right, anterior, superior = extent_mm * 108 / extent_mm.max()
    sizes = ((anterior, superior), (right, superior), (right, anterior))
    for square, (across, up) in zip(cut(three_slices(volume, (0.8, 0.9, 6.5))), sizes, strict=True):
        top, bottom, left, right_end = box(square)
        assert bottom - top + 1 == pytest.approx(up, abs=0.51)
        assert right_end - left + 1 == pytest.approx(across, abs=0.51)
        assert abs((top + bottom + 1) / 2 - 56) <= 0.5
        assert abs((left + right_end + 1) / 2 - 56) <= 0.5


def test_fine_structure_is_averaged_and_not_skipped():
    volume = np.zeros((1, 448, 448, 8), dtype=np.float32)
    volume[:, ::2] = 1.0
    axial = cut(three_slices(volume, (0.5, 0.5, 4.0)))[2]
    assert np.abs(axial[20:-20, 20:-20].astype(int) - 128).max() < 8


def test_the_first_channel_is_drawn():
    volume = np.random.default_rng(0).random((3, 24, 20, 16), dtype=np.float32)
    spacing_mm = (1.0, 1.0, 1.2)
    np.testing.assert_array_equal(three_slices(volume, spacing_mm), three_slices(volume[:1], spacing_mm))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.sampled_from([8, 9, 64, 65, 130])] * 3),
    spacing_mm=st.tuples(*[st.sampled_from([0.05, 1.0, 9.5, 100.0])] * 3),
    filling=st.sampled_from([0.0, 0.5, 1.0, -0.2, 1.7, np.nan, np.inf, -np.inf]),
)
def test_every_volume_gives_a_strip(shape, spacing_mm, filling):
    volume = np.full((1, *shape), filling, dtype=np.float32)
    strip = three_slices(volume, spacing_mm)
    assert strip.max() == round(255 * float(np.clip(np.nan_to_num(filling), 0, 1)))
    cut(strip)


def test_voxels_that_are_no_numbers_are_black_and_the_others_stay():
    volume = np.full((1, 16, 16, 16), 0.6, dtype=np.float32)
    volume[0, :8] = np.nan
    axial = cut(three_slices(volume, (1.0, 1.0, 1.0)))[2]
    assert axial[:, 60:].max() == 0
    assert axial[10:-10, 10:48].min() == round(255 * 0.6)


def test_a_large_volume_is_not_copied():
    # Broadcast, it takes no memory itself: whoever copies it whole takes 300 MB.
    volume = np.broadcast_to(np.float32(0.5), (1, 512, 512, 300))
    tracemalloc.start()
    three_slices(volume, (0.5, 0.5, 1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24e6


def test_a_strip_is_a_small_jpeg_close_to_what_was_given(tmp_path):
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 96)] * 3, indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    noise = 0.03 * np.random.default_rng(0).standard_normal(radius.shape)
    head = np.where(radius < 0.9, 0.5 + 0.3 * np.sin(18 * radius) * np.cos(12 * grid[0]) + noise, 0.0)
    strip = three_slices(head[None].astype(np.float32), (2.0, 2.0, 2.0))
    save_strip(tmp_path / "strip.jpg", strip)
    assert [path.name for path in tmp_path.iterdir()] == ["strip.jpg"]
    assert 3_000 < (tmp_path / "strip.jpg").stat().st_size < 10_000
    with Image.open(tmp_path / "strip.jpg") as picture:
        assert (picture.format, picture.mode) == ("JPEG", "L")
        assert np.abs(np.asarray(picture).astype(int) - strip).mean() < 4


class Page(HTMLParser):
    """Reads a page and insists that each element is closed where it should be."""

    VOID = ("meta", "img", "input", "br")

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text_in(self, tag):
        return [data for where, data in self.texts if where == tag and data.strip()]


def test_whatever_a_file_is_called_stays_text():
    fields = ("name", "subject", "shape", "spacing", "values", "told_by", "split", "note")
    hostile = dict.fromkeys(fields, HOSTILE)
    entries = [
        Entry(modality="mri", picture=f"pictures/{HOSTILE}.jpg", **hostile),
        Entry(modality='"><script>', picture="//host/a.jpg", **hostile),
        Entry(modality="ct", picture="data:text/html,x", **hostile),
        Entry(modality="ct", reason=f"<i>{HOSTILE}", **hostile),
    ]
    html = contact_sheet(entries, f"$x {HOSTILE}", {HOSTILE: HOSTILE})
    page = Page(html)
    plain = Page(contact_sheet([Entry("a", m) for m in "xyz"] + [Entry("a", "z", reason="b")], "t", {"a": "b"}))
    assert {tag for tag, _ in page.elements} - {tag for tag, _ in plain.elements} == {"img"}
    assert "<u>" not in html
    assert page.text_in("bdi") == [HOSTILE] * 4
    assert page.text_in("title") == [f"$x {HOSTILE}"]
    assert [image["alt"].endswith(HOSTILE) for image in page.all("img")] == [True] * 3
    assert [option["value"] for option in page.all("option")] == ["", '"><script>', "ct", "mri"]


def test_a_picture_is_found_beside_the_page_whatever_it_is_called():
    names = [f"pictures/{HOSTILE}.jpg", "//host/a.jpg", "data:text/html,x", "javascript:x", f"pictures/{NO_UTF8}.jpg"]
    page = Page(contact_sheet([Entry("a", "mri", picture=name) for name in names], "t", {}))
    for image, name in zip(page.all("img"), names, strict=True):
        parts = urlsplit(image["src"])
        assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
        assert unquote(parts.path, errors="surrogateescape") == f"./{name}"


def test_names_that_are_no_utf8_can_be_written(tmp_path):
    html = contact_sheet([Entry(NO_UTF8, "mri", picture=NO_UTF8), Entry(NO_UTF8, "ct", reason=NO_UTF8)], NO_UTF8, {})
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    assert Page(html).text_in("bdi") == ["caf\\udce9.nii"] * 2


def test_accepted_files_are_cards_by_modality_and_refused_ones_rows_by_reason():
    entries = [
        Entry("a.nii", "mri", shape="9×9×9", note="thick", picture="a.jpg"),
        Entry("b.nii", "ct", told_by="its folder"),
        Entry("c.nii", "mri", picture="c.jpg"),
        Entry("d.nii", "ct", reason="cut off: the data ends too early"),
        Entry("e.nii", "ct", reason="a label map by its content: 4 whole numbers from 0 to 3"),
        Entry("f.nii", "", reason="a label map by its content: 2 whole numbers from 0 to 1"),
    ]
    page = Page(contact_sheet(entries, "Data", {"Subjects": "3"}))
    assert page.text_in("a") == ["MRI 2", "CT 1", "Refused 3"]
    assert [text.strip() for text in page.text_in("h2")] == ["MRI", "CT", "Refused"]
    assert page.text_in("bdi") == ["a.nii", "c.nii", "b.nii", "e.nii", "f.nii", "d.nii"]
    assert page.text_in("th")[3:] == ["a label map by its content (2)", "cut off (1)"]
    assert page.text_in("td")[0] == entries[4].reason
    assert page.text_in("dt") == [
        "Subjects",
        "Shape",
        "Modality",
        "Note",
        "Modality",
        "Modality",
        "Modality",
        "Modality",
    ]
    assert "CT (its folder)" in page.text_in("dd")
    targets = {section["id"] for section in page.all("section")}
    assert {link["href"].removeprefix("#") for link in page.all("a")} == targets


def test_the_page_needs_nothing_from_elsewhere_and_opens_at_once():
    html = contact_sheet([Entry("a.nii", "mri", picture="a.jpg")] * 3, "Data", {})
    page = Page(html)
    assert not {"link", "iframe", "base", "object"} & {tag for tag, _ in page.elements}
    assert not any({"src", "integrity"} & set(script) for script in page.all("script"))
    assert not any(name.startswith("on") or name == "style" for _, attrs in page.elements for name in attrs)
    assert all(word not in html for word in ("http", "url(", "@import", "fetch("))
    for image in page.all("img"):
        assert image["loading"] == "lazy"
        assert (image["width"], image["height"]) == (str(3 * SIDE), str(SIDE))
    assert page.all("html") == [{"lang": "en"}]


def test_a_page_of_nothing_is_a_page():
    page = Page(contact_sheet([], "Nothing", {}))
    assert not page.all("section")
    assert page.text_in("h1") == ["Nothing"]
