from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.tiny_unets import tiny_promptmr
from support.undersampled import undersampled
from voxelwave.errors import InputError
from voxelwave.objectives.self_supervised_reconstruction import (
    CoilReconstruction,
    SelfSupervisedReconstruction,
    normalised_errors,
)
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.fourier import fft2c, ifft2c
from voxelwave.physics.sampled_lines import center_lines, sampled_places
from voxelwave.registry import RECONSTRUCTION_OBJECTIVES
from voxelwave.unrolled.image_unet import ImageUnet


class Batch(NamedTuple):
    kspace: Tensor
    sampled: Tensor


class Blind(nn.Module):
    """Predicts the k-space that it was given, whatever it sees, and keeps what it saw."""

    def __init__(self, kspace):
        super().__init__()
        self.kspace = kspace
        self.saw = None

    def coil_images(self, kspace, sampled, num_low_frequencies=None):
        self.saw = kspace, sampled, num_low_frequencies
        return ifft2c(self.kspace)


def batch_of(**changes) -> Batch:
    return Batch(*undersampled(**changes)[:2])


def places(lines: Tensor, height: int) -> Tensor:
    """The same lines with every fifth place left out, as one samples two phase-encoded axes."""
    kept = (torch.arange(height)[:, None] + torch.arange(lines.shape[-1])) % 5 != 0
    kept[height // 2 - 3 : height // 2 + 3] = True
    return lines[:, None] & kept


def draw(objective, sampled, *, height=24, key=0):
    return objective.split(sampled, height, torch_generator(key))


@pytest.mark.parametrize("unit", ["places", "lines"])
@pytest.mark.parametrize("share", [0.2, 0.4, 0.55])
def test_seen_and_withheld_are_all_samples_in_exact_shares_and_the_centre_stays(unit, share):
    *_, sampled = batch_of(shape=(24, 40))
    objective = SelfSupervisedReconstruction(Blind(None), withheld_share=share, unit=unit, kept_center=3)
    seen, withheld = draw(objective, sampled)
    whole = sampled if unit == "lines" else sampled_places(sampled, 24)
    assert not (seen & withheld).any()
    assert (seen | withheld).equal(whole)
    wanted = [round(share * int(one.sum())) for one in whole]
    assert [int(one.sum()) for one in withheld] == wanted
    assert seen[..., 19:22].all() if unit == "lines" else seen[:, 11:14, 19:22].all()


def test_draws_repeat_by_the_generator_and_differ_between_samples_and_draws():
    *_, sampled = batch_of()
    objective = SelfSupervisedReconstruction(Blind(None))
    (_, first), (_, same), (_, other) = (draw(objective, sampled, key=key) for key in (0, 0, 1))
    assert first.equal(same)
    assert not first.equal(other)
    assert not first[0].equal(first[1])


def test_places_are_withheld_as_often_as_one_by_one_draws_by_the_gaussian_do():
    sampled = torch.tensor([[True, True, False, True, True, True, False, True]])
    objective = SelfSupervisedReconstruction(Blind(None), unit="lines", withheld_share=1 / 3, kept_center=1)
    generator = torch_generator("frequencies")
    counts = sum(objective.split(sampled, 4, generator)[1][0].double() for _ in range(6000)) / 6000
    # Two draws without replacement, of what is sampled and not the origin, 4.
    weight = np.array([np.exp(-(((line - 4) / (0.25 * 8)) ** 2) / 2) for line in range(8)])
    weight *= sampled[0].numpy() & (np.arange(8) != 4)
    weight /= weight.sum()
    wanted = [weight[i] + sum(weight[j] * weight[i] / (1 - weight[j]) for j in range(8) if j != i) for i in range(8)]
    np.testing.assert_allclose(counts, wanted, atol=0.03)


def test_without_a_spread_all_samples_are_withheld_alike():
    sampled = torch.ones(1, 10, dtype=torch.bool)
    objective = SelfSupervisedReconstruction(Blind(None), unit="lines", spread=None, kept_center=2)
    generator = torch_generator("uniform")
    counts = sum(objective.split(sampled, 4, generator)[1][0].double() for _ in range(4000)) / 4000
    np.testing.assert_allclose(counts, [0.5] * 4 + [0, 0] + [0.5] * 4, atol=0.03)


@pytest.mark.parametrize("unit", ["places", "lines"])
def test_nothing_withheld_reaches_the_network_and_nothing_but_it_the_loss(unit):
    kspace, sampled = batch_of()
    network = Blind(torch.randn(2, 4, 24, 20, dtype=torch.complex64))
    objective = SelfSupervisedReconstruction(network, unit=unit)
    loss = objective(Batch(kspace, sampled), torch_generator(0)).loss
    saw, seen, center = network.saw
    drawn, withheld = draw(objective, sampled)
    assert seen.equal(drawn)
    assert center.equal(center_lines(sampled))
    assert center.sum(-1).tolist() == [8, 8]
    # NaN where nothing was sampled is in the k-space itself; here also where the network must not look.
    hidden = sampled_places(withheld, 24)[:, None, None]
    objective(Batch(torch.where(hidden, torch.nan, kspace), sampled), torch_generator(0))
    assert network.saw[0].equal(saw)
    assert network.saw[0].isfinite().all()
    elsewhere = Batch(torch.where(hidden, kspace, torch.nan), sampled)
    assert objective(elsewhere, torch_generator(0)).loss.equal(loss)


def test_the_gradient_of_the_loss_is_0_at_every_place_that_was_not_withheld():
    kspace, sampled = batch_of()
    predicted = torch.randn(2, 4, 24, 20, dtype=torch.complex64, requires_grad=True)
    objective = SelfSupervisedReconstruction(Blind(predicted))
    objective(Batch(kspace, sampled), torch_generator(0)).loss.backward()
    _, withheld = draw(objective, sampled)
    gradient = predicted.grad.abs()
    gradient = gradient > 1e-4 * gradient.max()
    assert gradient.equal(withheld[:, None].expand_as(gradient))


@pytest.mark.parametrize("two_axes", [False, True])
def test_the_loss_is_that_of_numpy(two_axes):
    kspace, lines = batch_of()
    sampled = places(lines, 24) if two_axes else lines
    predicted = torch.randn(2, 4, 24, 20, dtype=torch.complex64)
    objective = SelfSupervisedReconstruction(Blind(predicted), withheld_share=0.3)
    output = objective(Batch(kspace, sampled), torch_generator(0))
    _, withheld = draw(objective, sampled)
    errors = []
    for index in range(2):
        chosen = withheld[index].numpy()
        measured, guess = kspace[index, 1].numpy()[:, chosen], predicted[index].numpy()[:, chosen]
        l1 = np.abs(measured - guess).sum() / np.abs(measured).sum()
        l2 = np.sqrt((np.abs(measured - guess) ** 2).sum() / (np.abs(measured) ** 2).sum())
        errors.append((l1, l2))
    l1, l2 = np.mean(errors, 0)
    assert output.logs["l1"].item() == pytest.approx(l1, rel=1e-5)
    assert output.logs["l2"].item() == pytest.approx(l2, rel=1e-5)
    assert output.loss.item() == pytest.approx(l1 + l2, rel=1e-5)
    assert not any(value.requires_grad for value in output.logs.values())


def test_the_truth_has_no_error_and_nothing_measured_no_infinite_one():
    _, sampled, maps, image = undersampled()
    whole = fft2c(image.unsqueeze(2) * maps)
    objective = SelfSupervisedReconstruction(Blind(whole[:, 1]))
    assert objective(Batch(whole, sampled), torch_generator(0)).loss < 1e-5
    zeros = torch.zeros(1, 2, 4, 4, dtype=torch.complex64)
    everywhere = torch.ones(1, 4, 4, dtype=torch.bool)
    assert [error.item() for error in normalised_errors(zeros + 1, zeros, everywhere)] == [32, pytest.approx(32**0.5)]


def test_a_step_of_training_lowers_the_loss_and_reaches_every_weight():
    torch.manual_seed(0)
    batch = batch_of()
    objective = SelfSupervisedReconstruction(tiny_promptmr())
    assert isinstance(objective.network, CoilReconstruction)
    optimizer = torch.optim.Adam([weight for weight in objective.parameters() if weight.requires_grad], lr=1e-3)
    losses = []
    for _ in range(8):
        output = objective(batch, torch_generator(0))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0]
    assert not [
        name
        for name, weight in objective.named_parameters()
        if weight.requires_grad and (weight.grad is None or not weight.grad.any())
    ]


def test_whole_lines_are_withheld_of_places_that_are_whole_lines_alone():
    _, lines = batch_of()
    objective = SelfSupervisedReconstruction(Blind(None), unit="lines")
    assert draw(objective, sampled_places(lines, 24))[1].equal(draw(objective, lines)[1])
    with pytest.raises(ValueError, match="whole lines is needed"):
        draw(objective, places(lines, 24))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"withheld_share": 0.0}, "withheld_share must lie between 0 and 1, got 0.0"),
        ({"withheld_share": 1.0}, "withheld_share must lie between 0 and 1, got 1.0"),
        ({"spread": 0.0}, "spread must be above 0, or None, got 0.0"),
        ({"kept_center": -1}, "kept_center must be at least 0, got -1"),
        ({"unit": "coils"}, "Input should be 'places' or 'lines'"),
        ({"rate": 1}, "unknown key 'rate'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        RECONSTRUCTION_OBJECTIVES.build("self_supervised", Blind(None), **settings)


@pytest.mark.parametrize("settings", [{"withheld_share": 0.9}, {"withheld_share": 0.01}, {"kept_center": 20}])
def test_a_scan_with_too_few_samples_for_the_settings_is_refused(settings):
    *_, sampled = batch_of()
    objective = SelfSupervisedReconstruction(Blind(None), unit="lines", **settings)
    with pytest.raises(InputError, match=r"of 14 sampled lines cannot be withheld.*: change withheld_share"):
        draw(objective, sampled)


def test_a_network_without_images_of_single_coils_is_refused():
    with pytest.raises(InputError, match="ImageUnet does not tell what each coil sees: take promptmr_plus"):
        RECONSTRUCTION_OBJECTIVES.build("self_supervised", ImageUnet(channels=4, depth=1))


@pytest.mark.parametrize("width", [20, 21])
def test_maps_are_made_of_the_same_lines_in_training_and_in_use(width):
    network = tiny_promptmr().eval()
    kspace = torch.randn(1, 3, 3, 24, width, dtype=torch.complex64, generator=torch_generator("maps"))
    sampled = torch.zeros(1, width, dtype=torch.bool)
    sampled[:, width // 2 - 4 : width // 2 + 4] = True
    with torch.no_grad():
        in_use, in_training = (network.coil_images(kspace, sampled, lines) for lines in (None, center_lines(sampled)))
    assert in_training.equal(in_use)
