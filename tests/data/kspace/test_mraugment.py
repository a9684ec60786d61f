import math

import numpy as np
import pytest
import torch

from support.kspace_files import COLUMNS, ROWS, images, kspace
from voxelwave.data.kspace.mraugment import KINDS, Chance, Moves, MRAugment, moved
from voxelwave.data.kspace.synthesis import synthesize_kspace, target_of
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.acquisition import root_sum_of_squares
from voxelwave.physics.fourier import fft2c, ifft2c

ALL = {kind: Chance() for kind in KINDS}
CERTAIN = {kind: Chance(p_max=1.0) for kind in KINDS}


def coil_images(rows=ROWS, columns=COLUMNS):
    return ifft2c(kspace(rows=rows, columns=columns))


@pytest.mark.parametrize(("first", "last", "decay"), [(0, 45, 10.0), (15, 30, 10.0), (30, 45, 100.0), (3, 8, 0.5)])
def test_the_chance_at_every_epoch_is_that_of_the_formula(first, last, decay):
    augment = MRAugment(chances={"shear": Chance(p_max=0.5, decay=decay)}, num_epochs=last, first_epoch=first)
    found = [augment.probability("shear", epoch) for epoch in range(last + 1)]
    rate = decay / (last - first)
    for epoch, probability in enumerate(found):
        expected = 0.5 * (1 - math.exp(-(epoch - first) * rate)) / (1 - math.exp(-(last - first) * rate))
        assert probability == pytest.approx(expected if epoch >= first else 0.0, abs=1e-12)
    assert (found[first], found[last]) == (0.0, 0.5)
    assert augment.probability("scale", last) == 0.0


def test_moves_are_as_frequent_as_their_chance():
    augment = MRAugment(chances=ALL, num_epochs=45)
    drawn = [augment.draw((64, 48), torch_generator(number), epoch=2) for number in range(1500)]
    for name, kind in (("flip_horizontal",) * 2, ("quarter_turns", "rotate90"), ("scale", "scale")):
        share = np.mean([getattr(moves, name) != getattr(Moves(), name) for moves in drawn])
        probability = augment.probability(kind, 2)
        assert share == pytest.approx(probability, abs=4 * math.sqrt(probability * (1 - probability) / 1500))
    assert {moves.quarter_turns for moves in drawn} == {0, 1, 2, 3}
    assert max(abs(moves.shift[0]) for moves in drawn) == 3  # 5 % of 64, to whole pixels
    assert max(abs(moves.shears_degrees[1]) for moves in drawn) == pytest.approx(5, abs=0.2)
    assert max(moves.scale for moves in drawn) == pytest.approx(1.1, abs=0.01)


def test_a_move_that_is_switched_on_leaves_the_others_as_they_were():
    few = MRAugment(chances={"translation": Chance(p_max=1.0)}, num_epochs=10)
    many = MRAugment(chances=CERTAIN, num_epochs=10)
    for seed in range(5):
        one, all_of_them = (augment.draw((64, 64), torch_generator(seed), epoch=10) for augment in (few, many))
        assert one == Moves(shift=all_of_them.shift)


@pytest.mark.parametrize(("chances", "epoch"), [({}, 10), (CERTAIN, 0), ({"scale": Chance(p_max=0.0)}, 10)])
def test_without_a_chance_nothing_changes(chances, epoch):
    augment = MRAugment(chances=chances, num_epochs=10)
    values = kspace()
    assert augment(values, None, torch_generator(0), epoch=epoch) is None


@pytest.mark.parametrize(("name", "axis"), [("flip_horizontal", -1), ("flip_vertical", -2)])
def test_flips_are_exact_and_undo_themselves(name, axis):
    values = coil_images()
    flipped = moved(values, Moves(**{name: True}))
    assert torch.equal(flipped, values.flip(axis))
    assert torch.equal(moved(flipped, Moves(**{name: True})), values)
    # Both orders of two flips are the same.
    both = moved(values, Moves(flip_horizontal=True, flip_vertical=True))
    assert torch.equal(both, moved(moved(values, Moves(flip_vertical=True)), Moves(flip_horizontal=True)))


@pytest.mark.parametrize("shift", [(2, 0), (0, -3), (-2, 3)])
def test_a_shift_is_a_roll_away_from_the_borders_and_reflects_there(shift):
    values = coil_images()
    shifted = moved(values, Moves(shift=shift))
    inner = (..., slice(4, -4), slice(4, -4))
    assert torch.equal(shifted[inner], values.roll(shift, (-2, -1))[inner])
    # NumPy's reflection, which does not repeat the edge.
    padded = np.pad(values.numpy(), ((0, 0), (0, 0), (5, 5), (5, 5)), mode="reflect")
    top, left = 5 - shift[0], 5 - shift[1]
    assert np.array_equal(shifted.numpy(), padded[:, :, top : top + ROWS, left : left + COLUMNS])


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_numpys(turns):
    values = coil_images()
    turned = moved(values, Moves(quarter_turns=turns))
    assert np.array_equal(turned.numpy(), np.rot90(values.numpy(), turns, axes=(2, 3)))


def test_an_affine_move_looks_each_pixel_up_where_its_inverse_says():
    values = coil_images(24, 20)[:1, :1]
    moves = Moves(degrees=17.0, shears_degrees=(4.0, -3.0), scale=1.07)
    found = moved(values, moves)[0, 0].numpy()
    # In loops: pixels from the middle, right and down; the image is turned counter-clockwise as displayed.
    angle, (across, along) = math.radians(17.0), (math.tan(math.radians(s)) for s in (4.0, -3.0))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    shear = np.array([[1, across], [0, 1]])
    forward = 1.07 * turn @ np.array([[1, 0], [along, 1]]) @ shear
    inverse, image = np.linalg.inv(forward), values[0, 0].numpy()
    reflect = lambda place, size: size - 1 - abs((place % (2 * size - 2)) - (size - 1))  # noqa: E731
    for row in range(24):
        for column in range(20):
            x, y = inverse @ np.array([column - 9.5, row - 11.5]) + np.array([9.5, 11.5])
            left, top = math.floor(x), math.floor(y)
            expected = sum(
                (1 - abs(x - column_of)) * (1 - abs(y - row_of)) * image[reflect(row_of, 24), reflect(column_of, 20)]
                for row_of in (top, top + 1)
                for column_of in (left, left + 1)
            )
            assert found[row, column] == pytest.approx(expected, abs=2e-5)


def test_all_coils_and_slices_move_together_so_that_phases_between_coils_stay():
    # Two coils that differ by a constant phase, and two slices by a factor, still do afterwards.
    one = coil_images()[:1, :1]
    values = torch.cat([torch.cat([one, 1j * one], 1), 2 * torch.cat([one, 1j * one], 1)])
    found = moved(values, Moves(True, False, 1, (1, -2), 12.0, (3.0, 2.0), 0.95))
    torch.testing.assert_close(found[:, 1], 1j * found[:, 0])
    torch.testing.assert_close(found[1], 2 * found[0])


@pytest.mark.parametrize("seed", range(4))
def test_the_target_is_that_of_the_moved_images(seed):
    values = kspace()
    target = target_of(values, (20, 18))[1]
    augment = MRAugment(chances=CERTAIN, num_epochs=5)
    found = augment(values[:3], target, torch_generator(seed), epoch=5)
    moves = augment.draw((ROWS, COLUMNS), torch_generator(seed), epoch=5)
    expected = root_sum_of_squares(moved(ifft2c(values[:3]), moves))
    torch.testing.assert_close(root_sum_of_squares(ifft2c(found.kspace)), expected, atol=1e-5, rtol=1e-4)
    rows, columns = (18, 20) if moves.quarter_turns % 2 else (20, 18)
    top, left = (expected.shape[1] - rows) // 2, (expected.shape[2] - columns) // 2
    torch.testing.assert_close(found.target, expected[1, top : top + rows, left : left + columns])


def test_a_target_that_moves_with_its_image_is_that_of_moved_magnitudes():
    # Flips and shifts of a magnitude image, and of the coil images behind it, are the same thing.
    values = synthesize_kspace(images(3), num_coils=4, noise=0.0)
    moves = Moves(flip_horizontal=True, shift=(1, 2))
    whole = root_sum_of_squares(ifft2c(fft2c(moved(ifft2c(values), moves))))
    torch.testing.assert_close(whole, moved(images(3)[:, None] + 0j, moves)[:, 0].real, atol=1e-5, rtol=1e-4)


def test_a_side_of_one_pixel_is_moved_as_well():
    values = torch.ones(1, 2, 1, 6, dtype=torch.complex64)
    assert torch.equal(moved(values, Moves(shift=(3, 1), flip_vertical=True)), values)
    assert moved(values, Moves(scale=1.05)).shape == values.shape


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"chances": {"twist": Chance()}}, "unknown move 'twist'; known: flip_horizontal"),
        ({"chances": {}, "first_epoch": 10}, "first_epoch lies between 0 and num_epochs, got 10 and 10"),
        ({"chances": {}, "max_translation": 1.5}, "shares lie between 0 and 1, got 1.5"),
        ({"chances": {}, "max_shear_degrees": 90}, "of shears below 90, got 180.0 and 90"),
    ],
)
def test_settings_out_of_range_are_refused(settings, expected):
    with pytest.raises(ValueError, match=expected):
        MRAugment(num_epochs=10, **settings)


@pytest.mark.parametrize("settings", [{"p_max": 1.1}, {"decay": 0.0}, {"decay": math.inf}])
def test_chances_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="p_max lies between 0 and 1, and decay above 0"):
        Chance(**settings)
