"""Structural similarity of images, as a measure and as a loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

WINDOW = 7
K1, K2 = 0.01, 0.03
# A window's covariance is that of a sample, divided by its number of pixels less 1.
UNBIASED = WINDOW**2 / (WINDOW**2 - 1)

Images = Float[Tensor, "batch height width"]


def structural_similarity(
    predicted: Images, target: Images, *, data_range: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return the similarity of each image, averaged over the windows that lie inside of it; 1 for equal images.

    Windows are uniform, of 7 × 7 pixels; `data_range` is the largest value that an image of its kind has. Computed in
    double precision: bright areas lose four of single precision's seven digits.

    Raises ValueError for images smaller than a window, or a data range that is not above 0.
    Source: Wang et al., Image quality assessment, 2004; scikit-image's `structural_similarity` gives the same.
    """
    if min(target.shape[-2:]) < WINDOW:
        raise ValueError(f"a window has {WINDOW} × {WINDOW} pixels, got images of {tuple(target.shape[-2:])}")
    if not bool((data_range > 0).all()):
        raise ValueError(f"data_range must be above 0, got {data_range.tolist()}; is a slice empty?")
    # 1. In units of the data range, so that the constants are K1² and K2².
    x, y = (image.double() / data_range.double()[:, None, None] for image in (predicted, target))
    # 2. Means over windows, along one axis after the other: 14 sums a pixel instead of 49.
    moments = torch.stack([x, y, x * x, y * y, x * y], 1)
    rows = F.avg_pool2d(moments, (WINDOW, 1), stride=1)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = F.avg_pool2d(rows, (1, WINDOW), stride=1).unbind(1)
    # 3. Variances and covariance, and with them the two factors: of brightness, and of contrast and structure.
    var_x, var_y = (mean_xx - mean_x**2) * UNBIASED, (mean_yy - mean_y**2) * UNBIASED
    covariance = (mean_xy - mean_x * mean_y) * UNBIASED
    brightness = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    structure = (2 * covariance + K2**2) / (var_x + var_y + K2**2)
    return (brightness * structure).mean((-2, -1))


class StructuralSimilarityLoss:
    """1 minus the structural similarity, averaged over the batch.

    Where a mask says which pixels are `inside`, both images are multiplied by it first. Raises as
    `structural_similarity` does.
    """

    def __call__(
        self,
        predicted: Images,
        target: Images,
        data_range: Float[Tensor, " batch"],
        inside: Bool[Tensor, "batch height width"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss, in the precision of `predicted`."""
        if inside is not None:
            predicted, target = predicted * inside, target * inside
        similarity = structural_similarity(predicted, target, data_range=data_range)
        return (1 - similarity).mean().to(predicted.dtype)
