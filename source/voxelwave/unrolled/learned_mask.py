"""Masks that are learned with the network behind them: scores, of which the highest are kept.

A rule says how gradients reach the scores and move them; `MASK_RULES` of the registry has all of them by name.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.fixed_masks import keep_highest, num_kept
from voxelwave.registry import MASK_RULES
from voxelwave.unrolled.subsampling import Mask, Subsampling

Scores = Float[Tensor, "*places"]


class LearnedMask(Subsampling):
    """Keeps the highest of its scores, one for each frequency or, with `lines`, for each line along the height.

    Exactly round((1 − drop_rate) × number of places) are kept at every moment, see `num_kept`. Scores begin at random,
    from `seed`. They are a buffer in double precision: no optimiser owns them, and checkpoints hold them. In training,
    while gradients are recorded, `forward` lets the loss's gradient by the mask reach them; `mask_step` uses it up.

    Raises ValueError for a drop rate outside of [0, 1), and where nothing would be kept.
    """

    scores: Tensor
    settled: Tensor

    def __init__(self, shape: tuple[int, int], *, drop_rate: float, lines: bool, seed: int) -> None:
        super().__init__(shape)
        places = shape[1:] if lines else shape
        self.num_kept = num_kept(math.prod(places), drop_rate)
        self.seed = seed
        self.register_buffer("scores", torch.rand(places, generator=torch_generator(seed, "mask"), dtype=torch.float64))
        self.register_buffer("settled", torch.tensor(False))
        # What gradients of this step reach. It is no buffer: whatever moves a module would cut it from its gradient.
        self._reached: Tensor | None = None

    def mask(self) -> Mask:
        """Return which frequencies are kept at this moment."""
        return keep_highest(self.scores, self.num_kept).expand(self.shape)

    def final_mask(self) -> Mask:
        """Return which frequencies would be kept after `settle`."""
        return keep_highest(self._final_scores(), self.num_kept).expand(self.shape)

    def settle(self) -> None:
        """Keep `final_mask` from here on, with no further steps."""
        self.scores.copy_(self._final_scores())
        self.settled.fill_(True)
        self._reached = None

    def mask_step(self, mask_lr: float) -> None:
        """Move the scores by the gradients of all backward passes since the last call; nothing once settled.

        Raises ValueError for a rate that is not finite or below 0, and where no gradient has arrived.
        """
        if not 0 <= mask_lr < math.inf:
            raise ValueError(f"mask_lr must be finite and at least 0, got {mask_lr}")
        if self.settled:
            return
        if self._reached is None or self._reached.grad is None:
            raise ValueError("the mask has no gradient: call the layer in training, and backward, before mask_step")
        gradient, self._reached = self._reached.grad, None
        with torch.no_grad():
            self._move(gradient, mask_lr)

    @abstractmethod
    def _move(self, gradient: Scores, mask_lr: float) -> None:
        """Move the scores, in place."""

    def _final_scores(self) -> Scores:
        """Return the scores of which the final mask keeps the highest."""
        return self.scores

    def _weights(self, scores: Scores) -> Scores:
        """Return 0 and 1, with the gradient of the mask passed on to the scores: straight through."""
        kept = keep_highest(scores, self.num_kept)
        return kept + (scores - scores.detach())

    def _subsampled(self, values: Complex[Tensor, "*batch height width"]) -> Complex[Tensor, "*batch height width"]:
        if not self.training or not torch.is_grad_enabled() or bool(self.settled):
            return super()._subsampled(values)
        if self._reached is None:
            self._reached = self.scores.clone().requires_grad_()
        return values * self._weights(self._reached).to(values.real.dtype)


@MASK_RULES.register("described")
class DescribedMask(LearnedMask):
    """Moves the scores against their straight-through gradient, times `mask_lr`: the rule as first written down.

    Of a squared error behind a linear reconstruction that keeps what it is given, frequencies that are kept get no
    gradient, and others one in the square of the data's unit.
    """

    default_mask_lr = 100.0

    def __init__(self, shape: tuple[int, int], *, drop_rate: float = 0.4, lines: bool = False, seed: int = 0) -> None:
        super().__init__(shape, drop_rate=drop_rate, lines=lines, seed=seed)

    def _move(self, gradient: Scores, mask_lr: float) -> None:
        self.scores.sub_(gradient, alpha=mask_lr)


@MASK_RULES.register("scale_free")
class ScaleFreeMask(LearnedMask):
    """Moves the scores by signed roots of the gradient, and ends with the mask of highest average occupancy.

    1. The gradient is averaged over `num_batches` calls of `mask_step`.
    2. Its signed root √|g| is divided by the root mean square of all of these. A squared error of data × s has a
       gradient × s²: each root is multiplied by s, and so is their size, so that the step does not change. No small
       number is added to the divisor, which would be a unit. This is exact for powers of 2, and else up to rounding.
       The root shrinks the range of the steps: a spectrum's power spans many orders of magnitude.
    3. Where kept frequencies get no gradient, the lowest of them is overtaken, gains a step, and is kept as long as the
       others take to catch up. A place with steps j, while the lowest kept score rises by v each step, is kept for the
       share 1 − v / j of the time (never for j < v): the average over steps ranks by power, where the mask of a single
       moment has dropped some of the strongest. Step t weighs t ** emphasis, and the beginning is forgotten whatever
       the number of steps (Shamir and Zhang, 2013, polynomial-decay averaging).
    """

    default_mask_lr = 10.0
    pending: Tensor
    num_pending: Tensor
    occupancy: Tensor
    num_steps: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        drop_rate: float = 0.4,
        lines: bool = False,
        seed: int = 0,
        num_batches: int = 1,
        emphasis: float = 3.0,
    ) -> None:
        super().__init__(shape, drop_rate=drop_rate, lines=lines, seed=seed)
        if num_batches < 1:
            raise ValueError(
                f"num_batches, over which a step's gradient is averaged, must be at least 1: {num_batches}"
            )
        if not 0 <= emphasis < math.inf:
            raise ValueError(f"emphasis must be finite and at least 0 (all steps weigh alike), got {emphasis}")
        self.num_batches, self.emphasis = num_batches, emphasis
        self.register_buffer("pending", torch.zeros_like(self.scores))
        self.register_buffer("num_pending", torch.tensor(0))
        self.register_buffer("occupancy", keep_highest(self.scores, self.num_kept).double())
        self.register_buffer("num_steps", torch.tensor(0))

    def _move(self, gradient: Scores, mask_lr: float) -> None:
        # 1. Average over batches.
        self.pending += gradient
        self.num_pending += 1
        if int(self.num_pending) < self.num_batches:
            return
        # 2. Step by roots, relative to their size. The number of batches cancels out, and so does every other factor.
        roots = self.pending.sign() * self.pending.abs().sqrt()
        size = roots.square().mean().sqrt()
        if size > 0:
            self.scores.sub_(roots / size, alpha=mask_lr)
        self.pending.zero_()
        self.num_pending.zero_()
        # 3. Count who is kept.
        self.num_steps += 1
        step = int(self.num_steps)
        weight = (self.emphasis + 1) / (step + self.emphasis)
        self.occupancy.lerp_(keep_highest(self.scores, self.num_kept).double(), weight)

    def _final_scores(self) -> Scores:
        return self.occupancy


@MASK_RULES.register("relaxed")
class RelaxedMask(LearnedMask):
    """Draws a mask by probabilities for each step, whose gradient is that of a soft threshold (LOUPE).

    Probabilities are sigmoid(`slope` × score), rescaled to a mean of the share that is kept. In training a place is
    kept where its probability exceeds uniform noise the most, as many as the share says; the gradient is that of
    sigmoid(`sample_slope` × (probability − noise)). With `binary=False` this value itself, between 0 and 1, multiplies
    the k-space in training, as it was published. `mask()` and evaluation keep the highest probabilities, without noise.
    Steps are Adam's, without the small number in the divisor, so that they do not depend on the data's unit.

    Source: Bahadir et al., Deep-learning-based optimization of the under-sampling pattern in MRI, 2020, section II;
    Zhang et al., Extending LOUPE, 2020, for masks that stay binary.
    """

    default_mask_lr = 0.02
    num_steps: Tensor
    first_moment: Tensor
    second_moment: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        drop_rate: float = 0.4,
        lines: bool = False,
        seed: int = 0,
        slope: float = 5.0,
        sample_slope: float = 12.0,
        binary: bool = True,
    ) -> None:
        super().__init__(shape, drop_rate=drop_rate, lines=lines, seed=seed)
        if not (0 < slope < math.inf and 0 < sample_slope < math.inf):
            raise ValueError(f"slopes must be above 0 and finite, got {slope} and {sample_slope}")
        self.slope, self.sample_slope, self.binary = slope, sample_slope, binary
        # Probabilities begin uniform between 0 and 1.
        self.scores.copy_(self.scores.logit(eps=0.01) / slope)
        self.register_buffer("num_steps", torch.tensor(0))
        self.register_buffer("first_moment", torch.zeros_like(self.scores))
        self.register_buffer("second_moment", torch.zeros_like(self.scores))

    def probabilities(self, scores: Scores) -> Scores:
        """Return the probability of each place to be kept; their mean is the share that is kept."""
        raw = torch.sigmoid(self.slope * scores)
        share, mean = self.num_kept / raw.numel(), raw.mean()
        return torch.where(mean > share, raw * share / mean, 1 - (1 - raw) * (1 - share) / (1 - mean))

    def _weights(self, scores: Scores) -> Scores:
        # All calls of a step draw the same mask: an unrolled network calls the layer again and again.
        generator = torch_generator(self.seed, "mask", "draw", int(self.num_steps))
        noise = torch.rand(scores.shape, generator=generator, dtype=torch.float64).to(scores)
        excess = self.probabilities(scores) - noise
        soft = torch.sigmoid(self.sample_slope * excess)
        return keep_highest(excess, self.num_kept) + (soft - soft.detach()) if self.binary else soft

    def _move(self, gradient: Scores, mask_lr: float) -> None:
        self.num_steps += 1
        step = int(self.num_steps)
        self.first_moment.lerp_(gradient, 0.1)
        self.second_moment.lerp_(gradient.square(), 0.001)
        size = (self.second_moment / (1 - 0.999**step)).sqrt()
        direction = torch.where(size > 0, self.first_moment / (1 - 0.9**step) / size, 0)
        self.scores.sub_(direction, alpha=mask_lr)
