"""What segmenting a volume of 256³ costs, and whether less overlap, larger windows and skipping air cost accuracy.

python benchmarks/prediction_speed.py [--out FOLDER] [--tiny] [--speed]

Accuracy: a model that is fine-tuned from random weights at 48³ on generated heads segments eight others in windows of
several sizes and overlaps. Time: processor time of the decoder of configs/finetune/segmentation.yaml on one generated
head of 256³, beside MONAI's UNet of about as many parameters in the same windows. --speed measures the time alone, and
takes the accuracy from the results that are there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from measuring import ended
from reporting import RESULTS, publish, table
from short_runs import run_folder
from voxelwave.data.label_maps import Classes, read_labels
from voxelwave.data.listing.cases import find_cases
from voxelwave.data.scaled import read_scaled
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.downstream.finetuned import load_finetuned
from voxelwave.downstream.inference import OVERLAP, predict_volume
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.downstream.segmentation import SegmentationModel
from voxelwave.evaluation.overlap import dice_scores, mean_of_known
from voxelwave.jobs.finetune.config import load_finetune_config
from voxelwave.jobs.finetune.run import finetune
from voxelwave.jobs.synthesize.run import synthesize
from voxelwave.registry import BACKBONES, MODALITIES

FINETUNE = Path(__file__).parent.parent / "configs" / "finetune" / "segmentation.yaml"
WANTED = {"times_the_unet": 2.0, "dice_lost": 0.002, "times_as_fast_as_before": 4.0}
# Of windows: their side, their overlap, and whether those without tissue are left out.
LESS = 0.25
BEFORE, DEFAULT = (48, 0.5, False), (48, OVERLAP, True)
WAYS = (BEFORE, DEFAULT, (48, LESS, False), (48, LESS, True), (64, LESS, True), (96, LESS, True))
Way = tuple[int, float, bool]


def named(way: Way) -> str:
    """Return the words for a way."""
    side, overlap, skips = way
    return f"{side}³, overlap {overlap:g}, {'without air' if skips else 'all windows'}"


def trained(folder: Path, *, steps: int, size: int) -> tuple[Path, Path]:
    """Fine-tune from random weights, and return the run's folder and that of other heads."""
    for name, number, seed in (("train", 16, 0), ("test", 8, 1)):
        if not (folder / name).exists():
            synthesize(folder / name, num_mri=number, num_ct=0, size=size, seed=seed)
    settings = {
        **{"run.out_dir": str(folder), "run.name": "finetuned", "backbone.path": "null"},
        **{"data.cases": str(folder / "train"), "data.folds": "1", "data.spacing_mm": "native"},
        **{"training.max_steps": str(steps), "training.validate_every_steps": str(steps)},
    }
    config = load_finetune_config(FINETUNE, [f"{key}={value}" for key, value in settings.items()])
    if not (config.run_folder() / "model.safetensors").exists():
        ended(finetune(config, resume=True))
    return config.run_folder(), folder / "test"


def accuracy(run: Path, cases: Path, ways: Sequence[Way]) -> dict[str, list[float]]:
    """Return the mean Dice of every head by way."""
    model: Any = load_finetuned(run)[0].eval()
    reader = ScanReader(model.features)
    classes = Classes(load_finetune_config(run / "config.yaml").task.classes, others="background")
    found: dict[str, list[float]] = {named(way): [] for way in ways}
    for case in find_cases(cases):
        scan = reader(case.image, "mri")
        assert case.label is not None
        truth = torch.from_numpy(classes.indices(read_labels(case.label).array).astype(np.uint8))
        for way in ways:
            side, overlap, skips = way
            of_classes = len(classes) if skips else None
            logits = predict_volume(model, scan.volume, window=(side,) * 3, overlap=overlap, num_classes=of_classes)
            scores = dice_scores(logits.argmax(0).byte(), truth, num_classes=len(classes))
            found[named(way)].append(float(mean_of_known(scores)))
    return found


def cost_s(call: Callable[[], object]) -> float:
    """Return the processor time of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def model_of(width: int) -> SegmentationModel:
    """Return a decoder on the demo's backbone."""
    backbone = BACKBONES.build("waveformer", (1, 3), patch_size=4, embed_dim=96, depth=4, num_heads=3)
    return SegmentationModel(FeaturePyramid(backbone), num_classes=7, width=width).eval()


def unet_of(channels: int) -> nn.Module:
    """Return MONAI's UNet of four levels, with these channels at the first."""
    from monai.networks.nets import UNet

    widths = [channels << level for level in range(4)]
    return UNet(3, 1, 7, channels=widths, strides=(2, 2, 2), num_res_units=0).eval()


def models() -> dict[str, nn.Module]:
    """Return the decoder as it is configured on the demo's backbone, and a UNet of about as many parameters."""
    return {"ours": model_of(16), "unet": unet_of(18)}


def costs(volume: Tensor, ways: Sequence[Way]) -> dict[str, dict[str, float]]:
    """Return processor times by model and way, each after one window that warms up."""
    found: dict[str, dict[str, float]] = {}
    for name, model in models().items():
        for way in ways:
            side, overlap, skips = way
            window = (side,) * 3
            predict_volume(model, volume[:, :side, :side, :side], window=window)
            if name == "unet" and skips and side != BEFORE[0]:
                continue
            asked = {"window": window, "overlap": overlap, "num_classes": 7 if skips else None}
            found.setdefault(name, {})[named(way)] = cost_s(
                lambda model=model, asked=asked: predict_volume(model, volume, **asked)
            )
    return found


def main() -> None:
    """Measure accuracy, then time, and report both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    size, steps, ways = (48, 4, WAYS[:3]) if arguments.tiny else (128, 400, WAYS)
    with run_folder(arguments.out) as folder:
        if arguments.speed:
            dice = json.loads((RESULTS / "prediction_speed.json").read_text())["dice"]
        else:
            run, test = trained(folder, steps=steps, size=size)
            dice = accuracy(run, test, ways)
        large = folder / "large"
        if not large.exists():
            synthesize(large, num_mri=1, num_ct=0, size=64 if arguments.tiny else 256, seed=2)
        image = find_cases(large)[0].image
        volume = read_scaled(image, MODALITIES.build("mri")).volume
    seconds = costs(volume, ways)
    figures: dict[str, Any] = {"wanted": WANTED, "voxels": list(volume.shape[1:]), "dice": dice, "processor_s": seconds}
    ours, unet = seconds["ours"], seconds["unet"]
    figures["times_as_fast_as_before"] = ours[named(BEFORE)] / ours[named(DEFAULT)]
    figures["times_the_unet"] = ours[named(DEFAULT)] / unet[named(DEFAULT)]
    base = np.array(dice[named(BEFORE)])
    rows = []
    for way in ways:
        said = ("", "")  # of a way whose accuracy was not measured
        if named(way) in dice:
            lost = base - dice[named(way)]
            error = lost.std(ddof=1) / len(lost) ** 0.5
            said = (f"{np.mean(dice[named(way)]):.4f}", f"{lost.mean():+.4f} ± {error:.4f}")
        rows.append(
            [
                *(named(way), *said),
                *(f"{ours[named(way)]:.0f}", f"{unet[named(way)]:.0f}" if named(way) in unet else ""),
            ]
        )
    head = "windows | Dice of 8 heads | less than in the first line | processor time, s | MONAI's UNet, s"
    count = " and ".join(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M" for model in models().values())
    publish("prediction_speed", figures, f"{count} parameters.\n\n" + table(head, rows), quick=arguments.tiny)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
