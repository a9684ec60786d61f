"""What a run is fed: from files or from the store, in the ratio asked for, augmented where the model is."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch

from support.pretraining_runs import QUIET, named
from support.stopping import stop_after
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.prepare.run import Preparer
from voxelwave.jobs.prepare.settings import preparation
from voxelwave.jobs.pretrain.config import check_config
from voxelwave.jobs.pretrain.data import TrainingData
from voxelwave.jobs.pretrain.run import pretrain


@pytest.fixture(scope="module")
def prepared(heads, tmp_path_factory):
    """The heads as a data set, uncropped, so that the store holds what the files hold."""
    folder = tmp_path_factory.mktemp("prepared") / "heads"
    Preparer(folder, preparation(spacing="native", crop=False), workers=1, holdout=0.4, console=QUIET)([str(heads)])
    return folder


def stored(raw_config, prepared, **data):
    config = copy.deepcopy(raw_config)
    config["data"]["sources"] = [{"path": str(prepared), "modality": name} for name in ("mri", "ct")]
    config["data"] |= data
    return config


def training_data(raw, console=QUIET, rank=0, world_size=1):
    config = check_config(raw)
    return TrainingData(config, rank=rank, world_size=world_size, pin_memory=False, console=console)


def test_a_prepared_folder_serves_each_modality_without_its_label_maps(raw_config, prepared):
    assert training_data(stored(raw_config, prepared)).counts() == {"mri": 5, "ct": 3}


def test_whole_views_of_the_store_are_those_of_the_files(raw_config, prepared):
    raw_config["data"]["view_share"] = [1.0, 1.0]
    pairs = zip(
        training_data(raw_config).batches(0, 6), training_data(stored(raw_config, prepared)).batches(0, 6), strict=True
    )
    for of_files, of_store in pairs:
        # The order of the names is the same; half a Hounsfield unit is 0.006 of the narrowest window.
        assert [file.rpartition("/")[2].split(".")[0] for file in of_files.files] == [
            file.rpartition("/")[2].split(".")[0] for file in of_store.files
        ]
        assert torch.allclose(of_files.volume, of_store.volume, rtol=0, atol=0.0065)


def test_a_split_takes_its_subjects_alone(raw_config, prepared):
    config = stored(raw_config, prepared)
    config["data"]["sources"] = config["data"]["sources"][:1]
    names = {}
    for split in ("train", "test"):
        for source in config["data"]["sources"]:
            source["split"] = split
        names[split] = {file for batch in training_data(config).batches(0, 12) for file in batch.files}
    assert names["train"]
    assert names["test"]
    assert not names["train"] & names["test"]


def test_a_split_of_a_plain_folder_is_refused(raw_config):
    raw_config["data"]["sources"][0]["split"] = "train"
    with pytest.raises(InputError, match="a split needs a folder that `voxelwave prepare"):
        training_data(raw_config)


def test_a_store_made_with_other_percentiles_or_spacing_is_refused(raw_config, prepared):
    with pytest.raises(InputError, match=r"prepared with .*0.5, 99.5.*, and .*1.0, 99.0.* are asked for"):
        training_data(stored(raw_config, prepared, modalities={"mri": {"percentiles": [1, 99]}}))
    with pytest.raises(InputError, match=r"prepared at 1 × 1 × 1 mm, and spacing_mm 2.0 is asked for"):
        training_data(stored(raw_config, prepared, spacing_mm=2.0))
    wide = {"ct": {"windows_hu": [[40, 400], [80, 200], [600, 2800]]}}
    assert training_data(stored(raw_config, prepared, modalities=wide)).counts()["ct"] == 3


@pytest.mark.parametrize(("cached", "warns"), [(0, True), (7, True), (8, False)])
def test_volumes_that_are_read_whole_for_a_crop_are_warned_of(raw_config, cached, warns):
    raw_config["data"]["cached_volumes"] = cached
    output = io.StringIO()
    training_data(raw_config, Console(file=output, width=300))
    assert ("8 volumes are not prepared, and read whole for each crop" in output.getvalue()) == warns
    assert ("times less" in output.getvalue()) == warns


def test_nothing_is_warned_of_with_a_store(raw_config, prepared):
    output = io.StringIO()
    training_data(stored(raw_config, prepared), Console(file=output))
    assert "warning" not in output.getvalue()


def test_ratio_temperature_and_crops_reach_the_schedule(raw_config, prepared):
    data = training_data(stored(raw_config, prepared, steps={"mri": 2}, crops_per_volume=2))
    batches = list(data.batches(0, 6))
    assert [batch.modality for batch in batches] == ["mri", "ct", "mri"] * 2
    for batch in batches:
        assert batch.files[0] == batch.files[1]
        assert not torch.equal(batch.volume[0], batch.volume[1])


def test_batches_of_the_store_do_not_depend_on_the_number_of_workers(raw_config, prepared):
    alone, helped = (training_data(stored(raw_config, prepared, num_workers=number)).batches(0, 4) for number in (0, 2))
    for first, second in zip(alone, helped, strict=True):
        assert torch.equal(first.volume, second.volume)
        assert first.files == second.files


def test_a_damaged_chunk_is_named_and_its_volume_replaced(raw_config, prepared, tmp_path):
    import shutil

    copied = tmp_path / "copy"
    shutil.copytree(prepared, copied)
    victim = sorted((copied / "mri").rglob("*.vxw"))[0]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    batches = list(training_data(stored(raw_config, copied)).batches(0, 6))
    problems = {problem for batch in batches for problem in batch.problems}
    assert [str(victim) in problem and "is damaged" in problem for problem in problems] == [True]
    assert all(str(victim) not in batch.files for batch in batches)


def test_augmentation_depends_on_seed_rank_and_batch_alone(raw_config):
    raw_config["data"]["augment"] = {"mri": {"flip": {}, "noise": {"std": 0.1}, "gamma": {}, "bias_field": {}}}
    data, again, other = (
        training_data(raw_config),
        training_data(raw_config),
        training_data(raw_config, rank=1, world_size=2),
    )
    batch = next(iter(data.batches(0, 1)))
    cpu = torch.device("cpu")
    first = data.augmented(batch, 3, cpu)
    assert first.shape == batch.volume.shape
    assert torch.equal(first, again.augmented(batch, 3, cpu))
    for changed in (data.augmented(batch, 4, cpu), other.augmented(batch, 3, cpu), batch.volume):
        assert not torch.equal(first, changed)


def test_an_empty_section_switches_augmentation_off(raw_config):
    raw_config["data"]["augment"] = {"mri": {}, "ct": {}}
    data = training_data(raw_config)
    for batch in itertools.islice(data.batches(0, 2), 2):
        assert torch.equal(data.augmented(batch, 0, torch.device("cpu")), batch.volume)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"augment": {"mri": {"warp": {}}}}, "unknown augmentation 'warp'; known: affine"),
        ({"augment": {"mri": {"noise": {"sd": 1}}}}, "'data.augment.mri.noise.sd'"),
        ({"augment": {"mri": {"noise": {"std": -1}}}}, "std"),
        ({"augment": {"pet": {}}}, "unknown modality 'pet' in 'data.augment'"),
        ({"steps": {"pet": 2}}, "unknown modality 'pet' in 'data.steps'"),
        ({"steps": {"mri": 0}}, "data.steps.mri"),
        ({"source_temperature": 0.5}, "data.source_temperature"),
        ({"foreground_share": 1.5}, "data.foreground_share"),
        ({"crops_per_volume": 0}, "data.crops_per_volume"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(raw_config, data, message):
    raw_config["data"] |= data
    with pytest.raises(InputError, match=message) as error:
        training_data(raw_config)
    assert "\n" not in str(error.value)


def test_a_run_on_a_store_resumes_bit_for_bit_in_the_middle_of_an_epoch(raw_config, prepared, undrawn):
    raw = stored(raw_config, prepared, steps={"mri": 2}, crops_per_volume=2, num_workers=1)
    raw["data"]["augment"] = {
        "mri": {"flip": {}, "bias_field": {}, "gamma": {}},
        "ct": {"window_jitter": {}, "noise": {}},
    }
    raw["training"] |= {"epochs": 1, "max_steps": 7}
    whole, parts = named(raw, "whole"), named(raw, "parts")
    pretrain(whole, console=QUIET)
    assert not pretrain(parts, console=QUIET, should_stop=stop_after(4))
    assert pretrain(parts, resume=True, console=QUIET)
    first, second = ((config.run_folder() / "backbone.safetensors").read_bytes() for config in (whole, parts))
    assert first == second
