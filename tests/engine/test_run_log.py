import io
import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelwave.engine.run_log import RunLog, read_metrics, summarise
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console


def record(step, epoch=1, modality="mri", loss=1.0, **more):
    return {"step": step, "epoch": epoch, "modality": modality, "loss": loss, "volumes_per_second": 8.0, **more}


def test_summary_averages_over_all_steps_and_by_modality():
    row = summarise([record(0, loss=1.0), record(1, modality="ct", loss=4.0), record(2, loss=2.0, gauge=7.0)])
    assert (row["epoch"], row["step"]) == (1, 2)
    assert row["loss"] == pytest.approx(7 / 3)
    assert (row["mri_loss"], row["ct_loss"]) == (1.5, 4.0)
    assert "gauge" not in row  # not in every record


def test_summary_of_what_was_validated_is_the_last():
    records = [record(0), record(1, modality="ct", validation_dice=0.5), record(2), record(3, validation_dice=0.7)]
    assert summarise(records)["validation_dice"] == 0.7
    assert not {name for name in summarise(records[1:2]) if name.startswith("ct_validation")}


def test_entering_at_a_step_drops_what_was_written_beyond_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record(step)) + "\n" for step in range(5)) + '{"step": 5, "ep')
    console = Console(file=io.StringIO())
    with RunLog(tmp_path, start_step=3, total_steps=9, console=console, tensorboard=False) as log:
        log.step(record(3, loss=9.0, reconstruction=1.0, contrastive=1.0))
    assert [(r["step"], r["loss"]) for r in read_metrics(path)] == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 9.0)]


def test_records_of_a_rank_that_does_not_write_stay_in_memory(tmp_path):
    console = Console(quiet=True)
    with RunLog(tmp_path, start_step=0, total_steps=2, console=console, writes=False) as log:
        log.step(record(0, reconstruction=1.0, contrastive=1.0))
        assert log.epoch(1)["loss"] == 1.0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "[" * 10**5,
        "[]",
        "{}",
        json.dumps(record(0) | {"step": 1e999}),
        json.dumps(record(-1)),
        json.dumps(record(0) | {"step": True}),
        json.dumps({key: value for key, value in record(0).items() if key != "modality"}),
        json.dumps({key: value for key, value in record(0).items() if key != "epoch"}),
        json.dumps(record(0, epoch=1.5)),
        json.dumps(record(0, modality=["mri"])),
        json.dumps(record(0, loss="low")),
        json.dumps(record(0, loss=1e306)),
        json.dumps(record(0, loss=10**400)),
    ],
)
def test_a_line_that_no_step_left_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{json.dumps(record(0))}\n{line}\n{json.dumps(record(2))}\n")
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2, is damaged: mend or remove it$"):
        read_metrics(path)


odd = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
)


@settings(deadline=None, max_examples=100)
@given(
    lines=st.lists(st.dictionaries(st.sampled_from([*record(0), "validation_dice", ""]), odd), min_size=1, max_size=3)
)
def test_any_lines_are_records_that_can_be_summarised_or_an_error(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    path.write_text("".join(json.dumps(record(0) | line) + "\n" for line in lines) + json.dumps(record(0)))
    with suppress(InputError):
        summarise(read_metrics(path))
