"""A view is the part that was drawn, fitted or padded; of the store it shows what memory shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from voxelwave.data.batches.cuboids import InMemory, InStore
from voxelwave.data.batches.views import RandomView, fit, pad, resize
from voxelwave.data.modalities.ct import CT
from voxelwave.data.modalities.mri import MRI
from voxelwave.data.store import StoredInfo, StoredVolume, write_stored
from voxelwave.ops.seeding import torch_generator


def volume(shape=(2, 6, 7, 8)):
    return torch.arange(float(np.prod(shape))).reshape(shape)


def test_resize_is_the_identity_where_the_size_fits():
    assert torch.equal(resize(volume(), (6, 7, 8)), volume())


def test_resize_averages_what_a_voxel_covers():
    small = resize(volume((1, 4, 4, 4)), (2, 2, 2))
    assert torch.allclose(small, volume((1, 4, 4, 4)).reshape(1, 2, 2, 2, 2, 2, 2).mean((2, 4, 6)))


def test_resize_keeps_a_ramp_a_ramp_where_it_grows_one_axis_and_shrinks_another():
    ramp = torch.linspace(0, 1, 8).expand(1, 4, 8, 8)
    assert torch.allclose(resize(ramp, (8, 4, 8)), torch.linspace(0, 1, 8).expand(1, 8, 4, 8), atol=1e-6)


def test_pad_puts_a_volume_in_the_middle_of_air():
    padded = pad(volume(), (10, 7, 11))
    assert padded.shape == (2, 10, 7, 11)
    assert padded.sum() == volume().sum()
    assert torch.equal(padded[:, 2:8, :, 1:9], volume())


def test_fit_keeps_the_proportions():
    ones = fit(torch.ones(1, 40, 20, 10), (20, 20, 20))
    assert ones.shape == (1, 20, 20, 20)
    assert [int((ones.amax(other) > 0).sum()) for other in ((0, 2, 3), (0, 1, 3), (0, 1, 2))] == [20, 10, 5]


@pytest.mark.parametrize("seed", range(8))
def test_a_view_is_the_part_that_was_drawn(seed):
    cube, key = torch.rand(1, 9, 9, 9, generator=torch_generator(1)), (seed, "test")

    def drawn(view):
        (d, h, w), (depth, height, width) = view.draw(InMemory(cube), torch_generator(*key))
        return cube[:, d : d + depth, h : h + height, w : w + width]

    crop, share = RandomView(crop_size=(5, 6, 7)), RandomView(crop_size=(6, 6, 6), view_share=(0.5, 1.0))
    assert torch.equal(crop(InMemory(cube), torch_generator(*key)), drawn(crop))
    assert torch.equal(share(InMemory(cube), torch_generator(*key)), fit(drawn(share), (6, 6, 6)))


def corner_head():
    head = torch.zeros(1, 40, 40, 40)
    head[:, 30:38, 30:38, 30:38] = 1
    return head


def stored_corner_head(folder):
    head = corner_head()[0].numpy().astype(np.float16)
    places = np.argwhere(head > 0).astype(np.int16)
    write_stored(folder / "a.vxw", head, StoredInfo(modality="mri", affine=np.eye(4).tolist()), places)
    return InStore(StoredVolume(folder / "a.vxw"), MRI())


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("where", ["memory", "store"])
def test_the_share_of_crops_around_tissue_is_the_one_asked_for(tmp_path, share, where):
    # 16 attempts in memory find a head of 1/125 of the volume in 12 % of all cases; the list of the store always.
    finds = 1 - (1 - (8 / 40) ** 3) ** 16 if where == "memory" else 1.0
    head = InMemory(corner_head()) if where == "memory" else stored_corner_head(tmp_path)
    view, generator = RandomView(crop_size=(4, 4, 4), foreground_share=share), torch_generator(0)
    starts = [view.draw(head, generator)[0] for _ in range(1500)]
    assert all(0 <= axis <= 36 for start in starts for axis in start)
    middles = [all(30 <= axis + 2 < 38 for axis in start) for start in starts]
    by_chance = (8 / 37) ** 3
    assert np.mean(middles) == pytest.approx(share * finds + (1 - share * finds) * by_chance, abs=0.03)


@pytest.mark.parametrize(
    "view", [RandomView(crop_size=(9, 10, 11)), RandomView(crop_size=(8, 8, 8), view_share=(0.3, 1))]
)
@pytest.mark.parametrize("modality", [MRI(), CT(), CT(windows_hu=((40, 80), (50, 100), (60, 120)))])
def test_the_store_shows_what_memory_shows(tmp_path, modality, view):
    array = np.random.default_rng(0).normal(0, 400, (20, 30, 25)).astype(np.float32)
    bounds = modality.bounds(array)
    packed = modality.pack(array, bounds)
    info = StoredInfo(modality="x", affine=np.eye(4).tolist(), bounds=packed.bounds)
    write_stored(tmp_path / "a.vxw", packed.array, info, np.array([[3, 4, 5], [19, 29, 24]], dtype=np.int16))
    stored = InStore(StoredVolume(tmp_path / "a.vxw"), modality)
    memory = InMemory(torch.from_numpy(modality(array)))
    memory.foreground_voxel = stored.foreground_voxel  # the same places to centre on
    tolerance = 2.5e-4 if modality.channels == 1 else 0.5 / min(width for _, width in modality.windows_hu)
    for seed in range(10):
        shown, expected = (view(volume, torch_generator(seed)) for volume in (stored, memory))
        assert torch.allclose(shown, expected, rtol=0, atol=tolerance + 1e-6)


def test_a_smaller_volume_is_padded_with_air():
    view = RandomView(crop_size=(10, 6, 12))(InMemory(torch.ones(3, 6, 6, 6)), torch_generator(0))
    assert view.shape == (3, 10, 6, 12)
    assert view.sum() == 3 * 6**3


@pytest.mark.parametrize("view_share", [None, (1.0, 1.0), (0.4, 0.9)])
def test_a_view_is_fixed_by_its_generator_and_has_the_size_asked_for(view_share):
    view = RandomView(crop_size=(5, 5, 5), view_share=view_share)
    given = InMemory(torch.rand(3, 12, 9, 7, generator=torch_generator(0)))
    first, again, other = (view(given, torch_generator(seed)) for seed in (1, 1, 2))
    assert first.shape == (3, 5, 5, 5)
    assert first.is_contiguous()
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (view_share == (1.0, 1.0))


@pytest.mark.parametrize(
    "settings", [{"view_share": (0.0, 0.5)}, {"view_share": (0.6, 0.5)}, {"view_share": (0.5, 1.5)}]
)
def test_an_impossible_share_is_refused(settings):
    with pytest.raises(ValueError, match="view_share"):
        RandomView(crop_size=(8, 8, 8), **settings)
    with pytest.raises(ValueError, match="foreground_share"):
        RandomView(crop_size=(8, 8, 8), foreground_share=1.5)
