"""A small network that tells of which anatomy a volume is, from its slices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

WIDTHS, EMBED_DIM = (16, 32, 64), 128


class AnatomyClassifier(nn.Module):
    """Convolution, instance norm, ReLU and pooling for each of `WIDTHS`; the slices of a volume are averaged.

    The norm makes it indifferent to the scale of an image, and a slice without signal gives numbers like any other.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in pairwise((1, *WIDTHS)):
            layers += [
                nn.Conv2d(before, width, 3, padding=1, bias=False),  # the norm would take a bias away
                nn.InstanceNorm2d(width, affine=True),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.layers = nn.Sequential(*layers)
        self.embed = nn.Sequential(nn.Linear(WIDTHS[-1], EMBED_DIM), nn.ReLU())
        self.head = nn.Linear(EMBED_DIM, num_classes)

    def forward(
        self, images: Float[Tensor, "slice height width"], counts: Sequence[int]
    ) -> Float[Tensor, "volume class"]:
        """Return the logits of volumes that lie one behind the other, with so many slices each."""
        features = self.embed(self.layers(images[:, None]).mean((2, 3)))
        volumes = torch.stack([slices.mean(0) for slices in features.split(list(counts))])
        logits: Tensor = self.head(volumes)
        return logits
