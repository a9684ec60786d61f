"""A U-Net of residual blocks without batch statistics, whose decoder is told by prompts what it looks at.

Source: Xin et al., PromptMR, 2023 (arXiv 2309.13839), section 2; PromptMR+, 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

REDUCTION = 4  # of channels, in channel attention

Features = Float[Tensor, "batch channel height width"]
FinerFeatures = Float[Tensor, "batch finer_channel finer_height finer_width"]
# What the levels of a decoder made, from fine to coarse; each has another size.
Made = list[Float[Tensor, "batch _ _ _"]]


@dataclass(frozen=True)
class Level:
    """One halving of a `PromptUnet`: channels below it, its prompts, and its numbers of blocks.

    Its encoder and skip blocks work above the halving, its decoder blocks below it. Of `prompt_length` prompts of
    `prompt_channels` and `prompt_size`² pixels, the features choose a mixture.
    """

    channels: int
    prompt_channels: int
    prompt_size: int
    encoder_blocks: int
    decoder_blocks: int
    skip_blocks: int = 1
    prompt_length: int = 5


@dataclass(frozen=True)
class UnetShape:
    """The numbers of a `PromptUnet`; the defaults are those of a cascade of PromptMR+.

    `prompts=False` leaves a plain U-Net of the same blocks; prompts that are not `learnable_prompts` stay at their
    random values.
    """

    first_channels: int = 48
    levels: tuple[Level, ...] = (Level(64, 16, 64, 2, 2), Level(80, 32, 32, 3, 2), Level(96, 48, 16, 3, 3))
    bottleneck_blocks: int = 1
    channel_attention: bool = False
    prompts: bool = True
    learnable_prompts: bool = False

    @property
    def multiple(self) -> int:
        """What height and width have to be multiples of."""
        return 1 << len(self.levels)


class ChannelAttention(nn.Module):
    """Weighs each channel by what all of them are on average. Source: Zhang et al., RCAN, 2018, section 3.3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Conv2d(channels, channels // REDUCTION, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // REDUCTION, channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, features: Features) -> Features:
        """Return the weighted features."""
        weights: Tensor = self.weigh(features.mean((-2, -1), keepdim=True))
        return features * weights


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, with channel attention or without it (the paper's CAB), added to the input."""

    def __init__(self, channels: int, *, channel_attention: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.PReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )
        if channel_attention:
            self.body.append(ChannelAttention(channels))

    def forward(self, features: Features) -> Features:
        """Return the features with what the block adds."""
        change: Tensor = self.body(features)
        return features + change


def blocks(number: int, channels: int, shape: UnetShape) -> nn.Sequential:
    """Return a row of blocks."""
    return nn.Sequential(*(ResidualBlock(channels, channel_attention=shape.channel_attention) for _ in range(number)))


class PromptBlock(nn.Module):
    """Mixes prompts by weights that follow from the features."""

    def __init__(self, channels: int, *, level: Level, learnable: bool) -> None:
        super().__init__()
        size = (level.prompt_size, level.prompt_size)
        self.prompts = nn.Parameter(
            torch.rand(level.prompt_length, level.prompt_channels, *size), requires_grad=learnable
        )
        self.weigh = nn.Linear(channels, level.prompt_length)
        self.last = nn.Conv2d(level.prompt_channels, level.prompt_channels, 3, padding=1, bias=False)

    def forward(self, features: Features) -> Float[Tensor, "batch prompt height width"]:
        """Return one prompt for each sample, in the size of its features."""
        weights = self.weigh(features.mean((-2, -1))).softmax(-1)
        mixed = torch.einsum("bl,lchw->bchw", weights, self.prompts)
        resized = F.interpolate(mixed, features.shape[-2:], mode="bilinear", align_corners=False)
        prompt: Tensor = self.last(resized)
        return prompt


class UpBlock(nn.Module):
    """One level of the decoder: prompt and features together, up to the next finer level, with its skip."""

    def __init__(self, channels: int, out_channels: int, *, level: Level, shape: UnetShape, num_history: int) -> None:
        super().__init__()
        self.recall = nn.Conv2d(num_history * channels, channels, 1, bias=False) if num_history else None
        self.prompt = PromptBlock(channels, level=level, learnable=shape.learnable_prompts) if shape.prompts else None
        width = channels + level.prompt_channels * shape.prompts
        self.fuse = blocks(level.decoder_blocks, width, shape)
        self.reduce = nn.Conv2d(width, channels, 1, bias=False)
        self.narrow = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.last = blocks(1, out_channels, shape)

    def forward(
        self, features: Features, skip: FinerFeatures, history: list[Features]
    ) -> tuple[FinerFeatures, Features]:
        """Return features of the finer level, and those of this level that later networks may recall."""
        if self.recall is not None:
            features = features + self.recall(torch.cat(history, 1))
        if self.prompt is not None:
            features = torch.cat([features, self.prompt(features)], 1)
        fused: Tensor = self.reduce(self.fuse(features))
        # A 1×1 convolution and an interpolation can change places: at the coarser level it takes a quarter of the time.
        finer = F.interpolate(self.narrow(fused), scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(finer + skip), fused


class PromptUnet(nn.Module):
    """The network by itself; `normalised` prepares its input.

    With a `num_history`, each decoder level also sees, through a 1×1 convolution, what that level has made in as many
    other networks of the same shape. Raises ValueError for a shape without levels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, shape: UnetShape = UnetShape(), num_history: int = 0
    ) -> None:
        super().__init__()
        if not shape.levels:
            raise ValueError("a U-Net needs at least one level, got levels=()")
        self.multiple = shape.multiple
        widths = list(pairwise([shape.first_channels, *(level.channels for level in shape.levels)]))
        rows = [(fine, coarse, level) for (fine, coarse), level in zip(widths, shape.levels, strict=True)]
        self.first = nn.Conv2d(in_channels, shape.first_channels, 3, padding=1, bias=False)
        self.encoders = nn.ModuleList(blocks(level.encoder_blocks, fine, shape) for fine, _, level in rows)
        self.skips = nn.ModuleList(blocks(level.skip_blocks, fine, shape) for fine, _, level in rows)
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse, _ in rows)
        self.bottleneck = blocks(shape.bottleneck_blocks, shape.levels[-1].channels, shape)
        self.decoders = nn.ModuleList(
            UpBlock(coarse, fine, level=level, shape=shape, num_history=num_history) for fine, coarse, level in rows
        )
        self.last = nn.Conv2d(shape.first_channels, out_channels, 5, padding=2, bias=False)

    def forward(
        self, image: Features, history: list[Made] | None = None
    ) -> tuple[Float[Tensor, "batch out height width"], Made]:
        """Return the output, and what each level of the decoder made.

        Args:
            image: height and width are multiples of `multiple`.
            history: what other networks made, one list for each.
        """
        features, skips = self.first(image), []
        for encoder, skip, down in zip(self.encoders, self.skips, self.downs, strict=True):
            features = encoder(features)
            skips.append(skip(features))
            features = down(features)
        features = self.bottleneck(features)
        made: list[Tensor] = []
        for index in reversed(range(len(self.decoders))):
            recalled = [levels[index] for levels in history or []]
            features, fused = self.decoders[index](features, skips[index], recalled)
            made.insert(0, fused)
        return self.last(features), made
