import pickle

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from support.kspace_files import COILS, COLUMNS, ROWS, SLICES, centre_and_every_fourth, kspace
from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.mraugment import Chance, MRAugment
from voxelwave.data.kspace.slices import KspaceSlices
from voxelwave.data.kspace.synthesis import target_of
from voxelwave.data.kspace.writing import plain_header, write_challenge, write_fastmri
from voxelwave.errors import InputError
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.acquisition import root_sum_of_squares
from voxelwave.physics.fourier import center_crop, ifft2c
from voxelwave.physics.samplings.equispaced import EquispacedLines
from voxelwave.physics.samplings.fastmri import FastMRILines
from voxelwave.physics.samplings.random_spaced import RandomSpacedLines

EVERYTHING = {kind: Chance(p_max=1.0) for kind in ("flip_horizontal", "translation", "scale")}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three volumes that differ in slices, coils and size."""
    folder, found = tmp_path_factory.mktemp("volumes"), []
    for number, (slices, coils, rows, columns) in enumerate([(4, 3, 32, 24), (2, 5, 40, 32), (3, 1, 24, 36)]):
        values = kspace(slices, coils, rows, columns)
        write_fastmri(folder / f"file{number}.h5", values, plain_header(values), acquisition=f"contrast {number}")
        found.append(KspaceFile(folder / f"file{number}.h5"))
    return found


def same(first, second):
    return all(
        torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        for one, other in zip(first, second, strict=True)
    )


def test_an_item_is_a_slice_between_its_neighbours_with_all_that_scores_need(files):
    slices = KspaceSlices(files, EquispacedLines(acceleration=4, offset="origin"), neighbours=1)
    assert len(slices) == 9
    item = slices[5]
    assert (item.file, item.slice_index, item.acquisition) == ("file1.h5", 1, "contrast 1")
    assert item.kspace.shape == (3, 5, 40, 32)
    assert item.sampled.shape == (40, 32)
    assert torch.equal(item.kspace, files[1].slice(1, neighbours=1) * item.sampled)
    assert torch.equal(item.target, files[1].target(1))
    assert item.data_range == pytest.approx(float(target_of(kspace(2, 5, 40, 32), (40, 32)).max()))
    assert item.sampled[0].nonzero()[:, 0].tolist() == [0, 4, 8, 12, 15, 16, 17, 20, 24, 28]


def test_workers_change_nothing(files):
    augment = MRAugment(chances=EVERYTHING, num_epochs=4)
    slices = KspaceSlices(files, RandomSpacedLines(acceleration=3), augment, seed=3)
    slices.set_epoch(2)
    alone = [slices[item] for item in range(len(slices))]
    # Files were read in this process before: no handle of theirs may cross the fork.
    loader = DataLoader(slices, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert all(same(one, other) for one, other in zip(alone, loader, strict=True))
    # Nor does anything that could not be sent to a process that does not begin as a fork.
    sent = pickle.loads(pickle.dumps(slices))
    assert same(sent[4], alone[4])


def test_draws_follow_from_seed_epoch_and_item_alone(files):
    augment = MRAugment(chances=EVERYTHING, num_epochs=4)

    def drawn(item, seed=3, epoch=2):
        slices = KspaceSlices(files, RandomSpacedLines(acceleration=3), augment, seed=seed)
        slices.set_epoch(epoch)
        return slices[item]

    assert same(drawn(1), drawn(1))
    for other in (drawn(1, seed=4), drawn(1, epoch=3), drawn(2)):
        assert not torch.equal(drawn(1).sampled, other.sampled) or not torch.equal(drawn(1).kspace, other.kspace)


def test_validation_chooses_alike_for_all_slices_of_a_file_in_every_epoch(files):
    for sampling in (FastMRILines(), RandomSpacedLines(acceleration=3)):
        slices = KspaceSlices(files, sampling, by_file=True)
        first = [slices[item].sampled for item in range(4)]
        slices.set_epoch(9)
        assert all(torch.equal(first[0], slices[item].sampled) for item in range(4))
        assert len({tuple(sampled[0].tolist()) for sampled in first}) == 1
    slices = KspaceSlices(files, FastMRILines(), by_file=True)
    assert torch.equal(slices[0].sampled, FastMRILines().of_file((ROWS, COLUMNS), "file0.h5"))


def test_an_augmented_item_has_its_own_target_and_data_range(files):
    augment = MRAugment(chances=EVERYTHING, num_epochs=4)
    slices = KspaceSlices(files, None, augment, neighbours=1)
    slices.set_epoch(4)
    item = slices[1]
    expected = center_crop(root_sum_of_squares(ifft2c(item.kspace[1])), (ROWS, COLUMNS))
    torch.testing.assert_close(item.target, expected, atol=1e-5, rtol=1e-4)
    assert item.data_range == float(item.target.max())
    assert not torch.equal(item.target, files[0].target(1))
    # Before the first epoch of a schedule nothing moves, and nothing is computed anew.
    slices.set_epoch(0)
    assert torch.equal(slices[1].target, files[0].target(1))
    assert torch.equal(slices[1].kspace, files[0].slice(1, neighbours=1))


def test_padding_stays_unsampled_whatever_is_drawn_or_the_mask_says(tmp_path):
    values, sampled = kspace(), centre_and_every_fourth()
    header = plain_header(values)
    padded = values.clone()
    padded[..., :2] = padded[..., 22:] = 0
    header = type(header)(**{**header.__dict__, "last_line": 19, "center_line": 10})
    write_fastmri(tmp_path / "train.h5", padded, header)
    for sampling in (None, FastMRILines(kind="equispaced")):
        item = KspaceSlices([KspaceFile(tmp_path / "train.h5")], sampling)[0]
        assert not item.sampled[:, [0, 1, 22, 23]].any()
    # A test file whose mask has them, and whose columns hold noise there.
    write_fastmri(tmp_path / "test.h5", values, header, sampled)
    found = KspaceSlices([KspaceFile(tmp_path / "test.h5")])[0]
    assert found.sampled[0].nonzero()[:, 0].tolist() == [4, 8, 9, 10, 11, 12, 13, 14, 16, 20]
    assert found.target is None
    assert found.data_range == 0.0


def test_the_mask_of_the_file_is_used_where_nothing_is_drawn_and_not_where_something_is(tmp_path):
    write_challenge(tmp_path, "a.h5", kspace(), centre_and_every_fourth(), size=(20, 20))
    file = KspaceFile(tmp_path / "kspace" / "a.h5")
    assert torch.equal(KspaceSlices([file])[0].sampled[0], centre_and_every_fourth())
    drawn = KspaceSlices([file], EquispacedLines(acceleration=2, offset=1))[0].sampled[0]
    assert torch.equal(drawn, EquispacedLines(acceleration=2, offset=1)((1, COLUMNS), torch_generator(0))[0])


def test_what_was_not_measured_is_neither_sampled_nor_moved(tmp_path):
    write_fastmri(tmp_path / "test.h5", kspace(), plain_header(kspace()), centre_and_every_fourth())
    file = KspaceFile(tmp_path / "test.h5")
    for given in (
        {"sampling": EquispacedLines(acceleration=2)},
        {"augment": MRAugment(chances=EVERYTHING, num_epochs=1)},
    ):
        with pytest.raises(InputError, match=r"test\.h5: is undersampled already: only whole images can be augmented"):
            KspaceSlices([file], **given)[0]
    partial_fourier = torch.arange(COLUMNS) > 5
    write_fastmri(tmp_path / "partial.h5", kspace() * partial_fourier, plain_header(kspace()))
    drawn = KspaceSlices([KspaceFile(tmp_path / "partial.h5")], EquispacedLines(acceleration=2))[0].sampled[0]
    assert not (drawn & ~partial_fourier).any()


@pytest.mark.parametrize("kind", ["flip_horizontal", "flip_vertical"])
def test_margins_that_were_not_measured_are_not_sampled_after_a_flip(tmp_path, kind):
    padded = kspace()
    padded[..., :3] = padded[..., 22:] = 0
    write_fastmri(tmp_path / "padded.h5", padded, plain_header(padded))
    augment = MRAugment(chances={kind: Chance(p_max=1.0)}, num_epochs=1)
    slices = KspaceSlices([KspaceFile(tmp_path / "padded.h5")], None, augment)
    slices.set_epoch(1)
    assert not torch.equal(slices[0].target, slices.files[0].target(0))
    # A flip along the columns sends column i of 24 to 24 - i.
    assert slices[0].sampled[0].nonzero()[:, 0].tolist() == list(range(3, 22))


@pytest.mark.parametrize(
    "kept",
    [
        torch.rand(ROWS, COLUMNS, generator=torch_generator("places")) > 0.7,
        (torch.arange(ROWS) % 4 == 0)[:, None].expand(ROWS, COLUMNS),
    ],
    ids=["single places", "rows"],
)
@pytest.mark.parametrize("sampling", [None, EquispacedLines(acceleration=2)])
def test_kspace_of_which_places_within_columns_are_left_out_is_refused(tmp_path, kept, sampling):
    write_fastmri(tmp_path / "test.h5", kspace() * kept, plain_header(kspace()))
    with pytest.raises(InputError, match=r"test\.h5: within its columns places are 0: it was sampled place by place"):
        KspaceSlices([KspaceFile(tmp_path / "test.h5")], sampling)[0]


def test_an_echo_that_was_cut_and_a_place_that_is_0_by_chance_are_measured(tmp_path):
    values = kspace() * (torch.arange(ROWS) > 4)[:, None]
    values[..., ROWS // 2, 3] = 0
    write_fastmri(tmp_path / "test.h5", values, plain_header(values))
    assert KspaceSlices([KspaceFile(tmp_path / "test.h5")])[0].sampled.all()


def test_a_mask_is_not_that_of_kspace_that_was_turned(tmp_path):
    write_challenge(tmp_path, "a.h5", kspace(), centre_and_every_fourth(), size=(20, 20))
    file = KspaceFile(tmp_path / "kspace" / "a.h5")
    turn = MRAugment(chances={"rotate90": Chance(p_max=1.0)}, num_epochs=1)
    slices = KspaceSlices([file], augment=turn, seed=1)
    slices.set_epoch(1)
    with pytest.raises(
        InputError, match=rf"a\.h5: augmentation turned it to {ROWS} columns, and its mask has {COLUMNS}"
    ):
        [slices[index] for index in range(len(slices))]


def test_the_data_range_is_that_of_the_file_the_volume_or_the_slice(files, tmp_path):
    target = target_of(kspace(), (ROWS, COLUMNS))
    expected = {"attribute": target.max(), "volume": target.max(), "slice": target[1].max()}
    for kind, value in expected.items():
        assert KspaceSlices(files, data_range=kind)[1].data_range == pytest.approx(float(value))
    path = tmp_path / "none.h5"
    write_fastmri(path, kspace(), plain_header(kspace()))
    with h5py.File(path, "r+") as file:
        del file.attrs["max"]
    with pytest.raises(InputError, match=r"none\.h5: has no attribute 'max' .* take data_range 'volume'"):
        KspaceSlices([KspaceFile(path)])[0]
    found = KspaceSlices([KspaceFile(path)], data_range="volume")[0].data_range
    assert found == pytest.approx(float(target.max()))
    with h5py.File(path, "r+") as file:
        file["reconstruction_rss"][...] = 0
    with pytest.raises(InputError, match=r"none\.h5: its target has no value above 0, and shows nothing"):
        KspaceSlices([KspaceFile(path)], data_range="volume")[0]


def test_what_cannot_be_used_is_named(files, tmp_path):
    with pytest.raises(InputError, match="no files of k-space were given"):
        KspaceSlices([])
    with pytest.raises(IndexError, match="there are items 0 to 8, got 9"):
        KspaceSlices(files)[9]
    values = np.zeros((SLICES, COILS, ROWS, COLUMNS), dtype=np.complex64)
    values[..., 3] = 1
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"], file["mask"] = values, centre_and_every_fourth().numpy()
    with pytest.raises(InputError, match=r"a\.h5: slice 2: none of the sampled columns was measured"):
        KspaceSlices([KspaceFile(tmp_path / "a.h5")])[2]
