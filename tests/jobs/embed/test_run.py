import csv
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from pyarrow import parquet

from support.command import voxelwave
from support.readings import counted_readings
from support.stopping import stop_after
from voxelwave import __version__, load_backbone
from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.data.listing.images import find_images
from voxelwave.data.modalities.mri import MRI
from voxelwave.data.scaled import read_scaled
from voxelwave.downstream.embedding import embed_volume
from voxelwave.downstream.load_backbone import save_backbone
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.embed.run import embed
from voxelwave.jobs.prepare.run import Preparer
from voxelwave.jobs.prepare.settings import preparation

SETTINGS = {"patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2}
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A backbone that saw whole scans at 16³."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    described = {
        "architecture": {"name": "waveformer", "in_channels": [1, 3], "settings": SETTINGS},
        "preprocessing": {"crop_size": [16, 16, 16], "view_share": [1.0, 1.0], "spacing_mm": None},
    }
    save_backbone(folder, WaveFormer3D(**SETTINGS).state_dict(), described)
    return folder


def vectors(table):
    return np.array(table["embedding"].to_pylist(), dtype=np.float32)


def test_a_row_a_scan_with_all_that_its_list_says(weights, heads, tmp_path):
    out = tmp_path / "new" / "heads.parquet"
    assert embed(weights, str(heads), out, console=QUIET).unusable == 0
    table = parquet.read_table(out)
    columns = ["path", "subject", "modality", "model", "embedding", "aneurysm", "contrast", "lesion"]
    assert table.column_names == columns
    assert table["path"].to_pylist()[0] == str(heads / "mri" / "head_0000_T1.nii.gz")
    assert table["subject"].to_pylist()[5] == "ct_0000"
    assert table["modality"].to_pylist() == ["mri"] * 5 + ["ct"] * 3
    assert table["contrast"].to_pylist() == [0, 1, 2, 3, 0, None, None, None]
    sha256 = json.loads((weights / "backbone.json").read_text())["sha256"]
    assert set(table["model"].to_pylist()) == {sha256}
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[12]"
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert (metadata["weights_sha256"], metadata["depth"], metadata["voxelwave"]) == (sha256, "1", __version__)
    assert json.loads(metadata["preprocessing"])["crop_size"] == [16, 16, 16]
    scaled = read_scaled(heads / "mri" / "head_0002_FLAIR.nii.gz", MRI())
    own = embed_volume(load_backbone(weights), scaled.volume, size=(16, 16, 16))
    assert np.array_equal(vectors(table)[2], own.numpy())


def test_features_of_an_inner_depth(heads, tmp_path):
    settings = {**SETTINGS, "depth": 2}
    described = {"architecture": {"name": "waveformer", "in_channels": [1, 3], "settings": settings}}
    save_backbone(tmp_path, WaveFormer3D(**settings).state_dict(), described)
    scan, tables = heads / "mri" / "head_0002_FLAIR.nii.gz", []
    for options in (["--depth", "1"], []):
        out = tmp_path / f"{len(tables)}.parquet"
        ended = voxelwave("embed", tmp_path, scan, out, *options)
        assert ended.code == 0, ended.err
        tables.append(parquet.read_table(out))
    volume = read_scaled(scan, MRI()).volume
    for table, depth in zip(tables, (1, 2), strict=True):
        assert table.schema.metadata[b"depth"] == str(depth).encode()
        own = embed_volume(load_backbone(tmp_path, depths=[depth]), volume, size=None)
        np.testing.assert_allclose(vectors(table)[0], own.numpy(), atol=1e-6)
    assert not np.allclose(vectors(tables[0]), vectors(tables[1]))


def test_the_same_scans_give_the_same_file(weights, heads, tmp_path):
    for suffix in (".parquet", ".csv", ".npz"):
        first, again = tmp_path / f"first{suffix}", tmp_path / f"again{suffix}"
        for out in (first, again):
            embed(weights, str(heads / "mri"), out, console=QUIET)
        assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("cut", [0, 40])
def test_a_call_that_was_stopped_goes_on_to_the_same_file(weights, heads, tmp_path, monkeypatch, cut):
    out, whole = tmp_path / "a.npz", tmp_path / "whole.npz"
    embed(weights, str(heads), whole, console=QUIET)
    outcome = embed(weights, str(heads), out, console=QUIET, should_stop=stop_after(3))
    assert outcome.exit_code == 130
    assert not out.exists()
    journal = tmp_path / "a.npz.begun"
    journal.write_bytes(journal.read_bytes()[: -cut or None])  # as a kill within a line leaves it
    begun = len(journal.read_text().splitlines()) - 1 - bool(cut)
    _, read = counted_readings(monkeypatch)
    assert embed(weights, str(heads), out, console=QUIET).exit_code == 0
    assert sum(read.values()) == 8 - begun
    assert out.read_bytes() == whole.read_bytes()
    assert not journal.exists()


def test_what_was_embedded_by_another_model_or_of_another_scan_does_not_count(weights, heads, tmp_path):
    folder = shutil.copytree(heads, tmp_path / "heads")
    out = tmp_path / "a.npz"
    embed(weights, str(folder), out, console=QUIET, should_stop=stop_after(4))
    rows = (tmp_path / "a.npz.begun").read_text()
    shutil.copy(heads / "mri" / "head_0004_T1.nii.gz", folder / "mri" / "head_0000_T1.nii.gz")
    embed(weights, str(folder), out, console=QUIET)
    found = dict(np.load(out))
    assert np.array_equal(found["embedding"][0], found["embedding"][4])
    (tmp_path / "a.npz.begun").write_text(rows)
    (folder / "mri" / "head_0000_T1.nii.gz").write_bytes(b"damaged meanwhile")
    assert embed(weights, str(folder), out, console=QUIET).unusable == 1
    assert len(np.load(out)["embedding"]) == 7
    (tmp_path / "a.npz.begun").write_text(rows.replace(",mri,", ",ct,", 1))
    with pytest.raises(InputError, match=r"a.npz.begun, line \d, is damaged"):
        embed(weights, str(folder), out, console=QUIET)
    (tmp_path / "a.npz.begun").write_text("something else")
    with pytest.raises(InputError, match=r"a.npz.begun is no journal of voxelwave embed: move it away"):
        embed(weights, str(folder), out, console=QUIET)


def test_a_scan_is_opened_once_and_read_once(weights, heads, tmp_path, monkeypatch):
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copy(heads / "mri" / "head_0000_T1.nii.gz", folder / "anna_T1.nii.gz")
    shutil.copy(heads / "ct" / "head_0000_hu.nii.gz", folder / "told_by_its_values.nii.gz")
    shutil.copy(heads / "labels" / "head_0000_T1_labels.nii.gz", folder / "anna_T1_labels.nii.gz")
    opened, read = counted_readings(monkeypatch)
    assert embed(weights, str(folder), tmp_path / "out.npz", console=QUIET).unusable == 0
    assert np.load(tmp_path / "out.npz")["modality"].tolist() == ["mri", "ct"]
    assert opened == read == {"anna_T1.nii.gz": 1, "told_by_its_values.nii.gz": 1}


def test_all_formats_hold_the_same(weights, heads, tmp_path):
    for suffix in (".parquet", ".csv", ".npz"):
        embed(weights, str(heads), tmp_path / f"heads{suffix}", console=QUIET)
    table = parquet.read_table(tmp_path / "heads.parquet")
    with (tmp_path / "heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    arrays = np.load(tmp_path / "heads.npz")
    for name in ("path", "subject", "modality", "model"):
        assert [row[name] for row in rows] == arrays[name].tolist() == table[name].to_pylist()
    assert [row["contrast"] for row in rows] == ["0", "1", "2", "3", "0", "", "", ""]
    assert np.array_equal(arrays["contrast"], [0, 1, 2, 3, 0, *[np.nan] * 3], equal_nan=True)
    numbers = np.array([[row[f"embedding_{i}"] for i in range(12)] for row in rows], dtype=np.float32)
    assert np.array_equal(numbers, vectors(table))
    assert np.array_equal(arrays["embedding"], vectors(table))
    assert json.loads(str(arrays["metadata"]))["voxelwave"] == __version__


def test_a_scan_from_the_store_has_the_embedding_of_its_file(weights, heads, tmp_path):
    Preparer(tmp_path / "set", preparation(spacing="native", crop=False), workers=1, console=QUIET)([str(heads)])
    for name, source in (("files", heads), ("stored", tmp_path / "set")):
        embed(weights, str(source), tmp_path / f"{name}.parquet", console=QUIET)
    files, stored = (parquet.read_table(tmp_path / f"{name}.parquet") for name in ("files", "stored"))
    key = [path.rpartition("/")[2].split(".")[0] for path in stored["path"].to_pylist()]
    order = [key.index(path.rpartition("/")[2].split(".")[0]) for path in files["path"].to_pylist()]
    # Half a Hounsfield unit is 0.006 of the narrowest window.
    np.testing.assert_allclose(vectors(stored)[order], vectors(files), atol=5e-3)
    apart = np.linalg.norm(vectors(files)[0] - vectors(files)[4])
    assert apart > 10 * np.linalg.norm(vectors(files) - vectors(stored)[order], axis=1).max()


def test_what_can_be_embedded_is_found_as_elsewhere(heads, tmp_path):
    mri = heads / "mri"
    name = "head_0001_T2.nii.gz"
    lists = tmp_path / "files.csv"
    lists.write_text(f"path,modality\n{mri / name},ct\n{mri / 'head_0000_T1.nii.gz'},\n")
    cases = tmp_path / "cases.csv"
    cases.write_text(f"image,modality,grade\n{mri / name},mri,3\n")
    found = {
        source: [(case.image.name, case.modality) for case in find_images(source, None)[0]]
        for source in (str(mri / name), f"{mri}/*_T2*", str(lists), str(cases))
    }
    assert found[str(mri / name)] == found[f"{mri}/*_T2*"] == [(name, "")]
    assert found[str(lists)] == [(name, "ct"), ("head_0000_T1.nii.gz", "")]
    assert found[str(cases)] == [(name, "mri")]
    assert find_images(str(cases), None)[0][0].targets == {"grade": 3}
    lists.write_text(f"path,modality\n{mri / name},ct\n{mri / name},mri\n")  # a list that contradicts itself
    assert [case.modality for case in find_images(str(lists), None)[0]] == [""]
    assert [case.modality for case in find_images(str(lists), "mri")[0]] == ["mri"]
    (tmp_path / "scan.bin").write_bytes(bytes(400))  # what a list names is to be read, whatever its name
    lists.write_text("path,modality\nscan.bin,mri\n")
    assert [(case.image.name, case.modality) for case in find_images(str(lists), None)[0]] == [("scan.bin", "mri")]
    scans, label_maps, *_ = find_images(str(heads / "mri"), "ct")
    assert {case.modality for case in scans} == {"ct"}
    assert not label_maps


def test_files_that_cannot_be_used_are_listed_with_their_reason(weights, heads, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copy(heads / "mri" / "head_0000_T1.nii.gz", folder / "anna_T1.nii.gz")
    shutil.copy(heads / "mri" / "head_0000_T1.nii.gz", folder / "somebody.nii.gz")
    shutil.copy(heads / "labels" / "head_0000_T1_labels.nii.gz", folder / "anna_T1_labels.nii.gz")
    (folder / "broken_T2.nii").write_bytes(b"this is no volume")
    out = tmp_path / "out.csv"
    ended = voxelwave("embed", weights, folder, out)
    assert ended.code == 1
    assert "cannot be used: 2" in ended.out
    assert "broken_T2.nii: " in ended.out
    assert "somebody.nii.gz: modality unknown: " in ended.out
    assert "label maps, left out: 1" in ended.out
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["subject"], row["modality"]) for row in rows] == [("anna", "mri")]
    (folder / "broken_T2.nii").unlink()
    assert voxelwave("embed", weights, folder, out, "--modality", "mri").code == 0
    with out.open() as file:
        assert len(list(csv.DictReader(file))) == 2


def test_a_modality_that_the_backbone_does_not_take_is_left_out(heads, tmp_path):
    described = {"architecture": {"name": "waveformer", "in_channels": [1], "settings": SETTINGS}}
    save_backbone(tmp_path, WaveFormer3D((1,), **SETTINGS).state_dict(), described)
    assert embed(tmp_path, str(heads), tmp_path / "out.npz", console=QUIET).unusable == 3
    assert set(np.load(tmp_path / "out.npz")["modality"]) == {"mri"}


@pytest.mark.parametrize(
    ("source", "out", "options", "message"),
    [
        ("{heads}/mri", "out.txt", {}, "ends in none of .parquet, .csv, .npz"),
        ("nowhere", "out.csv", {}, "'nowhere' does not exist"),
        ("{heads}/labels", "out.csv", {}, "holds label maps alone"),
        ("{heads}/mri", "out.csv", {"modality": "pet"}, "unknown modality 'pet'; known: ct, mri"),
        ("{heads}/*.csv", "out.csv", {}, "pattern matches no scan"),
        ("{broken}", "out.csv", {"modality": "mri"}, "none of the 1 files at .* can be used"),
    ],
)
def test_what_cannot_be_embedded_is_one_clear_line(weights, heads, tmp_path, source, out, options, message):
    broken = tmp_path / "scan.nii"
    broken.write_bytes(b"this is no volume")
    with pytest.raises(ValueError, match=message) as caught:
        embed(weights, source.format(heads=heads, broken=broken), tmp_path / out, console=QUIET, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / out).exists()


def test_what_writes_parquet_may_be_missing(weights, heads, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("voxelwave.jobs.embed.table.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs pyarrow: pip install 'voxelwave\[export\]', or write .csv"):
        embed(weights, str(heads), tmp_path / "out.parquet", console=QUIET)
    assert embed(weights, str(heads / "mri"), tmp_path / "out.csv", console=QUIET).unusable == 0


def test_a_prepared_image_may_have_several_label_maps(heads, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    for suffix, folder in (("", "mri"), ("_labels", "labels")):
        shutil.copy(heads / folder / f"head_0000_T1{suffix}.nii.gz", scans / f"anna_T1{suffix}.nii.gz")
    shutil.copy(heads / "labels" / "head_0000_T1_labels.nii.gz", scans / "anna_T1_seg.nii.gz")
    Preparer(tmp_path / "set", preparation(), workers=1, console=QUIET)([str(scans)])
    cases, label_maps, *_ = find_images(str(tmp_path / "set"), None)
    assert [(case.subject, case.modality, case.image.suffix) for case in cases] == [("anna", "mri", ".vxw")]
    assert not label_maps
    with pytest.raises(ValueError, match="holds no scan of modality ct"):
        find_images(str(tmp_path / "set"), "ct")
