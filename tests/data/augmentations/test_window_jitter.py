"""A narrower window equals the window that CT itself would have made of the Hounsfield units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelwave.data.augmentations.window_jitter import WindowJitter, narrow_window
from voxelwave.data.modalities.ct import CT
from voxelwave.ops.seeding import torch_generator


def narrowed_hu(windows_hu, low, high):
    """Return the windows (level, width) that begin and end at shares of others."""
    starts = [level - width / 2 for level, width in windows_hu]
    widths = [width for _, width in windows_hu]
    ends = zip(starts, widths, low, high, strict=True)
    return tuple((start + (a + b) / 2 * width, (b - a) * width) for start, width, a, b in ends)


def test_it_is_bit_for_bit_the_window_of_the_scan_where_no_number_is_rounded():
    scan_hu = np.arange(-1000, 3096, dtype=np.float32).reshape(16, 16, 16)
    windows_hu, low, high = ((32, 64), (64, 256), (512, 2048)), (0.25, 0.0, 0.125), (0.75, 0.5, 0.625)
    new_hu = narrowed_hu(windows_hu, low, high)
    assert new_hu == ((32, 32), (0, 128), (256, 1024))
    expected = CT(windows_hu=new_hu)(scan_hu)
    volume = torch.from_numpy(CT(windows_hu=windows_hu)(scan_hu))
    narrowed = narrow_window(volume[None], torch.tensor([low]), torch.tensor([high]))[0].numpy()
    assert np.array_equal(narrowed, expected)
    for channel, (level, width) in zip(narrowed, new_hu, strict=True):
        assert channel[scan_hu == level - width / 2].item() == 0
        assert channel[scan_hu == level - width / 2 + 1].item() > 0
        assert channel[scan_hu == level + width / 2 - 1].item() < 1
        assert channel[scan_hu == level + width / 2].item() == 1


@given(st.floats(0, 0.9), st.integers(0, 2**16))
def test_drawn_windows_are_windows_of_the_scan_too(jitter, seed):
    ct, scan_hu = CT(), np.linspace(-1000, 2500, 6 * 7 * 8, dtype=np.float32).reshape(6, 7, 8)
    volume = torch.from_numpy(ct(scan_hu))[None]
    low, high = WindowJitter(jitter=jitter).draw(1, 3, torch_generator(seed))
    expected = CT(windows_hu=narrowed_hu(ct.windows_hu, low[0].tolist(), high[0].tolist()))(scan_hu)
    assert np.allclose(narrow_window(volume, low, high)[0].numpy(), expected, rtol=0, atol=1e-5)


@given(st.integers(0, 2**16))
def test_the_ends_of_a_drawn_window_become_exactly_0_and_1(seed):
    low, high = WindowJitter(jitter=0.7).draw(4, 3, torch_generator(seed))
    volume = torch.stack([torch.zeros_like(low), low, high, torch.ones_like(low)], dim=-1)[:, :, None, None]
    assert torch.equal(narrow_window(volume, low, high).flatten(0, -2), torch.tensor([[0.0, 0, 1, 1]] * 12))


@pytest.mark.parametrize("jitter", [0.0, 0.2, 0.9])
def test_drawn_windows_lie_inside_the_old_one_and_keep_their_share(jitter):
    low, high = WindowJitter(jitter=jitter).draw(2000, 3, torch_generator(0))
    removed = 1 - (high - low)
    assert float(low.min()) >= 0
    assert float(high.max()) <= 1
    assert float(removed.max()) <= jitter + 1e-6
    assert float(removed.mean()) == pytest.approx(jitter / 2, rel=0.03, abs=1e-6)
    assert float(low.mean()) == pytest.approx(float((1 - high).mean()), rel=0.05, abs=1e-6)
    if jitter:
        assert np.abs(np.corrcoef(low.T.numpy()) - np.eye(3)).max() < 0.1


def test_a_random_window_is_its_twin_at_the_drawn_ends():
    volume, random = torch.rand(3, 2, 3, 4, 5, generator=torch_generator(0)), WindowJitter()
    assert torch.equal(
        random(volume, torch_generator(1)), narrow_window(volume, *random.draw(3, 2, torch_generator(1)))
    )


def test_without_jitter_the_volume_stays_as_it_is():
    volume = torch.rand(2, 3, 3, 4, 5, generator=torch_generator(0))
    assert torch.equal(WindowJitter(jitter=0.0)(volume, torch_generator(1)), volume)


@pytest.mark.parametrize("jitter", [-0.1, 1.0, float("nan")])
def test_an_impossible_jitter_is_refused(jitter):
    with pytest.raises(ValueError, match=r"from 0 \(none\) to below 1, got"):
        WindowJitter(jitter=jitter)
