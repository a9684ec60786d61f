"""Does a backbone find a place of a real scan in another contrast of the same head, under a shifted field of view?

VOXELWAVE_REAL_DATA=FOLDER python benchmarks/transfer/real_places.py OUT.json WEIGHTS …

Beside each backbone stand random weights of the same architecture and the raw voxels of a patch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from endpoints import places
from scans import REAL_PAIRS, real_volumes

from voxelwave.data.listing.cases import Case
from voxelwave.downstream.embedding import untrained_twin
from voxelwave.downstream.load_backbone import load_backbone
from voxelwave.jobs.probe.correspondence import compare_scans

VIEWS = 8  # of each pair: one has but one answer


def main() -> None:
    """Look at every pair under several fields of view."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--spacing-mm", type=float, help="to read scans at; else that of pretraining")
    arguments = parser.parse_args()
    folder = real_volumes()
    if folder is None:
        raise SystemExit("no real volumes: name their folder in VOXELWAVE_REAL_DATA")
    found: dict[str, Any] = {}
    for weights in arguments.weights:
        features = load_backbone(weights).eval()
        if arguments.spacing_mm is not None:
            features.description["preprocessing"]["spacing_mm"] = arguments.spacing_mm
        backbones = {"features": features, "random weights": untrained_twin(features, seed=0)}
        for name, pair in REAL_PAIRS.items():
            by_view: dict[str, list[float]] = {}
            for seed in range(VIEWS):
                cases = [Case(one, folder / "mr" / f"{one}.nii.gz", "mri", name) for one in pair]
                own, _ = compare_scans(cases[:1], cases[1:], backbones, classes=None, seed=seed)
                for arm, values in places(own)["by head"].items():
                    by_view.setdefault(arm, []).extend(values)
            found.setdefault(weights.stem, {})[name] = by_view
            print(weights.stem, name, {arm: round(mean(values), 3) for arm, values in by_view.items()}, flush=True)
            arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
