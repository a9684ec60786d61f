import warnings
from itertools import accumulate

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from support.grids import oblique_affine
from voxelwave.data.label_maps import onto_grid
from voxelwave.data.reading.nifti import read_header, read_volume
from voxelwave.data.store import StoredInfo, StoredVolume, write_stored
from voxelwave.downstream.inference import labels_onto_grid, predict_volume, write_prediction


class Doubling(nn.Module):
    """Logits that are the channels twice; remembers the sides and the mode it was called with."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.frozen = nn.Dropout().eval()
        self.calls = []

    def forward(self, volume):
        self.calls.append((tuple(volume.shape), self.training, torch.is_grad_enabled()))
        return self.frozen(volume) * self.factor


@pytest.mark.parametrize("shape", [(16, 16, 16), (21, 40, 17), (5, 16, 30), (3, 4, 5)])
def test_a_pointwise_model_gives_what_it_gives_for_the_whole_volume(shape):
    volume, model = torch.rand(2, *shape), Doubling()
    logits = predict_volume(model, volume, window=(16, 16, 8), batch_size=3)
    torch.testing.assert_close(logits, 2 * volume)
    assert {called[0][1:] for called in model.calls} == {(2, 16, 16, 8)}


def test_windows_are_blended_with_most_weight_on_their_middle():
    class Border(nn.Module):
        """1 on the border of the window, 0 inside."""

        def forward(self, volume):
            border = torch.ones_like(volume)
            border[:, :, 2:-2, 2:-2, 2:-2] = 0
            return border

    logits = predict_volume(Border(), torch.zeros(1, 16, 16, 24), window=(16, 16, 16))[0]
    # A border of the second window in the middle of the first, and the other way round: a mean would be 0.5.
    assert logits[8, 8, 8] < 0.2
    assert logits[8, 8, 0] == 1


def test_the_model_runs_in_eval_mode_and_has_its_modes_back():
    model = Doubling().train()
    model.frozen.eval()
    predict_volume(model, torch.rand(1, 8, 8, 8), window=(8, 8, 8))
    assert model.calls == [((1, 1, 8, 8, 8), False, False)]
    assert model.training
    assert not model.frozen.training

    class Failing(Doubling):
        def forward(self, volume):
            raise RuntimeError("no")

    failing = Failing().train()
    with pytest.raises(RuntimeError):
        predict_volume(failing, torch.rand(1, 8, 8, 8), window=(8, 8, 8))
    assert failing.training


class Classes(nn.Module):
    """Says class 1 wherever a voxel is brighter than a half; counts its windows."""

    def __init__(self):
        super().__init__()
        self.computed = 0

    def forward(self, volume):
        self.computed += len(volume)
        return torch.cat([0.5 - volume, volume - 0.5], dim=1)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_windows_without_tissue_are_background_and_are_not_computed(batch_size):
    volume = 0.04 * torch.rand(1, 48, 16, 16)
    volume[:, 2:6, 4:9, 3:7] = 0.9
    every, few = Classes(), Classes()
    expected = predict_volume(every, volume, window=(16, 16, 16), overlap=0.25).argmax(0)
    asked = {"window": (16, 16, 16), "overlap": 0.25, "batch_size": batch_size, "num_classes": 2}
    found = predict_volume(few, volume, **asked).argmax(0)
    assert torch.equal(found, expected)
    assert expected.sum() == 4 * 5 * 4
    assert (every.computed, few.computed) == (4, 1)
    assert predict_volume(few, torch.zeros(1, 16, 16, 16), window=(16, 16, 16), num_classes=2).argmax(0).sum() == 0
    assert few.computed == 1


@pytest.mark.parametrize(("shape", "window"), [((40, 16, 21), (16, 16, 8)), ((5, 16, 30), (16, 16, 16))])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_progress_ends_with_all_windows(shape, window, overlap):
    said, model = [], Doubling()
    predict_volume(model, torch.rand(1, *shape), window=window, overlap=overlap, progress=lambda *of: said.append(of))
    at_once = [shape[0] for shape, *_ in model.calls]
    assert [done for done, _ in said] == list(accumulate(at_once))
    assert {total for _, total in said} == {sum(at_once)}


def logits_of(labels):
    """Logits by which each voxel has the class of its label."""
    return torch.nn.functional.one_hot(torch.tensor(labels.astype(np.int64))).movedim(-1, 0) * 5.0


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "IRA", "SLP"])
def test_permuted_and_flipped_axes_are_exact(codes):
    labels = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.int16)
    image = nib.Nifti1Image(labels, oblique_affine(0))
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    turned = image.as_reoriented(turn)
    expected = np.asarray(turned.dataobj)
    placed = onto_grid(labels, image.affine, shape=turned.shape, to_affine=turned.affine)
    np.testing.assert_array_equal(placed, expected)
    placed = labels_onto_grid(logits_of(labels), image.affine, shape=turned.shape, to_affine=turned.affine)
    np.testing.assert_array_equal(placed, expected)


def test_classes_are_interpolated_before_the_best_is_taken():
    generator = np.random.default_rng(1)
    logits = torch.from_numpy(generator.standard_normal((3, 5, 6, 4))).float()
    affine, to_affine, shape = oblique_affine(1), oblique_affine(11, spacing_mm=(0.7, 0.6, 0.9)), (8, 9, 7)
    placed = labels_onto_grid(logits, affine, shape=shape, to_affine=to_affine)
    probabilities = logits.softmax(0).numpy()
    sides = np.array(probabilities.shape[1:])
    half = np.maximum(1, np.linalg.norm(np.linalg.inv(affine)[:3, :3] @ to_affine[:3, :3], axis=1)) / 2
    compared = 0
    for place in np.ndindex(shape):
        where = (np.linalg.inv(affine) @ to_affine @ [*place, 1])[:3]
        if (where < -half).any() or (where > sides - 1 + half).any():
            assert placed[place] == 0
            continue
        mixed = np.zeros(3)
        for corner in np.ndindex(2, 2, 2):
            low = np.floor(where)
            share = np.prod(np.where(corner, where - low, 1 - (where - low)))
            voxel = np.clip(low + corner, 0, sides - 1).astype(int)
            mixed += share * probabilities[(slice(None), *voxel)]
        first, second = np.sort(mixed)[::-1][:2]
        if first - second > 1e-4:
            assert placed[place] == mixed.argmax()
            compared += 1
    assert compared > 50


def write_image(path, shape, affine, *, dtype=np.int16, kind=nib.Nifti1Image, sform=1, qform=0):
    image = kind(np.random.default_rng(0).integers(0, 99, shape).astype(dtype), affine)
    if kind is not nib.MGHImage:
        image.set_sform(affine, sform)
        image.set_qform(affine, qform)
    nib.save(image, path)
    return path


LPS, PSR = np.diag([-2.0, -1.0, 1.5, 1.0]), np.array([[0, 0, 2, -9], [-1, 0, 0, 4], [0, 1.5, 0, 3], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("name", "shape", "affine", "options"),
    [
        ("lps.nii.gz", (9, 8, 10), LPS, {"sform": 4, "qform": 1}),
        ("psr.nii", (9, 8, 10), PSR, {"sform": 0, "qform": 3}),
        ("oblique.nii.gz", (9, 8, 10), oblique_affine(3), {"qform": 2}),
        ("neither.nii.gz", (9, 8, 10), np.diag([2.0, 2, 2, 1]), {"sform": 0, "qform": 0}),
        ("nifti2.nii", (9, 8, 10), PSR, {"kind": nib.Nifti2Image}),
        ("freesurfer.mgz", (9, 8, 10), PSR, {"kind": nib.MGHImage}),
        ("frames.nii.gz", (9, 8, 10, 1), LPS, {}),
        ("windows.nii.gz", (9, 8, 10, 3), LPS, {"dtype": np.float32}),
        ("windows5d.nii.gz", (9, 8, 10, 1, 3), LPS, {"dtype": np.float32}),
    ],
)
def test_a_prediction_lies_where_its_image_does(tmp_path, name, shape, affine, options):
    like = write_image(tmp_path / name, shape, affine, **options)
    image = nib.load(like)
    # Labels on the grid that volumes are read onto: axes towards RAS.
    labels = np.random.default_rng(5).integers(0, 7, (9, 8, 10)).astype(np.uint8)
    upright = nib.as_closest_canonical(nib.Nifti1Image(labels, image.affine))
    path = tmp_path / "out.nii.gz"
    volume = read_volume(like)
    assert volume.array.shape[:3] == upright.shape
    np.testing.assert_allclose(volume.affine, upright.affine)
    written = write_prediction(path, logits_of(np.asarray(upright.dataobj)), upright.affine, like=volume.source)
    read = nib.load(path)
    np.testing.assert_array_equal(written, labels)
    np.testing.assert_array_equal(np.asarray(read.dataobj), labels)
    assert read.get_data_dtype() == np.uint8
    np.testing.assert_allclose(read.affine, image.affine, atol=1e-5)
    if options.get("kind") is nib.MGHImage:
        assert (int(read.header["sform_code"]), read.header.get_xyzt_units()[0]) == (1, "mm")
    else:
        assert [int(read.header[code]) for code in ("sform_code", "qform_code")] == [
            int(image.header[code]) for code in ("sform_code", "qform_code")
        ]
        np.testing.assert_allclose(read.header.get_qform(), image.header.get_qform(), atol=1e-5)
        np.testing.assert_allclose(read.header.get_zooms(), image.header.get_zooms()[:3])
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".part")] == []


@pytest.mark.parametrize("unit", ["micron", "meter"])
def test_a_prediction_has_the_affine_of_its_file_in_the_unit_of_that(tmp_path, unit):
    like = write_image(tmp_path / "scan.nii.gz", (9, 8, 10), LPS * [1000.0, 1000, 1000, 1] + 0.0, qform=1)
    image = nib.load(like)
    image.header.set_xyzt_units(unit)
    if unit == "meter":
        affine = np.diag([*np.diag(LPS)[:3] / 1000, 1])
        image = nib.Nifti1Image(np.asarray(image.dataobj), affine, image.header)
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
    nib.save(image, tmp_path / "unit.nii.gz")
    volume = read_volume(tmp_path / "unit.nii.gz")
    np.testing.assert_allclose(np.abs(np.diag(volume.source.affine))[:3], [2, 1, 1.5], rtol=1e-5)
    write_prediction(
        tmp_path / "out.nii.gz", logits_of(np.zeros((9, 8, 10), np.uint8)), volume.affine, like=volume.source
    )
    ours, theirs = (nib.load(tmp_path / f"{name}.nii.gz").header for name in ("out", "unit"))
    for field in ("sform_code", "srow_x", "srow_y", "srow_z", "qform_code", "qoffset_x", "xyzt_units"):
        np.testing.assert_array_equal(ours[field], theirs[field])
    np.testing.assert_array_equal(ours["pixdim"][:4], theirs["pixdim"][:4])


def test_a_prediction_for_a_stored_volume_lies_where_its_source_file_does(tmp_path):
    source, stored = oblique_affine(4), np.diag([1.0, 1, 1, 1])
    info = StoredInfo(modality="mri", affine=stored.tolist(), source_shape=(6, 5, 4), source_affine=source.tolist())
    write_stored(tmp_path / "head.vxw", np.ones((8, 8, 8), dtype=np.int16), info)
    logits = logits_of(np.random.default_rng(0).integers(0, 3, (8, 8, 8)))
    written = write_prediction(tmp_path / "out.nii", logits, stored, like=StoredVolume(tmp_path / "head.vxw").source)
    np.testing.assert_array_equal(written, labels_onto_grid(logits, stored, shape=(6, 5, 4), to_affine=source))
    np.testing.assert_array_equal(written, nib.load(tmp_path / "out.nii").dataobj)
    np.testing.assert_allclose(nib.load(tmp_path / "out.nii").affine, source, atol=1e-5)


def test_real_files_get_labels_in_their_own_voxels(real_data, tmp_path):
    for name in ("mr/mne_ecog_aparc+aseg.mgz", "ct/philips_plastic_head_shear_uint8.nii.gz", "odd/orient_PSL.nii.gz"):
        like = real_data / "volumes" / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = nib.load(like)
        labels = (np.asarray(image.dataobj) > 50).astype(np.uint8)
        above = torch.from_numpy(labels).float()
        logits = torch.stack([1 - above, above])
        write_prediction(tmp_path / "out.nii.gz", logits, image.affine, like=read_header(like))
        read = nib.load(tmp_path / "out.nii.gz")
        np.testing.assert_array_equal(np.asarray(read.dataobj), labels)
        np.testing.assert_allclose(read.affine, image.affine, atol=1e-4)
