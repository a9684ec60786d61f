"""What the parts beside the backbone cost a step of production, of a batch of one on two cores.

python benchmarks/production_step.py [--rounds 5]

Each arm is configs/pretrain/production.yaml with other settings: forward, loss, backward and AdamW on one volume of
noise. All arms take turns.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from demo_settings import PLAIN, step_of
from measuring import medians_in_turn
from reporting import publish, table
from voxelwave.jobs.pretrain.config import load_config

PRODUCTION = Path(__file__).parent.parent / "configs" / "pretrain" / "production.yaml"
SCALES = "model.encoder_widths=[384, 512, 640]"
DESCRIBED, OWN = "as described: three scales, InfoNCE", "as it is: one scale, no InfoNCE"
ARMS: dict[str, tuple[str, ...]] = {
    DESCRIBED: (SCALES, "loss.contrastive_weight=0.5"),
    "three scales, no InfoNCE": (SCALES,),
    OWN: (),
    "decoder half as wide": ("model.decoder_width=160",),
    "75 % hidden": ("masking.global_ratio=0.75",),
    "no wavelets": (PLAIN,),
}
WANTED = {"times_as_fast": 1.3}


def main() -> None:
    """Measure, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    fixed = ("model.sparse=gather", "training.batch_size.mri=1")
    steps = {arm: step_of(load_config(PRODUCTION, [*fixed, *overrides])) for arm, overrides in ARMS.items()}
    durations = medians_in_turn(steps, rounds)
    times = {arm: durations[DESCRIBED] / taken for arm, taken in durations.items()}
    rows = [(arm, f"{taken:.2f}", f"{times[arm]:.2f}") for arm, taken in durations.items()]
    text = table("`production.yaml`, batch 1 | a step, s | times as fast", rows)
    publish("production_step", {"wanted": WANTED, "step_s": durations, "times_as_fast": times}, text, quick=False)


if __name__ == "__main__":
    main()
