"""What names and values tell, case by case, and who is whose subject."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from voxelwave.data.recognition.rules import (
    contradiction,
    modality_by_content,
    modality_by_name,
    session_by_name,
    subject_by_name,
)

ROOT = Path("/scans/set")


@pytest.mark.parametrize(
    ("path", "modality", "rule", "sure"),
    [
        # BIDS: the suffix, and the folder of field maps
        ("sub-01/anat/sub-01_T1w.nii.gz", "mri", "BIDS suffix T1w", True),
        ("sub-01/ses-2/anat/sub-01_ses-2_acq-ct_run-1_FLAIR.nii.gz", "mri", "BIDS suffix FLAIR", True),
        ("sub-01/func/sub-01_task-rest_bold.nii.gz", "mri", "BIDS suffix bold", True),
        ("CT/sub-01_angio.nii.gz", "mri", "BIDS suffix angio", True),
        ("sub-01/pet/sub-01_pet.nii.gz", "", "'pet' in the name 'sub-01_pet'", True),
        ("sub-01/fmap/sub-01_phasediff.nii.gz", "", "the BIDS folder fmap", True),
        ("sub-01/fmap/sub-01_magnitude1.nii.gz", "", "the BIDS folder fmap", True),
        ("sub-01/fmap/sub-01_dir-AP_epi.nii.gz", "", "the BIDS folder fmap", True),
        # the described layout
        ("OpenMind_processed/MRI_T1/0001.nii.gz", "mri", "'t1' in the folder 'MRI_T1'", True),
        ("OpenMind_processed/MRI_T2/scan.nii.gz", "mri", "'t2' in the folder 'MRI_T2'", True),
        ("OpenMind_processed/MRA/scan.nii.gz", "mri", "'mra' in the folder 'MRA'", True),
        ("OpenMind_processed/scan.nii.gz", "mri", "'openmind' in the folder 'OpenMind_processed'", True),
        ("NIH_deeplesion/CT/000001_01_01_103-115.nii.gz", "ct", "'ct' in the folder 'CT'", True),
        # the name before the folder, the nearest folder before the others
        ("MRI/patient_ct.nii", "ct", "'ct' in the name 'patient_ct'", True),
        ("CT/T1/patient.nii", "mri", "'t1' in the folder 'T1'", True),
        ("CT/batch/patient.MGZ", "ct", "'ct' in the folder 'CT'", True),
        ("IXI012-HH-1211-T1.nii.gz", "mri", "'t1' in the name 'IXI012-HH-1211-T1'", True),
        # words disagree: the last counts, and it is not sure
        ("CT_to_T1.nii.gz", "mri", "'t1' in the name 'CT_to_T1'", False),
        ("MR-CT/patient.nii", "ct", "'ct' in the folder 'MR-CT'", False),
        # of CT these words say a phase of contrast and a dose, of others that it is no image
        ("CT/CT_arterial_phase.nii", "ct", "'ct' in the name 'CT_arterial_phase'", True),
        ("CT_low_dose.nii", "ct", "'ct' in the name 'CT_low_dose'", True),
        ("plan/dose.nii", "", "'dose' in the name 'dose'", True),
        # neither: a folder further up is not believed
        ("CT/PET/patient.nii", "", "'pet' in the folder 'PET'", True),
        ("T1/phase.nii", "", "'phase' in the name 'phase'", True),
        ("sub-01/anat/sub-01_inv-1_part-mag_MP2RAGE.nii.gz", "mri", "BIDS suffix MP2RAGE", True),
        *(
            (f"sub-01/anat/{name}.nii.gz", "", f"'{word}' in the name '{name}', which is no magnitude image", True)
            for word, name in (
                ("part-phase", "sub-01_inv-1_part-phase_MP2RAGE"),
                ("part-real", "sub-01_part-real_T2starw"),
                ("part-imag", "sub-01_echo-2_part-imag_MEGRE"),
                ("ph", "12_t2_gre_e2_ph"),
                ("phase", "anna_T1_phase"),
                ("imaginary", "4_swi_imaginary"),
            )
        ),
        ("graph/phantom_T1.nii", "mri", "'t1' in the name 'phantom_T1'", True),
        # a word is a whole word
        ("contact/actual_structure.nii", None, "neither name nor folder tells it", True),
        ("adcock/mrs_smith.nii.gz", None, "neither name nor folder tells it", True),
    ],
)
def test_the_modality_is_told_by_the_nearest_name_that_tells_one(path, modality, rule, sure):
    assert modality_by_name(ROOT / path, ROOT) == (modality, rule, sure)


def test_the_folder_that_was_searched_is_asked_and_what_is_above_is_not():
    assert modality_by_name(Path("/mri/CT/a.nii"), Path("/mri/CT")).modality == "ct"
    assert modality_by_name(Path("/mri/set/a.nii"), Path("/mri/set")).modality is None


def values(low, high, shape=(12, 12, 12)):
    return np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("array", "modality"),
    [
        (values(-1024, 2000), "ct"),
        (values(0, 1, (8, 8, 8, 3)), "ct"),
        (values(0, 3000), None),
        (values(-850, 3000), None),
        (np.full((8, 8, 8), np.nan, np.float32), None),
    ],
)
def test_values_tell_a_modality_but_are_never_sure(array, modality):
    told = modality_by_content(array)
    assert told.modality == modality
    assert modality is None or not told.sure


def test_hounsfield_units_contradict_a_name_of_mri_alone():
    mri, ct = (modality_by_name(Path(name), Path()) for name in ("a_T1.nii", "a_ct.nii"))
    assert contradiction(mri, values(0, 3000)) is None
    assert contradiction(ct, values(-1024, 2000)) is None
    assert "look like Hounsfield units: say which with --modality" in contradiction(mri, values(-1024, 2000))


@pytest.mark.parametrize(
    ("path", "subject"),
    [
        # BIDS, whatever the session, the kind of scan or the pipeline
        ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01"),
        ("sub-01/ses-2/func/sub-01_ses-2_bold.nii.gz", "sub-01"),
        ("T1/sub-01_T1w.nii.gz", "sub-01"),
        ("images/sub-01_T1w.nii.gz", "sub-01"),
        ("masks/sub-01_mask.nii.gz", "sub-01"),
        ("images/sub-01/sub-01_T1w.nii.gz", "sub-01"),
        ("labels/sub-01/ses-1/sub-01_mask.nii.gz", "sub-01"),
        ("derivatives/lesions_v2/sub-01/anat/sub-01_desc-lesion_mask.nii.gz", "sub-01"),
        # several BIDS data sets: each counts from 01 again
        ("ds001/sub-01/anat/sub-01_T1w.nii.gz", "ds001/sub-01"),
        ("ds002/sub-01/anat/sub-01_T1w.nii.gz", "ds002/sub-01"),
        ("ds002/rawdata/sub-01/anat/sub-01_T1w.nii.gz", "ds002/sub-01"),
        ("ds002/derivatives/lesions_v2/sub-01/anat/sub-01_desc-lesion_mask.nii.gz", "ds002/sub-01"),
        # OpenMind: one subject, whichever of the three folders
        ("MRI_T1/OpenMind/ds001/sub-01/ses-T1/anat/sub-01_ses-T1_T1w.nii.gz", "ds001/sub-01"),
        ("MRI_T2/OpenMind/ds001/sub-01/ses-T1/anat/sub-01_ses-T1_T2w.nii.gz", "ds001/sub-01"),
        ("OpenMind_processed/MRA/ds001/sub-01/anat/sub-01_angio.nii.gz", "ds001/sub-01"),
        ("MRI_T1/sub-01_T1w.nii.gz", "sub-01"),
        # DeepLesion: the patient's number
        ("CT/000001_01_01_103-115.nii.gz", "000001"),
        ("CT/000001_02_01_008-023.nii.gz", "000001"),
        ("CT/000017_01_01_103-115.nii.gz", "000017"),
        # OASIS, ADNI, BraTS: whichever of the visits
        ("OAS1_0003_MR1/OAS1_0003_MR1_mpr.nii.gz", "OAS1_0003"),
        ("OAS1_0003_MR2/T1.nii.gz", "OAS1_0003"),
        ("ADNI_002_S_0295_MR_MPRAGE_Br_2008.nii", "002_S_0295"),
        ("002_S_0295/2011/T1.nii", "002_S_0295"),
        ("BraTS-GLI-00005-001-t1n.nii.gz", "BraTS-GLI-00005"),
        # planes and time points
        ("patient00/ax_T1.nii.gz", "patient00"),
        ("patient00/sag_T2.nii.gz", "patient00"),
        ("timepoint1/sub-01/T1.nii.gz", "sub-01"),
        # plain names, without the words of modality, label, resolution and acquisition
        ("stroke_T1.nii.gz", "stroke"),
        ("stroke_T2.nii.gz", "stroke"),
        ("stroke_scribble.nii.gz", "stroke"),
        ("mne_ecog_aparc+aseg.mgz", "mne_ecog"),
        ("patient.007.flair.nii", "patient_007"),
        ("mni152_T1_2mm.nii.gz", "mni152"),
        ("IXI012-HH-1211-T1.nii.gz", "IXI012_HH_1211"),
        ("IXI012-HH-1211-PD.nii.gz", "IXI012_HH_1211"),
        ("T1_0042.nii.gz", "0042"),
        ("T2_0042.nii.gz", "0042"),
        ("body_ct_small.nii.gz", "body_small"),
        ("body_ct_small_seg.nii.gz", "body_small"),
        # a name of nothing else: the folder of the patient
        ("patient07/FLAIR.nii.gz", "patient07"),
        ("patient07/T1.nii.gz", "patient07"),
        ("patient07/masks/lesions.nii.gz", "patient07"),
        ("patient07/month12/T1.nii.gz", "patient07"),
        ("MRI/patient08/T1.nii.gz", "patient08"),
        ("T1.nii.gz", "set"),
    ],
)
def test_scans_of_one_person_have_one_subject(path, subject):
    assert subject_by_name(ROOT / path, ROOT) == subject


def test_a_subject_does_not_depend_on_which_folder_of_a_set_was_named():
    whole, part = (subject_by_name(ROOT / "MRI_T1/a.nii", root) for root in (ROOT, ROOT / "MRI_T1"))
    assert whole == part == "a"
    path = ROOT / "sub-01/anat/sub-01_T1w.nii.gz"
    assert {subject_by_name(path, root) for root in (ROOT, ROOT / "sub-01", ROOT / "sub-01/anat")} == {"sub-01"}


def test_what_dicom_names_comes_after_a_pattern_and_bids():
    asked = {"patient": "X9"}
    assert subject_by_name(ROOT / "p01/T1", ROOT, re.compile(r"(p\d\d)/"), **asked) == "p01"
    assert subject_by_name(ROOT / "sub-01/dicom", ROOT, **asked) == "sub-01"
    assert subject_by_name(ROOT / "anything/T1", ROOT, **asked) == "X9"


@pytest.mark.parametrize(
    ("pattern", "subject"),
    [
        (r"site(\d)", "3"),
        (r"p\d+", "p12"),
        (r"nobody", "p12_scan"),
        (r"sub(\d+)|p(\d+)", "12"),
        (r"site3/(x)?", "p12_scan"),
    ],
)
def test_a_pattern_is_asked_first(pattern, subject):
    assert subject_by_name(ROOT / "site3/p12_scan_T1.nii", ROOT, re.compile(pattern)) == subject


@pytest.mark.parametrize(
    ("path", "session"),
    [
        ("sub-01/ses-02/anat/sub-01_ses-02_T1w.nii.gz", "ses-02"),
        ("sub-01_ses-pre_T1w.nii.gz", "ses-pre"),
        ("ses-1/T1.nii", "ses-1"),
        ("sub-01/anat/sub-01_T1w.nii.gz", ""),
        ("glasses-1/T1.nii", ""),
    ],
)
def test_the_session_of_a_scan_is_that_of_bids(path, session):
    assert session_by_name(path) == session
