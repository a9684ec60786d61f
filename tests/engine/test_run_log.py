import csv
import io
import json
import math
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelwave.engine.run_log import RunLog, checksum_of, read_metrics, recorded, summarise
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


def test_a_loss_of_any_size_is_told_from_zero(tmp_path):
    stream = io.StringIO()
    with RunLog(tmp_path, start_step=0, total_steps=9, console=Console(file=stream), tensorboard=False) as log:
        log.step(record(0, loss=1.25e-5))
        log.epoch()
    assert "epoch 1: loss 1.250e-05" in stream.getvalue()


def test_rows_are_those_of_all_epochs_before_and_after_a_resume(tmp_path):
    records = [record(step, epoch=1 + step // 2, loss=float(step)) for step in range(6)]
    console = Console(file=io.StringIO())
    for start, end in ((0, 4), (3, 6)):  # the second goes on within an epoch that has a row
        with RunLog(tmp_path, start_step=start, total_steps=6, console=console, tensorboard=False) as log:
            assert start == 0 or log.has_epoch_until(4)
            for one in records[start:end]:
                log.step(one)
                if one["step"] % 2:
                    row = log.epoch()
                    assert row == summarise([of for of in records if of["epoch"] == one["epoch"]])
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert [(row["epoch"], row["step"], float(row["loss"])) for row in rows] == [
        ("1", "1", 0.5),
        ("2", "3", 2.5),
        ("3", "5", 4.5),
    ]


def lines(*steps, **more):
    return "".join(json.dumps(record(step, **more)) + "\n" for step in steps)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "lacks step 0 of the 4 that"),
        (lines(0, 1, 2), "lacks step 3 of the 4 that"),
        (lines(0, 2, 3, 4, 5), "lacks step 1 of the 4 that"),
        (lines(0, 1, 2) + '{"step": 3, "ep', "lacks step 3 of the 4 that"),
        (lines(0, 1, 1, 2, 3), "has step 1 where step 2 belongs"),
        (lines(3, 2, 1, 0), "has step 3 where step 0 belongs"),
        (lines(0, 1, 2, 3, loss=1.5), "does not hold the 4 steps that the checkpoint counts, but others"),
    ],
)
def test_records_that_a_checkpoint_does_not_know_are_refused(tmp_path, content, reason):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(0, 1, 2, 3, 4))
    known = checksum_of(read_metrics(path)[:4])
    assert [each["step"] for each in recorded(path, 4, known)] == [0, 1, 2, 3]
    path.write_text(content)
    with pytest.raises(InputError, match=reason) as caught:
        recorded(path, 4, known)
    assert str(caught.value).endswith("restore it from a copy, or choose another run.name")


def test_one_flipped_bit_of_a_record_changes_no_number_in_silence(tmp_path):
    path = tmp_path / "metrics.jsonl"
    content = lines(0, 1, 2, modality="ct", loss=0.123456789).encode()
    path.write_bytes(content)
    expected = read_metrics(path)
    for bit in range(0, 8 * len(content), 5):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert recorded(path, 3, checksum_of(expected)) == expected
        except InputError:
            continue


def test_a_log_knows_the_checksum_of_what_it_wrote_before_and_after_it_was_entered(tmp_path):
    of = {"total_steps": 9, "console": Console(quiet=True), "tensorboard": False}
    more = {"reconstruction": float("nan"), "contrastive": 1e-17}
    with RunLog(tmp_path, start_step=0, **of) as log:
        log.step(record(0, **more))
        log.step(record(1, **more))
        first = log.checksum
    with RunLog(tmp_path, start_step=2, checksum=first, **of) as log:
        assert log.checksum == first
        log.step(record(2, **more))
        assert log.checksum == checksum_of(read_metrics(tmp_path / "metrics.jsonl")) != first
    with pytest.raises(InputError, match="but others"):
        RunLog(tmp_path, start_step=3, checksum=first, **of)


def test_records_are_on_disk_once_flushed(tmp_path, monkeypatch):
    synced = []
    with RunLog(tmp_path, start_step=0, total_steps=9, console=Console(quiet=True)) as log:
        log.step(record(0))
        monkeypatch.setattr(
            os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        )
        log.flush()
        monkeypatch.undo()
    assert synced == [tmp_path / "metrics.jsonl"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_a_full_disk_names_the_file_and_no_thread_tells_of_it(tmp_path, capfd, name):
    log = RunLog(tmp_path, start_step=0, total_steps=9, console=Console(quiet=True))
    path = tmp_path / name if name.endswith("jsonl") else next((tmp_path / name).iterdir())
    of = log._metrics if name.endswith("jsonl") else log._events._file
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), of.fileno())

    def train():
        with log:
            for step in range(1000):
                log.step(record(step))

    with pytest.raises(OSError, match="No space left on device") as caught:
        train()
    assert caught.value.filename == str(path)
    assert capfd.readouterr().err == ""


def test_tensorboard_shows_every_scalar_and_nothing_that_was_cut(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    console = Console(quiet=True)
    with RunLog(tmp_path, start_step=0, total_steps=9, console=console) as log:
        for step in range(3):
            log.step(record(step, loss=1.0))
    with RunLog(tmp_path, start_step=2, total_steps=9, console=console) as log:
        log.step(record(2, loss=5.0))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("mri/loss")] == [(0, 1.0), (1, 1.0), (2, 5.0)]
    assert "mri/volumes_per_second" in events.Tags()["scalars"]


def test_records_of_a_rank_that_does_not_write_stay_in_memory(tmp_path):
    console = Console(quiet=True)
    with RunLog(tmp_path, start_step=0, total_steps=2, console=console, writes=False) as log:
        log.step(record(0, reconstruction=1.0, contrastive=1.0))
        assert log.epoch()["loss"] == 1.0
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
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2, is damaged: restore the file from a copy$"):
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


def test_what_overflowed_does_not_count_and_keeps_no_run_from_going_on(tmp_path):
    records = [record(0, grad_norm=math.inf), record(1, grad_norm=-math.inf), record(2, grad_norm=3.0)]
    console = Console(file=io.StringIO())
    with RunLog(tmp_path, start_step=0, total_steps=3, console=console) as log:
        for one in records:
            log.step(one)
        assert log.epoch()["grad_norm"] == 3.0
    assert recorded(tmp_path / "metrics.jsonl", 3, log.checksum) == records
    assert math.isnan(summarise(records[:2])["grad_norm"])
