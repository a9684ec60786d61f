"""ISMRMRD files: two-dimensional Cartesian acquisitions, put in their places of k-space."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Complex64, Shaped
from numpy import ndarray

from voxelwave.data.kspace.hdf5 import check_size, dataset, has, member, opened, text
from voxelwave.data.kspace.info import KspaceInfo, SlicePlace, as_they_lie, vector
from voxelwave.data.kspace.lines import check_noise, dwell_time_ratio, measured_columns, put_in_places
from voxelwave.data.kspace.mrd.raw_header import parse_raw_header
from voxelwave.data.kspace.mrd.records import (
    DATA,
    GROUP,
    NOISE,
    XML,
    Heads,
    check_record,
    flagged,
    read_heads,
    read_lines,
)
from voxelwave.data.kspace.mrd.volume import check_lengths, check_one_volume, image_rows
from voxelwave.errors import UnusableVolume

MOST_ACQUISITIONS = 2**20
MOST_FILLED = 64  # encoded over measured values: far beyond any acceleration with any partial echo
LENGTH = (0.99, 1.01)  # of a direction


def is_mrd(file: h5py.File) -> bool:
    """Tell whether a file holds acquisitions of ISMRMRD."""
    if not has(file, GROUP) or not isinstance(group := member(file, GROUP), h5py.Group):
        return False
    return has(group, XML) and has(group, DATA)


class MrdSource:
    """The k-space of an ISMRMRD file: averages averaged, read-out oversampling removed, what was not measured 0."""

    def __init__(self, path: Path, *, most_values: int) -> None:
        self.path, self.most_values = path, most_values
        with opened(path) as file:
            group = member(file, GROUP)
            self.header = parse_raw_header(text(group, XML))
            heads, num_values, num_places = read_heads(self._data(file))
        # 1. What is of the image, and what is noise.
        self.noise_rows = np.flatnonzero(flagged(heads, NOISE))
        self.rows = image_rows(heads, self.header)
        if not len(self.rows):
            kind = "noise scans only" if len(self.noise_rows) else "no lines of an image"
            raise UnusableVolume(f"holds {kind}, {len(heads)} acquisitions: record the image, too")
        chosen = heads[self.rows]
        check_one_volume(chosen, self.header)
        # What an acquisition holds is what its head says: neither is read before they agree.
        for rows in (self.noise_rows, self.rows):
            check_lengths(heads, num_values, num_places, rows)
        self.noise_coils = {*heads["active_channels"][self.noise_rows].tolist()}
        if num_values[self.noise_rows].sum() > 2 * most_values:
            raise UnusableVolume(f"its noise scan has more than most_values = {most_values} values")
        # 2. Where each line goes.
        self.num_samples, self.num_coils = int(chosen["number_of_samples"][0]), int(chosen["active_channels"][0])
        self.discarded = np.stack([chosen["discard_pre"], chosen["discard_post"]], 1).astype(np.int64)
        slices, self.slice_of = np.unique(chosen["idx"]["slice"], return_inverse=True)
        width = self.header.encoded_size[1]
        steps = chosen["idx"]["kspace_encode_step_1"].astype(np.int64)
        self.column = steps - self.header.center_line + width // 2
        if self.column.min() < 0 or self.column.max() >= width:
            lines = f"{steps.min()} to {steps.max()}, with line {self.header.center_line} at the centre"
            raise UnusableVolume(f"its lines {lines}, do not fit into the {width} that were encoded")
        held = self.num_samples * len(np.unique(self.column))
        if self.header.encoded_size[0] * width > MOST_FILLED * held:
            raise UnusableVolume(
                f"its header claims {self.header.encoded_size[:2]}, of which next to nothing was measured"
            )
        check_size("data", (len(slices), self.num_coils, self.header.encoded_size[0], width), most_values=most_values)
        self.notes: list[str] = []
        self.start = self._readout_start(chosen)
        self.info = self._info(heads, chosen, len(slices))

    def read(self, start: int, stop: int) -> Complex64[ndarray, "slice coil height width"]:
        """Return the k-space of slices `start` to `stop`, without the latter."""
        samples, width = self.header.encoded_size[:2]
        chosen = np.flatnonzero((self.slice_of >= start) & (self.slice_of < stop))
        with opened(self.path) as file:
            stored = zip(chosen.tolist(), read_lines(self._data(file), self.rows[chosen]), strict=True)
            lines = ((self.slice_of[n] - start, self.column[n], self._line(n, line)) for n, line in stored)
            encoded = stop - start, self.num_coils, samples, width
            return put_in_places(lines, encoded, first=self.start, height=self.info.size[0])

    def image(self, name: str, index: int) -> ndarray:
        """An ISMRMRD file is read for its k-space alone."""
        raise UnusableVolume(f"has no '{name}': of an ISMRMRD file the k-space alone is read")

    def noise(self) -> Complex64[ndarray, "coil sample"]:
        """Return what the noise scan measured, all its acquisitions one behind the other."""
        check_noise(self.noise_coils, self.num_coils)
        with opened(self.path) as file:
            lines = read_lines(self._data(file), self.noise_rows)
            return np.concatenate([_complex(line, self.num_coils) for line in lines], axis=1)

    def _data(self, file: h5py.File) -> h5py.Dataset:
        data = dataset(member(file, GROUP), DATA)
        if data.ndim != 1 or not 0 < len(data) <= MOST_ACQUISITIONS:
            raise UnusableVolume(f"holds acquisitions of shape {data.shape}, at most {MOST_ACQUISITIONS} are read")
        check_record(data.dtype)
        return data

    def _line(self, number: int, stored: Shaped[ndarray, " value"]) -> Complex64[ndarray, "coil sample"]:
        line = _complex(stored, self.num_coils)
        before, after = self.discarded[number]
        line[:, :before] = 0
        line[:, self.num_samples - after :] = 0
        return line

    def _readout_start(self, chosen: Heads) -> int:
        """Return the sample of the encoded read-out at which the measured ones begin."""
        samples = self.header.encoded_size[0]
        centers = np.unique(chosen["center_sample"])
        center = int(centers[0])
        if len(centers) == 1 and center == 0 and self.num_samples == samples:
            self.notes.append("no centre of its lines is given: the middle is taken")
            center = samples // 2
        if self.num_samples < samples:
            self.notes.append(f"partial echo: {self.num_samples} of {samples} samples of a line, the others are 0")
        start = samples // 2 - center
        if len(centers) > 1 or start < 0 or start + self.num_samples > samples:
            raise UnusableVolume(
                f"its lines, {self.num_samples} samples around sample {', '.join(map(str, centers[:4]))}, do not fit "
                f"into the {samples} that were encoded"
            )
        return start

    def _info(self, heads: Heads, chosen: Heads, num_slices: int) -> KspaceInfo:
        header = self.header
        (samples, width, _), notes = header.encoded_size, self.notes
        height = max(1, min(samples, round(samples / header.oversampling)))
        field_mm = height / samples * header.encoded_fov_mm[0], header.encoded_fov_mm[1]
        shown, extent = header.shown((height, width), field_mm)
        columns = measured_columns(self.slice_of, self.column, num_slices=num_slices, width=width)
        notes += columns.notes
        places, self.slice_of = as_they_lie(self._places(chosen, num_slices), self.slice_of, notes)
        return KspaceInfo(
            layout="mrd",
            num_slices=num_slices,
            num_coils=self.num_coils,
            size=(height, width),
            measured_columns=columns.measured,
            acquisition=header.protocol,
            sampled=columns.sampled,
            image_size=shown,
            field_of_view_mm=extent,
            places=places,
            dwell_time_ratio=self._dwell_time_ratio(heads),
            notes=tuple(notes),
        )

    def _dwell_time_ratio(self, heads: Heads) -> float | None:
        if not len(self.noise_rows):
            return None
        of_noise, of_image = (float(heads["sample_time_us"][rows[0]]) for rows in (self.noise_rows, self.rows))
        return dwell_time_ratio(of_noise, of_image, self.notes)

    def _places(self, chosen: Heads, num_slices: int) -> tuple[SlicePlace, ...]:
        firsts = [chosen[int(np.flatnonzero(self.slice_of == number)[0])] for number in range(num_slices)]
        names = ("position", "read_dir", "phase_dir", "slice_dir")
        vectors = [[first[name].astype(float) for name in names] for first in firsts]
        lengths = np.array([[np.linalg.norm(vector) for vector in each[1:]] for each in vectors])
        if not (np.isfinite(vectors).all() and (lengths > LENGTH[0]).all() and (lengths < LENGTH[1]).all()):
            self.notes.append("its lines do not say where they lie")
            return ()
        return tuple(SlicePlace(*map(vector, each)) for each in vectors)


def _complex(stored: Shaped[ndarray, " value"], num_coils: int) -> Complex64[ndarray, "coil sample"]:
    return np.array(stored, dtype=np.float32).view(np.complex64).reshape(num_coils, -1)
