import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelwave.evaluation.image_quality import psnr_db
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.fixed_masks import disc, half_plane, highest_mean_power
from voxelwave.physics.fourier import as_pairs, fft2c, ifft2c
from voxelwave.registry import MASK_RULES
from voxelwave.unrolled.learned_mask import DescribedMask, RelaxedMask, ScaleFreeMask
from voxelwave.unrolled.subsampling import FixedMask, channels_of, image_of, kspace_of

RULES = MASK_RULES.names()
SHAPE = (9, 12)
every_rule = pytest.mark.parametrize("name", RULES)


def spectra(shape=SHAPE, number=4, seed=1, dtype=torch.complex128):
    """Return k-space of images whose power falls from the zero frequency."""
    y, x = (torch.arange(side) - side // 2 for side in shape)
    falling = (1 + 0.7 * torch.hypot(y[:, None].double(), x[None].double())) ** -2
    return (falling * torch.randn(number, *shape, dtype=torch.complex128, generator=torch_generator(seed))).to(dtype)


def squared_error(layer, kspace):
    """Return the summed squared error of the images without any network."""
    return (ifft2c(layer(kspace)) - ifft2c(kspace)).abs().square().sum()


def learn(layer, kspace, steps, mask_lr):
    """Train the mask alone; each step takes every other image."""
    for step in range(steps):
        squared_error(layer, kspace[step % 2 :: 2]).backward()
        layer.mask_step(mask_lr)
    return layer


@every_rule
def test_it_has_no_parameters_that_an_optimiser_would_own(name):
    assert list(MASK_RULES.build(name, SHAPE).parameters()) == []


@given(
    height=st.integers(3, 12),
    width=st.integers(3, 12),
    drop_rate=st.floats(0, 0.99),
    lines=st.booleans(),
    name=st.sampled_from(RULES),
)
@settings(max_examples=20, deadline=None)
def test_the_mask_is_binary_and_its_share_exact_at_every_step(height, width, drop_rate, lines, name):
    wanted = round((1 - drop_rate) * (width if lines else height * width))
    if wanted == 0:
        with pytest.raises(ValueError, match="keeps none"):
            MASK_RULES.get(name)((height, width), drop_rate=drop_rate, lines=lines)
        return
    layer = MASK_RULES.build(name, (height, width), drop_rate=drop_rate, lines=lines)
    kspace = spectra((height, width))
    for _ in range(3):
        passed = layer(kspace).detach()
        kept = passed[0] != 0
        assert torch.equal(passed, torch.where(kept, kspace, 0))
        assert int(kept.sum()) == wanted * (height if lines else 1)
        assert int(layer.mask().sum()) == wanted * (height if lines else 1)
        squared_error(layer, kspace).backward()
        layer.mask_step(0.1)
    layer.settle()
    assert int(layer.mask().sum()) == wanted * (height if lines else 1)


@pytest.mark.parametrize("lines", [False, True])
def test_the_straight_through_gradient_is_that_of_the_squared_error_by_the_mask(lines):
    layer, kspace = DescribedMask(SHAPE, drop_rate=0.4, lines=lines), spectra()
    before, kept = layer.scores.numpy().copy(), layer.mask().numpy().copy()
    squared_error(layer, kspace).backward()
    layer.mask_step(0.5)
    gradient = (2 * (kept - 1.0) * np.abs(kspace.numpy()) ** 2).sum(0)
    gradient = gradient.sum(0) if lines else gradient
    np.testing.assert_allclose(layer.scores.numpy(), before - 0.5 * gradient, rtol=1e-12)


def test_gradients_of_several_backward_passes_add_up():
    kspace = spectra()
    whole, parts = DescribedMask(SHAPE), DescribedMask(SHAPE)
    squared_error(whole, kspace).backward()
    for part in kspace.split(1):
        squared_error(parts, part).backward()
    whole.mask_step(1.0)
    parts.mask_step(1.0)
    torch.testing.assert_close(whole.scores, parts.scores, rtol=1e-12, atol=0)


@pytest.mark.parametrize("drop_rate", [0.1, 0.3, 0.7])
def test_the_scale_free_rule_ends_with_the_mask_of_highest_mean_power(drop_rate):
    # Powers that differ by 1 % at least, so that there is one best mask, and the same in every image.
    power = 1.01 ** torch.randperm(math.prod(SHAPE), generator=torch_generator(5)).double()
    kspace = power.sqrt().view(1, *SHAPE).expand(4, *SHAPE) + 0j
    layer = learn(ScaleFreeMask(SHAPE, drop_rate=drop_rate), kspace, 600, 30.0)
    best = highest_mean_power(kspace, drop_rate=drop_rate)
    assert float((layer.final_mask() & best).sum() / best.sum()) >= 0.97
    layer.settle()
    assert torch.equal(layer.mask(), layer.final_mask())


@pytest.mark.parametrize("name", ["scale_free", "relaxed"])
def test_the_unit_of_the_data_does_not_change_the_mask(name):
    kspace = spectra()

    def final(scale):
        return learn(MASK_RULES.build(name, SHAPE, drop_rate=0.5), kspace * scale, 60, 0.3)

    first, small = final(1.0), final(1e-4)
    assert not torch.equal(first.final_mask(), MASK_RULES.build(name, SHAPE, drop_rate=0.5).mask())
    assert torch.equal(first.final_mask(), small.final_mask())
    # Powers of two do not even round differently.
    assert torch.equal(first.scores, final(2.0**-13).scores)


def test_gradients_are_averaged_over_batches():
    kspace = spectra()
    whole, parts = ScaleFreeMask(SHAPE), ScaleFreeMask(SHAPE, num_batches=4)
    squared_error(whole, kspace).backward()
    whole.mask_step(1.0)
    begin = parts.scores.clone()
    for index, part in enumerate(kspace.split(1)):
        assert torch.equal(parts.scores, begin), index
        squared_error(parts, part).backward()
        parts.mask_step(1.0)
    # The root of a gradient that is 0 up to rounding.
    torch.testing.assert_close(whole.scores, parts.scores, rtol=0, atol=1e-6)


def test_the_occupancy_is_the_mean_of_the_masks_weighted_towards_the_end():
    layer, kspace, masks = ScaleFreeMask(SHAPE, emphasis=1.0), spectra(), []
    for _ in range(7):
        learn(layer, kspace, 1, 1.0)
        masks.append(layer.mask().double())
    # Of weights t ** 1 the polynomial decay makes t exactly.
    expected = np.average(torch.stack(masks).numpy(), axis=0, weights=np.arange(1, 8))
    np.testing.assert_allclose(layer.occupancy.numpy(), expected, atol=1e-14)


def test_without_a_gradient_the_scale_free_rule_stays_where_it_is():
    layer = ScaleFreeMask(SHAPE, drop_rate=0.0)
    before = layer.scores.clone()
    learn(layer, spectra(), 3, 1.0)
    assert torch.equal(layer.scores, before)


@pytest.mark.parametrize("drop_rate", [0.1, 0.5, 0.9])
def test_relaxed_probabilities_have_the_mean_that_is_wanted_and_masks_follow_them(drop_rate):
    layer = RelaxedMask(SHAPE, drop_rate=drop_rate)
    probabilities = layer.probabilities(layer.scores)
    assert float(probabilities.mean()) == pytest.approx(layer.num_kept / math.prod(SHAPE), abs=1e-12)
    assert float(probabilities.min()) >= 0
    assert float(probabilities.max()) <= 1
    ones = torch.ones(1, *SHAPE, dtype=torch.complex128)
    drawn = []
    for _ in range(300):
        drawn.append(layer(ones).detach()[0].real)
        assert torch.equal(layer(ones).detach()[0].real, drawn[-1])  # one mask for all calls of a step
        layer.num_steps += 1
    often = torch.stack(drawn).mean(0)
    assert float(torch.corrcoef(torch.stack([often.flatten(), probabilities.flatten()]))[0, 1]) > 0.9
    raw = 1 / (1 + np.exp(-5.0 * layer.scores.numpy()))
    share, mean = layer.num_kept / raw.size, raw.mean()
    expected = raw * share / mean if mean > share else 1 - (1 - raw) * (1 - share) / (1 - mean)
    np.testing.assert_allclose(probabilities.numpy(), expected, rtol=1e-12)


def test_the_published_relaxation_lies_between_0_and_1_in_training_and_is_binary_afterwards():
    layer, ones = RelaxedMask(SHAPE, binary=False), torch.ones(1, *SHAPE, dtype=torch.complex64)
    soft = layer(ones).real
    assert 0 < float(soft.detach().min()) < float(soft.detach().max()) < 1
    assert torch.equal(layer.eval()(ones).real.bool()[0], layer.mask())


def test_the_relaxed_rule_prefers_power():
    kspace = spectra()
    layer = learn(RelaxedMask(SHAPE, drop_rate=0.6), kspace, 150, 0.05)
    power = kspace.abs().square().mean(0)
    masks = (layer.final_mask(), RelaxedMask(SHAPE, drop_rate=0.6).mask(), highest_mean_power(kspace, drop_rate=0.6))
    learned, begin, best = (float(power[mask].sum()) for mask in masks)
    assert learned > 0.99 * best
    assert begin < 0.5 * best


@every_rule
def test_a_saved_and_loaded_layer_goes_on_as_if_it_had_not_been(name, tmp_path):
    settings = {"num_batches": 2} if name == "scale_free" else {}
    kspace = spectra()
    layer = learn(MASK_RULES.build(name, SHAPE, **settings), kspace, 3, 0.3)
    torch.save(layer.state_dict(), tmp_path / "layer.pth")
    loaded = MASK_RULES.build(name, SHAPE, **settings, seed=0)
    loaded.load_state_dict(torch.load(tmp_path / "layer.pth", weights_only=True))
    assert torch.equal(layer.mask(), loaded.mask())
    for each in (layer, loaded):
        learn(each, kspace, 4, 0.3)
    assert torch.equal(layer.scores, loaded.scores)
    assert torch.equal(layer.final_mask(), loaded.final_mask())
    layer.settle()
    loaded.load_state_dict(layer.state_dict())
    assert torch.equal(learn(loaded, kspace, 0, 0.3).mask(), layer.mask())
    loaded.mask_step(1.0)
    assert torch.equal(loaded.scores, layer.scores)
    assert not loaded(kspace).requires_grad
    copy.deepcopy(layer)


def test_fixed_masks_are_saved_too():
    layer = FixedMask(disc(SHAPE, drop_rate=0.5))
    other = FixedMask(torch.ones(SHAPE))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.mask(), layer.mask())


def test_zero_filled_psnr_of_a_fixed_mask_is_numpys():
    image = torch.rand(3, 15, 18, generator=torch_generator(7)) + 0.2j
    sampled = disc((15, 18), drop_rate=0.6)
    zero_filled = image_of(FixedMask(sampled)(fft2c(image))).abs()
    ours = psnr_db(zero_filled, image.abs(), data_range="slice")
    expected = []
    for x in image.numpy().astype(np.complex128):
        spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x)))
        back = np.abs(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(spectrum * sampled.numpy()))))
        expected.append(10 * np.log10(np.abs(x).max() ** 2 / np.mean((back - np.abs(x)) ** 2)))
    assert ours == pytest.approx(np.mean(expected), abs=1e-4)


@pytest.mark.parametrize(
    "layer", [FixedMask(disc(SHAPE, drop_rate=0.5)), DescribedMask(SHAPE), DescribedMask(SHAPE).eval()]
)
def test_pairs_are_treated_as_complex_values_are_and_kept_or_dropped_whole(layer):
    kspace = spectra(dtype=torch.complex64)
    pairs = layer(as_pairs(kspace))
    assert pairs.dtype == torch.float32
    assert torch.equal(pairs, as_pairs(layer(kspace)))
    assert torch.equal((pairs != 0).all(-1)[0], layer.mask())
    assert torch.equal((pairs != 0).any(-1)[0], layer.mask())
    # Coils are leading axes like the batch.
    assert torch.equal(layer(kspace.expand(2, *kspace.shape))[1], layer(kspace))


def test_frequencies_become_an_image_and_back():
    image = torch.randn(2, 7, 10, dtype=torch.complex64, generator=torch_generator(8))
    torch.testing.assert_close(image_of(as_pairs(fft2c(image))), image)
    channels = channels_of(fft2c(image))
    assert channels.shape == (2, 2, 7, 10)
    torch.testing.assert_close(channels[:, 1], image.imag)
    torch.testing.assert_close(kspace_of(channels), fft2c(image))


def test_a_mask_that_completes_gives_back_magnitude_images():
    image = torch.rand(2, 9, 12, dtype=torch.float64, generator=torch_generator(9)) + 0j
    layer = FixedMask(half_plane((9, 12), drop_rate=0.4), completes=True)
    torch.testing.assert_close(image_of(layer(fft2c(image))), image, atol=1e-14, rtol=0)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: FixedMask(torch.full(SHAPE, 0.5)), "a mask is binary"),
        (lambda: FixedMask(torch.full(SHAPE, math.nan)), "a mask is binary"),
        (lambda: FixedMask(torch.zeros(SHAPE)), "keeps nothing"),
        (lambda: FixedMask(torch.ones(3)), r"\[height, width\]"),
        (lambda: FixedMask(torch.ones(SHAPE))(spectra((12, 9))), r"\(9, 12\), got \(12, 9\)"),
        (lambda: DescribedMask(SHAPE)(spectra((9, 11))), r"\(9, 12\), got \(9, 11\)"),
        (lambda: DescribedMask(SHAPE, drop_rate=1.0), "below 1"),
        (lambda: DescribedMask(SHAPE, drop_rate=-0.1), "at least 0"),
        (lambda: DescribedMask(SHAPE, drop_rate=0.99, lines=True), "keeps none of 12"),
        (lambda: DescribedMask(SHAPE).mask_step(0.1), "no gradient"),
        (lambda: DescribedMask(SHAPE).mask_step(-1.0), "mask_lr must be finite"),
        (lambda: ScaleFreeMask(SHAPE, num_batches=0), "num_batches"),
        (lambda: ScaleFreeMask(SHAPE, emphasis=-1.0), "emphasis"),
        (lambda: RelaxedMask(SHAPE, slope=0.0), "slopes"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(call, reason):
    with pytest.raises(ValueError, match=reason) as error:
        call()
    assert "\n" not in str(error.value)
