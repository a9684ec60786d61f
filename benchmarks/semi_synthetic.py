"""Real magnitude images and k-spaces under synthetic coils: what the study of reconstructions learns from.

"Semi-synthetic": the anatomy is real; coils, noise and, of the images, the phase are drawn. The files are those of
`kspace/` in $VOXELWAVE_REAL_DATA, else in ../shared/data.
"""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from voxelwave.data.kspace.synthesis import synthesize_kspace
from voxelwave.errors import InputError
from voxelwave.ops.seeding import key_to_seed, torch_generator
from voxelwave.physics.acquisition import expand, root_sum_of_squares
from voxelwave.physics.coil_maps import birdcage_maps
from voxelwave.physics.fourier import center_crop, fft2c, ifft2c
from voxelwave.physics.samplings.equispaced import EquispacedLines

SIDE, COILS, NOISE, CENTER = 128, 8, 0.005, 0.08
NUM_CENTER = round(CENTER * SIDE)
RATES = (4, 8)
TRAIN, VALIDATION, TEST, OTHERS = "train", "validation", "test", "others"
# As the images come: their neighbours may be of one subject, which nothing tells.
SPLIT = {TRAIN: slice(0, 70), VALIDATION: slice(70, 80), TEST: slice(80, 100)}


def folder() -> Path:
    """Return where the files lie; raises InputError where they do not."""
    place = Path(os.environ.get("VOXELWAVE_REAL_DATA", "../shared/data")) / "kspace"
    if not place.is_dir():
        raise InputError(f"no folder {place}: set VOXELWAVE_REAL_DATA to the folder that holds kspace/")
    return place


def read_images(name: str) -> Tensor:
    """Return the images `[image, 128, 128]` of a file, each with a largest value of 1."""
    with np.load(folder() / name) as file:
        images = torch.from_numpy(file["img"].astype(np.float32))
    small = F.interpolate(images[:, None], (SIDE, SIDE), mode="area")[:, 0]
    return small / small.amax((1, 2), keepdim=True)


@cache
def cardiac() -> Tensor:
    """Return the 100 cardiac images."""
    return read_images("admmnet_chest100_256_u16.npz")


def flipped(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return the image as it is, or mirrored along one axis or both."""
    axes = [axis for axis in (0, 1) if torch.rand((), generator=generator) < 0.5]
    return image.flip(axes)


def training_example(index: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Return k-space and target of a training image, with a mirror, coils, a phase and noise of its epoch."""
    image = flipped(cardiac()[SPLIT[TRAIN]][index], torch_generator(seed, "mirror", epoch, index))
    return with_target(
        synthesize_kspace(image[None], num_coils=COILS, noise=NOISE, seed=key_to_seed(seed, epoch, index))
    )


def with_target(kspace: Tensor) -> tuple[Tensor, Tensor]:
    """Return k-space `[1, 1, coil, height, width]` and the root sum of squares of all of it, `[1, height, width]`."""
    return kspace[None], root_sum_of_squares(ifft2c(kspace))


def held_out(split: str) -> list[tuple[Tensor, Tensor]]:
    """Return k-space and target of each image that is not trained on; each has a scanner for itself."""
    if split == OTHERS:
        return others()
    return [_of_image(image, split, number) for number, image in enumerate(cardiac()[SPLIT[split]])]


def others() -> list[tuple[Tensor, Tensor]]:
    """Return two brain images, and a knee and a brain whose k-space, and with it whose phase, is real."""
    made = [_of_image(image, OTHERS, n) for n, image in enumerate(read_images("admmnet_brain2_256_u16.npz"))]
    for name in ("larson_knee_kspace_332x640.npz", "larson_t1sag_kspace_256.npz"):
        with np.load(folder() / name) as file:
            kspace = torch.from_numpy(file["kspace"])
        # The middle of the image, which is square, at the resolution of the others.
        square = center_crop(ifft2c(kspace), (min(kspace.shape),) * 2)
        image = ifft2c(center_crop(fft2c(square), (SIDE, SIDE)))
        generator = torch_generator("semi-synthetic", name)
        turn, phase = (torch.rand(2, generator=generator) * 2 * math.pi).tolist()
        maps = birdcage_maps(COILS, (SIDE, SIDE), rotation=turn, phase=phase)
        made.append(with_target(fft2c(expand(image / image.abs().max(), maps))[None]))
    return made


def _of_image(image: Tensor, split: str, number: int) -> tuple[Tensor, Tensor]:
    seed = key_to_seed("semi-synthetic", split, number)
    return with_target(synthesize_kspace(image[None], num_coils=COILS, noise=NOISE, seed=seed))


def lines(rate: int) -> Tensor:
    """Return the lines that are sampled, `[1, width]`: every `rate`-th, the origin among them, and the centre."""
    sampling = EquispacedLines(acceleration=rate, center_fraction=CENTER, offset="origin")
    return sampling((1, SIDE), torch_generator("unused"))
