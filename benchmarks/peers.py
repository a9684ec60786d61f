"""One pretraining step beside the networks that others pretrain: equal parameters, volumes and hidden share.

python benchmarks/peers.py [--repeats 5] [--side 64] [--million 18] [--quick]

A step is forward, mean squared error of the hidden voxels, backward and AdamW, in fp32, batch 1; 60 % are hidden. The
width of every network is the one whose parameters, all that are trained, are nearest to --million. Times are medians of
rounds in which all take turns, on all cores; the peak is that of a process for each, above what it had before.

Peers: MONAI (in the lock), and two of dynamic-network-architectures 0.4.4, from which nnssl builds what it pretrains:
  pip install --no-deps --target DIR dynamic-network-architectures==0.4.4 einops timm==1.0.15
  PYTHONPATH=DIR python benchmarks/peers.py
nnssl itself is in no package registry: its masked autoencoders are
built here of its networks, with the masks and the loss of this file. What is not installed, or fails, is a line of the
table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory import forget_peak, in_fresh_process, peak_mb, resident_mb
from reporting import publish, table
from voxelwave.jobs.pretrain.config import check_config
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer
from voxelwave.ops.patches import patchify
from voxelwave.ops.seeding import torch_generator
from voxelwave.ops.torchvision_operators import make_torchvision_importable

HIDDEN, BLOCK, PATCH = 0.6, 16, 8
HEAD_DIM = 48
OURS = "voxelwave"
Step = Callable[[int], Tensor]  # from the number of a step to its loss


def volumes(side: int, number: int) -> Tensor:
    """Return a volume of noise."""
    return torch.rand(1, 1, side, side, side, generator=torch_generator("peers", number))


def hidden_blocks(side: int, number: int) -> Tensor:
    """Draw which voxels are hidden, in blocks of 16, as masked convolutional networks hide them."""
    grid = side // BLOCK
    order = torch.randperm(grid**3, generator=torch_generator("peers mask", number))
    hidden = (order < round(HIDDEN * grid**3)).view(1, 1, grid, grid, grid).float()
    return F.interpolate(hidden, scale_factor=BLOCK) > 0


def ours(side: int, width: int, **settings: Any) -> tuple[nn.Module, Step]:
    """Return the production configuration in small: eight blocks, one scale beside them, half as wide.

    Its loss is the one that it trains with.
    """
    backbone = {
        "name": "waveformer",
        "patch_size": PATCH,
        "embed_dim": width,
        "depth": 8,
        "num_heads": width // HEAD_DIM,
    }
    raw: dict[str, Any] = {
        "data": {"crop_size": [side] * 3, "sources": [{"path": "none", "modality": "mri"}]},
        "model": {
            "backbone": backbone | settings.pop("backbone", {}),
            "sparse": "gather",
            "encoder_widths": [width // 2],
            "decoder_width": width // 2,
        },
        # Blocks as large as those of the others.
        "masking": {"name": "mim", "block_side": BLOCK // PATCH, "global_ratio": HIDDEN},
        **settings,
    }
    pretrainer = build_pretrainer(check_config(raw))

    def step(number: int) -> Tensor:
        loss: Tensor = pretrainer(volumes(side, number), torch_generator("mask", number)).loss
        return loss

    return pretrainer, step


def plain_mae(side: int, width: int) -> tuple[nn.Module, Step]:
    """Return the same with what a plain masked autoencoder has of it: all tokens attend, random masks, no contrast."""
    settings = {"masking": {"name": "random", "ratio": HIDDEN}, "loss": {"contrastive_weight": 0.0, "shallow_depth": 0}}
    return ours(side, width, backbone={"wavelet_levels": 0}, **settings)


def masked_network(network: nn.Module, side: int) -> tuple[nn.Module, Step]:
    """Return the step of a network from voxels to voxels, which sees zeros where voxels are hidden."""

    def step(number: int) -> Tensor:
        volume, hidden = volumes(side, number), hidden_blocks(side, number)
        return F.mse_loss(network(volume.masked_fill(hidden, 0.0))[hidden], volume[hidden])

    return network, step


def swin(side: int, width: int) -> tuple[nn.Module, Step]:
    """Return MONAI's SwinUNETR."""
    from monai.networks.nets import SwinUNETR

    return masked_network(SwinUNETR(1, 1, feature_size=width), side)


def vit_mae(side: int, width: int) -> tuple[nn.Module, Step]:
    """Return MONAI's masked autoencoder of a vision transformer."""
    from monai.networks.nets import MaskedAutoEncoderViT

    heads = width // HEAD_DIM
    network = MaskedAutoEncoderViT(
        1, side, PATCH, hidden_size=width, mlp_dim=4 * width, num_layers=8, num_heads=heads, masking_ratio=HIDDEN,
        decoder_hidden_size=width // 2, decoder_mlp_dim=2 * width, decoder_num_heads=heads,
    )  # fmt: skip

    def step(number: int) -> Tensor:
        volume = volumes(side, number)
        truth = patchify(volume, PATCH).flatten(2)
        predicted, hidden = network(volume)
        return F.mse_loss(predicted[hidden.bool()], truth[hidden.bool()])

    return network, step


def residual_unet(side: int, width: int) -> tuple[nn.Module, Step]:
    """Return nnU-Net's residual encoder U-Net, which nnssl's masked autoencoder is; six stages of its L, narrower."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    network = ResidualEncoderUNet(
        1, 6, [min(width * 2**stage, 10 * width) for stage in range(6)], nn.Conv3d, 3, [1, 2, 2, 2, 2, 2],
        [1, 3, 4, 6, 6, 6], 1, 1, conv_bias=True, norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip
    return masked_network(network, side)


def primus(side: int, width: int) -> tuple[nn.Module, Step]:
    """Return Primus with tokens dropped, as nnssl pretrains it: EVA's transformer, and transposed convolutions."""
    make_torchvision_importable()
    from dynamic_network_architectures.architectures.primus import Primus

    network = Primus(
        1, width, (PATCH,) * 3, 1, eva_depth=8, eva_numheads=width // HEAD_DIM, input_shape=(side,) * 3,
        patch_drop_rate=HIDDEN,
    )  # fmt: skip

    def step(number: int) -> Tensor:
        volume = volumes(side, number)
        predicted, kept = network(volume, ret_mask=True)
        hidden = ~kept.expand_as(volume)
        return F.mse_loss(predicted[hidden], volume[hidden])

    return network, step


# Each with the widths to choose from.
OF_HEADS = tuple(range(2 * HEAD_DIM, 1200, HEAD_DIM))
NETWORKS: dict[str, tuple[Callable[[int, int], tuple[nn.Module, Step]], tuple[int, ...]]] = {
    OURS: (ours, OF_HEADS),
    "voxelwave, plain MAE": (plain_mae, OF_HEADS),
    "MONAI SwinUNETR": (swin, tuple(range(12, 97, 12))),
    "MONAI MaskedAutoEncoderViT": (vit_mae, OF_HEADS),
    "residual encoder U-Net, as nnssl's MAE": (residual_unet, tuple(range(4, 65, 2))),
    "Primus, as nnssl's EvaMAE": (primus, OF_HEADS),
}


def size(network: nn.Module) -> int:
    """Return how many parameters are trained."""
    return sum(parameter.numel() for parameter in network.parameters())


def width_of(name: str, side: int, wanted: float) -> int:
    """Return the width whose parameters are nearest to what is wanted."""
    build, widths = NETWORKS[name]
    sizes: dict[int, float] = {}
    for width in widths:
        sizes[width] = size(build(side, width)[0])
        if sizes[width] > wanted:
            break
    return min(sizes, key=lambda width: abs(sizes[width] - wanted))


def trained(name: str, side: int, width: int) -> tuple[int, Callable[[int], None]]:
    """Return the number of parameters, and what trains a step."""
    torch.manual_seed(0)
    network, loss_of = NETWORKS[name][0](side, width)
    optimizer = torch.optim.AdamW(network.parameters())

    def step(number: int) -> None:
        loss_of(number).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return size(network), step


def peak_of(name: str, side: int, width: int) -> float:
    """Return the most that a process has in memory in three steps, above what it had before."""
    NETWORKS[name][0](BLOCK * 4, NETWORKS[name][1][0])  # what it imports is not counted
    before = resident_mb()[0]
    forget_peak()
    _, step = trained(name, side, width)
    for number in range(3):
        step(number)
    return peak_mb() - before


def main() -> None:
    """Measure all that can be built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--million", type=float, default=18.0)
    parser.add_argument("--quick", action="store_true", help="a trial whose results are printed alone")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.task:
        print(json.dumps({"peak_mb": peak_of(asked.task, asked.side, asked.width)}))
        return
    wanted = 1e6 * asked.million
    steps: dict[str, Callable[[int], None]] = {}
    figures: dict[str, dict[str, Any]] = {}
    for name in NETWORKS:
        try:
            width = width_of(name, asked.side, wanted)
            parameters, steps[name] = trained(name, asked.side, width)
            steps[name](0)
            options = ("--side", asked.side, "--width", width)
            peak_mb = in_fresh_process(__file__, name, *options)["peak_mb"]
            figures[name] = {"width": width, "parameters": parameters, "peak_mb": peak_mb, "seconds": []}
        except Exception as error:
            if name == OURS:
                raise
            steps.pop(name, None)
            figures[name] = {"failed": f"{type(error).__name__}: {error}"}
    for number in range(asked.repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            step(number + 1)
            figures[name]["seconds"].append(time.perf_counter() - began)
    del steps
    rows = []
    for name, of in figures.items():
        if "failed" in of:
            rows.append((name, of["failed"], "", "", ""))
            continue
        of["median_s"] = statistics.median(of["seconds"])
        of["ours_over_it"] = figures[OURS]["median_s"] / of["median_s"]
        of["peak_of_ours_over_it"] = figures[OURS]["peak_mb"] / of["peak_mb"]
        rows.append((
            f"{name}, {of['width']} wide", f"{of['parameters'] / 1e6:.1f} M", f"{of['median_s']:.2f} s",
            f"{of['ours_over_it']:.2f}", f"{of['peak_mb']:,.0f} MB, {of['peak_of_ours_over_it']:.2f}",
        ))  # fmt: skip
    head = "network | parameters | a step | time of voxelwave over it | peak memory, and that of voxelwave over it"
    publish(
        "peers",
        {"side": asked.side, "million": asked.million, "networks": figures},
        table(head, rows),
        quick=asked.quick,
    )


if __name__ == "__main__":
    main()
