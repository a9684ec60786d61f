"""Makes torchvision importable beside a torch that its compiled part does not fit.

timm and torchmetrics import torchvision. PyPI has it built for CUDA only: on a torch for the CPU its library does not
load, and the import then fails at operators that are not there. Nothing of ours calls them; declaring them is enough.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import torch

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache
def make_torchvision_importable() -> torch.library.Library | None:
    """Declare the operators that the import asks for, where torchvision's own library does not load.

    Called before timm is imported. Returns what keeps the declarations alive, or None where there was nothing to do.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or _loads(Path(found.origin).parent):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in OPERATORS:
        library.define(operator)
    return library


def _loads(package: Path) -> bool:
    for extension in package.glob("_C*.so"):
        try:
            torch.ops.load_library(extension)
        except OSError:
            return False
    return True
