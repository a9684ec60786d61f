"""Twix files as a scanner of Siemens writes them, made by the package twixtools."""

import struct
from pathlib import Path

import numpy as np

DWELL_NS = {"noise": 4000, "image": 2000}
PROTOCOL = """### ASCCONV BEGIN ###
tProtocolName\t = \t"{name}"
sKSpace.lBaseResolution\t = \t{base}
sKSpace.lPhaseEncodingLines\t = \t{width}
sKSpace.ucDimension\t = \t{dimension}
sKSpace.ucTrajectory\t = \t1
sRXSPEC.alDwellTime[0]\t = \t{dwell}
sSliceArray.asSlice[0].dReadoutFOV\t = \t240.0
sSliceArray.asSlice[0].dPhaseFOV\t = \t180.0
sSliceArray.asSlice[0].dThickness\t = \t5.0
### ASCCONV END ###
"""


def header(**settings):
    """Return the header of a measurement: its length, one buffer, and that."""
    settings = {"name": "t2_tse_tra", "base": 30, "width": 24, "dimension": 2, "dwell": DWELL_NS["image"]} | settings
    text = PROTOCOL.format(**settings).encode() + b"\0"
    buffer = b"MeasYaps\0" + struct.pack("<I", len(text)) + text
    length = 8 + len(buffer)
    length += -length % 32
    return np.frombuffer((struct.pack("<II", length, 1) + buffer).ljust(length, b"\0"), dtype="S1")


def line(values, *flags, column=0, slice_=0, centre=None, **counters):
    """Return one line of all coils, `[coil, sample]`."""
    from twixtools.mdb import Mdb_local

    made = Mdb_local(np.asarray(values))
    made.mdh.Counter.Lin, made.mdh.Counter.Sli = column, slice_
    for name, number in counters.items():
        setattr(made.mdh.Counter, name, number)
    made.mdh.CenterLin, made.mdh.CenterCol = 12, values.shape[1] // 2 if centre is None else centre
    made.mdh.SliceData.Quaternion[:] = [1, 0, 0, 0]
    made.mdh.SliceData.SlicePos.Sag, made.mdh.SliceData.SlicePos.Tra = 3.0, 10.0 * slice_
    for flag in flags:
        made.add_flag(flag)
    return made


def image_lines(kspace, *, sampled=None, **settings):
    """Return the lines of `[slice, coil, sample, column]`."""
    columns = range(kspace.shape[-1]) if sampled is None else np.flatnonzero(sampled)
    return [
        line(kspace[index, :, :, column], "ONLINE", column=int(column), slice_=index, **settings)
        for index in range(len(kspace))
        for column in columns
    ]


def write_twix(path: Path, lines, *, noise=None, **settings) -> Path:
    """Write a file of one measurement, and of a noise scan before it where `noise`, `[coil, sample]`, is given."""
    import twixtools

    scans = [{"mdb": list(lines), "hdr_str": header(**settings)}]
    if noise is not None:
        adjustment = [line(noise, "NOISEADJSCAN")]
        scans.insert(0, {"mdb": adjustment, "hdr_str": header(dwell=DWELL_NS["noise"])})
    twixtools.write_twix(scans, str(path))
    return path
