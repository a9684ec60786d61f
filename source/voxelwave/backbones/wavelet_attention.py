"""Attention among the low-frequency Haar bands of token octets (WaveFormer, MICCAI 2025)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from voxelwave.ops.wavelets import haar, inverse_haar

HighBands = Literal["gate", "attend"]


class RotaryPositions(nn.Module):
    """Axial rotary embedding: a third of each head's dimensions turns with each axis.

    Angles depend on differences of places only, so that a grid of any size and offset needs no interpolation.
    Source: Su et al., RoFormer, 2021, equation 34, axis by axis. Raises ValueError for heads under 6 dimensions.
    """

    def __init__(self, head_dim: int, *, base: float = 100.0) -> None:
        super().__init__()
        self.pairs_per_axis = head_dim // 6
        if self.pairs_per_axis < 1:
            raise ValueError(f"a head needs at least 6 dimensions for three axes of rotary positions, got {head_dim}")
        steps = torch.arange(self.pairs_per_axis) / self.pairs_per_axis
        self.register_buffer("frequencies", base**-steps, persistent=False)
        self.frequencies: Tensor

    def angles(self, places: Float[Tensor, "batch token 3"]) -> tuple[Tensor, Tensor]:
        """Return cosine and sine `[batch, 1, token, 3 × pairs]` of every place."""
        angle = (places[..., None] * self.frequencies).flatten(-2).unsqueeze(1)
        return angle.cos(), angle.sin()

    def rotate(self, x: Float[Tensor, "batch head token dim"], cos: Tensor, sin: Tensor) -> Tensor:
        """Turn the first 6 × pairs dimensions of queries or keys; the rest stays."""
        pairs = 3 * self.pairs_per_axis
        a, b, rest = x.split([pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1).type_as(x)


class WaveletAttention(nn.Module):
    """Mix octets of tokens by attention among their low-pass bands, whose map mixes the high-pass bands too.

    Tokens come in nested order (`ops.patches.nested_order`), so that 8 in a row are an octet. Queries and keys are of
    the low-pass bands. With `high_bands="attend"` the map mixes all eight bands of the octets, with "gate" the low ones
    alone; a learned gate scales each high-pass band either way.
    At each further level the low-pass bands of 8 octets form an octet themselves and attend with the same weights; the
    results add up. With no level at all, every token attends: the plain transformer.
    Raises ValueError for a `dim` that `num_heads` does not divide.
    """

    def __init__(self, dim: int, *, num_heads: int, levels: int = 1, high_bands: HighBands = "attend") -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embed_dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.levels = levels
        self.high_bands = high_bands
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        if levels:
            self.gate = nn.Parameter(torch.zeros(7, dim))
        self.rotary = RotaryPositions(dim // num_heads)

    def forward(
        self,
        tokens: Float[Tensor, "batch token channel"],
        places: Float[Tensor, "batch octet 3"],
        absent: Bool[Tensor, "batch octet"] | None = None,
    ) -> Float[Tensor, "batch token channel"]:
        """Return the update of every token. `places` are octet centres in tokens; absent octets are not attended.

        With no level, an octet is one token.
        """
        if not self.levels:
            return self._attend(tokens, tokens.unsqueeze(2), places, absent).squeeze(2)
        return self._mix(tokens, places, absent, self.levels)

    def _mix(self, tokens: Tensor, places: Tensor, absent: Tensor | None, levels: int) -> Tensor:
        bands = haar(tokens.unflatten(1, (-1, 8)))
        low, high = bands[:, :, 0], bands[:, :, 1:]
        update = self._attend(low, bands if self.high_bands == "attend" else low.unsqueeze(2), places, absent)
        low_update, high_update = update[:, :, :1], self.gate * high
        if self.high_bands == "attend":
            high_update = high_update + update[:, :, 1:]
        if levels > 1:
            coarse_places = places.unflatten(1, (-1, 8)).mean(2)
            coarse_absent = None if absent is None else absent.unflatten(1, (-1, 8)).all(2)
            low_update = low_update + self._mix(low, coarse_places, coarse_absent, levels - 1).unsqueeze(2)
        return inverse_haar(torch.cat([low_update, high_update], dim=2)).flatten(1, 2)

    def _attend(
        self, low: Tensor, bands: Float[Tensor, "batch octet band channel"], places: Tensor, absent: Tensor | None
    ) -> Float[Tensor, "batch octet band channel"]:
        """Mix `bands` over octets by the similarity of `low`; the bands of an octet are one long value."""
        dim, heads = low.shape[-1], self.num_heads
        (of_low, of_bands), (low_bias, bands_bias) = (x.split([2 * dim, dim]) for x in (self.qkv.weight, self.qkv.bias))
        q, k = F.linear(low, of_low, low_bias).unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        v = F.linear(bands, of_bands, bands_bias).unflatten(3, (heads, -1)).permute(0, 3, 1, 2, 4)
        cos, sin = self.rotary.angles(places)
        seen = None if absent is None else ~absent[:, None, None, :]
        mixed = F.scaled_dot_product_attention(
            self.rotary.rotate(q, cos, sin), self.rotary.rotate(k, cos, sin), v.flatten(3), attn_mask=seen
        )
        attended: Tensor = self.out(mixed.unflatten(3, (bands.shape[2], -1)).permute(0, 2, 3, 1, 4).flatten(3))
        return attended


class WaveletBlock(nn.Module):
    """A pre-norm transformer block with wavelet attention."""

    def __init__(
        self, dim: int, *, num_heads: int, mlp_ratio: float = 4.0, levels: int = 1, high_bands: HighBands = "attend"
    ) -> None:
        super().__init__()
        hidden_dim = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attention = WaveletAttention(dim, num_heads=num_heads, levels=levels, high_bands=high_bands)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))

    def forward(
        self,
        tokens: Float[Tensor, "batch token channel"],
        places: Float[Tensor, "batch octet 3"],
        absent: Bool[Tensor, "batch octet"] | None = None,
    ) -> Float[Tensor, "batch token channel"]:
        """Mix places, then channels."""
        tokens = tokens + self.attention(self.norm1(tokens), places, absent)
        mixed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed
