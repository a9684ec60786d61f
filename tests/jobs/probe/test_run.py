import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from support.command import voxelwave
from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.data.listing.cases import Case, find_cases
from voxelwave.downstream.embedding import (
    embed_crops,
    embed_tokens,
    embed_volume,
    frame,
    occupied_tokens,
    untrained_twin,
)
from voxelwave.downstream.load_backbone import load_backbone, save_backbone
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.evaluation.probing import tissue_probe
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.probe.features import CROPS, Probed, key_of, parse_classes, probe_cases
from voxelwave.jobs.probe.run import probe
from voxelwave.jobs.probe.tasks import ARMS, Comparison
from voxelwave.ops.seeding import torch_generator

SETTINGS = {"patch_size": 4, "embed_dim": 12, "num_heads": 2}
QUIET = Console(quiet=True)


def saved(folder, in_channels=(1, 3), depth=1, weights=None, **preprocessing):
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    settings = {**SETTINGS, "depth": depth}
    weights = WaveFormer3D(in_channels, **settings).state_dict() if weights is None else weights
    architecture = {"name": "waveformer", "in_channels": list(in_channels), "settings": settings}
    described = {"architecture": architecture, "preprocessing": {"crop_size": [16, 16, 16], **preprocessing}}
    save_backbone(folder, weights, described)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A backbone that saw whole scans at 16³."""
    return saved(tmp_path_factory.mktemp("weights"), view_share=[1.0, 1.0])


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Eight MRI scans of noise and four of CT; half of them are bright below and dark above, and labelled so."""
    folder = tmp_path_factory.mktemp("cases")
    lines = ["image,label,subject,modality,upright,same"]
    generator = np.random.default_rng(0)
    for number in range(12):
        modality, upright = ("mri", "ct")[number >= 8], number % 2
        labels = np.ones((16, 16, 16), dtype=np.uint8)
        labels[:, :, 8:] = 2
        image = np.where((labels == 1) == bool(upright), 800.0, 100.0) + generator.normal(0, 20, labels.shape)
        if modality == "ct":
            image -= 500
        for name, array in ((f"scan{number}", image), (f"scan{number}_labels", labels)):
            nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), folder / f"{name}.nii.gz")
        lines.append(f"scan{number}.nii.gz,scan{number}_labels.nii.gz,subject{number},{modality},{upright},1")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def compared(weights, cases, tmp_path_factory):
    """Probe everything once, and return what was printed, the path of the results and the results."""
    out = tmp_path_factory.mktemp("probe") / "new" / "probe.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voxelwave.evaluation.estimates.RESAMPLES", 20)
        ended = voxelwave("probe", weights, cases, "--out", out)
    assert ended.code == 0, ended.err
    return ended.out, out, json.loads(out.read_text())


def test_a_probe_prints_a_table_and_leaves_results_and_a_picture(compared, weights):
    printed, out, record = compared
    for text in (
        "pretrained",
        "random init",
        "raw voxels",
        "gain over raw",
        "oracle",
        "not probed: own place (mri→ct): no subject has scans of both",
        "chance",
        "upright (mri)",
        "modality (all)",
        "not probed: same (mri): every",
    ):
        assert text in printed
    assert record["modalities"]["mri"] == {"scans": 8, "subjects": 8}
    assert record["sha256"] == json.loads((weights / "backbone.json").read_text())["sha256"]
    assert imread(out.with_suffix(".png")).std() > 0.01


def test_every_target_is_probed_in_each_modality_and_the_modality_over_all(compared):
    rows = {(row["task"], row["modality"], row["probe"], row["measure"]): row for row in compared[2]["results"]}
    tasks = {(task, modality) for task, modality, _, _ in rows}
    assert tasks == {
        *((task, modality) for task in ("scan", "features", "tissue", "upright") for modality in ("mri", "ct")),
        *((task, pair) for task in ("tissue", "other head") for pair in ("mri→mri", "mri→ct", "ct→mri", "ct→ct")),
        ("modality", "all"),
    }
    assert rows["upright", "mri", "linear", "balanced accuracy"]["chance"] == 0.5
    assert rows["scan", "ct", "retrieval", "Recall@1"]["chance"] == pytest.approx(3 / 15)
    assert rows["features", "mri", "none", "effective rank"]["pretrained"]["error"] is None


def test_the_gain_is_the_difference_to_the_same_backbone_with_random_weights(compared):
    for row in compared[2]["results"]:
        assert row["gain"]["value"] == pytest.approx(row["pretrained"]["value"] - row["random_init"]["value"])
        above_raw = row["pretrained"]["value"] - row["raw_voxels"]["value"]
        assert row["gain_over_raw"]["value"] == pytest.approx(above_raw)
        assert ("oracle" in row) == (row["task"] == "other head")


def test_each_modality_is_probed_by_itself_and_a_repeated_probe_finds_the_same(
    compared, weights, cases, tmp_path, monkeypatch
):
    monkeypatch.setattr("voxelwave.evaluation.estimates.RESAMPLES", 20)
    out = tmp_path / "probe.json"
    assert voxelwave("probe", weights, cases, "--out", out, "--modality", "ct").code == 0
    expected = [row for row in compared[2]["results"] if row["modality"] == "ct"]
    assert json.loads(out.read_text())["results"] == expected


def test_features_of_a_depth_are_those_of_a_backbone_that_ends_there(cases, tmp_path, monkeypatch):
    monkeypatch.setattr("voxelwave.evaluation.estimates.RESAMPLES", 20)
    deep = saved(tmp_path / "deep", depth=2)
    state = {key: value for key, value in load_backbone(deep).backbone.state_dict().items() if "blocks.1." not in key}
    shallow = saved(tmp_path / "shallow", weights=state)
    records = []
    for weights, options in ((deep, ["--depth", "1"]), (shallow, []), (deep, [])):
        out = tmp_path / f"{len(records)}.json"
        options = [*options, "--modality", "mri", "--targets", "upright", "--out", str(out)]
        ended = voxelwave("probe", weights, cases, *options)
        assert ended.code == 0, ended.err
        records.append(json.loads(out.read_text()))
    cut, ends_there, whole = ([row["pretrained"] for row in record["results"]] for record in records)
    assert cut == ends_there != whole
    assert [record["depth"] for record in records] == [1, 1, 2]


def test_both_backbones_see_the_same_scans_crops_and_tokens(weights, cases, monkeypatch):
    monkeypatch.setattr("voxelwave.jobs.probe.features.TOKENS", 8)
    features = load_backbone(weights)
    twin, listed = untrained_twin(features, seed=0), find_cases(cases, modality="mri")
    probed, problems = probe_cases(listed, {"one": features, "same": features, "twin": twin}, classes=None, seed=0)
    assert not problems
    for of in (probed.scans, probed.crops, probed.tokens):
        assert np.array_equal(of["one"], of["same"])
        assert not np.array_equal(of["one"], of["twin"])
    volume = ScanReader(features)(listed[3].image, "mri").volume
    size = (16, 16, 16)
    assert np.array_equal(probed.scans["twin"][3], embed_volume(twin, volume, size=size).numpy())
    generator = torch_generator(0, "crops", *key_of(listed[3]))
    crops = embed_crops(twin, volume, count=CROPS, generator=generator, size=size)
    assert np.array_equal(probed.crops["twin"][3], crops.numpy())
    chosen = (probed.token_case == 3).nonzero()[0]
    assert len(chosen) == 8
    everywhere = embed_tokens(twin, volume, chosen=occupied_tokens(frame(volume, 4, size=size), 4), size=size).numpy()
    rows = [np.flatnonzero((everywhere == token).all(1)) for token in probed.tokens["twin"][chosen]]
    assert len({int(row[0]) for row in rows}) == 8


def test_a_token_has_the_label_of_most_of_its_voxels(cases, tmp_path):
    features = load_backbone(saved(tmp_path))  # at the scan's own voxels
    listed = find_cases(cases, modality="mri")
    for classes, names in ((None, (1, 2)), (parse_classes("top=2,below=1"), (2, 1)), (parse_classes("2"), (0, 1))):
        probed, _ = probe_cases(listed, {"one": features}, classes=classes, seed=0)
        # In raster order the last axis is the fastest: two tokens below, two above.
        expected = np.tile(np.repeat(names, 2), 16 * len(listed))
        assert np.array_equal(probed.token_labels, expected)


def test_a_coarser_network_shows_which_tissue_prevails(cases, tmp_path):
    features = load_backbone(saved(tmp_path, spacing_mm=2.0))
    probed, problems = probe_cases(find_cases(cases, modality="mri"), {"one": features}, classes=None, seed=0)
    assert not problems
    assert np.array_equal(probed.token_labels, np.tile([1, 2], 4 * 8))


@pytest.mark.parametrize(("count", "counted"), [(9, False), (10, True)])
def test_tissues_that_few_subjects_have_are_not_counted(count, counted):
    generator = np.random.default_rng(0)
    cases = [Case(f"{number}", Path(f"{number}.nii"), "mri", f"{number}") for number in range(24)]
    owners, labels = np.repeat(np.arange(24), 3), np.tile([1, 2, 0], 24)
    labels[2 : 3 * count : 3] = 3
    tokens = generator.normal(size=(72, 4)).astype(np.float32)
    cases[0] = replace(cases[0], label=Path("labels.nii"))
    scans, crops = np.zeros((24, 4), np.float32), np.zeros((24, 2, 4), np.float32)
    features = (dict.fromkeys(ARMS, array) for array in (scans, crops, tokens))
    probed = Probed(cases, *features, owners, labels, {3: "ventricles"})
    comparison = Comparison(seed=0)
    comparison.tissues("mri", probed)
    kept = (labels > 0) & ((labels < 3) | counted)
    expected = tissue_probe(tokens[kept], labels[kept], np.array([f"{owner}" for owner in owners[kept]]), seed=0)
    found = {result.measure: result.pretrained.value for result in comparison.results}
    assert found == {name: of.value for name, of in expected.items()}
    problem = {"rare tissues (mri)": "fewer than 10 subjects have tokens of ventricles (9)"}
    assert comparison.problems == ({} if counted else problem)


def test_a_label_map_that_lies_elsewhere_leaves_its_case_out(weights, cases, tmp_path):
    table = (cases / "cases.csv").read_text().replace("scan", f"{cases}/scan").replace(f"{cases}/scan0_labels", "moved")
    (tmp_path / "cases.csv").write_text(table)
    labels = nib.load(cases / "scan0_labels.nii.gz")
    moved = np.eye(4)
    moved[0, 3] = 5.0
    nib.save(nib.Nifti1Image(np.asarray(labels.dataobj), moved), tmp_path / "moved.nii.gz")
    backbones = {"one": load_backbone(weights)}
    probed, problems = probe_cases(find_cases(tmp_path, modality="mri"), backbones, classes=None, seed=0)
    assert len(probed.cases) == 7
    assert len(problems) == 1
    assert "scan0.nii.gz: its label map moved.nii.gz: it lies up to 5 mm from its image" in problems[0]


def test_a_place_that_cannot_be_is_told_before_anything_is_computed(weights, cases, tmp_path, monkeypatch):
    monkeypatch.setattr("voxelwave.jobs.probe.run.load_backbone", lambda *_, **__: pytest.fail("too late"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        probe(weights, cases, out=tmp_path / "file" / "probe.json", console=QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["grade"]}, "no case of .* has the target 'grade'; there are: same, upright, modality"),
        ({"targets": ["same"]}, "no target can be probed: same .mri.: every case is of class 1"),
        ({"targets": ["modality"], "modality": "mri"}, "all cases of .* are of modality mri"),
        ({"transfer": "mri"}, "--transfer takes FROM:TO,… such as mri:ct,T1:T2, got 'mri'"),
        ({"transfer": "mri:T1"}, "no case is of kind 'T1': it is a modality, .* such as same=1"),
        ({"transfer": "mri:upright=1"}, "cases of kind 'upright=1' are of several modalities"),
        ({"modality": "pet"}, "unknown modality 'pet'; known: ct, mri"),
        ({"out": "probe.txt"}, "--out is a file that ends in .json"),
        ({"label_classes": "grey=six"}, "--label-classes takes NAME=VALUE.VALUE.*a label is a whole number"),
        ({"label_classes": "grey=1+2,white=2"}, "label value 2…2 of class 'white' is in class 'grey' too"),
        ({"cases": "nowhere"}, "nowhere is neither a list of cases"),
        ({"weights": "nowhere"}, "no checkpoint at nowhere"),
        ({"depth": 2}, "depths rise within 0…1, and one is above 0; got .2."),
    ],
)
def test_what_cannot_be_probed_is_one_clear_line(weights, cases, tmp_path, options, message):
    given = {"weights": weights, "cases": cases, "out": tmp_path / "probe.json", **options}
    with pytest.raises(ValueError, match=message) as caught:
        probe(given.pop("weights"), given.pop("cases"), **{**given, "out": Path(given["out"])}, console=QUIET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "probe.json").exists()


def test_other_cases_that_cannot_be_probed(weights, cases, tmp_path):
    (tmp_path / "mri").mkdir()
    mri = saved(tmp_path / "mri", in_channels=(1,))
    with pytest.raises(ValueError, match="the backbone takes volumes of 1 channels, and ct has 3"):
        probe(mri, cases, out=tmp_path / "probe.json", console=QUIET)
    lines = (cases / "cases.csv").read_text().replace("scan", f"{cases}/scan").splitlines()
    (tmp_path / "few.csv").write_text("\n".join(lines[:4]) + "\n")  # of upright scans there is one
    with pytest.raises(ValueError, match=r"upright .mri.: each class needs two subjects.* class 1 has 1"):
        probe(weights, tmp_path / "few.csv", targets=["upright"], out=tmp_path / "probe.json", console=QUIET)
    plain = [",".join(line.split(",")[:1] + line.split(",")[2:4]) for line in lines[:4]]
    (tmp_path / "plain.csv").write_text("\n".join(plain) + "\n")
    with pytest.raises(ValueError, match=r"--label-classes: no case of .* has a label map"):
        probe(weights, tmp_path / "plain.csv", label_classes="1", out=tmp_path / "probe.json", console=QUIET)
    results = probe(weights, tmp_path / "plain.csv", out=tmp_path / "probe.json", console=QUIET)
    assert {result.task for result in results} == {"scan", "features"}
