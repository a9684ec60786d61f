"""What a pair costs: cut by the loader and rendered on the device, beside a stored crop and a training step.

python benchmarks/pair_speed.py [--quick]

Configuration: configs/pretrain/cross_contrast.yaml on eight generated heads of 64³, which are also prepared; one
thread. Pairs of stored scans are cut at the same size. --quick measures little, and writes no result.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from reporting import publish, shown, spread, table
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.prepare.run import Preparer
from voxelwave.jobs.prepare.settings import preparation
from voxelwave.jobs.pretrain.config import load_config
from voxelwave.jobs.pretrain.data import TrainingData
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer
from voxelwave.jobs.pretrain.rendered_pair_data import RenderedPairData
from voxelwave.jobs.pretrain.scan_pair_data import ScanPairData
from voxelwave.jobs.synthesize.run import synthesize
from voxelwave.ops.seeding import torch_generator

CONFIG = Path(__file__).parents[1] / "configs" / "pretrain" / "cross_contrast.yaml"
CROPS = Path(__file__).parents[1] / "configs" / "pretrain" / "demo.yaml"
QUIET = Console(quiet=True)
CPU = torch.device("cpu")


def measured(folder: Path, *, batches: int) -> dict[str, dict[str, float]]:
    """Return seconds: by sample of a stored crop, a rendered pair and a pair of scans; by batch of render and step."""
    here = {"rank": 0, "world_size": 1, "pin_memory": False, "console": QUIET}
    rendered = load_config(CONFIG, [f"data.pairs.cases={folder / 'heads'}", "data.num_workers=0"])
    size = list(rendered.data.crop_size)
    stored = f"{{cases: '{folder / 'store'}', source: scans, modalities: [mri, ct], spacing_mm: 2.0}}"
    scans = load_config(CONFIG, [f"data.pairs={stored}", "data.num_workers=0"])
    sources = ", ".join(f"{{path: '{folder / 'store'}', modality: {name}}}" for name in ("mri", "ct"))
    settings = [f"data.sources=[{sources}]", f"data.crop_size={size}", "data.view_share=null", "data.num_workers=0"]
    crops = load_config(CROPS, [*settings, "training.batch_size={mri: 4, ct: 4}", "data.check_content=false"])
    pairs = RenderedPairData(rendered, **here)
    found = {
        "stored crop": each(TrainingData(crops, **here).batches(0, batches), 4),
        "rendered pair, cut": each(pairs.batches(0, batches), rendered.training.batch_size["mri"]),
        "pair of stored scans, cut": each(ScanPairData(scans, **here).batches(0, batches), 4),
    }
    # What the device does with a batch of rendered pairs.
    pretrainer = build_pretrainer(rendered)
    optimizer = torch.optim.AdamW(pretrainer.parameters())
    rendering, training = [], []
    for index, batch in enumerate(pairs.batches(0, batches)):
        began = time.perf_counter()
        views = pairs.augmented(batch, index, CPU)
        middle = time.perf_counter()
        pretrainer(views, torch_generator("mask", index)).loss.backward()  # type: ignore[arg-type]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rendering.append(middle - began)
        training.append(time.perf_counter() - middle)
    return {
        **{name: spread(values) for name, values in found.items()},
        "batch rendered": spread(rendering[2:]),
        "step without": spread(training[2:]),
    }


def each(batches: Iterator[Any], samples: int) -> list[float]:
    """Return how long each sample took; the first two batches, which fill caches, are left out."""
    durations: list[float] = []
    step: Callable[[], Any] = batches.__next__
    while True:
        began = time.perf_counter()
        try:
            step()
        except StopIteration:
            return durations[2:]
        durations.append((time.perf_counter() - began) / samples)


def main() -> None:
    """Measure, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        synthesize(folder / "heads", num_mri=0, num_ct=0, num_heads=8, size=64, seed=0, console=QUIET)
        spacing = preparation(spacing="native")
        Preparer(folder / "store", spacing, labels=False, console=QUIET)([str(folder / "heads")])
        found = measured(folder, batches=8 if arguments.quick else 60)
    crop, step = found["stored crop"]["median"], found["step without"]["median"]
    rows = [
        (name, *(shown({**of, **{k: 1e3 * of[k] for k in ("median", "p5", "p95")}}),)) for name, of in found.items()
    ]
    share = found["batch rendered"]["median"] / (found["batch rendered"]["median"] + step)
    text = "\n\n".join(
        (
            table("what | ms, median (5 %…95 %)", rows),
            f"A rendered pair takes the loader {found['rendered pair, cut']['median'] / crop:.2f} times a stored crop, "
            f"one of stored scans {found['pair of stored scans, cut']['median'] / crop:.2f} times. Rendering is "
            f"{share:.1%} of a step.",
        )
    )
    publish("pair_speed", {"seconds": found, "share_of_rendering": share}, text, quick=arguments.quick)


if __name__ == "__main__":
    main()
