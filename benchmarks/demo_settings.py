"""What the parts beside the backbone cost the demo, and what its features are worth with and without them.

python benchmarks/demo_settings.py [--out FOLDER] [--seeds 0]

Each arm is configs/pretrain/demo.yaml with other settings, trained for its 800 steps on 50 + 50 heads that the demo
does not have, and probed on 24 others in T1 and CT: balanced accuracy of six tissues. The time is that of a step on
noise, the median of rounds in which all arms take turns, on one thread. Finished runs in FOLDER are taken as they are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from reporting import publish, table
from voxelwave.jobs.pretrain.config import load_config
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer
from voxelwave.ops.seeding import torch_generator

DEMO = Path(__file__).parent.parent / "configs" / "pretrain" / "demo.yaml"
WIDE = ("model.encoder_widths=[96,128]", "model.decoder_width=96")
# By the name of the run what the arm is, and its settings.
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "asis": ("as it was: two wide scales, InfoNCE", (*WIDE, "loss.contrastive_weight=0.5")),
    "narrow": ("as it is: one narrow scale, no InfoNCE", ()),
    "narrow75": ("the same, 75 % hidden", ("masking.global_ratio=0.75",)),
    "plain": ("the same, no wavelets", ("model.backbone.wavelet_levels=0",)),
}
CLASSES = "grey=6,white=7,deep=8,ventricles=9,cerebellum=10,stem=11"
PROBE = ("linear, tokens", "balanced accuracy")
ROUNDS = 9
WANTED = {"times_the_steps_a_second": 1.6}


def voxelwave(*arguments: object) -> None:
    """Run the command; one that fails or is stopped ends the study."""
    subprocess.run([sys.executable, "-W", "ignore", "-m", "voxelwave", *map(str, arguments)], check=True)


def probed(folder: Path, name: str, overrides: tuple[str, ...], seed: int) -> dict[str, dict[str, float]]:
    """Train and probe an arm; by modality the score of its features, of random weights and of raw voxels."""
    run, found = folder / f"{name}_{seed}", folder / f"probe_{name}_{seed}.json"
    if not found.exists():
        sources = ", ".join(f"{{path: {folder / 'heads' / of}, modality: {of}}}" for of in ("mri", "ct"))
        settings = (f"run.out_dir={folder}", f"run.name={run.name}", f"run.seed={seed}", f"data.sources=[{sources}]")
        options = [part for one in (*settings, "data.num_workers=0", *overrides) for part in ("--set", one)]
        voxelwave("pretrain", DEMO, *options, "--resume")
        voxelwave("probe", run, folder / "probe", "--label-classes", CLASSES, "--out", found)
    results = json.loads(found.read_text())["results"]
    return {
        of["modality"]: {key: of[key]["value"] for key in ("pretrained", "random_init", "raw_voxels")}
        for of in results
        if of["task"] == "tissue" and (of["probe"], of["measure"]) == PROBE
    }


def step_times() -> dict[str, float]:
    """Return the processor time of a step by arm."""
    torch.set_num_threads(1)
    steps: dict[str, Callable[[int], None]] = {}
    for arm, (_, overrides) in ARMS.items():
        config = load_config(DEMO, overrides)
        pretrainer = build_pretrainer(config)
        optimizer = torch.optim.AdamW(pretrainer.parameters())
        volume = torch.rand(config.training.batch_size["mri"], 1, *config.data.crop_size)

        def step(
            number: int, pretrainer: Any = pretrainer, optimizer: Any = optimizer, volume: torch.Tensor = volume
        ) -> None:
            pretrainer(volume, torch_generator("mask", number)).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        steps[arm] = step
    taken: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(ROUNDS + 1):
        for arm, one in steps.items():
            began = time.process_time()
            one(number)
            if number:  # the first warms up
                taken[arm].append(time.process_time() - began)
    return {arm: statistics.median(values) for arm, values in taken.items()}


def main() -> None:
    """Train, probe and time all arms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/demo_settings"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args()
    folder = asked.out.absolute()
    # What is there already is not made again.
    voxelwave("synthesize", folder / "heads", "--num-mri", 50, "--num-ct", 50, "--seed", 77)
    voxelwave("synthesize", folder / "probe", "--num-heads", 24, "--contrasts", "T1,CT", "--seed", 78)
    figures: dict[str, Any] = {"wanted": WANTED, "seeds": asked.seeds, "arms": {}}
    rows, durations = [], step_times()
    before = durations[next(iter(ARMS))]
    for arm, (what, overrides) in ARMS.items():
        scores = [probed(folder, arm, overrides, seed) for seed in asked.seeds]
        mean = {
            (modality, kind): statistics.mean(of[modality][kind] for of in scores)
            for modality, kinds in scores[0].items()
            for kind in kinds
        }
        figures["arms"][what] = {"step_s": durations[arm], "scores": scores}
        cells = (f"{mean[modality, kind]:.2f}" for kind in ("pretrained", "random_init") for modality in ("mri", "ct"))
        rows.append((what, f"{durations[arm]:.3f}", f"{before / durations[arm]:.2f}", *cells))
    raw = " and ".join(f"{mean[modality, 'raw_voxels']:.2f}" for modality in ("mri", "ct"))
    head = "arm | a step, s | times as fast | tissues of MRI | of CT | random weights, MRI | CT"
    text = f"{table(head, rows)}\n\nRaw voxels with their place: {raw}."
    publish("demo_settings", figures, text, quick=False)


if __name__ == "__main__":
    main()
