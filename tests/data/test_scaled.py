"""What is done to a scan before a network sees it, however it comes: from its file, or prepared."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch

from voxelwave.data.scaled import read_scaled
from voxelwave.registry import MODALITIES


def ball(side=40, radius=14):
    at = np.stack(np.meshgrid(*[np.arange(side) - side / 2 + 0.5] * 3, indexing="ij"))
    distance = np.sqrt((at**2).sum(0))
    return distance < radius, (1000 + 40 * np.sin(at[0]) + 30 * np.cos(at[1])).astype(np.float32)


def written(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return path


@pytest.mark.parametrize("background", [np.nan, -np.inf])
def test_a_background_that_is_no_number_takes_nothing_from_the_rim_when_it_is_resampled(tmp_path, background):
    inside, values = ball()
    mri = MODALITIES.build("mri")
    of_zeros, masked = (
        read_scaled(written(tmp_path / f"{name}.nii", np.where(inside, values, np.float32(of))), mri, spacing_mm=1.6)
        for name, of in (("zeros", values[inside].min()), ("masked", background))
    )
    assert torch.equal(of_zeros.volume, masked.volume)


def test_padding_of_ct_reaches_no_tissue_beside_it(tmp_path):
    inside, values = ball()
    hounsfield = np.where(inside, values - 960, -1000).astype(np.float32)
    hounsfield[:, :, 21:] = -3000  # padding, in the middle of the head
    ct = MODALITIES.build("ct")
    path = written(tmp_path / "scans" / "ct" / "scan.nii", hounsfield)
    raised = written(tmp_path / "raised.nii", np.maximum(hounsfield, -1024))
    given, expected = (read_scaled(one, ct, spacing_mm=1.6).volume for one in (path, raised))
    assert torch.equal(given, expected)
