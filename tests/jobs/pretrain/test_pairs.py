"""A run on pairs of rendered views: it resumes exactly, exports a backbone, and names what it cannot use."""

import json
import shutil

import numpy as np
import pytest
import torch

from support.pretraining_runs import QUIET, exact, named, records, tiny, weights
from support.stopping import stop_after
from voxelwave import load_backbone
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.pretrain.config import check_config
from voxelwave.jobs.pretrain.rendered_pair_data import RenderedPairData
from voxelwave.jobs.pretrain.run import pretrain

pytestmark = pytest.mark.usefixtures("undrawn")
CONTRASTS = ["T1", "random", "CT"]


@pytest.fixture
def raw(heads, tmp_path):
    """A run of 8 steps on the label maps of the generated heads."""
    raw = tiny(heads, tmp_path / "runs")
    raw["data"] = {
        "crop_size": [16, 16, 16],
        "num_workers": 0,
        "cached_volumes": 10,
        "pairs": {"cases": str(heads), "contrasts": CONTRASTS, "spacing_mm": 2.0},
    }
    return {**raw, "objective": {"name": "cross_contrast"}}


def configured(raw, name, **changes):
    raw = {**raw, **changes}
    return named(raw, name, max_steps=8, epochs=20)


def test_a_resumed_run_on_pairs_equals_the_uninterrupted_one(raw):
    whole, parts = configured(raw, "whole"), configured(raw, "parts")
    assert pretrain(whole, console=QUIET)
    assert not pretrain(parts, console=QUIET, should_stop=stop_after(3))
    assert pretrain(parts, resume=True, console=QUIET)
    assert exact(parts) == exact(whole)
    one, other = weights(whole), weights(parts)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {record["modality"] for record in records(whole)} == {"mri+mri", "mri+ct"}
    assert any(record["shared_places"] > 0 for record in records(whole))
    assert {"effective_rank_mri", "effective_rank_ct"} <= records(whole)[0].keys()


def test_the_loader_cuts_the_same_pairs_with_workers(raw):
    alone, helped = configured(raw, "alone"), configured(raw, "helped", data={**raw["data"], "num_workers": 2})
    assert pretrain(alone, console=QUIET)
    assert pretrain(helped, console=QUIET)
    assert exact(alone) == exact(helped)


def test_a_kind_of_pair_has_the_smaller_of_the_two_batches(raw):
    raw["training"]["batch_size"] = {"mri": 3, "ct": 1}
    data = RenderedPairData(check_config(raw), rank=0, world_size=1, pin_memory=False, console=QUIET)
    sizes = {batch.modality: len(batch.files) for batch in data.batches(0, 4)}
    assert sizes == {"mri+mri": 3, "mri+ct": 1}


@pytest.mark.parametrize("objective", ["cross_contrast", "supervised_synthesis"])
def test_the_backbone_of_a_run_on_pairs_reads_both_modalities(raw, objective):
    config = configured(raw, objective, objective={"name": objective})
    assert pretrain(config, console=QUIET)
    for place in (config.run_folder(), config.run_folder() / "last.pth"):
        backbone = load_backbone(place)
        for channels in (1, 3):
            deepest = backbone(torch.rand(1, channels, 16, 16, 16))[-1]
            assert deepest.shape == (1, 24, 4, 4, 4)
    described = json.loads((config.run_folder() / "backbone.json").read_text())
    assert set(described["preprocessing"]["modalities"]) == {"mri", "ct"}
    assert described["preprocessing"]["spacing_mm"] == config.data.pairs.spacing_mm
    assert described["pretraining"]["objective"]["name"] == objective
    assert "target" not in described["pretraining"]
    first, last = (record["loss"] for record in (records(config)[0], records(config)[-1]))
    assert np.isfinite([first, last]).all()


def test_a_spacing_that_views_would_not_have_is_refused(raw):
    raw["data"]["spacing_mm"] = 2.0
    with pytest.raises(InputError, match=r"of pairs it is data.pairs.spacing_mm"):
        configured(raw, "spacing")


@pytest.mark.parametrize(
    ("section", "given"),
    [
        ("data", {"view_share": [1, 1]}),
        ("data", {"steps": {"mri": 3}}),
        ("data", {"augment": {"mri": {"noise": {}}}}),
        ("loss", {"contrastive_weight": 0}),
        ("loss", {"temperature": 0.5}),
        ("model", {"target": "features"}),
    ],
)
def test_a_setting_of_volumes_is_refused_beside_pairs(raw, section, given):
    assert check_config(check_config(raw).model_dump(mode="json")) == check_config(raw)
    changed = {**raw, section: {**raw.get(section, {}), **given}}
    with pytest.raises(InputError, match=rf"key '{section}.{next(iter(given))}' is of volumes"):
        check_config(changed)


def test_a_bad_label_map_is_left_out_and_one_that_turns_bad_is_replaced(raw, heads, tmp_path, capsys):
    rows, maps = [], []
    for image in sorted((heads / "mri").glob("*.nii.gz"))[:3]:
        maps.append(tmp_path / image.name.replace(".nii", "_labels.nii"))
        shutil.copy(heads / "labels" / maps[-1].name, maps[-1])
        rows.append(f"{image},{maps[-1]},mri")
    maps[0].write_bytes(b"no image")
    (tmp_path / "cases.csv").write_text("\n".join(["image,label,modality", *rows]) + "\n")
    raw["data"]["pairs"]["cases"] = str(tmp_path / "cases.csv")
    data = RenderedPairData(check_config(raw), rank=0, world_size=1, pin_memory=False, console=Console())
    assert set(data.trained_on()) == set(maps[1:])
    maps[1].write_bytes(b"no image any more")
    assert len(list(data.batches(0, 4))) == 4
    said = " ".join(capsys.readouterr().out.split())
    assert f"left out {maps[0]}: " in said
    assert said.count(f"left out {maps[1]}: ") == 1


def test_pairs_are_of_the_split_that_is_asked_for(raw, heads, tmp_path):
    rows = [
        f"{image},{heads / 'labels' / image.name.replace('.nii', '_labels.nii')},mri,{'test' if number else 'train'}"
        for number, image in enumerate(sorted((heads / "mri").glob("*.nii.gz")))
    ]
    (tmp_path / "cases.csv").write_text("\n".join(["image,label,modality,split", *rows]) + "\n")
    raw["data"]["pairs"] |= {"cases": str(tmp_path / "cases.csv"), "split": "train"}
    data = RenderedPairData(check_config(raw), rank=0, world_size=1, pin_memory=False, console=QUIET)
    assert len(data.trained_on()) == 1
    raw["data"]["pairs"]["split"] = "validation"
    with pytest.raises(InputError, match=r"has no case of 'validation'; its splits: test, train"):
        RenderedPairData(check_config(raw), rank=0, world_size=1, pin_memory=False, console=QUIET)


def test_what_is_probed_and_pictured_of_a_modality_is_of_it(raw):
    raw["data"]["pairs"]["contrasts"] = ["T1", "CT"]
    data = RenderedPairData(check_config(raw), rank=0, world_size=1, pin_memory=False, console=QUIET)
    assert {name: batch.volume.shape[1] for name, batch in data.probe_batches().items()} == {"mri": 1, "ct": 3}


def test_cases_without_label_maps_cannot_be_rendered(raw, heads, tmp_path):
    image = next((heads / "mri").glob("*.nii.gz"))
    (tmp_path / "cases.csv").write_text(f"image,modality\n{image},mri\n")
    raw["data"]["pairs"]["cases"] = str(tmp_path / "cases.csv")
    with pytest.raises(InputError, match="has no label map that views could be rendered of"):
        pretrain(configured(raw, "without"), console=QUIET)


def test_label_maps_that_changed_are_named_on_resume(raw, heads, tmp_path):
    config = check_config({**raw, "run": {**raw["run"], "name": "changed"}})
    assert not pretrain(config, console=QUIET, should_stop=stop_after(2))
    config.data.pairs.spacing_mm = 3.0
    with pytest.raises(InputError, match=r"'data.pairs.spacing_mm' was 2.0 and is 3.0 now"):
        pretrain(config, resume=True, console=QUIET)
