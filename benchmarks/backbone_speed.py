"""Forward and backward of the production backbone at 16³ tokens, batch 1, against full attention.

python benchmarks/backbone_speed.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from measuring import matmul_rate, report, seconds
from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.masking.mim import MiMMasking

GRID, PATCH, DIM, DEPTH, HEADS = (16, 16, 16), 8, 768, 12, 12


class FullAttentionBlock(nn.Module):
    """The same pre-norm block with attention among all tokens, as in a ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix all tokens, then channels."""
        q, k, v = self.qkv(self.norm1(tokens)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        tokens = tokens + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens))


def main() -> None:
    """Measure all ways in one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    torch.set_num_threads(2)
    wavelet, gated = (
        WaveFormer3D((1,), patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, high_bands=high_bands)
        for high_bands in ("attend", "gate")
    )
    full = nn.Sequential(nn.Linear(PATCH**3, DIM), *(FullAttentionBlock() for _ in range(DEPTH)), nn.LayerNorm(DIM))
    volume = torch.randn(1, 1, *(side * PATCH for side in GRID))
    hidden = MiMMasking()(GRID, 1, torch.Generator().manual_seed(0)).hidden
    num_tokens = hidden.numel()
    num_visible = int((~hidden).sum())

    def wavelet_step(model: nn.Module, mask: Tensor | None) -> None:
        model(volume, mask).square().mean().backward()

    def full_step(tokens: int) -> None:
        full(torch.randn(1, tokens, PATCH**3)).square().mean().backward()

    ways = {
        "wavelet_visible": lambda: wavelet_step(wavelet, hidden),
        "gated_visible": lambda: wavelet_step(gated, hidden),
        "full_visible": lambda: full_step(num_visible),
        "full_quarter_visible": lambda: full_step(num_tokens // 4),  # what a masked autoencoder sees
        "wavelet_all": lambda: wavelet_step(wavelet, None),
        "full_all": lambda: full_step(num_tokens),
    }
    # The ways take turns, so that a slow minute of the machine meets all of them; the first round warms up the
    # allocator, which takes several calls to settle.
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    rates = []
    for _ in range(repeats):
        rates.append(matmul_rate())
        for name, way in ways.items():
            taken[name].append(seconds(way, repeats=1, warm_up=1 if name.endswith("visible") else 0))
    duration = {name: statistics.median(values) for name, values in taken.items()}
    rate = statistics.median(rates)
    # Matrix products alone: MLP, values and output on every visible token, queries and keys on an eighth, attention
    # among these; backward costs twice the forward.
    low = num_visible // 8
    per_block = 2 * num_visible * (8 + 2) * DIM**2 + 2 * low * 2 * DIM**2 + (2 + 16) * low**2 * DIM
    operations = 3 * (DEPTH * per_block + 2 * num_visible * PATCH**3 * DIM)
    report(
        "backbone_speed",
        {
            "tokens": num_tokens,
            "visible": num_visible,
            "seconds": duration,
            "seconds_by_round": taken,
            "faster_than_full_attention_on_visible": duration["full_visible"] / duration["wavelet_visible"],
            "faster_than_full_attention_on_all": duration["full_all"] / duration["wavelet_visible"],
            "gated_faster_than_full_attention_on_visible": duration["full_visible"] / duration["gated_visible"],
            "faster_than_full_attention_on_a_quarter": duration["full_quarter_visible"] / duration["wavelet_visible"],
            "faster_on_all_than_full_attention_on_all": duration["full_all"] / duration["wavelet_all"],
            "matmul_gflops": rate / 1e9,
            "achieved_gflops": operations / duration["wavelet_visible"] / 1e9,
            "share_of_matmul_rate": operations / duration["wavelet_visible"] / rate,
            "targets": {
                "faster_than_full_attention_on_visible": 2,
                "faster_than_full_attention_on_all": 5,
                "share_of_matmul_rate": 0.5,
            },
        },
    )


if __name__ == "__main__":
    main()
