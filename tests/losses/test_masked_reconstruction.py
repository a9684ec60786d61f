import numpy as np
import pytest
import torch

from voxelwave.losses.masked_reconstruction import MaskedReconstruction


def patches_and_guess(seed=0, tokens=12, channels=3):
    generator = torch.Generator().manual_seed(seed)
    patches = torch.rand(tokens, channels, 8, generator=generator, dtype=torch.float64)
    guess = torch.randn(tokens, channels, 8, generator=generator, dtype=torch.float64)
    hard = torch.rand(tokens, generator=generator) < 0.7
    hard[0], hard[1] = True, False
    return patches, guess, hard


def test_equals_the_formula_in_plain_loops():
    patches, guess, hard = patches_and_guess()
    patches[3, 1] = 0.5  # constant: must not count
    errors = {True: [], False: []}
    for token in range(12):
        for channel in range(3):
            patch = patches[token, channel].numpy()
            if patch.std() >= 0.02:
                target = (patch - patch.mean()) / patch.std()
                errors[bool(hard[token])].append(np.mean((guess[token, channel].numpy() - target) ** 2))
    error = MaskedReconstruction()(guess.float().double(), patches, hard)
    assert float(error.hard) == pytest.approx(np.mean(errors[True]), rel=1e-6)
    assert float(error.easy) == pytest.approx(np.mean(errors[False]), rel=1e-6)
    assert float(error.loss) == pytest.approx(np.mean(errors[True] + errors[False]), rel=1e-6)


def test_levels_are_weighted_by_token():
    patches, guess, hard = patches_and_guess()
    plain = MaskedReconstruction()(guess, patches, hard)
    weighted = MaskedReconstruction(easy_weight=3.0)(guess, patches, hard)
    num_easy, num_hard = int((~hard).sum()), int(hard.sum())
    expected = (3 * num_easy * plain.easy + num_hard * plain.hard) / (3 * num_easy + num_hard)
    torch.testing.assert_close(weighted.loss, expected)


def test_predicting_each_patchs_mean_scores_the_baseline():
    patches, guess, hard = patches_and_guess()
    error = MaskedReconstruction()(torch.zeros_like(guess), patches, hard)
    torch.testing.assert_close(error.loss, error.baseline)
    assert float(error.baseline) == pytest.approx(1.0)


def test_without_normalisation_the_intensities_are_predicted():
    patches, guess, hard = patches_and_guess()
    patches[3, 1] = 0.5  # constant: must not count
    patches, guess = patches.numpy(), guess.numpy()
    counted = patches.std(-1) >= 0.02
    error = MaskedReconstruction(intensities=True)(torch.from_numpy(guess), torch.from_numpy(patches), hard)
    assert float(error.loss) == pytest.approx(np.square(guess - patches).mean(-1)[counted].mean(), rel=1e-6)
    assert float(error.baseline) == pytest.approx(patches.var(-1)[counted].mean(), rel=1e-6)


def test_air_alone_gives_zero_and_a_gradient():
    guess = torch.randn(4, 1, 8, requires_grad=True)
    error = MaskedReconstruction()(guess, torch.zeros(4, 1, 8), torch.tensor([True, False, True, False]))
    error.loss.backward()
    assert error.loss == 0
    assert guess.grad is not None


@pytest.mark.parametrize(("easy", "hard"), [(-1.0, 1.0), (0.0, 0.0)])
def test_weights_that_leave_no_loss_are_errors(easy, hard):
    with pytest.raises(ValueError, match="weights must be 0 or more"):
        MaskedReconstruction(easy_weight=easy, hard_weight=hard)
