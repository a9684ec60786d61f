"""What becomes of each of the 44 real files, told from what is known of them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from voxelwave.data.listing.manifest import LABEL, MANIFEST, read_manifest
from voxelwave.data.listing.scans import Scan
from voxelwave.data.modalities.ct import CT
from voxelwave.data.modalities.mri import MRI
from voxelwave.data.reading.volume import is_sheared
from voxelwave.data.store import StoredVolume
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.prepare.preparation import Preparation, prepare
from voxelwave.jobs.prepare.run import Preparer
from voxelwave.jobs.prepare.settings import preparation

# Whole numbers are stored as int16, as are Hounsfield units; what has a fraction or a slope that gives one, as float16.
ACCEPTED = {
    "ct/body_ct_small.nii.gz": ("ct", "int16"),
    "ct/ct_brain_atlas_1mm.nii.gz": ("ct", "int16"),
    "ct/ge_head_ct.nii.gz": ("ct", "int16"),
    "ct/philips_plastic_head_shear_uint8.nii.gz": ("ct", "int16"),
    "mr/afni_T1_head_2mm.nii.gz": ("mri", "float16"),
    "mr/afni_fmri.nii.gz": ("mri", "int16"),
    "mr/gbm1_T1c.nii.gz": ("mri", "int16"),
    "mr/mne_ecog_T1.mgz": ("mri", "int16"),
    "mr/mni152_T1_2mm.nii.gz": ("mri", "int16"),
    "mr/mni152_T2_2mm.nii.gz": ("mri", "int16"),
    "mr/ms07_FLAIR.nii.gz": ("mri", "float16"),
    "mr/ms_long01_FLAIR.nii.gz": ("mri", "int16"),
    "mr/papaya_PD.nii.gz": ("mri", "int16"),
    "mr/seg3d_T1.nii.gz": ("mri", "float16"),
    "mr/stroke_FLAIR.nii.gz": ("mri", "int16"),
    "mr/stroke_T1.nii.gz": ("mri", "int16"),
    "mr/stroke_T2.nii.gz": ("mri", "float16"),
}
# Label map: its images, and what its labels are.
LABELS = {
    "ct/body_ct_small_seg.nii.gz": (["ct/body_ct_small.nii.gz"], "uint8"),
    "mr/gbm1_tumour.nii.gz": (["mr/gbm1_T1c.nii.gz"], "uint8"),
    "mr/mne_ecog_aparc+aseg.mgz": (["mr/mne_ecog_T1.mgz"], "int16"),
    "mr/ms07_lesions.nii.gz": (["mr/ms07_FLAIR.nii.gz"], "uint8"),
    "mr/seg3d_brain_mask.nii.gz": (["mr/seg3d_T1.nii.gz"], "uint8"),
    "mr/seg3d_skull_mask.nii.gz": (["mr/seg3d_T1.nii.gz"], "uint8"),
    "mr/stroke_scribble.nii.gz": (["mr/stroke_FLAIR.nii.gz", "mr/stroke_T1.nii.gz", "mr/stroke_T2.nii.gz"], "uint8"),
}
REFUSED = {
    # Templates, tissue probabilities, and 1024 above Hounsfield units: no air at -1000.
    "ct/sccsf.nii.gz": "not in Hounsfield units: air is -1000, but the values are 0 to 1",
    "ct/scgrey.nii.gz": "not in Hounsfield units: air is -1000, but the values are 0 to 1",
    "ct/scwhite.nii.gz": "not in Hounsfield units: air is -1000, but the values are 0 to 1",
    "ct/scct_cormack.nii": "not in Hounsfield units: air is -1000, but the values are 0 to 3794",
    "ct/slicer_ct_head_lowres.nii.gz": "where they are stored with an offset, prepare with --hu-offset -1024",
    "odd/bigendian_4d.nii": "each of three axes needs 8 voxels, got shape (17, 21, 3, 20)",
    "odd/bigendian_float.nii": "modality unknown",
    "odd/bigendian_int16.nii": "modality unknown",
    "odd/complex64.nii.gz": "complex values",
    "odd/epi_4d_int16.nii.gz": "one volume a file is needed, got shape (128, 96, 24, 2)",
    "odd/nifti2_4d.nii.gz": "one volume a file is needed, got shape (32, 20, 12, 2)",
    "odd/orient_ASR.nii.gz": "modality unknown",
    "odd/orient_PSL.nii.gz": "modality unknown",
    "odd/phase_scl.nii.gz": "neither MRI nor CT by 'phase'",
    "odd/rgb24.nii.gz": "RGB values",
    "odd/zero_dim5.nii.gz": "every value is 0",
}
DAMAGED = {
    "odd/html_page.nii": "a web page",
    "odd/lfs_pointer.nii.gz": "a Git-LFS pointer",
    "odd/not_nifti.nii": "not a NIfTI",
    "odd/truncated_gzip.nii.gz": "cut off",
}
# The gantry was tilted: at right angles their grid is another.
SHEARED = ("ct/ge_head_ct.nii.gz", "ct/philips_plastic_head_shear_uint8.nii.gz")


def run(sources, out, **settings):
    job = Preparer(out, preparation(spacing="native", **settings), workers=1, console=Console(file=io.StringIO()))
    outcome = job([str(sources)])
    rows = {}
    for row in read_manifest(out / MANIFEST):
        rows.setdefault(row.file, []).append(row)
    return outcome, rows


@pytest.fixture(scope="module")
def facts(real_data):
    """What is known of each file, from where the files were collected."""
    with (real_data / "volumes/MANIFEST.tsv").open(newline="") as stream:
        return {line["file"]: line for line in csv.DictReader(stream, delimiter="\t")}


@pytest.fixture(scope="module")
def whole(real_data, tmp_path_factory):
    """All files prepared without a word on their modality, and what is written."""
    out = tmp_path_factory.mktemp("real") / "out"
    folder = real_data / "volumes"
    outcome, rows = run(folder, out, crop=False)
    return out, outcome, {Path(file).relative_to(folder).as_posix(): of_file for file, of_file in rows.items()}


def test_every_file_has_its_place_in_one_table(real_data, facts, whole):
    out, outcome, rows = whole
    folder = real_data / "volumes"
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.name != "MANIFEST.tsv"}
    told = [*ACCEPTED, *LABELS, *REFUSED, *DAMAGED]
    assert len(told) == len(set(told)) == 44
    assert set(told) == on_disk == set(facts) == set(rows)
    assert (outcome.complete, outcome.unusable) == (True, len(DAMAGED))
    outputs = {row.output for of_file in rows.values() for row in of_file if row.output}
    assert outputs == {path.relative_to(out).as_posix() for path in out.rglob("*.vxw")}


@pytest.mark.parametrize("file", [*REFUSED, *DAMAGED])
def test_what_cannot_be_used_is_refused_with_its_reason(whole, file):
    (row,) = whole[2][file]
    assert (row.status, row.output, row.damaged) == ("refused", "", file in DAMAGED)
    assert (REFUSED | DAMAGED)[file] in row.reason


@pytest.mark.parametrize("file", [*ACCEPTED, *LABELS, *REFUSED])
def test_shape_spacing_and_orientation_are_those_of_the_file(facts, whole, file):
    known = facts[file]
    for row in whole[2][file]:
        assert row.shape == tuple(int(side) for side in known["shape"].split("x"))
        spacing_mm = [float(side) for side in known["zooms"].split("x")][:3]
        assert row.spacing_mm == pytest.approx(spacing_mm, rel=2e-3)
        assert row.orientation == known["axcodes"]


def raw(folder, file):
    image = nibabel.load(folder / file)
    return image.get_fdata(dtype=np.float32), image.affine


def samples(volume, number=3000):
    """Random voxels of a stored volume, and where they lie in mm."""
    voxels = np.stack([np.random.default_rng(0).integers(0, side, number) for side in volume.grid])
    return volume.read()[tuple(voxels)].astype(np.float64), volume.affine[:3, :3] @ voxels + volume.affine[:3, 3:]


def in_file(places_mm, array, affine):
    """Where places lie in the voxels of a file, and which of them lie within."""
    back = np.linalg.inv(affine)
    voxels = back[:3, :3] @ places_mm + back[:3, 3:]
    last = np.array(array.shape)[:, None] - 1
    return np.clip(voxels, 0, last), ((voxels > -1e-3) & (voxels < last + 1e-3)).all(axis=0)


@pytest.mark.parametrize("file", ACCEPTED)
def test_an_image_is_stored_towards_ras_and_holds_the_values_of_its_file(real_data, facts, whole, file):
    out, _, rows = whole
    (row,) = rows[file]
    modality, dtype = ACCEPTED[file]
    assert (row.status, row.modality, row.reason, row.nonfinite) == ("accepted", modality, "", 0)
    assert row.told_by
    assert "unsure" not in row.told_by
    volume = StoredVolume(out / row.output)
    assert volume.dtype == dtype
    assert nibabel.aff2axcodes(volume.affine) == ("R", "A", "S")
    axes = [next(i for i, code in enumerate(facts[file]["axcodes"]) if code in pair) for pair in ("RL", "AP", "SI")]
    assert row.stored_spacing_mm == pytest.approx([row.spacing_mm[axis] for axis in axes], rel=1e-4)
    assert not is_sheared(volume.affine)
    array, affine = raw(real_data / "volumes", file)
    if file not in SHEARED:
        assert row.stored_shape == volume.grid == tuple(row.shape[axis] for axis in axes)
    if modality == "ct":
        array = np.maximum(array, -1024)
    values, places_mm = samples(volume)
    voxels, inside = in_file(places_mm, array, affine)
    assert inside.mean() > 0.8
    expected = map_coordinates(array, voxels[:, inside], order=1)
    if dtype == "int16":
        assert np.abs(values[inside] - expected).max() < 0.51
    else:
        stretch = np.polyfit(values[inside], expected, 1)
        assert stretch[0] > 0
        assert np.abs(np.polyval(stretch, values[inside]) - expected).max() < 2e-3 * stretch[0]
    tolerance = 3 if file in SHEARED else 1e-3
    assert (row.minimum, row.maximum) == pytest.approx((array.min(), array.max()), abs=tolerance)


@pytest.mark.parametrize("file", LABELS)
def test_a_label_map_is_stored_with_each_of_its_images(real_data, whole, file):
    out, _, rows = whole
    images, dtype = LABELS[file]
    folder = real_data / "volumes"
    assert [Path(row.label_for).relative_to(folder).as_posix() for row in rows[file]] == images
    array, affine = raw(folder, file)
    for row, image in zip(rows[file], images, strict=True):
        (of_image,) = rows[image]
        assert (row.status, row.modality, row.subject) == ("accepted", LABEL, of_image.subject)
        label, volume = StoredVolume(out / row.output), StoredVolume(out / of_image.output)
        assert label.dtype == dtype
        assert label.grid == volume.grid
        assert np.array_equal(label.affine, volume.affine)
        values, places_mm = samples(label)
        voxels, inside = in_file(places_mm, array, affine)
        assert inside.all()
        assert np.array_equal(values, array[tuple(np.rint(voxels).astype(int))])
        assert set(np.unique(label.read())) == set(np.unique(array).astype(int))


def test_scans_of_one_person_have_one_subject(whole):
    subjects = {}
    for file, rows in whole[2].items():
        if file in {**ACCEPTED, **LABELS}:
            subjects.setdefault(rows[0].subject, set()).add(Path(file).name.partition(".")[0])
    together = [names for names in subjects.values() if len(names) > 1]
    assert sorted(sorted(names) for names in together) == [
        ["body_ct_small", "body_ct_small_seg"],
        ["gbm1_T1c", "gbm1_tumour"],
        ["mne_ecog_T1", "mne_ecog_aparc+aseg"],
        ["mni152_T1_2mm", "mni152_T2_2mm"],
        ["ms07_FLAIR", "ms07_lesions"],
        ["seg3d_T1", "seg3d_brain_mask", "seg3d_skull_mask"],
        ["stroke_FLAIR", "stroke_T1", "stroke_T2", "stroke_scribble"],
    ]


ODD_AS_MRI = {
    "bigendian_float.nii": ("float16", (4.0, 4.0, 4.0)),
    "bigendian_int16.nii": ("int16", (2.0, 2.0, 2.0)),
    "orient_ASR.nii.gz": ("float16", (2.38523, 2.38975, 2.36649)),
    "phase_scl.nii.gz": ("float16", (2.8125, 2.8125, 4.0)),
    "bigendian_4d.nii": "too small",
    "complex64.nii.gz": "complex values",
    "epi_4d_int16.nii.gz": "4 axes",
    "html_page.nii": "a web page",
    "lfs_pointer.nii.gz": "a Git-LFS pointer",
    "nifti2_4d.nii.gz": "4 axes",
    "not_nifti.nii": "not a NIfTI",
    "orient_PSL.nii.gz": "the same content as ",
    "rgb24.nii.gz": "RGB values",
    "truncated_gzip.nii.gz": "cut off",
    "zero_dim5.nii.gz": "5 axes",
}


def test_odd_files_said_to_be_mri_are_taken_where_they_are_volumes(real_data, tmp_path):
    folder = real_data / "volumes/odd"
    outcome, rows = run(folder, tmp_path / "out", modality="mri")
    rows = {Path(file).name: row for file, (row,) in rows.items()}
    assert set(rows) == {path.name for path in folder.iterdir()} == set(ODD_AS_MRI)
    assert outcome.unusable == len(DAMAGED)
    for name, expected in ODD_AS_MRI.items():
        row = rows[name]
        if isinstance(expected, str):
            assert row.status == "refused", name
            assert expected in row.reason, name
            continue
        dtype, spacing_mm = expected
        assert (row.status, row.modality, row.told_by) == ("accepted", "mri", "--modality"), name
        assert row.stored_spacing_mm == pytest.approx(spacing_mm, rel=1e-5)
        # Cropped, a volume is still the part of the file that its affine says.
        volume = StoredVolume(tmp_path / "out" / row.output)
        assert volume.dtype == dtype
        canonical = nibabel.as_closest_canonical(nibabel.load(folder / name))
        corner = np.linalg.inv(canonical.affine) @ volume.affine[:, 3]
        first = np.rint(corner[:3]).astype(int)
        assert np.allclose(corner[:3], first, atol=1e-3)
        box = tuple(slice(start, start + side) for start, side in zip(first, volume.grid, strict=True))
        part = canonical.get_fdata(dtype=np.float32)[box]
        assert part.shape == volume.grid
        stretch = np.polyfit(volume.read().ravel().astype(np.float64), part.ravel(), 1)
        assert np.abs(np.polyval(stretch, volume.read().astype(np.float64)) - part).max() < 2e-3 * np.ptp(part)


def prepared(path, **settings):
    return prepare(Scan(path, path.parent), Preparation(crop=False, **settings), {"ct": CT(), "mri": MRI()}, {})


@pytest.mark.filterwarnings("ignore:NvImgCodec")
@pytest.mark.parametrize("file", SHEARED)
def test_a_tilted_gantry_is_straightened_as_monai_does(real_data, file):
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation, ScaleIntensityRange, Spacing

    path = real_data / "volumes" / file
    monai = Compose(
        [
            LoadImage(reader="NibabelReader", image_only=True),
            EnsureChannelFirst(),
            Orientation(axcodes="RAS", labels=None),
            ScaleIntensityRange(-1024, 4000, -1024, 4000, clip=True),
            Spacing(pixdim=(1.0, 1.0, 1.0), mode="bilinear", padding_mode="border"),
        ]
    )
    expected = monai(str(path))
    ours = prepared(path, spacing_mm=1.0)
    assert ours.volume.shape == tuple(expected.shape[1:])
    assert np.allclose(ours.info.affine, expected.affine, atol=1e-4)
    assert np.abs(ours.volume - expected.numpy()[0]).max() < 0.51


def test_one_head_in_two_orders_of_axes_is_one_volume_in_space(real_data):
    one, other = (
        prepared(real_data / f"volumes/odd/orient_{axes}.nii.gz", modality="mri", spacing_mm=1.0)
        for axes in ("ASR", "PSL")
    )
    assert one.facts["orientation"] != other.facts["orientation"]
    assert one.facts["hash"] == other.facts["hash"]
    assert np.allclose(one.info.affine, other.info.affine, atol=1e-4)
    assert np.abs(one.volume.astype(np.float32) - other.volume.astype(np.float32)).max() < 2e-3
    assert one.facts["stored_spacing_mm"] == pytest.approx((1, 1, 1))
