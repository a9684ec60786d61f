"""Shapes of networks that take milliseconds."""

from dataclasses import replace

from voxelwave.unrolled.prompt_unet import Level, UnetShape
from voxelwave.unrolled.promptmr_plus import PromptMRPlus
from voxelwave.unrolled.sensitivity import SensitivityShape

TINY = UnetShape(first_channels=4, levels=(Level(4, 2, 4, 1, 1), Level(6, 2, 3, 1, 1), Level(8, 2, 2, 1, 1)))
TINY_SENSITIVITY = SensitivityShape(unet=TINY, per_coil=False)


def tiny_promptmr(*, unet: dict | None = None, sensitivity: dict | None = None, **settings) -> PromptMRPlus:
    """PromptMR+ of two cascades; keywords change the shapes, or the network."""
    return PromptMRPlus(
        **{
            "num_cascades": 2,
            "unet": replace(TINY, **(unet or {})),
            "sensitivity": replace(TINY_SENSITIVITY, **(sensitivity or {})),
            **settings,
        }
    )
