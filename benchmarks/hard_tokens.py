"""Are hard tokens harder than easy ones, and what do weights on them bring? And two scales of the encoder or three?

python benchmarks/hard_tokens.py [--out FOLDER] [--seeds 3 4 5]

Every run is configs/pretrain/subset.yaml with the overrides of `ARMS`: 50 + 50 generated heads, 10 epochs. What it is
worth is told by a linear probe of the tissue of tokens, on 24 + 24 other heads. Which tokens are hard was chosen on
seeds 0 and 1.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from measuring import RESULTS, report
from reporting import table
from short_runs import MODALITIES, Run, over_baseline, run_folder, train
from voxelwave.jobs.probe.run import probe
from voxelwave.jobs.synthesize.run import synthesize

TRAINED, PROBED = Path("data/demo"), Path("data/probed")
CLASSES = "grey=6,white=7,deep=8,ventricles=9,cerebellum=10,stem=11"
LAST_EPOCHS = 5  # over which errors are compared
WANTED = 3.0  # standard errors
ARMS: dict[str, list[str]] = {
    "both alike": [],
    "hard × 4": ["loss.reconstruction={hard_weight: 4}"],
    "easy × 4": ["loss.reconstruction={easy_weight: 4}"],
    "both alike, a third scale": ["model.encoder_widths=[128, 192, 256]"],
}


def difference(run: Run, modality: str) -> dict[str, float]:
    """Return the errors of hard and easy tokens over the last epochs, and the mean of what they differ by in a step."""
    first = run.records[-1]["epoch"] - LAST_EPOCHS
    records = [record for record in run.records if record["epoch"] > first and record["modality"] == modality]
    steps = [record["hard"] - record["easy"] for record in records]
    return {
        "hard": mean(record["hard"] for record in records),
        "easy": mean(record["easy"] for record in records),
        "difference": mean(steps),
        "standard_error": stdev(steps) / math.sqrt(len(steps)),
        "over_baseline": over_baseline([r for r in records if r["epoch"] == run.records[-1]["epoch"]], modality),
    }


def worth(run: Run, folder: Path, name: str) -> dict[str, float]:
    """Return the balanced accuracy of the tissue of tokens by modality, and that of raw voxels."""
    out = folder / f"probe_{name}.json"
    if not out.exists():
        probe(run.config.run_folder(), PROBED, targets=[], label_classes=CLASSES, transfer="mri:ct", out=out)
    found = {}
    for result in json.loads(out.read_text())["results"]:
        if result["task"] == "tissue" and result["measure"] == "balanced accuracy":
            key = f"{result['modality']}, {result['probe']}"
            found[key] = result["pretrained"]["value"]
            found[f"{key}, raw voxels"] = result["raw_voxels"]["value"]
    return found


def main() -> None:
    """Train every arm on every seed, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    arguments = parser.parse_args()
    for folder, number, seed in ((TRAINED, 50, 0), (PROBED, 24, 1)):
        if not (folder / "labels").exists():
            synthesize(folder, num_mri=number, num_ct=number, size=96, seed=seed)
    figures: dict[str, Any] = {}
    with run_folder(arguments.out) as folder:
        for seed in arguments.seeds:
            for arm, overrides in ARMS.items():
                name = f"arm_{list(ARMS).index(arm)}_seed_{seed}"
                run = train([f"run.seed={seed}", *overrides], folder, name)
                errors = {modality: difference(run, modality) for modality in MODALITIES}
                figures.setdefault(arm, {})[str(seed)] = {"errors": errors, "probe": worth(run, folder, name)}
    report("hard_tokens", {"wanted_standard_errors": WANTED, "arms": figures})
    text = f"configs/pretrain/subset.yaml, seeds {', '.join(map(str, arguments.seeds))}.\n\n" + tables(figures)
    (RESULTS / "hard_tokens.md").write_text(text + "\n")
    print(text)


def tables(figures: dict[str, Any]) -> str:
    """Write errors by level, and what the features are worth."""
    rows: list[list[str]] = []
    for arm, seeds in figures.items():
        for modality in MODALITIES:
            of = [result["errors"][modality] for result in seeds.values()]
            over = [one["difference"] / one["standard_error"] for one in of]
            names = ("hard", "easy", "difference", "over_baseline")
            values = [f"{mean(one[name] for one in of):.4f}" for name in names]
            rows.append([arm, modality, *values, ", ".join(f"{value:.1f}" for value in over)])
    errors = table(
        "weights | modality | hard | easy | difference | over baseline, last epoch | in standard errors, by seed",
        rows,
    )
    rows, asked = [], list(next(iter(next(iter(figures.values())).values()))["probe"])
    for arm, seeds in figures.items():
        values = [[result["probe"][key] for result in seeds.values()] for key in asked]
        rows.append([arm, *(f"{mean(of):.3f} ± {stdev(of) if len(of) > 1 else 0:.3f}" for of in values)])
    return errors + "\n\nBalanced accuracy, ± deviation over seeds:\n\n" + table(" | ".join(["weights", *asked]), rows)


if __name__ == "__main__":
    main()
