"""The normal operator of an acquisition, Aᴴ M A: what is left of an image after it was sampled."""

from __future__ import annotations

from functools import reduce

import torch
from jaxtyping import Bool, Complex
from torch import Tensor

from voxelwave.physics.acquisition import combine, expand
from voxelwave.unrolled.zero_filled import coil_groups


class NormalOperator:
    """`MultiCoilAcquisition.forward` and then its `adjoint`, for the same places in all slices.

    Of whole lines, `[batch, width]`, it needs transforms along the width alone: those along the height cancel, as do
    the shifts that centre the image. Without a gradient, what it takes in memory beside the maps is that of
    `coils_at_once`, None for all.

    Raises as `coil_groups` does.
    """

    def __init__(
        self,
        maps: Complex[Tensor, "batch slice coil height width"],
        sampled: Bool[Tensor, "batch ... width"],
        *,
        coils_at_once: int | None = None,
    ) -> None:
        self.maps = maps
        self.groups = coil_groups(maps.shape[2], coils_at_once)
        self.axes = (-1,) if sampled.ndim == 2 else (-2, -1)
        lines = sampled[:, None] if sampled.ndim == 2 else sampled
        # A factor, and no choice: what is multiplied is made of images, and finite where they are.
        self.kept = torch.fft.ifftshift(lines, dim=self.axes)[:, None, None].to(maps.real.dtype)
        self._conjugates: Tensor | None = None

    def __call__(
        self, image: Complex[Tensor, "batch slice height width"]
    ) -> Complex[Tensor, "batch slice height width"]:
        """Return `image` as its sampled places show it."""
        if len(self.groups) > 1:
            parts = (self.maps[:, :, group] for group in self.groups)
            total: Tensor = reduce(torch.add, (combine(self._seen(image, maps), maps) for maps in parts))
            return total
        seen = self._seen(image, self.maps)
        if torch.is_grad_enabled():
            return combine(seen, self.maps)
        # Without a gradient nothing has to be kept, and passes over all coils are what this takes its time for.
        if self._conjugates is None:
            self._conjugates = self.maps.conj().resolve_conj()
        result: Tensor = seen.mul_(self._conjugates).sum(-3)
        return result

    def _seen(self, image: Tensor, maps: Tensor) -> Tensor:
        kspace = torch.fft.fftn(expand(image, maps), dim=self.axes).mul_(self.kept)
        seen: Tensor = torch.fft.ifftn(kspace, dim=self.axes)
        return seen
