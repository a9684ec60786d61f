"""A learned mask that measures what every frequency is worth by leaving each of them out now and then."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.fixed_masks import keep_highest
from voxelwave.registry import MASK_RULES
from voxelwave.unrolled.learned_mask import LearnedMask
from voxelwave.unrolled.subsampling import Mask

Scores = Float[Tensor, "*places"]
ENOUGH, CERTAIN = 3, 4.0  # trials of a place, and times the worst score that is kept: then it needs no more of them


@MASK_RULES.register("exploring")
class ExploringMask(LearnedMask):
    """Keeps the places whose loss was highest when they were left out, and leaves some of those out to measure it.

    Behind a linear reconstruction a place has a gradient only where it is left out: −2|X|², for a squared error. So

    1. each step leaves out a share `explored` of the places that the scores would keep, those first that were left out
       least often; the best of the others take their place, so that the share that is kept stays exact. A place that
       costs over 64 times as much as the worst one that is kept is certain, and stays: over 16 times after two trials,
       and 4 times after three;
    2. the score of each place that is left out moves to minus its gradient, as a running mean over all times that it
       was left out, and from 1 / `mask_lr` times on over about as many.

    Scores therefore estimate what a place is worth to the network as it is, in whatever unit, and their order is that
    of the mean power behind a linear reconstruction. The network sees nearly the final mask all of the time, where a
    rule whose scores race each other drops even the strongest places for a moment. `mask()` is the one of the scores.
    """

    default_mask_lr = 0.03
    counts: Tensor
    num_steps: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        drop_rate: float = 0.4,
        lines: bool = False,
        seed: int = 0,
        explored: float = 0.05,
    ) -> None:
        super().__init__(shape, drop_rate=drop_rate, lines=lines, seed=seed)
        if not 0 < explored < 1:
            raise ValueError(f"explored, a share of what is kept, must lie between 0 and 1, got {explored}")
        self.explored = explored
        self.register_buffer("counts", torch.zeros_like(self.scores))
        self.register_buffer("num_steps", torch.tensor(0))

    def mask(self) -> Mask:
        """Return which frequencies the scores keep at this moment."""
        return self.final_mask()

    def _final_scores(self) -> Scores:
        # What was never left out comes last, in the order of the random numbers that it still has: of 0 to 1.
        return torch.where(self.counts > 0, self.scores, self.scores.amin() - 2 + self.scores)

    def _kept(self) -> Bool[Tensor, "*places"]:
        """Return what this step keeps."""
        num_left_out = self.scores.numel() - self.num_kept
        scores = self._final_scores()
        best = keep_highest(scores, self.num_kept)
        worst = scores[best].amin().clamp_min(0)
        tried = best & (scores <= worst * CERTAIN ** (ENOUGH + 1 - self.counts).clamp_min(1))
        num_explored = min(math.ceil(self.explored * self.num_kept), num_left_out, int(tried.sum()))
        chance = torch.rand(
            self.scores.shape,
            generator=torch_generator(self.seed, "mask", "explored", int(self.num_steps)),
            dtype=torch.float64,
        ).to(self.scores)
        seldom = keep_highest(torch.where(tried, chance - self.counts, -math.inf), num_explored)
        # What is explored is out, and the best of all others are in.
        return keep_highest(torch.where(seldom, -math.inf, scores), self.num_kept)

    def _weights(self, scores: Scores) -> Scores:
        return self._kept() + (scores - scores.detach())

    def _move(self, gradient: Scores, mask_lr: float) -> None:
        out = ~self._kept()
        self.counts += out
        rate = torch.maximum(1 / self.counts.clamp_min(1), torch.full_like(self.counts, mask_lr))
        self.scores.copy_(torch.where(out, torch.lerp(self.scores, -gradient, rate), self.scores))
        self.num_steps += 1
