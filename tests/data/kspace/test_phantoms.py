from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from voxelwave.data.kspace.complex_transforms import (
    Augmentation,
    ComplexPipeline,
    EquispacedUndersample,
    Normalize,
    ToCompatibleTensor,
)
from voxelwave.data.kspace.phantoms import RandomPhantomDataset, RandomPhantomTripletDataset
from voxelwave.physics.fourier import as_complex


def phantoms(length=6, **settings):
    return RandomPhantomDataset(length, **{"image_size": 24, "num_coils": 3, "seed": 5} | settings)


def view(acceleration=4.0, center_fraction=0.08):
    undersample = EquispacedUndersample(acceleration=acceleration, center_fraction=center_fraction)
    return ComplexPipeline(undersample, Augmentation(), Normalize(), ToCompatibleTensor())


def triplets(length=6, **settings):
    return RandomPhantomTripletDataset(phantoms(length, **settings), view(), view(8.0, 0.04))


class Scaled(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, pairs, generators):
        return self.factor * pairs


def combined(pairs):
    """The root of the sum of squares over coils and parts."""
    return pairs.square().sum((-4, -1)).sqrt()


def test_a_batch_of_items_is_what_the_items_are_one_by_one():
    items = phantoms().items([3, 0, 5, 3])
    assert (items.shape, items.dtype) == ((4, 3, 24, 24, 2), torch.float32)
    for index, item in zip([3, 0, 5, 3], items, strict=True):
        assert torch.allclose(phantoms()[index], item, atol=1e-6)


def test_without_noise_all_coils_together_see_the_phantom():
    silent = phantoms(noise=0)
    assert torch.allclose(combined(silent.items(range(6))), silent.anatomies(range(6)), atol=1e-5)
    assert torch.allclose(combined(phantoms(num_coils=1, noise=0)[2]), silent.anatomies([2])[0], atol=1e-5)


def test_coils_see_different_parts_in_different_phases():
    coils = as_complex(phantoms(noise=0)[0])
    for first, second in itertools.combinations(coils, 2):
        assert float((first.abs() - second.abs()).abs().max()) > 0.05
        inside = first.abs() > 0.05
        assert float((first * second.conj())[inside].angle().std()) > 0.1


def test_the_noise_of_both_parts_has_the_asked_deviation_in_sum():
    added = phantoms(noise=0.03).items(range(6)) - phantoms(noise=0).items(range(6))
    assert float(added.square().sum(-1).mean().sqrt()) == pytest.approx(0.03, rel=0.03)
    assert float(added[..., 0].std()) == pytest.approx(float(added[..., 1].std()), rel=0.05)
    assert float(torch.corrcoef(added.flatten(1)).fill_diagonal_(0).abs().max()) < 0.1


def test_the_offset_shifts_the_range_of_phantoms():
    assert torch.equal(phantoms(3, offset=2).items(range(3)), phantoms(6).items([2, 3, 4]))


def test_training_and_validation_share_no_phantom():
    train, validation = phantoms(20), phantoms(10, offset=20)
    every = torch.cat([train.anatomies(range(20)), validation.anatomies(range(10))]).flatten(1)
    assert float(torch.cdist(every, every).fill_diagonal_(torch.inf).min()) > 1


def test_a_deterministic_item_is_the_same_in_every_epoch():
    fixed = phantoms()
    before = fixed[4]
    fixed.set_epoch(7)
    assert torch.equal(fixed[4], before)


def test_else_coils_phase_and_noise_are_drawn_anew_for_each_epoch_and_the_anatomy_stays():
    changing = phantoms(deterministic=False, noise=0)
    first = changing.items([1, 4])
    changing.set_epoch(1)
    second = changing.items([1, 4])
    assert torch.allclose(combined(first), combined(second), atol=1e-5)
    magnitudes = [as_complex(each).abs() for each in (first, second)]
    assert float((magnitudes[0] - magnitudes[1]).abs().amax((1, 2, 3)).min()) > 0.05
    changing.set_epoch(0)
    assert torch.equal(changing.items([4])[0], first[1])


def test_another_seed_draws_other_phantoms_and_another_scan_the_same_ones():
    anatomy = phantoms().anatomies([0])
    assert float((phantoms(seed=6).anatomies([0]) - anatomy).abs().max()) > 0.3
    scans = [phantoms(noise=0).items([0], scan=scan)[0] for scan in (0, 1)]
    assert float((scans[0] - scans[1]).abs().max()) > 0.05
    assert torch.allclose(combined(scans[0]), combined(scans[1]), atol=1e-5)


def test_what_is_kept_of_the_anatomies_changes_no_item(monkeypatch):
    expected = phantoms().items(range(6))
    monkeypatch.setattr("voxelwave.data.kspace.phantoms.KEPT_BYTES", 2 * 4 * 24**2)
    some = phantoms()
    for _ in range(2):
        assert torch.allclose(some.items(range(6)), expected, atol=1e-6)


@pytest.mark.parametrize("dataset", [phantoms, triplets])
def test_workers_change_nothing(dataset):
    batches = [list(DataLoader(dataset(deterministic=False), batch_size=3, num_workers=workers)) for workers in (0, 2)]
    for alone, shared in zip(*batches, strict=True):
        for first, second in zip(alone, shared, strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": 0},
        {"length": -1},
        {"offset": -1},
        {"num_coils": 0},
        {"image_size": 15},
        {"noise": -0.1},
        {"noise": float("nan")},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=f"got .*{next(iter(wrong.values()))}"):
        phantoms(**{"length": 4} | wrong)


def test_an_index_beyond_the_end_is_named_and_a_negative_one_counts_from_it():
    six = phantoms()
    assert len(six) == 6
    assert torch.equal(six[-1], six[5])
    for index in (6, -7):
        with pytest.raises(IndexError, match=f"index {index} is out of range: there are 6"):
            six[index]
        with pytest.raises(IndexError, match="out of range"):
            triplets()[index]


def test_a_triplet_is_one_phantom_under_both_pipelines_and_another_under_the_second():
    given = phantoms()
    data = RandomPhantomTripletDataset(given, Scaled(1), Scaled(2))
    for index in range(6):
        same1, same2, diff = data[index]
        assert data.other(index) != index
        assert torch.allclose(same1, given[index], atol=1e-6)
        assert torch.allclose(same2, 2 * given[index], atol=1e-6)
        assert torch.allclose(diff, 2 * given[data.other(index)], atol=1e-6)


def test_every_other_phantom_is_drawn_as_often():
    data = triplets(4, deterministic=False)
    counts = torch.zeros(4)
    for epoch in range(300):
        data.set_epoch(epoch)
        counts[data.other(2)] += 1
    assert counts[2] == 0
    assert float(counts[[0, 1, 3]].min()) > 75


@pytest.mark.parametrize("rescan", [False, True])
def test_a_batch_of_triplets_is_what_the_triplets_are_one_by_one(rescan):
    given = phantoms(deterministic=False)
    data = RandomPhantomTripletDataset(given, view(), view(8.0, 0.04), rescan=rescan)
    data.set_epoch(3)
    batch = data.triplets([4, 1, 2])
    assert [each.shape for each in batch] == [(3, 6, 24, 24)] * 3
    for row, index in enumerate([4, 1, 2]):
        for together, alone in zip(batch, data[index], strict=True):
            assert torch.allclose(together[row], alone, atol=1e-5)


def test_views_change_with_the_epoch_unless_deterministic():
    for deterministic in (True, False):
        data = triplets(deterministic=deterministic)
        first = data.triplets([0, 1])
        data.set_epoch(1)
        for before, after in zip(first, data.triplets([0, 1]), strict=True):
            assert torch.equal(before, after) is deterministic


def test_a_rescan_shows_the_phantom_to_other_coils():
    data = RandomPhantomTripletDataset(phantoms(noise=0), Scaled(1), Scaled(1), rescan=True)
    same1, same2, _ = data[0]
    assert float((as_complex(same1).abs() - as_complex(same2).abs()).abs().max()) > 0.05
    assert torch.allclose(combined(same1), combined(same2), atol=1e-5)


def test_a_triplet_wants_two_phantoms():
    with pytest.raises(ValueError, match="at least two, got 1"):
        triplets(1)


@pytest.fixture(scope="module")
def views_of_200():
    """Mean and deviation of the magnitude, strength of each coil, and a coarse combined image, of both views."""
    data = RandomPhantomDataset(200)
    views = [EquispacedUndersample(), EquispacedUndersample(acceleration=8, center_fraction=0.04)]
    found = [([], [], []), ([], [], [])]
    for start in range(0, 200, 8):
        items = data.items(range(start, start + 8))
        for seen, (moments, strengths, images) in zip(views, found, strict=True):
            pairs = seen(items)
            magnitude = torch.view_as_complex(pairs).abs().flatten(2)
            moments.append(torch.stack([magnitude.mean((1, 2)), magnitude.std((1, 2))], 1))
            strengths.append(magnitude.mean(2))
            images.append(F.adaptive_avg_pool2d(combined(pairs), 16).flatten(1))
    return [[torch.cat(part) for part in one] for one in found]


def recall_at_1(queries, gallery):
    return float((torch.cdist(queries, gallery).argmin(1) == torch.arange(len(queries))).float().mean())


def test_mean_and_deviation_do_not_tell_phantoms_but_images_do(views_of_200):
    (queries, _, images), (gallery, _, other_images) = views_of_200
    assert recall_at_1(queries, gallery) < 0.3
    # Nor do they where the difference between the views is taken out, for all phantoms and for either moment.
    standard = [(moments - moments.mean(0)) / moments.std(0) for moments in (queries, gallery)]
    assert recall_at_1(*standard) < 0.3
    whitened = [each @ torch.linalg.cholesky(torch.linalg.inv(torch.cov(each.T))) for each in standard]
    assert recall_at_1(*whitened) < 0.3
    assert recall_at_1(images, other_images) > 0.9


def test_within_one_scan_the_strengths_of_the_coils_tell_phantoms_as_well(views_of_200):
    strengths = [F.normalize(coils - coils.mean(1, keepdim=True)) for _, coils, _ in views_of_200]
    assert recall_at_1(*strengths) > 0.8
