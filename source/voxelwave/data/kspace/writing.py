"""Writes k-space in the layouts that `files` reads: fastMRI's, the challenge's, and ISMRMRD."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

import h5py
import numpy as np
from jaxtyping import Bool, Complex64
from torch import Tensor

from voxelwave.data.kspace.info import Vector
from voxelwave.data.kspace.mrd.raw_header import RawHeader
from voxelwave.data.kspace.mrd.records import ACQUISITION, DATA, GROUP, HEAD, NOISE, VERSION, XML
from voxelwave.data.kspace.synthesis import target_of, zero_filled
from voxelwave.ops.files import replacing

Kspace = Complex64[Tensor, "slice coil height width"]
Lines = Bool[Tensor, " width"]

Directions = tuple[Vector, Vector, Vector]

LEFT, POSTERIOR, SUPERIOR = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
SAMPLE_TIME_US = 10.0
NAMESPACE = "http://www.ismrm.org/ISMRMRD"


def write_fastmri(
    path: Path,
    kspace: Kspace,
    header: RawHeader,
    sampled: Lines | None = None,
    *,
    acquisition: str = "SYNTHETIC",
    single_coil: bool = False,
) -> None:
    """Write a file of fastMRI: with targets, or with a mask in their place where `sampled` is given, as for a test.

    The size of the targets is that of the header's image. Of a single-coil file `kspace` has one coil.
    Raises OSError where the disk does not take it.
    """
    if single_coil and kspace.shape[1] != 1:
        raise ValueError(f"a single-coil file has one coil, got {kspace.shape[1]}")
    measured = kspace if sampled is None else kspace * sampled
    target = target_of(kspace, header.recon_size[:2]).numpy()
    with replacing(path) as part, h5py.File(part, "w") as file:
        file["kspace"] = (measured[:, 0] if single_coil else measured).numpy()
        file["ismrmrd_header"] = header_text(header)
        file.attrs["acquisition"] = acquisition
        if sampled is None:
            file["reconstruction_esc" if single_coil else "reconstruction_rss"] = target
            file.attrs["max"] = float(target.max())
        else:
            file["mask"] = sampled.numpy()


def write_challenge(folder: Path, name: str, kspace: Kspace, sampled: Lines, *, size: tuple[int, int]) -> None:
    """Write `folder/kspace/name` and `folder/image/name`: all of the k-space with a mask, and its images.

    `image_grappa` holds the zero-filled image, as `image_input` does: nothing else is at hand.
    Raises OSError where the disk does not take it.
    """
    target, filled = target_of(kspace, size).numpy(), zero_filled(kspace, sampled, size).numpy()
    for kind in ("kspace", "image"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    with replacing(folder / "kspace" / name) as part, h5py.File(part, "w") as file:
        file["kspace"], file["mask"] = kspace.numpy(), sampled.numpy().astype(np.float32)
    with replacing(folder / "image" / name) as part, h5py.File(part, "w") as file:
        file["image_label"], file["image_input"], file["image_grappa"] = target, filled, filled
        file.attrs["max"] = float(target.max())


def write_mrd(
    path: Path,
    kspace: Kspace,
    header: RawHeader,
    sampled: Lines | None = None,
    noise: Complex64[Tensor, "coil sample"] | None = None,
    *,
    directions: Directions = (LEFT, POSTERIOR, SUPERIOR),
) -> None:
    """Write an ISMRMRD file: a noise scan, where one is given, and the sampled lines of each slice.

    `directions` say where rows, columns and slices lead; a slice is as thick as the header's encoded field of view.
    Raises OSError where the disk does not take it.
    """
    lines = np.arange(kspace.shape[-1]) if sampled is None else sampled.nonzero()[:, 0].numpy()
    records = [] if noise is None else [_record(noise, _head(header, directions, flags=1 << (NOISE - 1)))]
    for number, volume in enumerate(kspace):
        for line in lines.tolist():
            step = line - header.encoded_size[1] // 2 + header.center_line
            head = _head(header, directions, slice_number=number, step=step)
            records.append(_record(volume[:, :, line], head))
    with replacing(path) as part, h5py.File(part, "w") as file:
        group = file.create_group(GROUP)
        group.create_dataset(XML, data=[header_text(header).encode()], dtype=h5py.string_dtype())
        group.create_dataset(DATA, data=np.array(records, dtype=ACQUISITION), maxshape=(None,), chunks=(64,))


def plain_header(
    kspace: Kspace,
    *,
    oversampling: int = 1,
    protocol: str = "synthetic",
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 5.0),
) -> RawHeader:
    """Return the header of a k-space of which all columns were measured.

    `spacing_mm` is that of rows, of columns and of slices.
    """
    row, column, gap = spacing_mm
    height, width = kspace.shape[-2:]
    rows = height // oversampling
    return RawHeader(
        encoded_size=(height, width, 1),
        recon_size=(rows, width, 1),
        encoded_fov_mm=(height * row, width * column, gap),
        recon_fov_mm=(rows * row, width * column, gap),
        first_line=0,
        last_line=width - 1,
        center_line=width // 2,
        protocol=protocol,
    )


def header_text(header: RawHeader) -> str:
    """Return the XML that `raw_header.parse_raw_header` reads, with all that ISMRMRD's schema demands."""
    spaces = "".join(
        f"<{name}><matrixSize>{_axes(size)}</matrixSize><fieldOfView_mm>{_axes(extent)}</fieldOfView_mm></{name}>"
        for name, size, extent in (
            ("encodedSpace", header.encoded_size, header.encoded_fov_mm),
            ("reconSpace", header.recon_size, header.recon_fov_mm),
        )
    )
    limits = (
        f"<minimum>{header.first_line}</minimum><maximum>{header.last_line}</maximum>"
        f"<center>{header.center_line}</center>"
    )
    calibration = (
        "<parallelImaging><accelerationFactor><kspace_encoding_step_1>1</kspace_encoding_step_1>"
        "<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>"
        f"<calibrationMode>{escape(header.calibration)}</calibrationMode></parallelImaging>"
        if header.calibration
        else ""
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?><ismrmrdHeader xmlns="{NAMESPACE}">'
        f"<measurementInformation><patientPosition>HFS</patientPosition><protocolName>{escape(header.protocol)}"
        "</protocolName></measurementInformation>"
        "<experimentalConditions><H1resonanceFrequency_Hz>128000000</H1resonanceFrequency_Hz></experimentalConditions>"
        f"<encoding>{spaces}<encodingLimits><kspace_encoding_step_1>{limits}</kspace_encoding_step_1></encodingLimits>"
        f"<trajectory>{escape(header.trajectory)}</trajectory>{calibration}</encoding></ismrmrdHeader>"
    )


def _axes(values: tuple[float, float, float]) -> str:
    return "".join(f"<{axis}>{value}</{axis}>" for axis, value in zip("xyz", values, strict=True))


def _head(
    header: RawHeader, directions: Directions, *, slice_number: int = 0, step: int = 0, flags: int = 0
) -> np.ndarray:
    """Return the head of a line of the image, of which the values say the size; of a noise scan it is as good."""
    head = np.zeros((), dtype=HEAD)
    head["version"], head["flags"], head["sample_time_us"] = VERSION, flags, SAMPLE_TIME_US
    head["read_dir"], head["phase_dir"], head["slice_dir"] = directions
    head["position"] = np.multiply(header.encoded_fov_mm[2] * slice_number, directions[2])
    head["idx"]["kspace_encode_step_1"], head["idx"]["slice"] = step, slice_number
    return head


def _record(values: Complex64[Tensor, "coil sample"], head: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return one acquisition."""
    coils, samples = values.shape
    head["number_of_samples"], head["available_channels"], head["active_channels"] = samples, coils, coils
    head["center_sample"] = samples // 2
    stored = np.ascontiguousarray(values.numpy()).view(np.float32).ravel()
    return head, np.zeros(0, dtype=np.float32), stored
