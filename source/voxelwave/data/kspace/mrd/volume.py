"""Which acquisitions of ISMRMRD make the one volume that is read, and whether they do."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Int64
from numpy import ndarray

from voxelwave.data.kspace.hdf5 import MOST_COILS
from voxelwave.data.kspace.mrd.raw_header import RawHeader
from voxelwave.data.kspace.mrd.records import CALIBRATION, CALIBRATION_AND_IMAGING, NO_IMAGE, REVERSE, Heads, flagged
from voxelwave.errors import UnusableVolume

# Counters that have to be the same for all lines of one volume.
ONE_VOLUME = ("kspace_encode_step_2", "contrast", "phase", "repetition", "set")


def image_rows(heads: Heads, header: RawHeader) -> Int[ndarray, " row"]:
    """Return the numbers of the acquisitions that belong to the image."""
    of_image = ~flagged(heads, *NO_IMAGE) & (heads["encoding_space_ref"] == 0)
    if header.calibration != "embedded":
        # Lines for calibration alone may have another contrast; embedded ones are of the same scan.
        of_image &= ~flagged(heads, CALIBRATION) | flagged(heads, CALIBRATION_AND_IMAGING)
    return np.flatnonzero(of_image)


def check_one_volume(chosen: Heads, header: RawHeader) -> None:
    """Raise UnusableVolume for lines that are not those of one two-dimensional Cartesian volume of one size."""
    if header.trajectory != "cartesian":
        raise UnusableVolume(f"its trajectory is '{header.trajectory}', a Cartesian one is needed")
    if flagged(chosen, REVERSE).any():
        raise UnusableVolume("has lines that were measured backwards, which need a correction of their phase first")
    for name in ONE_VOLUME:
        if len(found := np.unique(chosen["idx"][name])) > 1:
            raise UnusableVolume(
                f"holds {len(found)} values of '{name}', one two-dimensional volume is needed: split it"
            )
    for name, thing in (("number_of_samples", "lines of differing size"), ("active_channels", "differing coil counts")):
        if len(found := np.unique(chosen[name])) > 1:
            raise UnusableVolume(f"has {thing}: {name} is {', '.join(map(str, found[:4]))}")
    samples, coils = int(chosen["number_of_samples"][0]), int(chosen["active_channels"][0])
    if not 0 < coils <= MOST_COILS or not 0 < samples <= header.encoded_size[0]:
        raise UnusableVolume(
            f"claims lines of {samples} samples and {coils} coils, of {header.encoded_size[0]} encoded"
        )


def check_lengths(
    heads: Heads, num_values: Int64[ndarray, " _"], num_places: Int64[ndarray, " _"], rows: Int[ndarray, " row"]
) -> None:
    """Raise UnusableVolume where one of the acquisitions `rows` claims to hold something else than its head says."""
    samples, coils, axes = (
        heads[name][rows].astype(np.int64) for name in ("number_of_samples", "active_channels", "trajectory_dimensions")
    )
    wrong = (num_values[rows] != 2 * samples * coils) | (num_places[rows] != axes * samples)
    if wrong.any():
        first = int(wrong.argmax())
        raise UnusableVolume(
            f"acquisition {rows[first]} holds {num_values[rows[first]] // 2} values, not {coils[first]} coils × "
            f"{samples[first]} samples, or another trajectory than its head says"
        )
