"""Reconstruction learned without ground truth: a network sees some of the samples and is asked for the others."""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from voxelwave.contracts import NumLines, StepOutput
from voxelwave.errors import InputError
from voxelwave.physics.acquisition import sample
from voxelwave.physics.fourier import fft2c
from voxelwave.physics.sampled_lines import center_lines, lines_of, sampled_places
from voxelwave.registry import RECONSTRUCTION_OBJECTIVES

Sampled = Bool[Tensor, "batch ... width"]
Measured = Complex[Tensor, "batch coil height width"]


@runtime_checkable
class CoilReconstruction(Protocol):
    """A `Reconstruction` that also tells what each coil would see; `unrolled.promptmr_plus` has such networks."""

    def coil_images(
        self,
        kspace: Complex[Tensor, "batch slice coil height width"],
        sampled: Sampled,
        num_low_frequencies: NumLines = None,
    ) -> Measured:
        """Return the centre slice as each coil sees it; the arguments are those of a `Reconstruction`."""
        ...


@runtime_checkable
class MeasuredSlices(Protocol):
    """What the objective reads of a batch."""

    @property
    def kspace(self) -> Complex[Tensor, "batch slice coil height width"]:
        """Adjacent slices; what is not sampled is not read."""
        ...

    @property
    def sampled(self) -> Sampled:
        """Which lines, `[batch, width]`, or which places, `[batch, height, width]`, were measured."""
        ...


def normalised_errors(
    predicted: Measured, measured: Measured, counted: Bool[Tensor, "batch height width"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Return ‖predicted − measured‖ / ‖measured‖ of each sample in l1 and in l2, over all coils' `counted` places.

    What is not counted is not read. Where all that was measured is 0, the error is not divided.
    """
    difference, reference = sample(predicted - measured, counted), sample(measured, counted)

    def ratio(order: int) -> Tensor:
        error, size = (torch.linalg.vector_norm(of.abs().flatten(1), order, 1) for of in (difference, reference))
        normalised: Tensor = error / torch.where(size > 0, size, 1)
        return normalised

    return ratio(1), ratio(2)


@RECONSTRUCTION_OBJECTIVES.register("self_supervised")
class SelfSupervisedReconstruction(nn.Module):
    """Withhold some of the samples of each slice, and compare what the network predicts for them, in all coils.

    The loss is the normalised l1 plus the normalised l2 error of the withheld k-space of the centre slice. Every call
    splits the samples anew, so that there are as many masks of a scan as there are steps; trained on one scan alone, it
    is scan-specific learning.

    Args:
        withheld_share: of the samples of a slice; the number is exact to half a sample.
        unit: withhold single places, or whole lines where whole lines are sampled.
        spread: deviation of the Gaussian by which low frequencies are withheld more often, as a share of each side;
            None withholds all alike.
        kept_center: side of the block around the origin, or number of lines there, that is never withheld. A network
            that makes maps of the centre has to find enough of it: with lines, keep more than the paper's 4.

    Raises ValueError for settings out of range, and for a network that makes no images of single coils.
    Sources: Yaman et al., Self-supervised learning of physics-guided reconstruction neural networks without fully
    sampled reference data, 2020, the loss and the Gaussian choice of Λ; Multi-mask self-supervised learning, 2022,
    several masks of a scan; Zero-shot self-supervised learning, 2022, one scan.
    """

    needs_target: ClassVar = False

    def __init__(
        self,
        network: nn.Module,
        *,
        withheld_share: float = 0.4,
        unit: Literal["places", "lines"] = "places",
        spread: float | None = 0.25,
        kept_center: int = 4,
    ) -> None:
        super().__init__()
        if not isinstance(network, CoilReconstruction):
            raise ValueError(
                f"a {type(network).__name__} does not tell what each coil sees: take promptmr_plus or "
                "variational_network"
            )
        if not 0 < withheld_share < 1:
            raise ValueError(f"withheld_share must lie between 0 and 1, got {withheld_share}")
        if spread is not None and spread <= 0:
            raise ValueError(f"spread must be above 0, or None, got {spread}")
        if kept_center < 0:
            raise ValueError(f"kept_center must be at least 0, got {kept_center}")
        if unit not in ("places", "lines"):
            raise ValueError(f"unit is places or lines, got {unit}")
        self.network: CoilReconstruction = network
        self.withheld_share, self.unit, self.spread, self.kept_center = withheld_share, unit, spread, kept_center

    def forward(self, batch: MeasuredSlices, generator: torch.Generator) -> StepOutput:
        """Return the loss of one batch; `generator` (CPU) draws what is withheld.

        Logs: loss, l1, l2. Raises as `split` does.
        """
        kspace, sampled = batch.kspace, batch.sampled
        height = kspace.shape[-2]
        # 1. What the network does not see is 0 in what it gets, of all slices.
        seen, withheld = self.split(sampled, height, generator)
        visible = sample(kspace, sampled_places(seen, height)[:, None])
        # 2. It is told the centre of the whole scan, so that it makes its maps as it will of all samples.
        images = self.network.coil_images(visible, seen, center_lines(sampled))
        # 3. Compare the centre slice where it was withheld.
        measured = kspace[:, kspace.shape[1] // 2]
        l1, l2 = (
            error.mean() for error in normalised_errors(fft2c(images), measured, sampled_places(withheld, height))
        )
        loss = l1 + l2
        return StepOutput(loss, {"loss": loss.detach(), "l1": l1.detach(), "l2": l2.detach()})

    def split(
        self, sampled: Sampled, height: int, generator: torch.Generator
    ) -> tuple[Bool[Tensor, "batch ... width"], Bool[Tensor, "batch ... width"]]:
        """Return what is seen and what is withheld of each sample: lines, `[batch, width]`, or places.

        Raises ValueError where lines are to be withheld of single places, and InputError where too little was sampled.
        """
        if self.unit == "places":
            sampled = sampled_places(sampled, height)
        elif sampled.ndim == 3:
            sampled = torch.stack([lines_of(one) for one in sampled])
        withheld = torch.stack([self._withheld(one.cpu(), generator) for one in sampled]).to(sampled.device)
        return sampled & ~withheld, withheld

    def _withheld(self, sampled: Tensor, generator: torch.Generator) -> Tensor:
        """Draw from the samples of one slice outside of the kept centre, one by one, by their density."""
        offsets = torch.meshgrid(*(torch.arange(side) - side // 2 for side in sampled.shape), indexing="ij")
        half = self.kept_center // 2
        kept = torch.stack([(offset >= -half) & (offset < self.kept_center - half) for offset in offsets]).all(0)
        eligible = sampled & ~kept
        count = round(self.withheld_share * int(sampled.sum()))
        if not 0 < count <= int(eligible.sum()) or count == int(sampled.sum()):
            raise InputError(
                f"{count} of {int(sampled.sum())} sampled {self.unit} cannot be withheld, with {int(eligible.sum())} "
                "outside of the kept centre: change withheld_share or kept_center"
            )
        density = torch.zeros(sampled.shape, dtype=torch.float64)
        if self.spread is not None:
            for offset, side in zip(offsets, sampled.shape, strict=True):
                density -= (offset / (self.spread * side)).square() / 2
        # Of exponential variables with these rates, the first to come are draws without replacement.
        waiting = torch.empty_like(density).exponential_(generator=generator).log() - density
        first = torch.where(eligible, waiting, torch.inf).flatten().argsort()[:count]
        return torch.zeros(sampled.numel(), dtype=torch.bool).index_fill_(0, first, True).view(sampled.shape)
