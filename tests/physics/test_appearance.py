"""Rendered label maps have the values that their contrast says, and nothing but noise depends on the device."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from voxelwave.data.modalities import ct
from voxelwave.ops.seeding import numpy_generator
from voxelwave.physics.heads3d import Tissue, draw_head
from voxelwave.physics.heads3d.appearance import CONTRASTS, CT, SURROUNDINGS, blurred, render, smooth_fields, windowed

MRI = [name for name in CONTRASTS if name != CT]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def labels():
    return torch.from_numpy(draw_head(numpy_generator("appearance"), size=48))[None]


@pytest.mark.parametrize("contrast", MRI)
def test_mri_lies_between_0_and_1_and_shows_its_tissues(labels, contrast):
    seen, clean, shown = render(labels, [contrast], generator(), stripped=0.0)
    assert torch.equal(shown, labels)
    assert seen.shape == clean.shape == (1, 1, 48, 48, 48)
    assert 0 <= float(seen.min()) < float(seen.max()) <= 1
    assert 0 <= float(clean.min()) < float(clean.max()) <= 1
    white, air = (clean[0, 0][labels[0] == tissue].mean() for tissue in (Tissue.WHITE_MATTER, Tissue.AIR))
    assert abs(float(white - air)) > 0.02
    assert not torch.equal(seen, clean)


def test_ct_has_hounsfield_units(labels):
    seen, clean, _ = render(labels, [CT], generator(), stripped=0.0)
    assert float(clean[0, 0][labels[0] == Tissue.AIR].median()) == pytest.approx(-1000, abs=5)
    interior = ndimage.binary_erosion(labels[0].numpy() == Tissue.WHITE_MATTER)
    assert float(clean[0, 0][torch.from_numpy(interior)].mean()) == pytest.approx(29, abs=15)
    assert float((seen - clean).std()) > 0.5


def test_a_stripped_head_has_air_where_its_skull_was(labels):
    (_, whole, _), (_, bare, shown) = (render(labels, ["T1"], generator(), stripped=share) for share in (0.0, 1.0))
    whole, bare, gone = whole[0, 0], bare[0, 0], torch.isin(labels, torch.tensor(SURROUNDINGS))
    # What is told of a voxel is what it shows.
    assert gone.any()
    assert torch.equal(shown, labels.masked_fill(gone, Tissue.AIR))
    scalp, brain = (
        torch.from_numpy(ndimage.binary_erosion(labels[0].numpy() == tissue))
        for tissue in (Tissue.SKULL, Tissue.WHITE_MATTER)
    )
    head = (labels[0] > 0) & (labels[0] != Tissue.EYE)
    assert float(bare[scalp].mean()) < 0.1
    assert float(bare[brain].mean()) > 0.3
    assert float(bare[head].mean()) < float(whole[head].mean())


@pytest.mark.parametrize("contrast", ["random", CT])
def test_the_same_generator_renders_the_same(labels, contrast):
    once, again = (render(labels, [contrast], generator(3), stripped=0.5) for _ in range(2))
    assert torch.equal(once.clean, again.clean)
    assert torch.equal(once.seen, again.seen)
    assert not torch.equal(once.clean, render(labels, ["random"], generator(4), stripped=0.5).clean)


def test_the_filter_is_that_of_scipy():
    image, sigma = torch.rand(2, 1, 12, 13, 14, generator=generator()), torch.tensor([[0.5, 0.8, 1.1], [0.9, 0.4, 0.6]])
    for volume, widths, result in zip(image, sigma, blurred(image, sigma), strict=True):
        expected = ndimage.gaussian_filter(volume[0].numpy(), widths.numpy(), radius=3, mode="nearest")
        assert np.allclose(result[0].numpy(), expected, atol=1e-5)


def test_windows_are_those_of_the_modality():
    hounsfield = 2000 * torch.rand(1, 1, 9, 9, 9, generator=generator()) - 1000
    modality = ct.CT()
    expected = modality.scale(hounsfield[0, 0].numpy(), (-1000, 1000))
    assert np.allclose(windowed(hounsfield, modality.windows_hu)[0].numpy(), expected, atol=1e-5)


def test_fields_are_smooth_and_of_about_unit_variance():
    fields = smooth_fields(40, (20, 20, 20), generator(), cells=4)
    assert 0.25 < float(fields.var()) < 1.2
    assert float((fields[..., 1:] - fields[..., :-1]).std()) < 0.3
