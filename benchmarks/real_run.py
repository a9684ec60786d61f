"""A short pretraining run on real MRI and CT: does the masked loss fall on both, and do the features keep their rank?

VOXELWAVE_REAL_DATA=FOLDER python benchmarks/real_run.py [--steps 1100] [--out FOLDER]

FOLDER holds volumes/mr and volumes/ct. Only figures and curves are kept: the volumes are scans of people.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

from measuring import RESULTS, report
from short_runs import MODALITIES, Run, over_baseline, run_folder, train
from voxelwave.data.listing.discovery import Source
from voxelwave.data.listing.selection import Selection, accept_volumes
from voxelwave.registry import MODALITIES as REGISTERED

FOLDERS = {"mri": "mr", "ct": "ct"}
WIDTH = 96
RANK_SHARE = 0.2
OVERRIDES = [
    "data.crop_size=[48, 48, 48]",
    "data.spacing_mm=2.0",
    "data.view_share=null",
    "data.max_volumes_per_modality=null",
    "data.cached_volumes=64",
    "data.num_workers=2",
    f"model.backbone={{name: waveformer, patch_size: 4, embed_dim: {WIDTH}, depth: 6, num_heads: 3}}",
    "model.encoder_widths=[96, 128, 192]",
    "model.decoder_width=96",
    "training.batch_size={mri: 4, ct: 4}",
    "training.learning_rate=1e-3",
    "training.probe_every_steps=50",
    # An epoch is a handful of steps here: the number of steps alone ends the run, and writes its checkpoint.
    "training.epochs=100000",
    "training.checkpoint_every_epochs=100000",
]


def real_volumes() -> Path:
    """Return where the volumes lie; leaves with a message where they do not."""
    folder = Path(os.environ.get("VOXELWAVE_REAL_DATA", "../shared/data")) / "volumes"
    missing = [name for name in FOLDERS.values() if not (folder / name).is_dir()]
    if missing:
        print(f"skipped: no {' and no '.join(missing)} in {folder}; name the folder in VOXELWAVE_REAL_DATA")
        raise SystemExit(0)
    return folder


def select(folder: Path) -> Selection:
    """Ask the package which files it would train on."""
    sources = [Source(str(folder / name), modality) for modality, name in FOLDERS.items()]
    return accept_volumes(sources, {name: REGISTERED.build(name) for name in FOLDERS}, check_content=True)


def volumes_of(selection: Selection, folder: Path) -> dict[str, Any]:
    """Name the files that were used and those that were not, with the reasons."""
    used = {name: [file.path.name for file in files] for name, files in selection.files().items()}
    left_out = {refusal.path.name: refusal.reason.replace(f"{folder}/", "") for refusal in selection.refused}
    return {"used": used, "left_out": left_out}


def tenths(run: Run, modality: str) -> dict[str, Any]:
    """Compare the first tenth of a modality's steps with the last."""
    records = [record for record in run.records if record["modality"] == modality]
    size = len(records) // 10
    ends = {"first_tenth": records[:size], "last_tenth": records[-size:]}
    return {name: _means(part, modality) for name, part in ends.items()}


def _means(records: list[dict[str, Any]], modality: str) -> dict[str, float]:
    names = ("reconstruction", "easy", "hard", "contrastive", "alignment")
    means = {name: sum(record[name] for record in records) / len(records) for name in names}
    return {**means, "reconstruction_over_baseline": over_baseline(records, modality)}


def criteria(run: Run, ends: dict[str, Any]) -> dict[str, bool]:
    """Hold the run against what was asked of it."""
    met = {}
    for modality in MODALITIES:
        first, last = (ends[modality][part]["reconstruction_over_baseline"] for part in ("first_tenth", "last_tenth"))
        met[f"masked_loss_falls_{modality}"] = last < first
        rank = run.gauges_at_ends()[f"effective_rank_{modality}"]["end"]
        met[f"effective_rank_{modality}_at_least_a_fifth_of_the_width"] = rank >= RANK_SHARE * WIDTH
    return met


def gauges_over_time(run: Run) -> dict[str, dict[int, float]]:
    """Return every gauge by step."""
    names = (f"{gauge}_{modality}" for gauge in ("effective_rank", "feature_std") for modality in MODALITIES)
    return {name: dict(zip(*run.gauge(name), strict=True)) for name in names}


def main() -> None:
    """Train, and report volumes, losses and gauges beside the criteria."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--out", type=Path, help="keep the run here, and go on with one that is there already")
    arguments = parser.parse_args()
    folder = real_volumes()
    sources = ", ".join(f"{{path: '{folder / name}', modality: {modality}}}" for modality, name in FOLDERS.items())
    overrides = [*OVERRIDES, f"data.sources=[{sources}]", f"training.max_steps={arguments.steps}"]
    volumes = volumes_of(select(folder), folder)
    with run_folder(arguments.out) as out:
        run = train(overrides, out, "real_run")
        RESULTS.mkdir(exist_ok=True)
        shutil.copyfile(run.config.run_folder() / "figures" / "losses.png", RESULTS / "real_run_losses.png")
    ends = {modality: tenths(run, modality) for modality in MODALITIES}
    report(
        "real_run",
        {
            "volumes": volumes,
            "steps": len(run.records),
            "duration_s": run.duration_s,
            "by_modality": ends,
            "gauges": gauges_over_time(run),
            "criteria_met": criteria(run, ends),
            "targets": {
                "reconstruction_over_baseline": "last tenth below first tenth, on both",
                "effective_rank_at_end": RANK_SHARE * WIDTH,
            },
        },
    )


if __name__ == "__main__":
    main()
