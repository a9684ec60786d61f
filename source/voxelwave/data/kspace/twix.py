"""Siemens' twix files (.dat) of software VD, VE and XA: two-dimensional Cartesian lines, put in their places."""

from __future__ import annotations

import io
import math
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Complex64
from numpy import ndarray

from voxelwave.data.kspace.hdf5 import MOST_COILS, check_size
from voxelwave.data.kspace.info import KspaceInfo, SlicePlace, as_they_lie, vector
from voxelwave.data.kspace.lines import check_noise, dwell_time_ratio, measured_columns, put_in_places
from voxelwave.data.reading.unreadable import as_unusable, extra
from voxelwave.errors import DamagedVolume, UnusableVolume

SUFFIX = ".dat"
# A file begins with a kind below the one and a number of measurements up to the other; older software has a length.
KINDS_BELOW, MOST_SCANS = 10_000, 64
MOST_LINES, MOST_SIDE = 2**20, 2**14
LINE_HEADER, COIL_HEADER = 192, 32  # bytes
CARTESIAN, TWO_DIMENSIONAL = 1, 2  # of the protocol
# Counters that have to be the same for all lines of one volume.
ONE_VOLUME = {"Par": "partition", "Eco": "echo", "Phs": "phase", "Rep": "repetition", "Set": "set"}
LINE = np.dtype(
    [(name, np.int64) for name in ("place", "samples", "coils", "column", "slice", "centre", "before", "after")]
    + [(name, np.int64) for name in ONE_VOLUME]
)


def is_twix(path: Path) -> bool:
    """Tell whether a file begins as twix of this software does."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError:
        return False
    start = np.frombuffer(head if len(head) == 8 else b"", dtype="<u4")
    return len(start) == 2 and int(start[0]) < KINDS_BELOW and 0 < int(start[1]) <= MOST_SCANS


class TwixSource:
    """The k-space of the last measurement of a file: averages averaged, read-out oversampling removed, the rest 0.

    Headers are parsed by the package twixtools, once; lines are read when they are asked for.
    """

    def __init__(self, path: Path, *, most_values: int) -> None:
        self.path = path
        library = extra("twixtools", kind="Siemens' twix files", name="twix")
        with as_unusable(path), redirect_stdout(io.StringIO()):  # it prints what is odd
            _check_whole(path, library)
            scans = library.read_twix(
                str(path), parse_pmu=False, parse_geometry=False, verbose=False, keep_syncdata=False
            )
            self._protocol = scans[-1]["hdr"]["MeasYaps"]
            # 1. What is of the image, and what is noise, which may be of a measurement before.
            image = [line for line in scans[-1]["mdb"] if line.is_image_scan()]
            noise = [(scan, line) for scan in scans for line in scan["mdb"] if line.is_flag_set("NOISEADJSCAN")]
            if not image:
                raise UnusableVolume("holds noise scans only" if noise else "holds no lines of an image")
            self._lines, self._noise = _table(image), _table([line for _, line in noise])
            self._check(image)
            # 2. Where each line goes.
            space = self._protocol["sKSpace"]
            base, self._width = int(space["lBaseResolution"]), int(space["lPhaseEncodingLines"])
            self._place_lines(base, int(image[0].mdh.CenterLin), most_values)
            self._notes: list[str] = []
            ratio = self._dwell_time_ratio([scan for scan, _ in noise])
            self.info = self._info(base, ratio, image, library)

    def read(self, start: int, stop: int) -> Complex64[ndarray, "slice coil height width"]:
        """Return the k-space of slices `start` to `stop`, without the latter."""
        chosen = np.flatnonzero((self._slice_of >= start) & (self._slice_of < stop))
        lines = zip(
            self._slice_of[chosen] - start, self._column[chosen], self._read_lines(self._lines[chosen]), strict=True
        )
        encoded = stop - start, self.info.num_coils, self._encoded, self._width
        return put_in_places(lines, encoded, first=self._first, height=self.info.size[0])

    def image(self, name: str, index: int) -> ndarray:
        """A twix file is read for its k-space alone."""
        raise UnusableVolume(f"has no '{name}': of a twix file the k-space alone is read")

    def noise(self) -> Complex64[ndarray, "coil sample"]:
        """Return what the noise scan measured, all its lines one behind the other."""
        check_noise(self._noise["coils"].tolist(), self.info.num_coils)
        return np.concatenate(self._read_lines(self._noise), axis=1)

    def _read_lines(self, lines: ndarray) -> list[Complex64[ndarray, "coil sample"]]:
        found = list[ndarray]()
        with as_unusable(self.path), self.path.open("rb") as stream:
            for line in lines:
                samples, coils = int(line["samples"]), int(line["coils"])
                entry = np.dtype([("header", f"V{COIL_HEADER}"), ("values", "<c8", (samples,))])
                stream.seek(int(line["place"]) + LINE_HEADER)
                held = stream.read(coils * entry.itemsize)
                if len(held) < coils * entry.itemsize:
                    raise DamagedVolume("cut short: copy it again")
                values = np.array(np.frombuffer(held, dtype=entry)["values"], dtype=np.complex64)
                values[:, : line["before"]] = 0
                values[:, samples - line["after"] :] = 0
                found.append(values)
        return found

    def _check(self, image: list[Any]) -> None:
        """Raise UnusableVolume for lines that are not those of one two-dimensional Cartesian volume of one size."""
        space = self._protocol["sKSpace"]
        if space.get("ucTrajectory", CARTESIAN) != CARTESIAN:
            raise UnusableVolume(f"its trajectory is number {space['ucTrajectory']}, a Cartesian one is needed")
        if space.get("ucDimension", TWO_DIMENSIONAL) != TWO_DIMENSIONAL:
            raise UnusableVolume("its encoding is three-dimensional, a two-dimensional one is needed")
        if any(line.is_flag_set("REFLECT") for line in image):
            raise UnusableVolume("has lines that were measured backwards, which need a correction of their phase first")
        for counter, thing in ONE_VOLUME.items():
            if len(found := np.unique(self._lines[counter])) > 1:
                raise UnusableVolume(f"holds {len(found)} values of its counter {counter} ({thing}): split it")
        for name, thing in (("samples", "lines of differing size"), ("coils", "differing coil counts")):
            if len(found := np.unique(self._lines[name])) > 1:
                raise UnusableVolume(f"has {thing}: {', '.join(map(str, found[:4]))}")
        if not 0 < self._lines["coils"][0] <= MOST_COILS or len(image) > MOST_LINES:
            raise UnusableVolume(f"claims {len(image)} lines of {self._lines['coils'][0]} coils")

    def _place_lines(self, base: int, centre_line: int, most_values: int) -> None:
        samples, centres = int(self._lines["samples"][0]), np.unique(self._lines["centre"])
        # A partial echo has less samples than were encoded, and its centre nearer to its beginning.
        self._encoded = base * max(1, -(-samples // base)) if base > 0 else 0
        self._first = self._encoded // 2 - int(centres[0])
        if len(centres) > 1 or self._first < 0 or self._first + samples > self._encoded:
            raise UnusableVolume(
                f"its lines, {samples} samples around sample {', '.join(map(str, centres[:4]))}, do not fit into "
                f"{self._encoded}"
            )
        slices, self._slice_of = np.unique(self._lines["slice"], return_inverse=True)
        self._column = self._lines["column"] - centre_line + self._width // 2
        if not 0 < self._width <= MOST_SIDE or self._column.min() < 0 or self._column.max() >= self._width:
            raise UnusableVolume(
                f"its lines {self._lines['column'].min()} to {self._lines['column'].max()}, with line {centre_line} at "
                f"the centre, do not fit into the {self._width} of its protocol"
            )
        shape = (len(slices), int(self._lines["coils"][0]), self._encoded, self._width)
        check_size("lines", shape, most_values=most_values)

    def _info(self, base: int, ratio: float | None, image: list[Any], library: ModuleType) -> KspaceInfo:
        num_slices = int(self._slice_of.max()) + 1
        places, self._slice_of = as_they_lie(self._places(image, num_slices, library), self._slice_of, self._notes)
        columns = measured_columns(self._slice_of, self._column, num_slices=num_slices, width=self._width)
        if (samples := int(self._lines["samples"][0])) < self._encoded:
            self._notes.append(f"partial echo: {samples} of {self._encoded} samples of a line, the others are 0")
        space, first = self._protocol["sKSpace"], self._protocol.get("sSliceArray", {}).get("asSlice", [{}])[0]
        larger = 1 + float(space.get("dPhaseOversamplingForDialog", 0))
        sides = tuple(float(first.get(name, math.nan)) for name in ("dReadoutFOV", "dPhaseFOV", "dThickness"))
        known = all(0 < side < math.inf for side in sides)
        return KspaceInfo(
            layout="twix",
            num_slices=num_slices,
            num_coils=int(self._lines["coils"][0]),
            size=(base, self._width),
            measured_columns=columns.measured,
            acquisition=str(self._protocol.get("tProtocolName", "")).strip('"')[:200],
            sampled=columns.sampled,
            image_size=(base, self._width) if known else None,
            field_of_view_mm=(sides[0], sides[1] * larger, sides[2]) if known else None,
            places=places,
            dwell_time_ratio=ratio,
            notes=(*self._notes, *columns.notes),
        )

    def _places(self, image: list[Any], num_slices: int, library: ModuleType) -> tuple[SlicePlace, ...]:
        firsts = [image[int(np.flatnonzero(self._slice_of == number)[0])] for number in range(num_slices)]
        places = []
        for line in firsts:
            turned, position = line.mdh.SliceData.Quaternion, line.mdh.SliceData.SlicePos
            if not 0.99 < float(np.linalg.norm(turned)) < 1.01:
                self._notes.append("its lines do not say where they lie")
                return ()
            # Phase encoding, read-out and normal as columns; the first two lead the other way, as twixtools has it.
            phase, readout, normal = (library.geometry.quat_to_rotmat(*turned) * np.array([-1, -1, 1])).T
            where = (float(position.Sag), float(position.Cor), float(position.Tra))
            places.append(SlicePlace(where, vector(readout), vector(phase), vector(normal)))
        return tuple(places)

    def _dwell_time_ratio(self, of_noise: list[Any]) -> float | None:
        if not of_noise:
            return None
        of_noise_and_image = (of_noise[0]["hdr"].get("MeasYaps", {}), self._protocol)
        times = [float(one.get("sRXSPEC", {}).get("alDwellTime", [0])[0]) for one in of_noise_and_image]
        return dwell_time_ratio(times[0], times[1], self._notes)


def _check_whole(path: Path, library: ModuleType) -> None:
    """Raise DamagedVolume where a measurement ends beyond the file."""
    head = np.fromfile(path, dtype=library.hdr_def.MultiRaidFileHeader, count=1)
    size = path.stat().st_size
    ends = [] if not len(head) else [int(one["off_"]) + int(one["len_"]) for one in head[0]["entry"]]
    if not ends or max(ends) > size:
        raise DamagedVolume(f"cut short: {size} of {max(ends, default=10_240)} bytes are there; copy it again")


def _table(lines: list[Any]) -> ndarray:
    """Return where lines lie in the file, and what their headers say."""
    rows = [
        (
            *(line.mem_pos, line.mdh.SamplesInScan, line.mdh.UsedChannels, line.mdh.Counter.Lin),
            *(line.mdh.Counter.Sli, line.mdh.CenterCol, line.mdh.CutOff.Pre, line.mdh.CutOff.Post),
            *(getattr(line.mdh.Counter, name) for name in ONE_VOLUME),
        )
        for line in lines
    ]
    return np.array(rows, dtype=LINE)
