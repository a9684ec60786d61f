"""What the features of the demo are worth with other settings and other backbones, after the same time.

python benchmarks/demo_settings.py [--out FOLDER] [--seeds 1 2 3] [--arms …] [--choice]

Each arm is configs/pretrain/demo.yaml with other settings, trained for as long as the demo as it is takes for `STEPS`,
on 50 + 50 heads that the demo does not have, and probed on 32 others in T1 and CT: balanced accuracy of six tissues.
How long a step takes is measured first, with nothing else running: the median of rounds on noise in which all arms take
turns, on one thread. Finished runs in FOLDER are taken as they are. --choice takes other heads and seed 0, and has
results of its own: what is decided is decided there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from measuring import ended, medians_in_turn
from reporting import publish, table
from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.backbones.wavelet_attention import WaveletBlock
from voxelwave.data.listing.cases import find_cases
from voxelwave.downstream.embedding import untrained_twin
from voxelwave.downstream.load_backbone import load_backbone
from voxelwave.evaluation.probing import tissue_probe
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.pretrain.config import Config, load_config
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer
from voxelwave.jobs.pretrain.run import pretrain
from voxelwave.jobs.probe.features import RAW, parse_classes, probe_cases
from voxelwave.jobs.probe.tasks import PRETRAINED, UNTRAINED
from voxelwave.jobs.synthesize.run import synthesize
from voxelwave.ops.seeding import torch_generator
from voxelwave.ops.wavelets import haar, inverse_haar
from voxelwave.registry import BACKBONES

DEMO = Path(__file__).parent.parent / "configs" / "pretrain" / "demo.yaml"
STEPS = 800  # of the demo as it is
NARROW_RATIO = 1.0  # width of the MLP on high bands over that of a token
CLASSES = "grey=6,white=7,deep=8,ventricles=9,cerebellum=10,stem=11"
MEASURE = "balanced accuracy"
MODALITIES = ("mri", "ct")
ROUNDS = 9
WANTED = {"times_the_steps_a_second": 1.6}
QUIET = Console(quiet=True)
Scores = dict[str, dict[str, float]]  # by modality, then by what is probed


@dataclass(frozen=True)
class Arm:
    """What differs from the demo as it is."""

    what: str
    settings: Sequence[str] = ()


PLAIN = "model.backbone.wavelet_levels=0"
ARMS = {
    "as_it_is": Arm("as it is: 60 % hidden, one scale of width 48"),
    "as_it_was": Arm(
        "two wide scales, InfoNCE",
        ("model.encoder_widths=[96,128]", "model.decoder_width=96", "loss.contrastive_weight=0.5"),
    ),
    "wider": Arm("one scale of width 96", ("model.encoder_widths=[96]", "model.decoder_width=96")),
    "hidden_75": Arm("75 % hidden", ("masking.global_ratio=0.75",)),
    "hidden_85": Arm("85 % hidden", ("masking.global_ratio=0.85",)),
    "banded_mlp": Arm("MLP of full width on low bands, narrow on high ones", ("model.backbone.name=banded_mlp",)),
    "every_second_mlp": Arm("one MLP for two blocks", ("model.backbone.name=every_second_mlp",)),
    "plain": Arm("no wavelets", (PLAIN,)),
    "plain_75": Arm("no wavelets, 75 % hidden", (PLAIN, "masking.global_ratio=0.75")),
    "plain_85": Arm("no wavelets, 85 % hidden", (PLAIN, "masking.global_ratio=0.85")),
}


class BandedMLP(nn.Module):
    """The MLP of a block on the bands of its octets: full width on the low one, narrow on the seven others."""

    def __init__(self, full: nn.Module, dim: int) -> None:
        super().__init__()
        narrow = int(NARROW_RATIO * dim)
        self.full = full
        self.narrow = nn.Sequential(nn.Linear(dim, narrow), nn.GELU(), nn.Linear(narrow, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix the channels of every band."""
        bands = haar(tokens.unflatten(1, (-1, 8)))
        mixed = torch.cat([self.full(bands[:, :, :1]), self.narrow(bands[:, :, 1:])], dim=2)
        return inverse_haar(mixed).flatten(1, 2)


class AttentionAlone(WaveletBlock):
    """A block without MLP."""

    def forward(self, tokens: Tensor, places: Tensor, absent: Tensor | None = None) -> Tensor:
        """Mix places."""
        mixed: Tensor = tokens + self.attention(self.norm1(tokens), places, absent)
        return mixed


class OtherMLPs(WaveFormer3D):
    """A WaveFormer with one level of wavelets, whose MLPs `change`."""

    def __init__(
        self, in_channels: Sequence[int] = (1, 3), *, patch_size: int, embed_dim: int, depth: int, num_heads: int
    ) -> None:
        super().__init__(in_channels, patch_size=patch_size, embed_dim=embed_dim, depth=depth, num_heads=num_heads)
        self.change(embed_dim, num_heads)

    def change(self, embed_dim: int, num_heads: int) -> None:
        """Put other MLPs in their place."""
        raise AssertionError("of a subclass")


@BACKBONES.register("banded_mlp")
class BandedWaveFormer(OtherMLPs):
    """Every MLP is a `BandedMLP`."""

    def change(self, embed_dim: int, num_heads: int) -> None:
        """Put a `BandedMLP` into every block."""
        for block in self.blocks:
            assert isinstance(block, WaveletBlock)
            block.mlp = BandedMLP(block.mlp, embed_dim)  # type: ignore[assignment]


@BACKBONES.register("every_second_mlp")
class HalfWaveFormer(OtherMLPs):
    """Every second block has no MLP."""

    def change(self, embed_dim: int, num_heads: int) -> None:
        """Take the MLP out of every second block."""
        for number in range(0, self.depth, 2):
            alone = AttentionAlone(embed_dim, num_heads=num_heads)
            del alone.norm2, alone.mlp
            self.blocks[number] = alone


def configuration(arm: str, folder: Path, *, steps: int = 1, seed: int = 0) -> Config:
    """Return the configuration of an arm's run."""
    sources = ", ".join(f"{{path: {folder / 'heads' / of}, modality: {of}}}" for of in MODALITIES)
    name = f"{arm}_{seed}"
    # The number of steps alone ends the run.
    own = ("training.epochs=100000", f"training.max_steps={steps}", "training.checkpoint_every_epochs=100000")
    where = (f"run.out_dir={folder}", f"run.name={name}", f"run.seed={seed}", f"data.sources=[{sources}]")
    return load_config(DEMO, [*own, *where, "run.tensorboard=false", "data.num_workers=0", *ARMS[arm].settings])


def step_of(config: Config) -> Callable[[int], None]:
    """Return what trains one step on MRI noise."""
    pretrainer = build_pretrainer(config)
    optimizer = torch.optim.AdamW(pretrainer.parameters())
    volume = torch.rand(config.training.batch_size["mri"], 1, *config.data.crop_size)

    def step(number: int) -> None:
        pretrainer(volume, torch_generator("mask", number)).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def scored(folder: Path, arm: str, seed: int, steps: int) -> Scores:
    """Train and probe an arm; by modality the score of its features, of random weights and of raw voxels."""
    torch.set_num_threads(1)
    found = folder / f"scores_{arm}_{seed}.json"
    if not found.exists():
        config = configuration(arm, folder, steps=steps, seed=seed)
        ended(pretrain(config, resume=True, console=QUIET))
        features = load_backbone(config.run_folder()).eval()
        backbones = {PRETRAINED: features, UNTRAINED: untrained_twin(features, seed=seed)}
        listed = find_cases(folder / "probed")
        scores = {}
        for modality in MODALITIES:
            cases = [case for case in listed if case.modality == modality]
            probed, _ = probe_cases(cases, backbones, classes=parse_classes(CLASSES), seed=0)
            labelled = probed.token_labels > 0
            labels = probed.token_labels[labelled]
            subjects = np.array([cases[number].subject for number in probed.token_case[labelled]])
            scores[modality] = {
                name: tissue_probe(tokens[labelled], labels, subjects, seed=0)[MEASURE].value
                for name, tokens in probed.tokens.items()
            }
        found.write_text(json.dumps(scores, indent=1))
    read: Scores = json.loads(found.read_text())
    return read


def main() -> None:
    """Time, train and probe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/demo_settings"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument("--choice", action="store_true")
    asked = parser.parse_args()
    seeds, drawn = ([0], 77) if asked.choice else (asked.seeds, 79)
    folder = asked.out.absolute() / ("choice" if asked.choice else "table")
    folder.mkdir(parents=True, exist_ok=True)
    # What is there already is not made again.
    synthesize(folder / "heads", num_mri=50, num_ct=50, seed=drawn, console=QUIET)
    synthesize(
        folder / "probed", num_mri=0, num_ct=0, num_heads=32, contrasts=["T1", "CT"], seed=drawn + 1, console=QUIET
    )
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    record = asked.out.absolute() / "step_times.json"
    if not record.exists():
        arms = {arm: step_of(configuration(arm, folder)) for arm in ARMS}
        record.write_text(json.dumps(medians_in_turn(arms, ROUNDS, clock=time.process_time), indent=1))
    durations = json.loads(record.read_text())
    steps = {arm: round(STEPS * durations["as_it_is"] / durations[arm]) for arm in asked.arms}
    scores: dict[tuple[str, int], Scores] = {}
    with ProcessPoolExecutor(asked.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = {
            pool.submit(scored, folder, arm, seed, steps[arm]): (arm, seed) for seed, arm in product(seeds, asked.arms)
        }
        for job in as_completed(jobs):
            scores[jobs[job]] = job.result()
            print(*jobs[job], {of: round(one[PRETRAINED], 3) for of, one in job.result().items()}, flush=True)
    report(scores, durations, steps, asked.choice)


def report(
    scores: dict[tuple[str, int], Scores],
    durations: dict[str, float],
    steps: dict[str, int],
    choice: bool,
) -> None:
    """Write what each arm's features are worth, and what they differ by from those of the demo as it is, by seed."""
    seeds = sorted({seed for _, seed in scores})
    rows, figures = [], {}
    for arm, number in steps.items():
        cells = []
        for kind, modality in product((PRETRAINED, UNTRAINED), MODALITIES):
            cells.append(f"{statistics.mean(scores[arm, seed][modality][kind] for seed in seeds):.3f}")
        differences = [
            statistics.mean(
                scores[arm, seed][of][PRETRAINED] - scores["as_it_is", seed][of][PRETRAINED] for of in MODALITIES
            )
            for seed in seeds
        ]
        by_seed = ", ".join(f"{100 * one:+.1f}" for one in differences) if arm != "as_it_is" else ""
        times = durations["as_it_is"] / durations[arm]
        rows.append((ARMS[arm].what, f"{durations[arm]:.3f}", f"{times:.2f}", number, *cells, by_seed))
        figures[arm] = {
            "step_s": durations[arm],
            "steps": number,
            "scores": {str(seed): scores[arm, seed] for seed in seeds},
            "differences": differences,
        }
    raw = " and ".join(f"{scores['as_it_is', seeds[0]][of][RAW]:.3f}" for of in MODALITIES)
    head = (
        "`demo.yaml` with | a step, s | times as fast | steps | tissues of MRI | of CT | random weights, MRI | CT | "
        "points over the demo as it is, by seed"
    )
    text = f"Seeds {', '.join(map(str, seeds))}.\n\n{table(head, rows)}\n\nRaw voxels with their place: {raw}."
    publish(
        "demo_settings" + "_choice" * choice, {"wanted": WANTED, "seeds": seeds, "arms": figures}, text, quick=False
    )


if __name__ == "__main__":
    main()
