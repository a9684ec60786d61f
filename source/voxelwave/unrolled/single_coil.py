"""Networks that reconstruct the images of one coil behind a `Subsampling` layer, which each of them calls first."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from voxelwave.registry import SUBSAMPLED_MODELS
from voxelwave.unrolled.normalising import normalised
from voxelwave.unrolled.prompt_unet import Level, PromptUnet, UnetShape
from voxelwave.unrolled.subsampling import Subsampling, channels_of, kspace_of

Kspace = Shaped[Tensor, "batch *grid"]
Channels = Float[Tensor, "batch 2 height width"]


def plain_unet(channels: int, depth: int) -> UnetShape:
    """Return a U-Net without prompts, whose channels double with each of `depth` halvings."""
    widths = [channels << level for level in range(1, depth + 1)]
    levels = tuple(Level(width, 0, 0, encoder_blocks=1, decoder_blocks=1) for width in widths)
    return UnetShape(first_channels=channels, levels=levels, prompts=False)


@torch.no_grad()
def begin_at_input(last: nn.Module) -> None:
    """Set the weights of a network's last convolution to 0, so that it begins by adding nothing to its input."""
    for parameter in last.parameters():
        parameter.zero_()


@SUBSAMPLED_MODELS.register("plain")
class PlainNetwork(nn.Module):
    """A few convolutions that correct the zero-filled image.

    Args:
        channels: of each hidden layer.
        depth: number of convolutions.

    Raises ValueError for numbers out of range.
    """

    def __init__(self, subsampling: Subsampling, *, channels: int = 24, depth: int = 4) -> None:
        super().__init__()
        if channels < 1 or depth < 2:
            raise ValueError(f"channels must be at least 1 and depth at least 2, got {channels} and {depth}")
        self.subsampling = subsampling
        widths = [2, *[channels] * (depth - 1), 2]
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [nn.Conv2d(widths[index], widths[index + 1], 3, padding=1), nn.LeakyReLU(0.1)]
        self.body = nn.Sequential(*layers[:-1])
        begin_at_input(self.body[-1])

    def forward(self, kspace: Kspace) -> Channels:
        """Return the zero-filled image with what the network adds to it."""
        scaled, undo = normalised(channels_of(self.subsampling(kspace)), multiple=1)
        return undo(scaled + self.body(scaled))


@SUBSAMPLED_MODELS.register("unet")
class ResidualUnet(nn.Module):
    """A U-Net of residual blocks that corrects the zero-filled image.

    Args:
        channels: of the finest level; each coarser one has twice as many.
        depth: number of halvings.

    Raises ValueError for numbers out of range.
    Source of the blocks: Xin et al., PromptMR, 2023, without prompts and channel attention.
    """

    def __init__(self, subsampling: Subsampling, *, channels: int = 16, depth: int = 3) -> None:
        super().__init__()
        if min(channels, depth) < 1:
            raise ValueError(f"channels and depth must be at least 1, got {channels} and {depth}")
        self.subsampling = subsampling
        self.unet = PromptUnet(2, 2, shape=plain_unet(channels, depth))
        begin_at_input(self.unet.last)

    def forward(self, kspace: Kspace) -> Channels:
        """Return the zero-filled image with what the network adds to it."""
        scaled, undo = normalised(channels_of(self.subsampling(kspace)), multiple=self.unet.multiple)
        return undo(scaled + self.unet(scaled)[0])


@SUBSAMPLED_MODELS.register("unrolled")
class UnrolledNetwork(nn.Module):
    """A U-Net for what the samples do not say, and a step of gradient descent on what they say, some times in turn.

    The operator of the acquisition is the subsampling layer itself, so that the gradient of a learned mask says what it
    is worth to keep a frequency in place of what the network makes of it. A step begins at its full length, which puts
    the samples back in their places: where little is missing, a network can do little harm before it has learned.

    Args:
        num_cascades: steps, each with weights for itself.
        channels: of the finest level of each U-Net; each coarser one has twice as many.
        depth: number of halvings.

    Raises ValueError for numbers out of range.
    Source: Schlemper et al., A deep cascade of convolutional neural networks, 2018, section III; the length of a step
    is learned as in Sriram et al., End-to-end variational networks, 2020, section 3.
    """

    def __init__(self, subsampling: Subsampling, *, num_cascades: int = 3, channels: int = 8, depth: int = 2) -> None:
        super().__init__()
        if min(num_cascades, channels, depth) < 1:
            raise ValueError(
                f"num_cascades, channels and depth must be at least 1, got {num_cascades}, {channels} and {depth}"
            )
        self.subsampling = subsampling
        unets = [PromptUnet(2, 2, shape=plain_unet(channels, depth)) for _ in range(num_cascades)]
        for unet in unets:
            begin_at_input(unet.last)
        self.unets = nn.ModuleList(unets)
        self.weights = nn.Parameter(torch.ones(num_cascades))
        self.multiple = unets[0].multiple

    def forward(self, kspace: Kspace) -> Channels:
        """Return the image after the last step."""
        first = image = channels_of(self.subsampling(kspace))
        for unet, weight in zip(self.unets, self.weights, strict=True):
            scaled, undo = normalised(image, multiple=self.multiple)
            guessed = undo(scaled + unet(scaled)[0])
            image = guessed - weight * (channels_of(self.subsampling(kspace_of(guessed))) - first)
        return image
