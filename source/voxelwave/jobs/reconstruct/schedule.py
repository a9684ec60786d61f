"""What holds at each epoch: of which block it is, its learning rate, its augmentation and its masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from voxelwave.data.kspace.mraugment import Chance, MRAugment
from voxelwave.jobs.reconstruct.config import BlockConfig
from voxelwave.physics.samplings import Sampling
from voxelwave.physics.samplings.one_of import OneOf
from voxelwave.registry import SAMPLINGS


@dataclass(frozen=True)
class Block:
    """A block with its place in the training: epochs `first`, counted from 1, to `last`."""

    number: int
    first: int
    last: int
    config: BlockConfig

    def learning_rate(self, epochs_done: float) -> float:
        """Return the rate after so many epochs since the start of the training.

        It rises from 0 over the warm-up, and is a cosine from there to 0 at `zero_at_epoch`.
        """
        config, begun = self.config, epochs_done - (self.first - 1)
        if begun < config.warmup_epochs:
            return config.learning_rate * begun / config.warmup_epochs
        start, end = self.first - 1 + config.warmup_epochs, config.zero_at_epoch or self.last
        progress = min((epochs_done - start) / max(end - start, 1e-9), 1.0)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def augment(self) -> MRAugment | None:
        """Return the augmentation, whose chances grow from 0 before the block to their largest at its end."""
        if (config := self.config.augment) is None:
            return None
        chances = {kind: Chance(chance.p_max, chance.decay) for kind, chance in config.moves.items()}
        far = config.model_dump(exclude={"moves"})
        return MRAugment(chances=chances, first_epoch=self.first - 1, num_epochs=self.last, **far)

    def sampling(self) -> Sampling | None:
        """Return what chooses the samples; None where the files do."""
        built = [SAMPLINGS.build(one.name, **one.settings) for one in self.config.samplings]
        return OneOf(built) if len(built) > 1 else built[0] if built else None


def blocks_of(configs: Sequence[BlockConfig]) -> list[Block]:
    """Return the blocks in order."""
    ends = list(accumulate(config.epochs for config in configs))
    return [
        Block(number, end - config.epochs + 1, end, config)
        for number, (config, end) in enumerate(zip(configs, ends, strict=True), start=1)
    ]


def block_at(blocks: Sequence[Block], epoch: int) -> Block:
    """Return the block of an epoch, the last one beyond its end."""
    return next((block for block in blocks if epoch <= block.last), blocks[-1])
