"""The tissues that a label map of a head tells apart."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from jaxtyping import UInt8

Labels = UInt8[np.ndarray, "depth height width"]


class Tissue(IntEnum):
    """The values of a label map."""

    AIR = 0
    SCALP = 1
    MUSCLE = 2
    SKULL = 3
    DIPLOE = 4
    CSF = 5
    GREY_MATTER = 6
    WHITE_MATTER = 7
    DEEP_GREY = 8
    VENTRICLE = 9
    CEREBELLUM = 10
    BRAIN_STEM = 11
    EYE = 12
    VESSEL = 13
    ANEURYSM = 14
    ISCHAEMIA = 15
    TUMOUR = 16
    OEDEMA = 17
    HAEMORRHAGE = 18


PARENCHYMA = (
    Tissue.GREY_MATTER,
    Tissue.WHITE_MATTER,
    Tissue.DEEP_GREY,
    Tissue.CEREBELLUM,
    Tissue.BRAIN_STEM,
)

LESIONS = (Tissue.ISCHAEMIA, Tissue.TUMOUR, Tissue.OEDEMA, Tissue.HAEMORRHAGE)
