"""A real scan without ground truth: what each method says of samples that none of them has seen.

VOXELWAVE_REAL_DATA=FOLDER python benchmarks/self_supervised.py [--seeds 0 1 2] [--quick]

FOLDER (../shared/data if none is named) holds kspace/sigpy_brain8ch_230x180_us.npz: a head, 8 coils, 12 % of the
places, the centre of 24² without gaps. A seed splits the other samples into what all methods see (80 %), what their
settings are chosen on (10 %), and what the table tells the error of (10 %). The settings that are fixed here were found
with seeds 100 and 101. --quick trains for 4 steps and writes no result. It needs the extra `classical`.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sigpy.mri.app import L1WaveletRecon, SenseRecon
from torch import Tensor, nn

from measuring import RESULTS
from reporting import publish, table
from voxelwave.objectives.self_supervised_reconstruction import SelfSupervisedReconstruction
from voxelwave.ops.seeding import key_to_seed, torch_generator
from voxelwave.physics.acquisition import expand, root_sum_of_squares, sample
from voxelwave.physics.fourier import fft2c, ifft2c
from voxelwave.reports.plots import new_figure
from voxelwave.unrolled.classical import EspiritMaps
from voxelwave.unrolled.prompt_unet import Level, UnetShape
from voxelwave.unrolled.promptmr_plus import PromptMRPlus

FILE = Path("kspace") / "sigpy_brain8ch_230x180_us.npz"
CENTER = 24
# ESPIRiT's maps, alike for all methods. Both classical ones were worse by a crop of 0.8 or 0, and by a width of 6.
KERNEL_WIDTH, CROP = 8, 0.95
# Settings that each seed's validation chooses among.
SENSE_ITERATIONS = (4, 6, 8, 10, 12, 15, 20)
WAVELET_WEIGHTS = (1e-3, 1.5e-3, 2e-3, 2.5e-3, 3e-3, 4e-3)
WAVELET_ITERATIONS = 100
# The network: one cascade, taken several times, since one scan is little to learn from.
UNET = UnetShape(first_channels=8, levels=(Level(12, 8, 32, 1, 1), Level(16, 8, 16, 1, 1)), prompts=False)
CASCADES, FIRST_STEP = 8, 1.5
STEPS, RATE, CLIP, EMA = 800, 6e-3, 1.0, 0.99
WITHHELD = 0.2
VALIDATE_EVERY = 25
SPLITS = 8  # whose predictions are averaged in the end
WANTED = 0.95  # of the error of L1-wavelet
# Beyond this share of the way to the edges, samples are hardly more than noise.
OUTER = 0.95


@dataclass(frozen=True)
class Scan:
    """The measured k-space `[coil, height, width]`, and the three parts of its places, each `[height, width]`."""

    kspace: Tensor
    seen: Tensor
    validation: Tensor
    test: Tensor

    @property
    def visible(self) -> Tensor:
        """The k-space that methods are given."""
        return sample(self.kspace, self.seen)

    def error(self, predicted: Tensor, part: Tensor) -> float:
        """Return ‖y − ŷ‖ / ‖y‖ over the places of a part, all coils."""
        measured = self.kspace[:, part]
        return float((predicted[:, part] - measured).norm() / measured.norm())


class Result(NamedTuple):
    """What a method predicts of the whole k-space, and what was chosen for it."""

    kspace: Tensor
    chosen: dict[str, float]


class Slice(NamedTuple):
    """A batch of the objective."""

    kspace: Tensor
    sampled: Tensor


class GivenMaps(nn.Module):
    """Maps that are known stand in for the network that estimates them."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.register_buffer("maps", maps)

    def forward(self, kspace: Tensor, sampled: Tensor, num_low_frequencies: object) -> Tensor:
        """Return the maps."""
        return self.maps.expand_as(kspace)  # type: ignore[operator]  # a buffer


def read_scan(path: Path, seed: int) -> Scan:
    """Split the samples; what is seen makes a zero-filled image with a largest value of 1."""
    kspace = torch.from_numpy(np.load(path)["kspace"])
    sampled = kspace.ne(0).any(0)
    height, width = sampled.shape
    center = torch.zeros_like(sampled)
    rows, columns = (slice(side // 2 - CENTER // 2, side // 2 + CENTER // 2) for side in (height, width))
    center[rows, columns] = True
    assert bool(sampled[center].all())
    places = (sampled & ~center).flatten().nonzero()[:, 0]
    places = places[torch.randperm(len(places), generator=torch_generator("self_supervised", seed))]
    tenth = len(places) // 10

    def part(chosen: Tensor) -> Tensor:
        return torch.zeros(sampled.numel(), dtype=torch.bool).index_fill_(0, chosen, True).view(sampled.shape)

    seen = center | part(places[2 * tenth :])
    unit = root_sum_of_squares(ifft2c(sample(kspace, seen))).max()
    return Scan(kspace / unit, seen, part(places[:tenth]), part(places[tenth : 2 * tenth]))


def maps_of(scan: Scan) -> Tensor:
    """Return ESPIRiT's maps of what is seen."""
    return EspiritMaps(crop=CROP, kernel_width=KERNEL_WIDTH)(scan.visible[None], scan.seen[None])[0]


def classical(scan: Scan, maps: Tensor, app: type, name: str, values: Sequence[float]) -> Result:
    """Return what one of sigpy's reconstructions predicts with the value of an argument that is best on validation."""
    weights = scan.seen.numpy().astype(np.float32)
    options: dict[str, float] = {"lamda": 0.0, "max_iter": WAVELET_ITERATIONS}
    if app is L1WaveletRecon:
        # A step that maps of this length do not make too long; sigpy would guess one from random numbers.
        options["alpha"] = 1 / float(root_sum_of_squares(maps).max()) ** 2

    def predict(value: float) -> Result:
        settings = {**options, name: value}
        image = app(scan.visible.numpy(), maps.numpy(), weights=weights, show_pbar=False, **settings).run()
        return Result(fft2c(expand(torch.from_numpy(image), maps)), {name: value})

    return min(map(predict, values), key=lambda result: scan.error(result.kspace, scan.validation))


def trained(scan: Scan, maps: Tensor, *, seed: int, steps: int) -> Result:
    """Return what a network predicts that was trained on this scan alone.

    Weights are averaged over steps, and taken from the step with the least error of validation. The prediction is the
    mean of that from all samples that are seen and of those from several splits of them.
    """
    # 1. The network; its maps are given, as in the papers.
    torch.manual_seed(key_to_seed("self_supervised", seed, "weights"))
    network = PromptMRPlus(num_cascades=1, num_slices=1, unet=UNET)
    network.sensitivity = GivenMaps(maps)  # type: ignore[assignment]
    nn.init.constant_(network.cascades[0].weight, FIRST_STEP)  # type: ignore[arg-type]
    network.cascades = nn.ModuleList([network.cascades[0]] * CASCADES)
    network.to(memory_format=torch.channels_last)  # twice as fast for so few channels
    # 2. Of the centre nothing is withheld: the error of the rest is what is asked for.
    objective = SelfSupervisedReconstruction(network, withheld_share=WITHHELD, spread=None, kept_center=CENTER)
    average = copy.deepcopy(network)
    batch = Slice(scan.visible[None, None], scan.seen[None])
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=RATE / 20)

    @torch.no_grad()
    def predict(sampled: Tensor) -> Tensor:
        return fft2c(average.coil_images(sample(batch.kspace, sampled[:, None]), sampled, CENTER))[0]

    # 3. Train.
    least, kept = float("inf"), (0, average.state_dict())
    for step in range(1, steps + 1):
        output = objective(batch, torch_generator("self_supervised", seed, "split", step))
        optimizer.zero_grad()
        output.loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        rates.step()
        with torch.no_grad():
            decay = min(EMA, step / (step + 10))
            for old, new in zip(average.parameters(), network.parameters(), strict=True):
                old.lerp_(new, 1 - decay)
        if step % VALIDATE_EVERY == 0 or step == steps:
            error = scan.error(predict(batch.sampled), scan.validation)
            print(
                f"seed {seed}, step {step}: withheld {float(output.logs['l2']):.4f}, validation {error:.4f}", flush=True
            )
            if error < least:
                least, kept = error, (step, copy.deepcopy(average.state_dict()))
    # 4. Predict.
    average.load_state_dict(kept[1])
    splits = [
        objective.split(batch.sampled, batch.sampled.shape[1], torch_generator("self_supervised", seed, "end", index))[
            0
        ]
        for index in range(SPLITS)
    ]
    several = torch.stack([predict(seen) for seen in splits]).mean(0)
    return Result((predict(batch.sampled) + several) / 2, {"step": kept[0]})


def compare(path: Path, seed: int, steps: int) -> tuple[Scan, dict[str, Result], float]:
    """Return the scan, what each method predicts, and the minutes of processor time that the network took."""
    scan = read_scan(path, seed)
    maps = maps_of(scan)
    results = {
        "zero-filled": Result(scan.visible, {}),
        "SENSE": classical(scan, maps, SenseRecon, "max_iter", SENSE_ITERATIONS),
        "L1-wavelet": classical(scan, maps, L1WaveletRecon, "lamda", WAVELET_WEIGHTS),
    }
    began = time.process_time()
    results["network"] = trained(scan, maps, seed=seed, steps=steps)
    return scan, results, (time.process_time() - began) / 60


def floor(scan: Scan) -> float:
    """Return the error that would be left if only the noise were wrong, which the outermost samples tell."""
    height, width = scan.seen.shape
    rows = (torch.arange(height) - height // 2) / (height / 2)
    columns = (torch.arange(width) - width // 2) / (width / 2)
    outer = scan.seen & (torch.hypot(rows[:, None], columns[None]) > OUTER)
    size = [scan.kspace[:, of].abs().square().mean().sqrt() for of in (outer, scan.test)]
    return float(size[0] / size[1])


def draw(results: dict[str, Result], path: Path) -> None:
    """Draw the images of all coils together, whole and in part."""
    figure = new_figure(3 * len(results), 6.4)
    axes = figure.subplots(2, len(results))
    images = {name: root_sum_of_squares(ifft2c(result.kspace)) for name, result in results.items()}
    top = float(images["L1-wavelet"].quantile(0.998))
    for column, (name, image) in enumerate(images.items()):
        height, width = image.shape
        part = image[height // 4 : height // 2, width // 4 : 3 * width // 4]
        for axis, shown in zip(axes[:, column], (image, part), strict=True):
            axis.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=top)
            axis.set_axis_off()
        axes[0, column].set_title(name)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Compare the methods with every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(os.environ.get("VOXELWAVE_REAL_DATA", "../shared/data")) / FILE
    if not path.is_file():
        print(f"skipped: no {path}; name the folder that holds kspace/ in VOXELWAVE_REAL_DATA")
        return
    runs, rows = [], []
    for seed in arguments.seeds:
        scan, results, minutes = compare(path, seed, 4 if arguments.quick else STEPS)
        errors = {name: scan.error(result.kspace, scan.test) for name, result in results.items()}
        chosen = {name: result.chosen for name, result in results.items()}
        ratio = errors["network"] / errors["L1-wavelet"]
        runs.append(
            {
                "seed": seed,
                "test_error": errors,
                "chosen": chosen,
                "ratio": ratio,
                "noise": floor(scan),
                "minutes": minutes,
            }
        )
        numbers = [*(errors[name] for name in ("SENSE", "L1-wavelet", "network")), ratio, floor(scan)]
        rows.append([seed, *(f"{number:.3f}" for number in numbers), chosen["network"]["step"], f"{minutes:.0f}"])
        print(*rows[-1], sep=" | ", flush=True)
        if seed == arguments.seeds[0] and not arguments.quick:
            draw(results, RESULTS / "self_supervised.png")
    head = (
        f"seed | SENSE | L1-wavelet | network | network / L1-wavelet (≤ {WANTED}) | noise alone | best step | minutes"
    )
    text = (
        "‖y − ŷ‖ / ‖y‖ over a tenth of the measured places outside of the full centre, which no method saw; of "
        "zero-filling it is 1. A real head, 8 coils, 12 % of the places.\n\n"
        f"{table(head, rows)}\n\n"
        "Maps are ESPIRiT's for all. The iterations of SENSE, the weight of the wavelets and the step at which the "
        "network is taken are chosen on another tenth. `noise alone` is the size of the outermost samples over that of "
        "the tested ones. Minutes of processor time, one thread, for the network's training on this one scan."
    )
    publish("self_supervised", {"runs": runs, "wanted_ratio": WANTED}, text, quick=arguments.quick)


if __name__ == "__main__":
    main()
