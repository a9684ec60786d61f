"""Batches are the same for any number of workers and caches, and bad files are passed over."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch

from voxelwave.data.batches.alternating import AlternatingSchedule
from voxelwave.data.batches.loaders import VolumeDataset, make_loader
from voxelwave.data.batches.views import RandomView
from voxelwave.data.listing.discovery import VolumeFile
from voxelwave.data.modalities.ct import CT
from voxelwave.data.modalities.mri import MRI
from voxelwave.errors import InputError

MODALITIES = {"mri": MRI(), "ct": CT()}


@pytest.fixture
def files(tmp_path):
    """Five MRI and three CT of 12 x 13 x 14 voxels."""
    made = {"mri": [], "ct": []}
    random = np.random.default_rng(0)
    for modality, number in (("mri", 5), ("ct", 3)):
        for index in range(number):
            path = tmp_path / f"{modality}{index}.nii.gz"
            array = random.uniform(-1000, 1000, (12, 13, 14)) + (1000 if modality == "mri" else 0)
            nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), np.eye(4)), path)
            made[modality].append(VolumeFile(path, modality))
    return made


def batches(files, *, num_workers=0, steps=(0, 6), **options):
    schedule = AlternatingSchedule({name: [len(of)] for name, of in files.items()}, {"mri": 2, "ct": 2}, seed=0)
    dataset = VolumeDataset(files, MODALITIES, RandomView(crop_size=(8, 8, 8)), **options)
    return list(make_loader(dataset, schedule.batches(*steps), num_workers=num_workers))


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a.volume, b.volume) and a[1:] == b[1:] for a, b in zip(first, second, strict=True)
    )


def test_batches_alternate_between_one_and_three_channels(files):
    assert [tuple(batch.volume.shape) for batch in batches(files)] == [(2, 1, 8, 8, 8), (2, 3, 8, 8, 8)] * 3
    assert [batch.modality for batch in batches(files)] == ["mri", "ct"] * 3


def test_batches_are_bit_identical_with_and_without_workers(files):
    files["mri"][1].path.write_text("damaged")
    assert same(batches(files), batches(files, num_workers=2))


def test_a_run_entered_at_step_three_gets_the_batches_of_the_whole_run(files):
    assert same(batches(files)[3:], batches(files, steps=(3, 6)))


def test_a_cache_hit_changes_no_batch_and_rounding_stays_below_the_noise(files):
    without, small, large = (batches(files, cached_volumes=number, steps=(0, 12)) for number in (0, 1, 9))
    assert same(small, large)
    for exact, rounded in zip(without, large, strict=True):
        assert torch.allclose(exact.volume, rounded.volume, rtol=0, atol=2.5e-4)


def test_a_bad_file_is_replaced_by_the_next_and_reported(files):
    files["mri"][1].path.write_text("damaged")
    for batch in batches(files, steps=(0, 20)):
        assert str(files["mri"][1].path) not in batch.files
        if batch.problems:
            assert batch.modality == "mri"
            assert str(files["mri"][2].path) in batch.files
            assert batch.problems == [f"{files['mri'][1].path}: not a NIfTI or MGH file"]
    assert any(batch.problems for batch in batches(files, steps=(0, 20)))


def test_a_file_that_was_away_for_a_while_is_read_again(files):
    schedule = AlternatingSchedule({"mri": [5]}, {"mri": 1}, seed=0)
    dataset = VolumeDataset(files, MODALITIES, RandomView(crop_size=(8, 8, 8)))
    draw = schedule.draw(0)[0]
    path = files["mri"][draw.index].path
    away = path.rename(path.with_name("away"))
    assert dataset[draw].problems == [f"{path}: no such file"]
    away.rename(path)
    assert dataset[draw].file == str(path)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_usable_file_at_all_ends_the_run_in_one_line(files, num_workers):
    for file in files["ct"]:
        file.path.write_text("damaged")
    with pytest.raises(InputError, match=r"^none of the 3 ct files can be used: .*not a NIfTI") as error:
        batches(files, num_workers=num_workers)
    assert "\n" not in str(error.value)


def test_volumes_are_resampled_to_the_spacing_asked_for(files):
    dataset = VolumeDataset(
        files, MODALITIES, lambda volume, generator: volume.cut((0, 0, 0), volume.grid), spacing_mm=0.5
    )
    draw = AlternatingSchedule({"mri": [5]}, {"mri": 1}, seed=0).draw(0)[0]
    assert dataset[draw].volume.shape == (1, 23, 25, 27)
