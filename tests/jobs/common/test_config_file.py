"""A file of settings, or an override, is settings or one line that says what is wrong."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelwave.errors import InputError
from voxelwave.jobs.common.config_file import read_config
from voxelwave.jobs.pretrain.config import load_config

BOMB = ", ".join(f"&b{level} [{', '.join([f'*b{level - 1}'] * 10) if level else 0}]" for level in range(9))
FILE = "data:\n  sources: [{path: heads, modality: mri}]\n"
VALUES = ["2024-13-45", "2024-02-30", "0b_", "0x_", "!!float x", "!!timestamp x", "9" * 5000, "[" * 1200, f"[{BOMB}]"]


@pytest.mark.parametrize("value", VALUES)
def test_a_value_that_cannot_be_is_one_short_line(tmp_path, value):
    path = tmp_path / "a.yaml"
    path.write_text(f"{FILE}training: {{epochs: {value}}}\n")
    for given_path, overrides in ((path, []), (None, [f"training.epochs={value}"])):
        with pytest.raises(InputError, match=r"(is not a YAML value|cannot read config .*): ") as caught:
            read_config(given_path, overrides)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 600


SECTIONS = ["run", "data", "model", "masking", "training", "data.modalities.mri", "data.sources.0.path", "model.target"]
KEYS = ["run.name", "run.seed", "data.steps", "data.crop_size", "model.backbone", "training.batch_size"]
keys = st.sampled_from([*SECTIONS, *KEYS, "training.learning_rate"])
values = st.sampled_from([*VALUES, "1e999", ".nan", "-1", "1" * 99, "[]", "{}", "null", "{a: {b: [1, {c: x}]}}", "~/x"])
values |= st.text("[]{}:,-&*!#%@'\"| \n0x1eab.", max_size=9)


@settings(deadline=None, max_examples=40)
@given(overrides=st.lists(st.tuples(keys, values).map("=".join), max_size=3))
def test_any_overrides_are_a_configuration_or_one_line(tmp_path_factory, overrides):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(FILE)
    with suppress(InputError):
        load_config(path, overrides)
