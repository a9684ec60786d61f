"""The study of masks on real images: random and learned ones with a network, beside the controls.

VOXELWAVE_REAL_DATA=FOLDER python benchmarks/subsample_study.py OUT [--seeds 0 1 2] [--quick]

FOLDER (../shared/data if none is named) holds kspace/admmnet_chest100_256_u16.npz, 100 cardiac magnitudes, and two
fully sampled single-channel k-spaces. OUT gets the run folder of `voxelwave subsample study`; called again, it goes on.
The network and its rates were chosen on the 80 images that are not of the test of another split; 17 of the 20 of this
test are among them. --quick trains for an epoch at two drop rates, and writes no result.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from measuring import RESULTS
from reporting import publish, table
from voxelwave.errors import InputError
from voxelwave.evaluation.image_quality import psnr_db
from voxelwave.jobs.subsample.config import StudyConfig, check_subsample_config
from voxelwave.jobs.subsample.study.run import run_study
from voxelwave.ops.texts import read_json
from voxelwave.physics.fixed_masks import complete_conjugates, half_plane, highest_mean_power
from voxelwave.physics.fourier import ifft2c

IMAGES = "admmnet_chest100_256_u16.npz"
MEASURED = {"knee": "larson_knee_kspace_332x640.npz", "head, sagittal": "larson_t1sag_kspace_256.npz"}
MINUTES = "minutes.txt"
WANTED_BELOW_DB, WANTED_ABOVE, WANTED_SSIM = 0.2, 4, 0.9
DATA_SEED = 1  # of the split: the test of 0 was scored with the network of before
TRIED = (0.3, 0.5)  # drop rates at which the trick with conjugates is tried on measured k-space


def config_of(images: Path, out: Path, *, seeds: list[int], quick: bool) -> StudyConfig:
    """Return the configuration of the study."""
    return check_subsample_config(
        StudyConfig,
        {
            "run": {"name": "study", "out_dir": str(out)},
            "data": {"source": str(images), "volumes": 100, "slices": 1, "size": 128, "seed": DATA_SEED},
            "model": {"name": "unrolled", "num_cascades": 3, "channels": 8, "depth": 2},
            "mask": {"epochs": 1 if quick else 8},
            "training": {"epochs": 1 if quick else 24, "batch_size": 5, "learning_rate": 4e-3},
            "study": {
                "drop_rates": [0.3, 0.6] if quick else [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
                "masks": ["random", "learned"],
                "controls": ["power"],
                "seeds": seeds,
                "workers": 2,
            },
        },
    )


def of_measured_kspace(folder: Path) -> list[dict[str, Any]]:
    """Return the PSNR of measured complex images by half a plane with conjugates, and by the strongest frequencies."""
    rows = []
    for name, file in MEASURED.items():
        kspace = torch.from_numpy(np.load(folder / file)["kspace"])[None]
        target = ifft2c(kspace).abs()
        shape = (kspace.shape[1], kspace.shape[2])
        for rate in TRIED:
            completed = ifft2c(complete_conjugates(kspace, half_plane(shape, drop_rate=rate))).abs()
            strongest = ifft2c(kspace * highest_mean_power(kspace, drop_rate=rate)).abs()
            found = {key: psnr_db(of, target) for key, of in (("half_plane", completed), ("strongest", strongest))}
            rows.append({"kspace": name, "drop_rate": rate, **found})
    return rows


def spent(out: Path, began: float) -> float:
    """Return the minutes of all calls so far that went on with one study."""
    record = out / MINUTES
    minutes = (float(record.read_text()) if record.exists() else 0.0) + (time.perf_counter() - began) / 60
    record.write_text(f"{minutes}\n")
    return minutes


def main() -> None:
    """Run the study, and write its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("VOXELWAVE_REAL_DATA", "../shared/data")) / "kspace"
    if not (folder / IMAGES).is_file():
        raise InputError(f"no {folder / IMAGES}: name the folder that holds kspace/ in VOXELWAVE_REAL_DATA")
    config = config_of(folder / IMAGES, arguments.out, seeds=arguments.seeds, quick=arguments.quick)
    began = time.perf_counter()
    complete = run_study(config).complete
    minutes = spent(arguments.out, began)
    if not complete:
        return
    run = config.run_folder()
    summary = read_json(run / "summary.json")
    rows = {(row["mask"], row["drop_rate"]): row for row in summary["rows"]}
    beside = {key: {one["drop_rate"]: one for one in of} for key, of in summary["differences"].items()}
    rates = config.study.drop_rates
    lines = [_line(rate, rows, beside) for rate in rates]
    over_power = [beside["learned - power"][rate]["value"] for rate in rates]
    measured = of_measured_kspace(folder)
    ssims = [rows["learned", rate]["test"]["ssim"] for rate in rates if rate < 0.3]
    near, above = sum(value >= -WANTED_BELOW_DB for value in over_power), sum(value > 0 for value in over_power)
    lowest_ssim = min(ssims, default=float("nan"))
    reached = {"near_power": near, "above_power": above, "lowest_ssim": lowest_ssim, "minutes": minutes}
    head = (
        "drop rate | random | highest mean power | learned | learned − random [95 %] | learned − power [95 %] | "
        "SSIM, learned | fit of learned | L1-wavelet: power | L1-wavelet: learned"
    )
    text = (
        "PSNR in dB, mean ± deviation over 20 test images; the range is the largest value of each image. "
        f"The same network behind every mask, begun anew and trained for {config.training.epochs} epochs in the same "
        f"way; a mask was learned in {config.mask.epochs} epochs before that. Seeds: {arguments.seeds}.\n\n"
        f"{table(head, lines)}\n\n"
        f"Learned masks are at most {WANTED_BELOW_DB} dB below the power at {near} of {len(rates)} rates (wanted: "
        f"all), and above it at {above} (wanted: ≥ {WANTED_ABOVE}). Their SSIM below a drop rate of 0.3 is "
        f"{lowest_ssim:.3f} or more (wanted: {WANTED_SSIM}). Intervals are those of the bootstrap over images. All "
        f"{len(summary['rows'])} cases of {len(arguments.seeds)} seeds took {minutes:.0f} minutes on two cores.\n\n"
        "Two measured complex k-spaces, PSNR in dB: half a plane completed with conjugates, and the strongest "
        "frequencies of the image itself.\n\n"
        + table(
            "k-space | drop rate | half-plane, conjugates | strongest",
            [
                [row["kspace"], row["drop_rate"], f"{row['half_plane']:.1f}", f"{row['strongest']:.1f}"]
                for row in measured
            ],
        )
    )
    figures = {"summary": summary, "measured_kspace": measured, "reached": reached}
    publish("subsample_study", figures, text, quick=arguments.quick)
    if not arguments.quick:
        shutil.copy(run / "pictures" / "psnr.png", RESULTS / "subsample_study.png")
        shutil.copy(run / "cases.csv", RESULTS / "subsample_study.csv")


def _line(rate: float, rows: dict[tuple[str, float], Any], beside: dict[str, dict[float, Any]]) -> list[str]:
    cells = [f"{rate:g}"]
    for mask in ("random", "power", "learned"):
        of = rows[mask, rate]["test"]
        cells.append(f"{of['psnr_db']:.2f} ± {of['psnr_db_deviation']:.2f}")
    for other in ("random", "power"):
        of = beside[f"learned - {other}"][rate]
        cells.append(f"{of['value']:+.2f} [{of['low']:+.2f}, {of['high']:+.2f}]")
    learned = rows["learned", rate]
    cells += [f"{learned['test']['ssim']:.4f}", ", ".join(dict.fromkeys(learned["fit"]))]
    for mask in ("power", "learned"):
        value = rows[mask, rate]["l1_wavelet"]["psnr_db"]
        cells.append("" if value is None else f"{value:.2f}")
    return cells


if __name__ == "__main__":
    main()
