"""How ISMRMRD lays out an acquisition, one line of k-space, in an HDF5 file."""

from __future__ import annotations

from collections.abc import Iterator

import h5py
import numpy as np
from jaxtyping import Bool, Int, Int64, Shaped
from numpy import ndarray

from voxelwave.data.kspace.hdf5 import lengths, stored_entries
from voxelwave.errors import UnusableVolume

GROUP, DATA, XML = "dataset", "data", "xml"
VERSION = 1

COUNTERS = np.dtype(
    [
        *((name, "<u2") for name in ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast")),
        *((name, "<u2") for name in ("phase", "repetition", "set", "segment")),
        ("user", "<u2", (8,)),
    ]
)
# Source: the ISMRMRD specification, AcquisitionHeader.
HEAD = np.dtype(
    [
        *(("version", "<u2"), ("flags", "<u8"), ("measurement_uid", "<u4"), ("scan_counter", "<u4")),
        *(("acquisition_time_stamp", "<u4"), ("physiology_time_stamp", "<u4", (3,)), ("number_of_samples", "<u2")),
        *(("available_channels", "<u2"), ("active_channels", "<u2"), ("channel_mask", "<u8", (16,))),
        *(("discard_pre", "<u2"), ("discard_post", "<u2"), ("center_sample", "<u2"), ("encoding_space_ref", "<u2")),
        *(("trajectory_dimensions", "<u2"), ("sample_time_us", "<f4"), ("position", "<f4", (3,))),
        *(("read_dir", "<f4", (3,)), ("phase_dir", "<f4", (3,)), ("slice_dir", "<f4", (3,))),
        *(("patient_table_position", "<f4", (3,)), ("idx", COUNTERS), ("user_int", "<i4", (8,))),
        ("user_float", "<f4", (8,)),
    ]
)
FLOATS = h5py.vlen_dtype(np.dtype("<f4"))
ACQUISITION = np.dtype([("head", HEAD), ("traj", FLOATS), ("data", FLOATS)])

# Numbers of flags; the first is 1.
NOISE, CALIBRATION, CALIBRATION_AND_IMAGING, REVERSE = 19, 20, 21, 22
# Navigators, phase correction, feedback, dummies, correction of the surface coil, phase stabilisation.
NO_IMAGE = (NOISE, 23, 24, 26, 27, 28, 29, 30, 31)

Heads = Shaped[ndarray, " _"]


def flagged(heads: Heads, *flags: int) -> Bool[ndarray, " _"]:
    """Tell which acquisitions have one of these flags."""
    bits = np.uint64(sum(1 << (flag - 1) for flag in flags))
    raised: Bool[ndarray, " _"] = (heads["flags"].astype(np.uint64) & bits) != 0
    return raised


def check_record(dtype: np.dtype[np.void]) -> None:
    """Raise UnusableVolume for records that do not have ISMRMRD's fields."""
    names = dtype.names or ()
    if {*names} != {"head", "traj", "data"} or any(
        h5py.check_vlen_dtype(dtype[name]) != np.dtype("<f4") for name in ("data", "traj")
    ):
        raise UnusableVolume("its acquisitions are not laid out as ISMRMRD does")
    for wanted, found in ((HEAD, dtype["head"]), (COUNTERS, dtype["head"]["idx"] if "idx" in _names(dtype) else None)):
        for name in wanted.names or ():
            if found is None or name not in (found.names or ()) or found[name].shape != wanted[name].shape:
                raise UnusableVolume(f"the heads of its acquisitions lack '{name}' of ISMRMRD")
            if name != "idx" and found[name].base.kind not in "iuf":
                raise UnusableVolume(f"'{name}' in the heads of its acquisitions is no number")


def _names(dtype: np.dtype[np.void]) -> tuple[str, ...]:
    return dtype["head"].names or ()


def read_heads(data: h5py.Dataset) -> tuple[Heads, Int64[ndarray, " acquisition"], Int64[ndarray, " acquisition"]]:
    """Return the head of each acquisition, and how many floats it says that its values and its trajectory have."""
    layout, entries = data.id.get_type(), stored_entries(data)
    numbers = {name: layout.get_member_index(name.encode()) for name in ("head", "data", "traj")}
    places = {name: layout.get_member_offset(number) for name, number in numbers.items()}
    head = layout.get_member_type(numbers["head"]).dtype
    stored = np.ascontiguousarray(entries[:, places["head"] : places["head"] + head.itemsize])
    return stored.view(head)[:, 0], lengths(entries, places["data"]), lengths(entries, places["traj"])


def read_lines(data: h5py.Dataset, rows: Int[ndarray, " row"]) -> Iterator[Shaped[ndarray, " value"]]:
    """Yield the values of the acquisitions `rows`, in this order, float32 with real and imaginary part in turn."""
    values = data.fields("data")
    # Neighbours in the file in one go.
    for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        if len(run):
            yield from values[int(run[0]) : int(run[-1]) + 1]
