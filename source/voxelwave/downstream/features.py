"""Features of several depths of a backbone, and where its weights came from: what downstream models are built on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from voxelwave.errors import InputError

MAX_LEVELS = 4


@dataclass(frozen=True)
class LoadReport:
    """What became of every key of the file and of the backbone.

    Attributes:
        source: the file that was read.
        loaded: as they are in the file.
        adapted: changed on the way, or begun anew as asked; each with how.
        missing: of the backbone, not in the file: they keep their random initial values.
        unexpected: of the file, not of the backbone, or there of another shape.
        left_out: of the file, not asked for; each with why.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """The checksum of the file that was read."""
        return hashlib.sha256(Path(self.source).read_bytes()).hexdigest()

    def __str__(self) -> str:
        counts = [f"{len(of)} {name.replace('_', ' ')}" for name, of in asdict(self).items() if name != "source" and of]
        adapted = "".join(f"; {key}: {how}" for key, how in self.adapted.items())
        return f"{self.source}: {', '.join(counts)}{adapted}"


class FeaturePyramid(nn.Module):
    """A backbone that returns the feature grids of several depths, each through its last norm.

    Attributes:
        depths: after which blocks; a copy of the backbone without those above the last of them is kept.
        channels, strides: of each level. Blocks keep the grid: every stride is the patch size.
        report: what loading did with every key; None for a backbone that was not loaded.
        description: architecture, preprocessing, data, as in `backbone.json`.

    Raises InputError for depths that do not rise, or lie outside the backbone.
    """

    def __init__(
        self,
        backbone: Any,
        *,
        depths: Sequence[int] | None = None,
        report: LoadReport | None = None,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        depths = _spread(backbone.depth) if depths is None else tuple(depths)
        if not depths or list(depths) != sorted(set(depths)) or depths[0] < 0 or not 1 <= depths[-1] <= backbone.depth:
            raise InputError(f"depths rise within 0…{backbone.depth}, and one is above 0; got {list(depths)}")
        if depths[-1] < backbone.depth:
            backbone = deepcopy(backbone)
            del backbone.blocks[depths[-1] :]
            backbone.depth = depths[-1]
        self.backbone = backbone
        self.depths = tuple(depths)
        self.in_channels: tuple[int, ...] = backbone.in_channels
        self.channels = (backbone.channels,) * len(depths)
        self.strides = (backbone.patch_size,) * len(depths)
        self.report = report
        self.description = dict(description or {})

    def forward(
        self, volume: Float[Tensor, "batch channel depth height width"]
    ) -> list[Float[Tensor, "batch embed d h w"]]:
        """Return one grid for each of `depths`.

        Raises ValueError for another channel count or a side that the patch does not divide.
        """
        final, inner = self.backbone.forward_intermediates(volume, None, self.depths[:-1])
        return [*(self.backbone.norm(grid.movedim(1, -1)).movedim(-1, 1) for grid in inner), final]


def _spread(depth: int) -> tuple[int, ...]:
    levels = min(MAX_LEVELS, depth)
    return tuple(round(depth * (level + 1) / levels) for level in range(levels))
