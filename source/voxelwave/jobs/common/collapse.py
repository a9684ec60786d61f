"""Whether a contrastive loss tells anything apart: one that lies where it would for identical vectors does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from voxelwave.jobs.common.console import Console

NEAR = 0.02  # of the value of identical vectors


class CollapseWatch:
    """Says once, at the end of an epoch, that a contrastive loss lies at the value of identical vectors.

    That is the logarithm of the number of candidates for InfoNCE, and the margin for triplets. It is asked of the loss
    itself: what else it depends on, such as which places count, is that of the batch.

    Args:
        remedy: what to do about it.
    """

    def __init__(self, console: Console, *, remedy: str) -> None:
        self._console, self._remedy, self._said = console, remedy, False
        self._losses: list[float] = []
        self._identical: list[float] = []

    def saw(self, loss: float, identical: float) -> None:
        """Take the loss of a batch, and the one that identical vectors would have had."""
        self._losses.append(loss)
        self._identical.append(identical)

    @contextmanager
    def watching(self, loss: nn.Module | None, *, wanted: bool = True) -> Iterator[None]:
        """Look at what `loss`, called with two tensors of features first, returns meanwhile, if that is `wanted`.

        It returns the loss first of all, and everything else that it is called with stays as it is.
        """
        if loss is None or not wanted:
            yield
            return

        def look(module: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
            alike = (torch.zeros_like(inputs[0]), torch.zeros_like(inputs[1]))
            with torch.no_grad():
                self.saw(float(outputs[0].detach()), float(module.forward(*alike, *inputs[2:])[0]))

        hook = loss.register_forward_hook(look)
        try:
            yield
        finally:
            hook.remove()

    def end_epoch(self, epoch: int) -> None:
        """Say it, where it is so for the mean of what was seen since the last epoch."""
        count = max(len(self._losses), 1)
        loss, identical = sum(self._losses) / count, sum(self._identical) / count
        self._losses, self._identical = [], []
        if self._said or not abs(loss - identical) < NEAR * identical:
            return
        self._said = True
        self._console.say(
            f"the contrastive loss at the end of epoch {epoch} is {loss:.3f}, and it would be {identical:.3f} if all "
            f"vectors were the same: nothing is told apart so far. {self._remedy}"
        )
