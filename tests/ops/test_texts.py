"""A text of anybody is a value or a ValueError in one line, soon."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelwave.ops.texts import DEEPEST, from_json, from_yaml, read_json, read_text, read_yaml, sealed, to_json

LEVELS = [f"&b{level} [{', '.join([f'*b{level - 1}'] * 10)}]" if level else "&b0 [0, 0]" for level in range(9)]
BOMB = "{" + ", ".join(f"a{level}: {text}" for level, text in enumerate(LEVELS)) + "}"
BASES = [f"&m{level} {{<<: [{', '.join([f'*m{level - 1}'] * 10)}]}}" if level else "&m0 {k: 0}" for level in range(9)]
MERGES = "{" + ", ".join(f"a{level}: {text}" for level, text in enumerate(BASES)) + "}"

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=9,
)
SIGNS = "[ ] { } &a *a <<: !!int !!float !!timestamp !!bool !!binary !!set !!omap !!str ? | % @ 0b_ 0x_ 1:99 . # = ~ \\"
yamlish = st.lists(
    st.sampled_from([*SIGNS.split(), "- ", ": ", ", ", "\n", "  ", " ", "2024-13-45", "1e999", ".inf", "x", '"', "'"]),
    max_size=14,
).map("".join)
IMPOSSIBLE = ["2024-13-45", "0b_", "0x_", "!!float x", "!!timestamp x", "!!int ''", "!!bool x", "? [a]\n: b", "\x1b"]
ENDLESS = ["5" * 5000, "0x" + "f" * 10**5, "1" + ":1" * 10**5, "[" * 1200, "{a: " * 1200, "&a [*a]", BOMB, MERGES]


@pytest.mark.parametrize(
    "text",
    [*IMPOSSIBLE, *ENDLESS],
)
def test_a_value_that_yaml_cannot_have_is_one_line(text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        from_yaml(text)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_aliases_that_stand_for_little_are_as_pyyaml_reads_them():
    text = "base: &b {rate: 1e-3, sizes: &s [1, 2]}\none: {<<: *b, rate: 2}\nsizes: *s\nday: 2024-02-03"
    assert from_yaml(text) == yaml.safe_load(text)
    assert from_yaml("") is None


@settings(deadline=None, max_examples=60)
@given(value=plain)
def test_what_was_written_comes_back(value):
    assert from_json(json.dumps(value)) == value
    assert from_yaml(yaml.safe_dump(value)) == value


@settings(deadline=None, max_examples=150)
@given(text=yamlish)
def test_any_text_is_a_value_or_a_value_error(text):
    for parse in (from_yaml, from_json):
        with suppress(ValueError):
            repr(parse(text))


@pytest.mark.parametrize(
    "text",
    ["[" * 10**5, '{"a":' * 10**5, "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "9" * 5000, '"\\ud800"', '["\\' * 10**5],
)
def test_json_that_is_too_deep_or_cannot_be_written_again_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011
        from_json(text)


def test_brackets_within_a_text_are_no_levels():
    value = ["[" * 500 + '\\"' + "{" * 500, "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")]
    assert from_json(json.dumps(value)) == value
    assert from_json("[" * DEEPEST + "]" * DEEPEST)


def test_a_file_is_read_up_to_a_size(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path) == read_yaml(path) == [1]
    with path.open("wb") as file:
        file.truncate(2**20 + 1)
    for read in (read_yaml, lambda of: read_text(of, most_mb=1)):
        with pytest.raises(ValueError, match="larger than 1 MB"):
            read(path)


def test_a_changed_bit_of_a_sealed_text_is_never_another_value(tmp_path):
    text, path = sealed("a: {b: 10, c: names}\nd: false\ne: 17\n"), tmp_path / "a.yaml"
    path.write_text(text)
    values = {"a": {"b": 10, "c": "names"}, "d": False, "e": 17}
    assert read_yaml(path) == values
    for bit in range(8 * len(text)):
        changed = bytearray(text.encode())
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with suppress(ValueError):
            assert read_yaml(path) == values


def test_without_its_last_line_a_sealed_text_may_be_changed(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(sealed("a: 10\n").replace("10", "11"))
    with pytest.raises(ValueError, match="damaged; if you changed it yourself, delete its last line"):
        read_yaml(path)
    path.write_text("a: 11\n")
    assert read_yaml(path) == {"a": 11}


def test_names_that_are_no_utf8_and_what_is_not_finite_are_written_as_json():
    name = os.fsdecode(b"M\xfcller")
    written = to_json({name: [name, math.inf], "Ö": (math.nan, 1.5)})
    assert from_json(written.encode().decode()) == {"M\\udcfcller": ["M\\udcfcller", None], "Ö": [None, 1.5]}
