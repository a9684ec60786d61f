"""Which k-space is made for who has none: `data.synthesize` of a configuration, options of a command."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from voxelwave.data.kspace.hdf5 import MOST_SLICES
from voxelwave.jobs.common.config import Section, Share

HEADS, PHANTOMS = "heads", "phantoms"
GENERATED = (HEADS, PHANTOMS)
SMALLEST_SIDE, LARGEST_SIDE = 32, 512
MOST_COILS = 256


class SynthesisConfig(Section):
    """Images, and the scanner that is to have measured them.

    `source` is "heads", "phantoms", or a path: scans that `voxelwave prepare` reads, as a file, a folder or a glob, or
    a stack of images as .npy or .npz. There are `volumes` volumes of `slices` slices, fewer where the path holds no
    more. Images fill a square of `size` pixels; null keeps those of a path as they are. `noise` is the standard
    deviation of the complex noise of a coil relative to the brightest pixel. Files of the `layout` challenge hold whole
    k-space and a mask that samples every `acceleration`-th line; of the other layouts they are whole, or `undersampled`
    by that mask. `anatomy` is what files are named after.
    """

    source: Annotated[str, Field(min_length=1)] = HEADS
    layout: Literal["challenge", "fastmri", "mrd"] = "challenge"
    anatomy: Literal["", "brain", "knee"] = ""
    volumes: PositiveInt = 16
    slices: Annotated[int, Field(ge=1, le=MOST_SLICES)] = 4
    size: Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE)] | None = 128
    coils: Annotated[int, Field(ge=1, le=MOST_COILS)] = 8
    noise: Annotated[float, Field(ge=0, le=1)] = 0.005
    oversampling: Annotated[int, Field(ge=1, le=4)] = 1
    acceleration: PositiveInt = 4
    center_fraction: Share = 0.08
    undersampled: bool = False
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _fits_together(self) -> SynthesisConfig:
        if self.undersampled and self.layout == "challenge":
            raise ValueError("undersampled files are of the layouts fastmri and mrd: one of the challenge is whole")
        if self.size is None and self.source in GENERATED:
            raise ValueError(f"size is needed for generated {self.source}: only the images of files have one")
        return self
