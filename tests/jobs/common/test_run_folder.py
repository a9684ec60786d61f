from pathlib import Path

import pytest

from voxelwave.errors import InputError
from voxelwave.jobs.common.run_folder import check_settings_stay

FOLDER = Path("runs/one")
BEFORE = {"data": {"windows": [[40, 80], [600, 2800]], "path": None}, "training": {"rate": 0.1, "steps": 5}}


def changed(section, **values):
    return {**BEFORE, section: {**BEFORE[section], **values}}


def test_a_number_may_be_written_with_or_without_a_point():
    # As a YAML file of resolved settings, read back, has them.
    check_settings_stay(FOLDER, {"config": BEFORE}, changed("data", windows=[[40.0, 80.0], [600.0, 2800.0]]), {})


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (changed("training", rate=0.2), "'training.rate' was 0.1 and is 0.2 now"),
        (changed("data", path="x"), "'data.path' was None and is x now"),
        (changed("data", added=1), "'data.added' was None and is 1 now"),
        ({"data": BEFORE["data"]}, "'training.rate' was 0.1 and is None now"),
    ],
)
def test_a_changed_an_added_and_a_missing_setting_are_named(now, message):
    with pytest.raises(InputError, match=message):
        check_settings_stay(FOLDER, {"config": BEFORE}, now, {})


def test_what_is_free_to_change_may_differ():
    check_settings_stay(FOLDER, {"config": BEFORE}, changed("training", rate=0.2), {"training": ("rate",)})


@pytest.mark.parametrize("off", [False, 0.0, None, ""])
def test_a_setting_that_the_version_of_the_run_did_not_know_may_be_there_if_it_is_off(off):
    check_settings_stay(FOLDER, {"config": BEFORE}, changed("training", added=off), {})


@pytest.mark.parametrize("now", [{"noise": {"std": 2}, "flip": {}}, {"noise": {"std": 2}}])
def test_augmentations_and_their_order_are_a_setting(now):
    before = {"data": {"augment": {"mri": {"flip": {}, "noise": {"std": 2}}}}}
    check_settings_stay(FOLDER, {"config": before}, before, {})
    with pytest.raises(InputError, match=r"'data.augment.mri' was flip, noise and is noise"):
        check_settings_stay(FOLDER, {"config": before}, {"data": {"augment": {"mri": now}}}, {})
