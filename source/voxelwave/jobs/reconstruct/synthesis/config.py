"""Which k-space is made for who has none: `data.synthesize` of a configuration, options of a command."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from voxelwave.jobs.common.config import Share
from voxelwave.jobs.common.magnitude_images import MagnitudeConfig

MOST_COILS = 256


class SynthesisConfig(MagnitudeConfig):
    """Images, and the scanner that is to have measured them.

    `noise` is the standard deviation of the complex noise of a coil relative to the brightest pixel. Files of the
    `layout` challenge hold whole k-space and a mask that samples every `acceleration`-th line; of the other layouts
    they are whole, or `undersampled` by that mask. `anatomy` is what files are named after.
    """

    layout: Literal["challenge", "fastmri", "mrd"] = "challenge"
    anatomy: Literal["", "brain", "knee"] = ""
    coils: Annotated[int, Field(ge=1, le=MOST_COILS)] = 8
    noise: Annotated[float, Field(ge=0, le=1)] = 0.005
    oversampling: Annotated[int, Field(ge=1, le=4)] = 1
    acceleration: PositiveInt = 4
    center_fraction: Share = 0.08
    undersampled: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> SynthesisConfig:
        if self.undersampled and self.layout == "challenge":
            raise ValueError("undersampled files are of the layouts fastmri and mrd: one of the challenge is whole")
        return self
