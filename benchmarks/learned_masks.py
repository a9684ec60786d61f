"""Masks without a network: what each rule keeps of real images, beside the mask of highest mean power.

VOXELWAVE_REAL_DATA=FOLDER python benchmarks/learned_masks.py [--quick]

FOLDER (../shared/data if none is named) holds kspace/admmnet_chest100_256_u16.npz: 100 cardiac magnitudes. They are
averaged to 128², scaled to a maximum of 1, and made complex with a smooth phase and noise: semi-synthetic. 70 images
train, 10 choose the rate of the scores, 20 are tested. The reconstruction is the zero-filled image. By Parseval's
theorem its squared error is that of the frequencies, on which the masks are trained. --quick takes one drop rate and
few steps, and writes no result.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reporting import publish, table
from voxelwave.data.kspace.synthesis import smooth_phase
from voxelwave.evaluation.image_quality import psnr_db
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.acquisition import complex_noise
from voxelwave.physics.fixed_masks import FixedMaskName, fixed_mask, half_plane
from voxelwave.physics.fourier import fft2c
from voxelwave.registry import MASK_RULES
from voxelwave.unrolled.learned_mask import LearnedMask
from voxelwave.unrolled.subsampling import FixedMask, image_of

FILE = Path("kspace") / "admmnet_chest100_256_u16.npz"
SIDE, NOISE, BATCH = 128, 0.005, 10
TRAINING, VALIDATION = 70, 10
DROP_RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
FIXED: tuple[FixedMaskName, ...] = ("random", "random_with_zero", "variable_density", "poisson_disc", "disc", "power")
SEEDS = (0, 1, 2)  # of the random masks, whose PSNR is the mean
# The scores of the other rules race each other, and take longer.
EPOCHS = {"exploring": 10, "described": 60, "scale_free": 60, "relaxed": 60}
# Of each rule the rates that validation chooses among; those of "described" are for images with a maximum of 1.
RATES = {
    "exploring": (0.03, 0.1),
    "described": (0.01, 1.0, 100.0, 10000.0),
    "scale_free": (3.0, 30.0),
    "relaxed": (0.005, 0.02, 0.1),
}
WANTED = {rate: 0.7 if rate < 0.3 else 0.2 for rate in DROP_RATES}  # dB below the power
OVERLAP = 0.95
MEASURED = "exploring"  # the rule that is tried with data in another unit


class Images(NamedTuple):
    """K-space `[image, height, width]` of three disjoint sets of images."""

    training: Tensor
    validation: Tensor
    test: Tensor


def read_images(path: Path) -> Images:
    """Make the images complex, and split them."""
    stored = torch.from_numpy(np.load(path)["img"].astype(np.float32))
    magnitude = stored.unflatten(1, (SIDE, -1)).unflatten(3, (SIDE, -1)).mean((2, 4))
    magnitude = magnitude / magnitude.amax((1, 2), keepdim=True)
    images = []
    for index, each in enumerate(magnitude):
        generator = torch_generator("learned_masks", index)
        noise = complex_noise(each.shape, generator, sigma=NOISE)
        images.append(torch.polar(each, smooth_phase((SIDE, SIDE), generator)) + noise)
    order = torch.randperm(len(images), generator=torch_generator("learned_masks", "split"))
    kspace = fft2c(torch.stack(images))[order]
    return Images(kspace[:TRAINING], kspace[TRAINING : TRAINING + VALIDATION], kspace[TRAINING + VALIDATION :])


def psnr(sampled: Tensor, kspace: Tensor, *, completes: bool = False) -> float:
    """Return the mean over the images of the magnitudes' PSNR; the range is the target's maximum."""
    layer = FixedMask(sampled, completes=completes)
    return psnr_db(image_of(layer(kspace)).abs(), image_of(kspace).abs(), data_range="slice")


def learned(rule: str, training: Tensor, *, drop_rate: float, mask_lr: float, epochs: int) -> LearnedMask:
    """Train a mask alone, on batches in random order."""
    layer: LearnedMask = MASK_RULES.build(rule, (SIDE, SIDE), drop_rate=drop_rate)
    for epoch in range(epochs):
        order = torch.randperm(len(training), generator=torch_generator("learned_masks", "epoch", epoch))
        for batch in training[order].split(BATCH):
            (layer(batch) - batch).abs().square().sum((1, 2)).mean().backward()
            layer.mask_step(mask_lr)
    return layer


def compared(images: Images, drop_rate: float, most_epochs: int) -> dict[str, object]:
    """Return the PSNR on test of every mask at a drop rate, and what was chosen."""
    shape = (SIDE, SIDE)
    found: dict[str, float] = {}
    for name in FIXED:
        values = [
            psnr(
                fixed_mask(name, shape, torch_generator(seed), drop_rate=drop_rate, training=images.training),
                images.test,
            )
            for seed in (SEEDS if name not in ("disc", "power") else SEEDS[:1])
        ]
        found[name] = float(np.mean(values))
    # The trick with conjugates, on these complex images and on their magnitudes.
    half = half_plane(shape, drop_rate=drop_rate)
    found["half_plane"] = psnr(half, images.test, completes=True)
    found["half_plane_of_magnitudes"] = psnr(half, fft2c(image_of(images.test).abs() + 0j), completes=True)
    best = fixed_mask("power", shape, torch_generator(0), drop_rate=drop_rate, training=images.training)
    chosen, overlap, masks = {}, {}, {"power": best}
    for rule, rates in RATES.items():
        layers = {
            rate: learned(
                *(rule, images.training),
                drop_rate=drop_rate,
                mask_lr=rate,
                epochs=min(EPOCHS[rule], most_epochs),
            )
            for rate in rates
        }
        chosen[rule] = max(rates, key=lambda rate: psnr(layers[rate].final_mask(), images.validation))
        masks[rule] = layers[chosen[rule]].final_mask()
        found[rule] = psnr(masks[rule], images.test)
        overlap[rule] = float((masks[rule] & best).sum() / best.sum())
    # Data in another unit: they are rounded differently, which the order of nearly equal scores may hang on.
    other: dict[str, Tensor] = {}
    for name, training in (
        ("single", images.training * 1e-4),
        ("reference", images.training.cdouble()),
        ("double", images.training.cdouble() * 1e-4),
    ):
        layer = learned(
            *(MEASURED, training),
            drop_rate=drop_rate,
            mask_lr=chosen[MEASURED],
            epochs=min(EPOCHS[MEASURED], most_epochs),
        )
        other[name] = layer.final_mask()
    in_single, in_double = other["single"] ^ masks[MEASURED], other["double"] ^ other["reference"]
    return {
        "drop_rate": drop_rate,
        "psnr_db": found,
        "overlap": overlap,
        "mask_lr": chosen,
        "differing_places": {"single": int(in_single.sum()) // 2, "double": int(in_double.sum()) // 2},
        "psnr_db_of_small_unit": psnr(other["single"], images.test),
    }


def main() -> None:
    """Compare the masks at every drop rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(os.environ.get("VOXELWAVE_REAL_DATA", "../shared/data")) / FILE
    if not path.is_file():
        print(f"skipped: no {path}; name the folder that holds kspace/ in VOXELWAVE_REAL_DATA")
        return
    images = read_images(path)
    began = time.process_time()
    cases, rows = [], []
    for drop_rate in (0.1,) if arguments.quick else DROP_RATES:
        case = compared(images, drop_rate, 3 if arguments.quick else max(EPOCHS.values()))
        cases.append(case)
        found: dict[str, float] = case["psnr_db"]  # type: ignore[assignment]
        overlap: dict[str, float] = case["overlap"]  # type: ignore[assignment]
        below = {rule: found["power"] - found[rule] for rule in RATES}
        case["reached"] = below[MEASURED] <= WANTED[drop_rate] and overlap[MEASURED] >= OVERLAP
        columns = (*FIXED, *RATES, "half_plane", "half_plane_of_magnitudes")
        rows.append(
            [
                drop_rate,
                *(f"{found[name]:.2f}" for name in columns),
                f"{below['described']:.2f}",
                f"{below['scale_free']:.2f}",
                f"{below[MEASURED]:.2f} (≤ {WANTED[drop_rate]})",
                f"{overlap['scale_free']:.3f}",
                f"{overlap[MEASURED]:.3f}",
                "{double}, {single}".format_map(case["differing_places"]),  # type: ignore[arg-type]
                f"{case['psnr_db_of_small_unit'] - found[MEASURED]:+.3f}",
            ]
        )
        print(*rows[-1], sep=" | ", flush=True)
    minutes = (time.process_time() - began) / 60
    names = "random | random, zero kept | variable density | Poisson disc | disc | highest mean power"
    rules = "exploring | described | scale-free | relaxed | half-plane, conjugates | the same of magnitudes"
    distances = (
        "power − described | power − scale-free | power − exploring | overlap of scale-free and power | overlap of "
        "exploring and power"
    )
    unit = "other places for data × 1e-4, double and single precision | dB by that in single precision"
    text = (
        f"PSNR in dB of zero-filled images by masks of {SIDE}² places: mean over 20 test images, the range is the "
        "target's maximum.\n\n"
        f"{table(f'drop rate | {names} | {rules} | {distances} | {unit}', rows)}\n\n"
        f"100 real cardiac magnitudes with a smooth phase and noise of {NOISE} of the maximum: semi-synthetic; 70 to "
        "train, 10 to choose each rule's rate, 20 to test. The power is that of the training images. Random masks are "
        f"the mean of {len(SEEDS)} seeds. Each rule took {EPOCHS['described']} epochs in batches of {BATCH} for every "
        f"rate that was tried, the exploring one {EPOCHS['exploring']}. The overlap is the share of the power's places "
        "that are kept, too. Data × 1e-4 are for the exploring rule. In single precision they are "
        f"rounded differently, and where scores are nearly equal, which are those of places with noise alone, others "
        f"of the {SIDE**2} places are kept. All of this took {minutes:.1f} minutes of processor time."
    )
    publish("learned_masks", {"cases": cases, "minutes": minutes, "wanted_db": WANTED}, text, quick=arguments.quick)


if __name__ == "__main__":
    main()
