"""What becomes of one flipped bit in each kind of file that a run, an export or a store writes.

python benchmarks/faults/bitflips.py [--flips 600] [--quick]

A flip is refused in one line; harmless, since exactly the same is read; silent, where something else is read; or
crashes, with any other exception. --quick flips 20 bits of each file and writes no result.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import RESULTS
from reporting import publish, table
from voxelwave.data.listing.manifest import read_manifest
from voxelwave.data.store import StoredVolume
from voxelwave.downstream.finetuned import load_finetuned
from voxelwave.downstream.weights import read_weights
from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.engine.run_log import recorded
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.run_folder import check_settings_stay
from voxelwave.jobs.predict.results import TargetTable
from voxelwave.jobs.pretrain.config import load_config
from voxelwave.jobs.pretrain.run import FREE_TO_CHANGE

KINDS = ("refused", "harmless", "silent", "crashed")
HEAD = f"file | bytes | what reads it | {' | '.join(KINDS)}"
NOTES = """
Single bits, drawn without repetition by a seed. A flip is harmless where what is read is the same: in the padding of a
checkpoint, or in the line of a configuration that holds its checksum."""

Reader = Callable[[Path], Any]


def voxelwave(*arguments: object) -> None:
    """Run a command."""
    subprocess.run([sys.executable, "-m", "voxelwave", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def make_files(place: Path) -> dict[str, tuple[Path, str, Reader]]:
    """Write one file of each kind, and return each with what reads it."""
    scans, data, runs = place / "scans", place / "data", place / "runs"
    voxelwave("synthesize", scans, "--num-mri", 8, "--num-ct", 2, "--size", 32)
    voxelwave("prepare", scans, data, "--workers", 1)
    settings = f"""
run: {{name: pretrained, out_dir: {runs}, tensorboard: false}}
data:
  crop_size: [16, 16, 16]
  num_workers: 0
  sources: [{{path: {scans}/mri, modality: mri}}, {{path: {scans}/ct, modality: ct}}]
model:
  backbone: {{name: waveformer, patch_size: 4, embed_dim: 12, depth: 2, num_heads: 2}}
  sparse: gather
  encoder_widths: [4, 6]
  decoder_width: 4
training: {{epochs: 2, device: cpu}}
"""
    (place / "pretrain.yaml").write_text(settings)
    voxelwave("pretrain", place / "pretrain.yaml")
    run, tuned = runs / "pretrained", runs / "tuned"
    images = sorted((scans / "mri").iterdir())
    cases = [f"{image},{image.name},mri,{number % 2}" for number, image in enumerate(images)]
    (place / "cases.csv").write_text("\n".join(["image,subject,modality,odd", *cases]) + "\n")
    tuning = f"""
run: {{name: tuned, out_dir: {runs}, tensorboard: false, figures: false}}
task: {{name: classification, targets: [odd]}}
backbone: {{path: {run}}}
data: {{cases: {place}/cases.csv, modality: mri, crop_size: [16, 16, 16], folds: 2}}
training: {{max_steps: 2, device: cpu}}
"""
    (place / "finetune.yaml").write_text(tuning)
    voxelwave("finetune", place / "finetune.yaml")
    predictions = place / "predictions.csv"
    voxelwave("predict", tuned, scans / "mri", predictions)
    last = load_checkpoint(run / "last.pth")
    model, tuned_description = load_finetuned(tuned)

    def resumed(path: Path) -> Any:
        config = load_config(path).model_dump(mode="json")
        check_settings_stay(run, last, config, FREE_TO_CHANGE)
        return config

    def volume(path: Path) -> Any:
        stored = StoredVolume(path)
        return stored.info.model_dump(), stored.read(), stored.foreground

    def rows(path: Path) -> Any:
        written = TargetTable(model, tuned_description, path)
        written.go_on()
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))

    records = partial(recorded, steps=last["step"], checksum=last["metrics_crc32"])
    described = run / "backbone.json"
    known = read_weights(run / "backbone.safetensors", described)[1].keys()

    def description(path: Path) -> Any:
        # A checksum under another name is one more key, which nothing reads.
        read = read_weights(run / "backbone.safetensors", path)[1]
        return {key: value for key, value in read.items() if key in known}

    return {
        **{
            name: (run / name, "load_checkpoint", load_checkpoint)
            for name in ("last.pth", "last.previous.pth", "best_model.pth", "checkpoint_epoch_1.pth")
        },
        "metrics.jsonl": (run / "metrics.jsonl", "--resume", records),
        "config.yaml": (run / "config.yaml", "load_config", lambda path: load_config(path).model_dump(mode="json")),
        "config.yaml, of the same run": (run / "config.yaml", "--resume", resumed),
        "backbone.safetensors": (run / "backbone.safetensors", "read_weights", lambda p: read_weights(p, described)),
        "backbone.json": (described, "read_weights", description),
        "volume.vxw": (next(data.rglob("*.vxw")), "StoredVolume", volume),
        "manifest.csv": (
            data / "manifest.csv",
            "read_manifest",
            lambda p: [row.model_dump() for row in read_manifest(p)],
        ),
        "predictions.csv": (predictions, "predict", rows),
    }


def plain(value: Any) -> Any:
    """Return what compares equal only where every number is the same."""
    if isinstance(value, dict):
        return {key: plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [plain(of) for of in value]
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    return type(value), repr(value)


def flip(file: Path, read: Reader, *, flips: int, examples: list[str]) -> Counter[str]:
    """Flip one bit after the other, read the file, and count what became of it."""
    content, counts = file.read_bytes(), Counter[str]()
    expected = plain(read(file))
    damaged = file.with_name(f"damaged{file.suffix}")
    try:
        for bit in np.random.default_rng(0).choice(8 * len(content), min(flips, 8 * len(content)), replace=False):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            damaged.write_bytes(changed)
            try:
                kind = "harmless" if plain(read(damaged)) == expected else "silent"
            except (InputError, UnusableVolume) as error:
                kind = "refused" if "\n" not in str(error) else "crashed"
            except Exception as error:
                kind = "crashed"
                examples.append(f"{file.name}, bit {bit}: {type(error).__name__}: {str(error)[:100]}")
            counts[kind] += 1
    finally:
        damaged.unlink(missing_ok=True)
    return counts


def main() -> None:
    """Flip bits of every file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=600)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    lines, examples = [], list[str]()
    with TemporaryDirectory() as folder:
        for name, (file, reader, read) in make_files(Path(folder)).items():
            size = file.stat().st_size
            counts = flip(file, read, flips=20 if arguments.quick else arguments.flips, examples=examples)
            figures[name] = {"bytes": size, **{kind: counts[kind] for kind in KINDS}}
            lines.append([f"`{name}`", size, f"`{reader}`", *(counts[kind] for kind in KINDS)])
            print(name, dict(counts), flush=True)
    (RESULTS / "faults").mkdir(exist_ok=True)
    text = f"{NOTES.strip()}\n\n{table(HEAD, lines)}"
    publish("faults/bitflips", {"files": figures, "crashes": examples}, text, quick=arguments.quick)


if __name__ == "__main__":
    main()
