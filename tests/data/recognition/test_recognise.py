"""A scan is told by what is known before its values, and by these, in one order; it is read once at most."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from voxelwave.data.reading.volume import Volume
from voxelwave.data.recognition.recognise import NotAnImage, recognise, told_beforehand
from voxelwave.data.recognition.rules import Told
from voxelwave.errors import UnusableVolume

MRI = np.random.default_rng(0).uniform(0, 900, (12, 12, 12)).astype(np.float32)
CT = np.random.default_rng(0).uniform(-1100, 900, (12, 12, 12)).astype(np.float32)
LABELS = np.random.default_rng(0).integers(0, 5, (12, 12, 12)).astype(np.float32)
ROOT = Path("scans")


class Scan:
    """Counts how often it is read."""

    def __init__(self, array):
        self.array, self.times = array, 0

    def __call__(self):
        self.times += 1
        return Volume(self.array, np.eye(4))


@pytest.mark.parametrize(
    ("path", "options", "told"),
    [
        ("T1/a.nii", {"given": "ct", "tag": "MR"}, Told("ct", "--modality")),
        ("T1/a.nii", {"tag": "CT"}, Told("ct", "the DICOM modality CT")),
        ("T1/a.nii", {"tag": "PT"}, Told("", "the DICOM modality PT")),
        ("T1/a.nii", {}, Told("mri", "'t1' in the folder 'T1'")),
        ("a.nii", {"given": ""}, Told(None, "neither name nor folder tells it")),
    ],
)
def test_what_is_given_goes_before_the_header_and_the_header_before_names(path, options, told):
    assert told_beforehand(ROOT / path, ROOT, **options) == told


@pytest.mark.parametrize(
    ("name", "array", "modality"),
    [("a_T1.nii", MRI, "mri"), ("a_ct.nii", CT, "ct"), ("a.nii", CT, "ct"), ("a.nii", MRI, None)],
)
def test_values_tell_what_no_name_does_and_the_scan_is_read_once(name, array, modality):
    scan = Scan(array)
    told, volume = recognise(told_beforehand(ROOT / name, ROOT), Path(name), scan)
    assert told.modality == modality
    assert volume.array is array
    assert scan.times == 1
    if modality is None:
        with pytest.raises(
            UnusableVolume, match="modality unknown: neither name, folder nor values tell it; say which"
        ):
            told.known()
    else:
        assert told.known() == modality


@pytest.mark.parametrize(
    ("name", "array", "times", "reason"),
    [
        ("a_pet_seg.nii", LABELS, 0, "neither MRI nor CT by 'pet' in the name 'a_pet_seg'; say which with --modality"),
        ("a_T1_seg.nii", LABELS, 0, "a label map by its name"),
        ("a_T1.nii", LABELS, 1, "a label map by its content: 5 whole numbers"),
        ("a_T1.nii", CT, 1, "taken for MRI by 't1' in the name 'a_T1', but its values look like Hounsfield units"),
    ],
)
def test_what_speaks_against_a_scan_is_said_before_it_is_read_where_that_is_known(name, array, times, reason):
    scan = Scan(array)
    with pytest.raises(UnusableVolume, match=reason) as caught:
        recognise(told_beforehand(ROOT / name, ROOT), Path(name), scan)
    assert scan.times == times
    assert isinstance(caught.value, NotAnImage) == reason.startswith("a label map")


def test_what_a_header_says_goes_after_the_modality_and_before_the_name():
    for name, reason in (("a_pet.nii", "neither MRI nor CT"), ("a_seg.nii", "too small")):
        scan = Scan(MRI)
        with pytest.raises(UnusableVolume, match=reason):
            recognise(told_beforehand(ROOT / name, ROOT), Path(name), scan, problem="too small")
        assert scan.times == 0


def test_a_modality_that_is_given_is_not_contradicted_but_a_label_map_stays_one():
    told = told_beforehand(ROOT / "a.nii", ROOT, given="mri")
    assert recognise(told, Path("a.nii"), Scan(CT))[0] == told
    with pytest.raises(NotAnImage):
        recognise(told, Path("a.nii"), Scan(LABELS))
    with pytest.raises(UnusableVolume, match="taken for MRI by the DICOM modality MR"):
        recognise(told_beforehand(ROOT, ROOT, tag="MR"), Path(), Scan(CT))
