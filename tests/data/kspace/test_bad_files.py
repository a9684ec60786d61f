"""Files as they should not be: each is one line that names the file, and none is followed, trusted or run."""

import h5py
import numpy as np
import pytest
import torch

from support.kspace_files import COILS, COLUMNS, ROWS, SLICES, centre_and_every_fourth, kspace
from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.writing import header_text, plain_header, write_challenge, write_fastmri
from voxelwave.errors import InputError

VALUES = np.ones((SLICES, COILS, ROWS, COLUMNS), dtype=np.complex64)
SAMPLED = centre_and_every_fourth().numpy()


def refused(path, expected, index=None, **settings):
    """Check that a file is refused in one line that names it."""
    with pytest.raises(InputError, match=expected) as caught:
        KspaceFile(path, **settings).slice(index)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def written(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bad.h5"


@pytest.mark.parametrize("length", [0, 5, 8])
def test_a_file_of_some_bytes_is_refused(path, length):
    path.write_bytes(b"hello you"[:length])
    with pytest.raises(InputError, match=r"bad.h5: "):
        KspaceFile(path)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"image": VALUES}, "has no 'kspace', only image"),
        ({}, "has no 'kspace', only nothing"),
        ({"kspace": VALUES.real}, "holds values of type float32, complex ones are needed"),
        ({"kspace": VALUES[0, 0]}, r"has shape \(32, 24\), 3 or 4 axes that are not empty are needed"),
        ({"kspace": VALUES[:0]}, "axes that are not empty are needed"),
        ({"kspace": VALUES, "mask": SAMPLED[:-1]}, r"mask has shape \(23,\), and its k-space 24 columns"),
        ({"kspace": VALUES, "mask": 0 * SAMPLED}, "its mask samples no column"),
        (
            {"kspace": VALUES, "mask": np.arange(COLUMNS) % 3 == 0},
            r"no calibration centre: columns 11 and 12 are not both sampled \(the nearest is 12\)",
        ),
        ({"kspace": VALUES, "reconstruction_rss": VALUES.real[:2, 0]}, "has 2 slices, and its k-space 4"),
        ({"kspace": VALUES, "reconstruction_rss": VALUES.real}, "has shape .* 3 axes"),
        ({"kspace": VALUES, "reconstruction_rss": VALUES[:, 0]}, "of type complex64, real ones are needed"),
        (
            {"kspace": VALUES, "reconstruction_rss": np.ones((SLICES, 20, 28))},
            "is 20×28, and its k-space 32×24: the axes of one of them are transposed",
        ),
        (
            {"kspace": VALUES, "reconstruction_rss": np.ones((SLICES, 40, 40))},
            "is 40×40, and its k-space 32×24: it has to be the centre of the image",
        ),
        ({"kspace": VALUES, "sensitivity_maps": VALUES[:, :2]}, "slices, coils and size have to agree"),
        ({"kspace": VALUES, "ismrmrd_header": "<a><b></a>"}, "its ISMRMRD header is damaged"),
        ({"kspace": VALUES, "ismrmrd_header": 5}, "'ismrmrd_header' is no text"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(path, arrays, expected):
    refused(written(path, **arrays), expected, index=0)


def test_slices_of_differing_size_are_refused(path):
    with h5py.File(path, "w") as file:
        for number in range(2):
            file[f"kspace/{number}"] = VALUES[number, :, : 32 - number]
    refused(path, "'kspace' is a group, one array of slices of one size is needed")
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (3,), dtype=h5py.vlen_dtype(np.float32))
    refused(path, "'kspace' holds objects of differing size, numbers are needed")


@pytest.mark.parametrize("largest", [np.nan, 0.0, -1.0, np.inf])
def test_a_largest_value_that_cannot_be_is_refused(path, largest):
    with h5py.File(written(path, kspace=VALUES), "r+") as file:
        file.attrs["max"] = largest
    refused(path, f"its attribute 'max' is {largest}")


def test_attributes_of_other_types_are_refused_or_passed_over(path):
    with h5py.File(written(path, kspace=VALUES), "r+") as file:
        file.attrs["max"], file.attrs["acquisition"] = "large", [1, 2]
    refused(path, "its attribute 'max' is no single number")
    with h5py.File(path, "r+") as file:
        file.attrs["max"] = 2
    assert KspaceFile(path).info.acquisition == ""


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1j * np.inf])
def test_values_that_are_not_finite_are_named_with_their_slice(path, wrong):
    values = VALUES.copy()
    values[2, 1, 3, 4] = wrong
    file = KspaceFile(written(path, kspace=values))
    file.slice(0, neighbours=1)
    for index, neighbours, place in ((2, 0, "slice 2"), (3, 1, "slices 2 to 3")):
        with pytest.raises(InputError, match=rf"bad\.h5: {place}: its k-space holds NaN or infinite values"):
            file.slice(index, neighbours=neighbours)


def test_a_slice_of_zeros_is_refused(path):
    values = VALUES.copy()
    values[1] = 0
    refused(written(path, kspace=values), "slice 1: its k-space is all 0", index=1)


def test_a_target_that_is_not_finite_is_refused(path):
    target = np.ones((SLICES, 8, 8))
    target[1, 2, 3] = np.nan
    file = KspaceFile(written(path, kspace=VALUES, reconstruction_rss=target))
    with pytest.raises(InputError, match=r"bad\.h5: 'reconstruction_rss', slice 1: holds NaN"):
        file.target(1)


def test_what_is_no_such_file_is_refused(path, tmp_path):
    refused(tmp_path / "none.h5", "no such file")
    path.write_bytes(b"")
    refused(path, "an empty file")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(path, "a Git-LFS pointer")
    path.write_bytes(bytes(range(256)) * 8)
    refused(path, "unreadable: OSError: .*signature not found")
    refused(tmp_path, "not a file but a folder")


def test_a_file_cut_short_says_how_much_is_there_wherever_it_was_cut(path):
    values = kspace()
    write_fastmri(path, values, plain_header(values))
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path, f"cut short: {int(share * len(whole))} of {len(whole)} bytes are there")


def test_a_file_with_flipped_bytes_is_read_or_refused_in_one_line(path):
    values = kspace()
    write_fastmri(path, values, plain_header(values))
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in random.integers(0, 6000, size=4):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        said = ""
        try:
            file = KspaceFile(path)
            file.slice(0, neighbours=1)
            file.target(0)
        except InputError as error:
            said = str(error)
        assert not said or said.startswith(f"{path}: ")
        assert "\n" not in said


@pytest.mark.parametrize("link", [h5py.ExternalLink("secret.h5", "/kspace"), h5py.SoftLink("/other")])
@pytest.mark.parametrize("name", ["kspace", "reconstruction_rss", "mask", "ismrmrd_header", "dataset"])
def test_links_are_not_followed(path, tmp_path, link, name):
    written(tmp_path / "secret.h5", kspace=VALUES)
    with h5py.File(path, "w") as file:
        file["other"] = VALUES
        if name != "kspace":
            file["kspace"] = VALUES
        file[name] = link
    refused(path, f"'{name}' is a link, which may lead out of the file")


def test_values_in_other_files_are_not_read(path, tmp_path):
    (tmp_path / "secret.bin").write_bytes(VALUES.tobytes())
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", VALUES.shape, "c8", external=[(tmp_path / "secret.bin", 0, h5py.h5f.UNLIMITED)])
    refused(path, "the values of 'kspace' are said to lie in other files")
    written(tmp_path / "secret.h5", kspace=VALUES)
    layout = h5py.VirtualLayout(VALUES.shape, "c8")
    layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "kspace", VALUES.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("kspace", layout)
    refused(path, "the values of 'kspace' are said to lie in other files")


def test_a_filter_that_would_be_loaded_as_a_plugin_is_refused(path):
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((1, COILS, ROWS, COLUMNS))
        properties.set_filter(32008, h5py.h5z.FLAG_OPTIONAL)
        h5py.h5d.create(
            file.id, b"kspace", h5py.h5t.py_create(np.dtype("c8")), h5py.h5s.create_simple(VALUES.shape), properties
        )
    refused(path, "compressed by filter 32008, which is not HDF5's own")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 64, 10**6, 10**6), r"claims 6\.4e\+13 values a slice, and at most most_values"),
        ((10**7, 1, 32, 32), "claims 10000000 slices, and at most 16384 are read"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_anything_is_read(path, shape, expected):
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", shape, "c8", chunks=(1, 1, 32, 32))
    refused(path, expected)


@pytest.mark.parametrize("settings", [{}, {"chunks": (1, 1, 32, 24)}, {"compression": "gzip"}])
def test_a_small_file_that_claims_to_be_large_is_refused(path, settings):
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (SLICES, COILS, 2048, 2048), "c8", **settings)
    refused(path, r"claims the shape \(4, 3, 2048, 2048\), of which most was never written")
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", data=np.tile(VALUES, (1, 1, 8, 8)), compression="gzip", compression_opts=9)
    assert KspaceFile(path).slice(0).shape == (1, COILS, 8 * ROWS, 8 * COLUMNS)


def test_the_bound_is_a_setting_and_holds_for_chunks_and_maps_too(path):
    written(path, kspace=VALUES)
    refused(path, "most_values = 1000", most_values=1000)
    KspaceFile(path, most_values=COILS * ROWS * COLUMNS)
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (1, 1, 32, 32), "c8", chunks=(1024, 1024, 32, 32), maxshape=(None, None, 32, 32))
    refused(path, "stored in chunks of 1.07e.09 values")


def test_a_header_that_defines_entities_is_not_parsed(path):
    text = header_text(plain_header(torch.from_numpy(VALUES)))
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>' + text.split("?>", 1)[1]
    refused(written(path, kspace=VALUES, ismrmrd_header=bomb), "defines entities")
    for old, new in (("<x>32</x>", "<x>-3</x>"), ("<x>32</x>", "<x>99999999</x>"), ("<x>32.0</x>", "<x>nan</x>")):
        refused(written(path, kspace=VALUES, ismrmrd_header=text.replace(old, new)), "which cannot be")


def test_what_is_wrong_with_the_images_of_the_challenge_names_them(tmp_path):
    write_challenge(tmp_path, "a.h5", kspace(), centre_and_every_fourth(), size=(20, 20))
    image, path = tmp_path / "image" / "a.h5", tmp_path / "kspace" / "a.h5"
    written(image, image_label=np.ones((SLICES, 20, 28), dtype=np.float32))
    refused(path, f"its images, {image}: 'image_label' is 20×28, and its k-space 32×24: the axes .* transposed")
    image.write_bytes(image.read_bytes()[:-100])
    refused(path, f"its images, {image}: cut short")
