"""The production step: volumes a second, share of the card's peak, memory; beside a plain transformer of the same size.

python benchmarks/gpu/step.py OUT.json [--tiny]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from voxelwave.jobs.pretrain.config import Config, load_config
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer
from voxelwave.ops.seeding import torch_generator
from voxelwave.sparse.backends import make_backend, why_not

PRODUCTION = Path(__file__).parents[2] / "configs" / "pretrain" / "production.yaml"
TINY = (
    "data.crop_size=[16,16,16]",
    "model.backbone={name: waveformer, patch_size: 4, embed_dim: 24, depth: 2, num_heads: 2}",
    *(
        "model.encoder_widths=[8,12]",
        "model.decoder_width=8",
        "training.batch_size={mri: 2, ct: 2}",
        "training.precision=fp32",
    ),
)
PLAIN = ("model.backbone.wavelet_levels=0", "masking={name: random, ratio: 0.6}", "loss.contrastive_weight=0")
# Dense bf16 by NVIDIA's data sheets; the SXM cards.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
WARM_UP, STEPS = 3, 10
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def measured(config: Config, device: torch.device, *, backend: str, compiled: bool, modality: str) -> dict[str, Any]:
    """Time optimiser steps of `config` on random volumes that lie on the device."""
    model = build_pretrainer(config).to(device)
    model.encoder.use(make_backend(backend))
    if compiled:
        for part in (*model.backbone.blocks, model.decoder):
            part.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    count, channels = config.training.batch_size[modality], {"mri": 1, "ct": 3}[modality]
    volume = torch.rand(count, channels, *config.data.crop_size, generator=torch_generator("volume")).to(device)
    dtype = TYPES[config.training.precision]

    def step(number: int) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            loss = model(volume, torch_generator("mask", number)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with FlopCounterMode(display=False) as flops:
        step(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(step, device)
    figures = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops_a_step": flops.get_total_flops(),
        "step_s": seconds,
        "volumes_per_second": count / seconds,
        "flops_per_second": flops.get_total_flops() / seconds,
    }
    if device.type == "cuda":
        figures["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        name = torch.cuda.get_device_name()
        peak = next((value for key, value in PEAK_FLOPS.items() if key in name), None)
        if peak and dtype is not torch.float32:
            figures["mfu"] = figures["flops_per_second"] / peak
    return figures


def timed(step: Callable[[int], None], device: torch.device) -> float:
    """Return the median duration of a step, in seconds."""
    durations = []
    for number in range(WARM_UP + STEPS):
        began = time.perf_counter()
        step(number)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= WARM_UP:
            durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def peer(config: Config, device: torch.device) -> dict[str, Any]:
    """Time forward and backward of MONAI's ViT of the same width and depth on all tokens of the same volumes."""
    from monai.networks.nets import ViT

    of, crop = config.model.backbone.settings, config.data.crop_size
    net: nn.Module = ViT(
        1,
        crop,
        (of["patch_size"],) * 3,
        hidden_size=of["embed_dim"],
        mlp_dim=4 * of["embed_dim"],
        num_layers=of["depth"],
        num_heads=of["num_heads"],
    ).to(device)
    count = config.training.batch_size["mri"]
    volume = torch.rand(count, 1, *crop, device=device)
    dtype = TYPES[config.training.precision]

    def step(number: int) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            loss = net(volume)[0].square().mean()
        loss.backward()
        net.zero_grad(set_to_none=True)

    seconds = timed(step, device)
    return {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "step_s": seconds,
        "volumes_per_second": count / seconds,
    }


def main() -> None:
    """Measure one variant after the other, and write each at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    overrides = TINY if arguments.tiny else ("training.precision=bf16",)
    ours, plain = load_config(PRODUCTION, overrides), load_config(PRODUCTION, [*overrides, *PLAIN])
    backends = [name for name in ("gather", "minkowski", "dense") if why_not(name, device) is None]
    variants: dict[str, Callable[[], dict[str, Any]]] = {
        f"ours, {backend}": lambda backend=backend: measured(
            ours, device, backend=backend, compiled=False, modality="mri"
        )
        for backend in backends
    }
    variants["ours, CT, gather"] = lambda: measured(ours, device, backend="gather", compiled=False, modality="ct")
    variants["plain MAE of the same size, gather"] = lambda: measured(
        plain, device, backend="gather", compiled=False, modality="mri"
    )
    variants["MONAI ViT, forward and backward, all tokens"] = lambda: peer(ours, device)
    if device.type == "cuda":
        variants["ours, gather, compiled"] = lambda: measured(
            ours, device, backend="gather", compiled=True, modality="mri"
        )
    figures: dict[str, Any] = {}
    for name, measure in variants.items():
        try:
            figures[name] = measure()
        except (RuntimeError, ImportError) as error:  # as where memory does not suffice
            figures[name] = {"error": " ".join(str(error).split())[:300]}
        print(name, figures[name], flush=True)
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
