import csv
import gzip
import hashlib
import io
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from support.readings import counted_readings
from voxelwave.data.modalities.mri import MRI
from voxelwave.data.scaled import read_scaled
from voxelwave.downstream.finetuned import build_model, load_finetuned, save_finetuned
from voxelwave.downstream.inference import labels_onto_grid, predict_volume
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.predict import run as recipe
from voxelwave.jobs.predict.run import predict
from voxelwave.jobs.prepare.run import Preparer
from voxelwave.jobs.prepare.settings import preparation

SEGMENTATION = {"name": "segmentation", "classes": ["background", "bright"], "width": 4}
CLASSIFICATION = {"name": "classification", "targets": ["lesion", "aneurysm"], "pooling": "attention"}


def described(task, *, counts=(1,), spacing_mm=None):
    settings = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return {
        "architecture": {"name": "waveformer", "in_channels": list(counts), "settings": settings, "depths": [1, 2]},
        "task": task,
        "preprocessing": {"spacing_mm": spacing_mm, "crop_size": [16] * 3, "modalities": {"mri": {}}},
    }


def finished_run(folder, task, **options):
    folder.mkdir()
    description = described(task, **options)
    torch.manual_seed(0)
    save_finetuned(folder, build_model(description), description)
    return folder


@pytest.fixture
def run(tmp_path):
    return finished_run(tmp_path / "run", SEGMENTATION)


class Threshold(nn.Module):
    """Says 1 where the first channel is above 0.5."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, volume):
        above = 100 * (volume[:, :1] - 0.5)
        return torch.cat([-above, above], dim=1)


@pytest.fixture
def threshold(monkeypatch):
    """Every run's model is a threshold."""

    def load(folder):
        model, description = load_finetuned(folder)
        return Threshold(model.features), description

    monkeypatch.setattr(recipe, "load_finetuned", load)


@pytest.fixture
def scans(heads, tmp_path):
    """Heads in other orders of their axes, in folders, with a label map."""
    folder = tmp_path / "scans"
    for number, (name, codes) in enumerate([("a/T1.nii.gz", "RAS"), ("b/T1.nii.gz", "LPS"), ("b/T1.mgz", "PSR")]):
        image = nib.load(sorted((heads / "mri").iterdir())[number])
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
        )
        image = image.as_reoriented(turn)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".mgz"):
            image = nib.MGHImage(np.asarray(image.dataobj, dtype=np.float32), image.affine)
        nib.save(image, folder / name)
    shutil.copy(heads / "labels" / "head_0000_T1_labels.nii.gz", folder / "a" / "T1_labels.nii.gz")
    return folder


def said(run, source, out, **options):
    output = io.StringIO()
    outcome = predict(run, str(source), out, console=Console(file=output, width=400), **options)
    return outcome, output.getvalue()


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_image_gets_a_label_map_in_its_own_voxels(run, scans, threshold, tmp_path):
    outcome, output = said(run, scans, tmp_path / "out")
    assert (outcome.complete, outcome.unusable) == (True, 0)
    assert "label maps, left out: 1" in output
    names = ["a/T1_seg.nii.gz", "b/T1-2_seg.nii.gz", "b/T1_seg.nii.gz"]
    assert files_of(tmp_path / "out") == [*names, "labels.json", "predictions.csv"]
    for image_name, name in (("a/T1.nii.gz", names[0]), ("b/T1.mgz", names[2]), ("b/T1.nii.gz", names[1])):
        image, labels = nib.load(scans / image_name), nib.load(tmp_path / "out" / name)
        np.testing.assert_allclose(labels.affine, image.affine, atol=1e-6)
        expected = MRI()(np.asarray(image.dataobj, dtype=np.float32))[0]
        written = np.asarray(labels.dataobj)
        clear = np.abs(expected - 0.5) > 1e-4
        np.testing.assert_array_equal(written[clear], (expected > 0.5)[clear])
        assert 0 < written.mean() < 1
    legend = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert legend["classes"] == {"0": "background", "1": "bright"}


def test_a_model_of_another_spacing_is_interpolated_onto_the_voxels_of_the_file(heads, tmp_path):
    run = finished_run(tmp_path / "run", SEGMENTATION, spacing_mm=2.0)
    path = heads / "mri" / "head_0000_T1.nii.gz"
    said(run, path, tmp_path / "out", overlap=0.25)
    scan, image = read_scaled(path, MRI(), spacing_mm=2.0), nib.load(path)
    logits = predict_volume(load_finetuned(run)[0], scan.volume, window=(16, 16, 16), overlap=0.25)
    expected = labels_onto_grid(logits, scan.affine, shape=(32, 32, 32), to_affine=image.affine)
    written = np.asarray(nib.load(tmp_path / "out" / "head_0000_T1_seg.nii.gz").dataobj)
    np.testing.assert_array_equal(written, expected)


def test_a_stored_volume_is_predicted_in_the_space_of_its_file(run, heads, threshold, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(heads / "mri" / "head_0000_T1.nii.gz", scans)
    for name in ("labels", "lesions"):  # of a prepared image there may be any number
        shutil.copy(heads / "labels" / "head_0000_T1_labels.nii.gz", scans / f"head_0000_T1_{name}.nii.gz")
    Preparer(tmp_path / "prepared", preparation(modality="mri", spacing="1.0"), workers=1)([str(scans)])
    said(run, scans, tmp_path / "of_file")
    said(run, tmp_path / "prepared", tmp_path / "of_store")
    of_file, of_store = (nib.load(tmp_path / name / "head_0000_T1_seg.nii.gz") for name in ("of_file", "of_store/mri"))
    np.testing.assert_allclose(of_store.affine, of_file.affine)
    assert of_store.shape == of_file.shape
    assert (np.asarray(of_store.dataobj) == np.asarray(of_file.dataobj)).mean() > 0.999


def test_an_image_is_opened_once_and_read_once_and_a_label_map_never(
    run, heads, scans, threshold, tmp_path, monkeypatch
):
    shutil.copy(heads / "ct" / "head_0000_hu.nii.gz", scans / "wrong_T2.nii.gz")
    shutil.copy(heads / "mri" / "head_0003_MRA.nii.gz", scans / "unnamed.nii.gz")
    (scans / "a" / "T1.nii.gz").rename(scans / "a" / "anna_T1.nii.gz")
    (scans / "b" / "T1.nii.gz").rename(scans / "b" / "bob_T1.nii.gz")
    opened, read = counted_readings(monkeypatch)
    outcome, _ = said(run, scans, tmp_path / "out")
    assert outcome.unusable == 2
    written = ["T1.mgz", "anna_T1.nii.gz", "bob_T1.nii.gz"]
    assert opened == read == dict.fromkeys([*written, "unnamed.nii.gz", "wrong_T2.nii.gz"], 1)
    assert len([name for name in files_of(tmp_path / "out") if name.endswith("_seg.nii.gz")]) == len(written)


def test_a_call_goes_on_where_the_last_was_stopped(run, scans, threshold, tmp_path):
    out, answers = tmp_path / "out", iter([False, True])
    outcome, output = said(run, scans, out, should_stop=lambda: next(answers))
    assert not outcome.complete
    assert "stopped, the same command goes on; so far: 1 images" in output
    first = out / "a" / "T1_seg.nii.gz"
    assert files_of(out) == ["a/T1_seg.nii.gz", "labels.json", "predictions.csv"]
    before = first.stat().st_mtime_ns
    outcome, output = said(run, scans, out)
    assert outcome.complete
    assert "predicted: 2 images, 1 were there, 0 cannot be used" in output
    assert first.stat().st_mtime_ns == before


@pytest.fixture
def site(heads, tmp_path):
    """A folder for each patient, and in each a scan with the same name."""
    for number, patient in enumerate(("p2", "p3")):
        (tmp_path / "site" / patient).mkdir(parents=True)
        shutil.copy(sorted((heads / "mri").iterdir())[number], tmp_path / "site" / patient / "T1.nii.gz")
    return tmp_path / "site"


def label_maps(out):
    """The bytes of each label map below `out`."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*_seg.nii.gz"))}


def with_another_patient(heads, site):
    (site / "p1").mkdir()
    shutil.copy(sorted((heads / "mri").iterdir())[2], site / "p1" / "T1.nii.gz")


def sources(site):
    """The scans of a site as a glob and as a list, and where the results of p2 go."""
    table = site.parent / "list.csv"
    table.write_text("path\n" + "".join(f"{path}\n" for path in sorted(site.glob("*/T1.nii.gz"))))
    return [(site / "*" / "T1.nii.gz", "p2/T1"), (site, "p2/T1"), (table, "site/p2/T1")]


@pytest.mark.parametrize("kind", range(3))
def test_results_tell_whose_they_are_and_stay_when_the_list_grows(run, heads, site, threshold, tmp_path, kind):
    out = tmp_path / "out"
    source, name = sources(site)[kind]
    said(run, source, out)
    before = label_maps(out)
    assert list(before) == [f"{name}_seg.nii.gz", f"{name.replace('p2', 'p3')}_seg.nii.gz"]
    with_another_patient(heads, site)
    source, _ = sources(site)[kind]
    _, output = said(run, source, out)
    assert "predicted: 1 images, 2 were there, 0 cannot be used" in output
    after = label_maps(out)
    assert set(after) - set(before) == {f"{name.replace('p2', 'p1')}_seg.nii.gz"}
    assert {name: after[name] for name in before} == before
    of_folder = tmp_path / "of_folder"
    said(run, site, of_folder)
    assert sorted(label_maps(of_folder).values()) == sorted(after.values())


def test_an_image_that_was_replaced_is_predicted_again(run, heads, site, threshold, tmp_path):
    out = tmp_path / "out"
    said(run, site, out)
    before = label_maps(out)
    shutil.copy(sorted((heads / "mri").iterdir())[3], site / "p2" / "T1.nii.gz")
    _, output = said(run, site, out)
    assert "predicted: 1 images, 1 were there" in output
    assert label_maps(out)["p2/T1_seg.nii.gz"] != before["p2/T1_seg.nii.gz"]
    assert label_maps(out)["p3/T1_seg.nii.gz"] == before["p3/T1_seg.nii.gz"]
    with (out / "predictions.csv").open() as file:
        noted = {row["result"]: row for row in csv.DictReader(file)}
    for name, row in noted.items():
        image = Path(row["image"])
        assert image == site / name.replace("_seg", "")
        assert (int(row["bytes"]), row["sha256"]) == (
            image.stat().st_size,
            hashlib.sha256(image.read_bytes()).hexdigest(),
        )


def test_images_that_were_moved_are_known(run, site, threshold, tmp_path):
    said(run, site, tmp_path / "out")
    site.rename(tmp_path / "elsewhere")
    _, output = said(run, tmp_path / "elsewhere", tmp_path / "out")
    assert "predicted: 0 images, 2 were there" in output


def test_a_result_of_another_image_or_of_nobody_knows_which_is_left_alone(run, heads, site, threshold, tmp_path):
    out = tmp_path / "out"
    said(run, site, out)
    before = label_maps(out)
    other = tmp_path / "other"
    (other / "p2").mkdir(parents=True)
    (other / "p4").mkdir()
    for patient, number in (("p2", 3), ("p4", 1)):
        shutil.copy(sorted((heads / "mri").iterdir())[number], other / patient / "T1.nii.gz")
    outcome, output = said(run, other, out)
    assert outcome.unusable == 1
    theirs = f"{out / 'p2' / 'T1_seg.nii.gz'} is of {site / 'p2' / 'T1.nii.gz'}, another image: choose another folder"
    assert f"{other / 'p2' / 'T1.nii.gz'}: {theirs}" in output
    assert label_maps(out) == before | {"p4/T1_seg.nii.gz": label_maps(out)["p4/T1_seg.nii.gz"]}
    (out / "predictions.csv").unlink()
    with pytest.raises(InputError, match=r"predictions.csv does not say of which image: move it away"):
        said(run, site, out)
    assert label_maps(out).items() >= before.items()


@pytest.mark.parametrize("noted", [True, False])
def test_a_call_that_was_killed_before_a_label_map_was_whole_is_gone_on_with(run, site, threshold, tmp_path, noted):
    out = tmp_path / "out"
    said(run, site, out)
    before, record = label_maps(out), out / "predictions.csv"
    if not noted:
        record.write_text("".join(record.read_text().splitlines(keepends=True)[:-1]))
    (out / "p3" / "T1_seg.nii.gz").unlink()
    _, output = said(run, site, out)
    assert "predicted: 1 images, 1 were there, 0 cannot be used" in output
    assert label_maps(out) == before
    assert "predicted: 0 images, 2 were there" in said(run, site, out)[1]


def test_a_record_that_is_none_is_left_alone(run, site, threshold, tmp_path):
    said(run, site, tmp_path / "out")
    for content in ("result,image\nx,y\n", "result,image,bytes,sha256\nx,y,many,z\n", "\xff"):
        (tmp_path / "out" / "predictions.csv").write_bytes(content.encode("latin-1"))
        with pytest.raises(InputError, match="does not say which image each prediction is of"):
            said(run, site, tmp_path / "out")


def test_a_row_of_an_image_that_was_replaced_is_written_again(heads, site, tmp_path):
    run, out = finished_run(tmp_path / "run", CLASSIFICATION), tmp_path / "out.csv"
    said(run, site / "*" / "T1.nii.gz", out)
    before = out.read_text().splitlines()
    shutil.copy(sorted((heads / "mri").iterdir())[3], site / "p2" / "T1.nii.gz")
    with_another_patient(heads, site)
    _, output = said(run, site / "*" / "T1.nii.gz", out)
    assert "predicted: 2 images, 1 were there" in output
    after = out.read_text().splitlines()
    assert len(after) == 4
    assert after[2] == before[2]
    assert after[1] != before[1]


def test_scans_of_every_format_get_the_labels_of_the_same_scan_as_nifti(run, heads, threshold, tmp_path):
    nrrd, pydicom = pytest.importorskip("nrrd"), pytest.importorskip("pydicom")
    scans = tmp_path / "scans"
    (scans / "dicom_T1").mkdir(parents=True)
    values = np.asarray(nib.load(heads / "mri" / "head_0000_T1.nii.gz").dataobj)
    values = (values / values.max() * 4000).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([-1, -1, 1, 1])), scans / "a_T1.nii.gz")
    header = {"space": "LPS", "space directions": np.eye(3), "space origin": np.zeros(3)}
    nrrd.write(str(scans / "b_T1.nhdr"), values, header, detached_header=True)
    for number in range(values.shape[2]):
        dataset = pydicom.dcmread(pydicom.data.get_testdata_file("MR_small.dcm"))
        dataset.Rows, dataset.Columns = values.shape[1], values.shape[0]
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SOPInstanceUID = [1, 1], f"1.2.3.{number}"
        dataset.PixelData = np.ascontiguousarray(values[:, :, number].T).tobytes()
        dataset.save_as(scans / "dicom_T1" / f"IM{number:03d}")
    (scans / "c_T1.mif").touch()
    outcome, output = said(run, scans, tmp_path / "out")
    assert (outcome.complete, outcome.unusable) == (True, 1)
    assert f"{scans / 'c_T1.mif'}: a format that is not read (.mif)" in output
    maps = sorted((tmp_path / "out").rglob("*_seg.nii.gz"))
    assert [path.relative_to(tmp_path / "out").parts[0][:8] for path in maps] == ["a_T1_seg", "b_T1_seg", "dicom_T1"]
    one, *others = map(nib.as_closest_canonical, map(nib.load, maps))
    assert (one.get_fdata() > 0).any()
    for other in others:
        assert np.array_equal(one.get_fdata(), other.get_fdata())
        assert np.allclose(one.affine, other.affine)
    assert "predicted: 0 images, 3 were there, 1 cannot be used" in said(run, scans, tmp_path / "out")[1]
    (scans / "b_T1.raw.gz").write_bytes(gzip.compress(np.roll(values, 1).tobytes("F")))
    assert "predicted: 1 images, 2 were there, 1 cannot be used" in said(run, scans, tmp_path / "out")[1]


def test_label_maps_beside_their_images_are_not_predicted_again(run, scans, threshold):
    said(run, scans, scans)
    names = files_of(scans)
    said(run, scans, scans)
    assert files_of(scans) == names


def test_a_classification_is_a_table_of_probabilities(heads, tmp_path):
    run = finished_run(tmp_path / "run", CLASSIFICATION)
    out, answers = tmp_path / "out.csv", iter([False, False, True])
    assert not said(run, heads / "mri", out, should_stop=lambda: next(answers))[0].complete
    assert len(out.read_text().splitlines()) == 3
    assert said(run, heads / "mri", out)[0].complete
    with out.open() as file:
        rows = list(csv.DictReader(file))
    model, description = load_finetuned(run)
    assert [row["image"] for row in rows] == [str(path) for path in sorted((heads / "mri").iterdir())]
    for row in rows:
        volume = torch.nn.functional.adaptive_avg_pool3d(read_scaled(Path(row["image"]), MRI()).volume, 16)
        with torch.no_grad():
            expected = model(volume[None])[0].sigmoid().tolist()
        assert [float(row[name]) for name in ("lesion", "aneurysm")] == pytest.approx(expected, abs=1e-5)
        assert (row["modality"], row["model"]) == ("mri", description["sha256"][:16])


def test_a_row_is_of_the_modality_that_is_asked_for(heads, tmp_path):
    run = finished_run(tmp_path / "run", CLASSIFICATION, counts=(1, 3))
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(heads / "ct" / "head_0000_hu.nii.gz", scans / "head.nii.gz")
    description = described(CLASSIFICATION, counts=(1, 3))
    description["preprocessing"]["modalities"]["ct"] = {}
    save_finetuned(run, build_model(description), description)
    for modality in ("mri", "ct"):
        assert said(run, scans, tmp_path / "out.csv", modality=modality)[0].complete
        with (tmp_path / "out.csv").open() as file:
            assert [row["modality"] for row in csv.DictReader(file)] == [modality]


@pytest.mark.parametrize("column", ["image", "path"])
def test_images_of_another_modality_are_left_out_and_listed(run, heads, threshold, tmp_path, column):
    table = tmp_path / "list.csv"
    rows = [("mri", "head_0000_T1", "mri"), ("ct", "head_0000_hu", "ct"), ("mri", "head_0001_T2", "")]
    lines = [f"{heads / folder / name}.nii.gz,{modality}" for folder, name, modality in rows]
    table.write_text("\n".join([f"{column},modality", *lines]) + "\n")
    outcome, output = said(run, table, tmp_path / "out", modality="mri")
    assert outcome.complete
    assert "of another modality than --modality, left out: 1" in output
    assert "head_0000_hu.nii.gz: ct" in output
    assert "2 images" in output


def test_files_that_cannot_be_used_are_named_and_the_others_done(run, heads, threshold, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(heads / "mri" / "head_0000_T1.nii.gz", scans / "head_T1.nii.gz")
    shutil.copy(heads / "ct" / "head_0000_hu.nii.gz", scans / "head_ct.nii.gz")
    shutil.copy(heads / "ct" / "head_0000_hu.nii.gz", scans / "wrong_T2.nii.gz")
    shutil.copy(heads / "mri" / "head_0001_T2.nii.gz", scans / "unnamed.nii.gz")
    (scans / "text_T1.nii.gz").write_text("no volume")
    outcome, output = said(run, scans, tmp_path / "out")
    assert (outcome.complete, outcome.unusable) == (True, 4)
    for name, reason in (
        ("head_ct.nii.gz", "ct, and the model takes mri"),
        ("text_T1.nii.gz", "not a NIfTI or MGH file"),
        ("unnamed.nii.gz", "modality unknown: neither name, folder nor values tell it; say which with --modality"),
        ("wrong_T2.nii.gz", "taken for MRI by 't2' in the name 'wrong_T2', but its values look like Hounsfield units"),
    ):
        assert f"{scans / name}: {reason}" in output
    assert files_of(tmp_path / "out") == ["head_T1_seg.nii.gz", "labels.json", "predictions.csv"]
    assert said(run, scans / "unnamed.nii.gz", tmp_path / "out", modality="mri")[0].unusable == 0


def test_an_image_that_does_not_fit_into_memory_is_named(run, heads, monkeypatch, tmp_path):
    def load(folder):
        model, description = load_finetuned(folder)
        forward, calls = model.forward, []

        def failing(volume):
            calls.append(volume)
            if len(calls) == 1:
                raise RuntimeError("not enough memory:\nyou tried to allocate 9 TB")
            return forward(volume)

        model.forward = failing
        return model, description

    monkeypatch.setattr(recipe, "load_finetuned", load)
    outcome, output = said(run, heads / "mri", tmp_path / "out")
    assert outcome == recipe.Outcome(complete=True, unusable=1)
    first = heads / "mri" / "head_0000_T1.nii.gz"
    assert f"{first}: cannot be predicted: RuntimeError: not enough memory: you tried to allocate 9 TB" in output
    assert len(files_of(tmp_path / "out")) == 4 + len(["labels.json", "predictions.csv"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": "nowhere"}, "no model.safetensors in .*nowhere: give a finished run of `voxelwave finetune`"),
        ({"source": "nowhere"}, "'.*nowhere' does not exist"),
        ({"source": "empty"}, "the folder holds no scan"),
        ({"source": "text_T1.nii"}, "none of the 1 files at .* can be used; the first, .*text_T1.nii: not a NIfTI"),
        ({"modality": "pet"}, "unknown modality 'pet'; known: ct, mri"),
        ({"modality": "ct"}, "none of the 3 files at .* can be used; the first, .*: ct, and the model takes mri"),
        ({"overlap": 1.0}, "overlap lies in 0 to 1 .*got 1.0"),
        ({"batch_size": 0}, "batch_size is at least 1"),
        ({"out": "out.csv"}, "out.csv is no folder"),
        ({"out": "text_T1.nii"}, "text_T1.nii is no folder"),
        ({"out": "of_another"}, "of_another holds predictions with another model"),
    ],
)
def test_bad_input_is_one_line(run, scans, tmp_path, options, message):
    (tmp_path / "text_T1.nii").write_text("no volume")
    (tmp_path / "empty").mkdir()
    (tmp_path / "of_another").mkdir()
    legend = {"classes": {"0": "background", "1": "bright"}, "model": "abc", "overlap": 0.5}
    (tmp_path / "of_another" / "labels.json").write_text(json.dumps(legend))
    given = {"run": run, "source": str(scans), "out": tmp_path / "out"}
    for name, value in options.items():
        given[name] = type(given[name])(tmp_path / value) if name in given else value
    with pytest.raises(InputError, match=message) as caught:
        predict(given.pop("run"), given.pop("source"), given.pop("out"), **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "labels.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("out", None, "ends in .csv"),
        ("out.csv", "image,age\na,1\n", "no table of predictions of this model"),
        ("out.csv", "image,modality,lesion,aneurysm,model\na,mri,0,0,abc\n", "no table of predictions of this model"),
        ("out.csv", b"\xff\xfe", "cannot be read as a CSV text"),
    ],
)
def test_a_table_is_never_written_over_something_else(heads, tmp_path, name, content, message):
    run, out = finished_run(tmp_path / "run", CLASSIFICATION), tmp_path / name
    if content is not None:
        out.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        predict(run, str(heads / "mri"), out)
    if content is not None:
        assert out.read_bytes() == (content if isinstance(content, bytes) else content.encode())
