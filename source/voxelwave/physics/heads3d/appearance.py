"""Label maps of heads as many scanners and contrasts would show them, on the device that is to be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from voxelwave.physics.heads3d.rendering import MEANS, MRI_CONTRASTS
from voxelwave.physics.heads3d.tissues import Tissue

RANDOM, CT = "random", "CT"
CONTRASTS = (*MRI_CONTRASTS, RANDOM, CT)
SURROUNDINGS = (Tissue.SCALP, Tissue.MUSCLE, Tissue.SKULL, Tissue.DIPLOE, Tissue.EYE)
AIR_HU = -1000.0
KERNEL_RADIUS = 3  # voxels

LabelMaps = UInt8[Tensor, "batch depth height width"]
Images = Float[Tensor, "batch channel depth height width"]


class Rendering(NamedTuple):
    """What a scanner shows, and what it would show without noise and bias field: MRI in [0, 1], CT in HU.

    `labels` are the tissues that are shown: those that were stripped are air.
    """

    seen: Images
    clean: Images
    labels: LabelMaps


def render(labels: LabelMaps, contrasts: Sequence[str], generator: torch.Generator, *, stripped: float) -> Rendering:
    """Render each label map in its contrast, one of `CONTRASTS`; all of them are CT, or none is.

    Tissues have means near those of their contrast, or in a random contrast any (Billot et al., 2023, "SynthSeg",
    section 3.2). Resolution, texture, bias field and noise are drawn for each sample; `stripped` is the probability
    that skull and scalp are gone. All but white noise is drawn on the CPU, so that every device shows the same but for
    that.
    """
    device, of_ct = labels.device, contrasts[0] == CT
    assert all((name == CT) == of_ct for name in contrasts)
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    # 1. A mean for each tissue; where the skull is stripped, its tissues are air.
    means = torch.stack([_means(name, generator) for name in contrasts])
    gone = torch.rand(count, generator=generator) < stripped
    surroundings = torch.zeros(len(Tissue), dtype=torch.bool)
    surroundings[list(SURROUNDINGS)] = True
    means = torch.where(gone[:, None] & surroundings, means[:, :1], means)
    # The tissue of air has number 0.
    shown = torch.where(gone[:, None] & surroundings, 0, torch.arange(len(Tissue))).to(device)
    labels = shown.gather(1, labels.flatten(1).long()).view(labels.shape).to(labels.dtype)
    image = means.to(device).gather(1, labels.flatten(1).long()).view(labels.shape).unsqueeze(1)
    # 2. Tissue is not uniform.
    amplitude = uniform(0, 0.04).to(device).view(-1, 1, 1, 1, 1)
    texture = amplitude * smooth_fields(count, image.shape[2:], generator, cells=8).to(device)
    image = image * (1 + texture) if not of_ct else image + 250 * texture
    # 3. Partial volume, more along the slices of a thick-sliced scan.
    sigma = uniform(0.4, 0.7, 3)
    thick = torch.rand(count, generator=generator) < 0.3
    axis = torch.randint(3, (count,), generator=generator)
    sigma[thick, axis[thick]] += uniform(0.3, 1.0)[thick]
    clean = blurred(image, sigma.to(device))
    # 4. What the scanner adds.
    seed = int(torch.randint(2**62, (), generator=generator))
    there = torch.Generator(device).manual_seed(seed)

    def noise_like(image: Tensor) -> Tensor:
        return torch.randn(image.shape, generator=there, device=device)

    if of_ct:
        noise = blurred(noise_like(clean), torch.full_like(sigma, 0.6).to(device))
        return Rendering(clean + uniform(2, 12).to(device).view(-1, 1, 1, 1, 1) * noise, clean, labels)
    strength = uniform(0, 0.3).to(device).view(-1, 1, 1, 1, 1)
    seen = clean * torch.exp(strength * smooth_fields(count, image.shape[2:], generator, cells=2).to(device))
    sigma_noise = uniform(0.005, 0.05).to(device).view(-1, 1, 1, 1, 1)
    seen = torch.hypot(seen + sigma_noise * noise_like(seen), sigma_noise * noise_like(seen))
    # 5. MRI has no unit: the brightest tissue is near 1, and scanners differ in between.
    gamma = torch.exp(uniform(-0.3, 0.3)).to(device).view(-1, 1, 1, 1, 1)
    brightest = means.amax(1).to(device).view(-1, 1, 1, 1, 1) * uniform(0.9, 1.1).to(device).view(-1, 1, 1, 1, 1)
    return Rendering((seen / brightest).clamp(0, 1) ** gamma, (clean / brightest).clamp(0, 1), labels)


def windowed(
    hounsfield: Float[Tensor, "batch 1 depth height width"], windows_hu: Sequence[tuple[float, float]]
) -> Float[Tensor, "batch window depth height width"]:
    """Return the windows (level, width) of one channel of Hounsfield units, each in [0, 1]."""
    low = torch.tensor([level - width / 2 for level, width in windows_hu], device=hounsfield.device)
    width = torch.tensor([width for _, width in windows_hu], device=hounsfield.device)
    view = (1, -1, 1, 1, 1)
    return ((hounsfield - low.view(view)) / width.view(view)).clamp(0, 1)


def smooth_fields(
    count: int, grid: Sequence[int], generator: torch.Generator, *, cells: int
) -> Float[Tensor, "batch 1 depth height width"]:
    """Return fields of about unit variance that are smooth over a `cells`-th of each side."""
    knots = torch.randn(count, 1, *(cells + 1,) * 3, generator=generator)
    return F.interpolate(knots, tuple(grid), mode="trilinear", align_corners=True)


def blurred(image: Images, sigma: Float[Tensor, "batch 3"]) -> Images:
    """Return each sample after a Gaussian filter of `sigma` voxels along each axis, its border repeated."""
    offsets = torch.arange(-KERNEL_RADIUS, KERNEL_RADIUS + 1, device=image.device, dtype=image.dtype)
    volume = image.transpose(0, 1)
    for axis in range(3):
        kernel = torch.exp(-0.5 * (offsets / sigma[:, axis, None].clamp_min(1e-3)) ** 2)
        kernel = kernel / kernel.sum(1, keepdim=True)
        shape, padding = [len(kernel), 1, 1, 1, 1], [0] * 6
        shape[2 + axis] = len(offsets)
        padding[4 - 2 * axis : 6 - 2 * axis] = [KERNEL_RADIUS] * 2
        volume = F.conv3d(F.pad(volume, padding, mode="replicate"), kernel.view(shape), groups=len(kernel))
    return volume.transpose(0, 1).contiguous()


def _means(contrast: str, generator: torch.Generator) -> Float[Tensor, " tissue"]:
    """Draw a mean for each tissue."""
    number = len(Tissue)
    if contrast == RANDOM:
        means = torch.rand(number, generator=generator)
        means[Tissue.AIR] = 0.05 * torch.rand((), generator=generator)
        # Small parts of what is one tissue elsewhere look like it.
        means[Tissue.VENTRICLE] = means[Tissue.CSF] + 0.05 * torch.randn((), generator=generator)
        means[Tissue.ANEURYSM] = means[Tissue.VESSEL]
        return means.clamp(0, 1)
    table = torch.tensor(np.array([MEANS[tissue] for tissue in Tissue]), dtype=torch.float32)
    if contrast != CT:
        means = table[:, MRI_CONTRASTS.index(contrast)]
        return means * (0.9 + 0.2 * torch.rand(number, generator=generator))
    means = table[:, -1] + 2 * torch.randn(number, generator=generator)
    draws = torch.rand(4, generator=generator)
    means[Tissue.AIR] = AIR_HU
    means[Tissue.SCALP] = -90 + 70 * draws[0]
    means[Tissue.SKULL] = 850 + 650 * draws[1]
    means[Tissue.DIPLOE] = (0.45 + 0.25 * draws[2]) * means[Tissue.SKULL]
    if draws[3] < 0.35:  # contrast agent
        means[[Tissue.VESSEL, Tissue.ANEURYSM]] = 250 + 150 * torch.rand((), generator=generator)
    return means
