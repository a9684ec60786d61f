import json

import pytest
import yaml

from support.command import error_of, voxelwave
from voxelwave.jobs.common.config import JobConfig, RunConfig
from voxelwave.jobs.common.run_folder import write_config

STEPS = 6


def record(step, **changed):
    numbers = {"loss": 1 / (step + 3), "learning_rate": 1e-3, "volumes_per_second": 7.0 + step, "data_wait_s": 0.1}
    return {"step": step, "epoch": step // 2 + 1, "modality": "mri", **numbers, **changed}


def run(folder, changed=None, *, steps=range(STEPS)):
    """A run folder; `changed` gives other values of some steps, and None for a name that is not recorded."""
    folder.mkdir()
    records = [record(step, **(changed or {}).get(step, {})) for step in steps]
    lines = [json.dumps({name: value for name, value in one.items() if value is not None}) for one in records]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_runs_that_differ_in_times_alone_are_equal(tmp_path):
    times = {step: {"volumes_per_second": 1.0, "data_wait_s": 3.0, "duration_s": 2.0} for step in range(STEPS)}
    first, second = run(tmp_path / "a"), run(tmp_path / "b", times)
    ended = voxelwave("compare-logs", first, second / "metrics.jsonl")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "6 of 6 steps are equal: step, epoch, modality, loss, learning_rate\n"


def test_the_first_step_that_differs_is_shown_with_both_values(tmp_path):
    first = run(tmp_path / "a")
    second = run(tmp_path / "b", {2: {"loss": 0.25, "modality": "ct"}, 4: {"learning_rate": 2e-3}})
    ended = voxelwave("compare-logs", first, second)
    assert ended.code == 1
    assert ended.out.splitlines() == [
        "4 of 6 steps are equal: step, epoch, modality, loss, learning_rate",
        "the first that differs is step 2:",
        "  modality: 'mri' and 'ct'",
        "  loss: 0.2 and 0.25, relative difference 0.2",
    ]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--columns", "learning_rate"], 0),
        (["--columns", "learning_rate, loss"], 1),
        (["--tolerance", "1e-9"], 1),
        (["--tolerance", "1e-7"], 0),
    ],
)
def test_columns_and_tolerance_say_what_counts(tmp_path, arguments, code):
    first, second = run(tmp_path / "a"), run(tmp_path / "b", {3: {"loss": (1 + 2e-8) / 6}})
    assert voxelwave("compare-logs", first, second, *arguments).code == code


def test_one_bit_is_a_difference(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b", {0: {"loss": 0.33333333333333337}})
    assert voxelwave("compare-logs", first, second).code == 1


def test_what_one_run_did_not_record_differs_and_what_neither_could_measure_does_not(tmp_path):
    first = run(tmp_path / "a", {1: {"gauge": float("nan")}})
    second = run(tmp_path / "b", {1: {"gauge": float("nan")}})
    third = run(tmp_path / "c", {1: {"gauge": 1.0}, 2: {"learning_rate": None}})
    assert voxelwave("compare-logs", first, second).code == 0
    ended = voxelwave("compare-logs", first, third)
    assert (ended.code, ended.out.splitlines()[1:]) == (
        1,
        ["the first that differs is step 1:", "  gauge: nan and 1.0, relative difference inf"],
    )
    ended = voxelwave("compare-logs", first, third, "--columns", "learning_rate")
    assert ended.out.splitlines()[1:] == ["the first that differs is step 2:", "  learning_rate: 0.001 and missing"]


def test_the_common_part_decides_where_one_run_is_longer(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b", steps=range(4))
    ended = voxelwave("compare-logs", first, second)
    assert (ended.code, ended.out.splitlines()[0].split(":")[0]) == (0, "4 of 4 steps are equal")
    assert ended.out.splitlines()[1] == f"2 steps are in {first} alone, from step 4 on"


def test_settings_that_differ_are_listed_and_change_nothing_about_the_end(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    for number, folder in enumerate((first, second)):
        write_config(folder, JobConfig(run=RunConfig(name=folder.name, out_dir=tmp_path, seed=number)))
    ended = voxelwave("compare-logs", first, second)
    assert (ended.code, ended.out.splitlines()[0]) == (0, "setting run.seed: 0 and 1")
    assert len(ended.out.splitlines()) == 2
    text = yaml.safe_dump({"run": 3})
    (second / "config.yaml").write_text(f"{text}# crc32 00000000: damaged\n")
    ended = voxelwave("compare-logs", first, second)
    assert ended.code == 0
    assert "settings were not compared" in ended.out.splitlines()[0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "no records at"),
        ("", "holds no step yet"),
        (json.dumps(record(0)) + "\n" + json.dumps(record(0)) + "\n", "holds a step twice"),
        ("nonsense\n" + json.dumps(record(0)) + "\n", "line 1, is damaged"),
        (json.dumps(record(99)) + "\n", "no step in common"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_exit_code_2(tmp_path, lines, message):
    first = run(tmp_path / "a")
    second = tmp_path / "b"
    second.mkdir()
    if lines is not None:
        (second / "metrics.jsonl").write_text(lines)
    assert message in error_of(voxelwave("compare-logs", first, second))


def test_an_unknown_column_is_named_with_those_that_are_there(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    line = error_of(voxelwave("compare-logs", first, second, "--columns", "loss,lose"))
    assert "no record of a common step has 'lose'; compared can be step, epoch, modality, loss, learning_rate, " in line


def test_a_column_that_no_common_step_has_is_not_compared_with_nothing(tmp_path):
    first, second = run(tmp_path / "a", {5: {"validation_loss": 1.0}}), run(tmp_path / "b", steps=range(3))
    assert "no record of a common step has 'validation_loss'" in error_of(
        voxelwave("compare-logs", first, second, "--columns", "validation_loss")
    )


def test_times_are_compared_where_they_are_asked_for(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b", {1: {"data_wait_s": 3.0}})
    assert voxelwave("compare-logs", first, second, "--columns", "data_wait_s").code == 1
    assert voxelwave("compare-logs", first, first, "--columns", "data_wait_s").code == 0
