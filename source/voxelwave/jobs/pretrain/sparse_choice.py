"""Which backend a run computes its sparse convolutions with, and why."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from voxelwave.contracts import Masking
from voxelwave.errors import InputError
from voxelwave.jobs.pretrain.config import Config
from voxelwave.objectives.masked_modeling import MaskedModeling
from voxelwave.ops.patches import token_grid
from voxelwave.ops.seeding import torch_generator
from voxelwave.sparse.backends import make_backend, why_not
from voxelwave.sparse.encoder import active_shares
from voxelwave.sparse.fastest import try_backends

MASKS = 16  # that tell how much of each scale they hide


class SparseChoice(NamedTuple):
    """A backend, and one line that says why it."""

    name: str
    said: str


NOTHING_SPARSE = SparseChoice("dense", "")  # of an objective without such a part


def choose_sparse(config: Config, pretrainer: MaskedModeling, fabric: Any, began_with: str | None) -> SparseChoice:
    """Let the encoder compute with the backend that the config names, or for `auto` with the fastest one.

    A resumed run goes on with the backend that it `began_with`, where it runs here: two of them agree up to rounding
    only. Else the first process times all of them on masks of this run. Raises InputError where a backend that is
    asked for does not run on the device.
    """
    wanted, device = config.model.sparse, fabric.device
    gone = None if began_with is None else why_not(began_with, device)
    if wanted != "auto":
        choice = SparseChoice(wanted, f"sparse: {wanted}, as configured")
    elif began_with is not None and gone is None:
        choice = SparseChoice(began_with, f"sparse: {began_with}, as in the run so far")
    else:
        name, said = fabric.broadcast(_measure(config, pretrainer, fabric) if fabric.is_global_zero else None)
        choice = SparseChoice(name, said + (f"; the run began with {began_with} ({gone})" if gone else ""))
    if reason := why_not(choice.name, device):
        raise InputError(reason)
    pretrainer.encoder.use(make_backend(choice.name))
    return choice


def hardly_masked(config: Config, masking: Masking, patch_size: int) -> str:
    """Return one line where the encoder's coarse scales see nearly everything, "" where all are masked alike."""
    grid = token_grid(config.data.crop_size, patch_size)
    visible = masking(grid, MASKS, torch_generator(config.run.seed, "scales")).visible
    shares = active_shares(visible, len(config.model.encoder_widths))
    masked = [share for share in shares if 1 - share > (1 - shares[0]) / 2]
    if len(masked) == len(shares):
        return ""
    return (
        f"masking: {shares[0]:.0%} of the tokens are visible, but {shares[-1]:.0%} of the encoder's coarsest scale, "
        f"since it is coarser than what is hidden: take the first {len(masked)} of {len(shares)} "
        "'model.encoder_widths', or a larger 'masking.block_side'"
    )


def _measure(config: Config, pretrainer: MaskedModeling, fabric: Any) -> SparseChoice:
    # 1. The masks of one batch of each modality.
    grid = token_grid(config.data.crop_size, pretrainer.backbone.patch_size)
    masks = []
    for modality in config.modalities():
        generator = torch_generator(config.run.seed, "sparse", modality)
        levels = pretrainer.masking(grid, config.training.batch_size[modality], generator)
        masks.append(levels.visible.to(fabric.device))
    # 2. In the precision that `MaskedModeling.decode` has.
    with fabric.autocast(), torch.autocast("cpu", enabled=False):
        trial = try_backends(pretrainer.encoder, masks)
    name = trial.fastest()
    # 3. What was seen, and what could not be tried.
    seen = ", ".join(f"{other} {1000 * seconds:.3g}" for other, seconds in trial.seconds.items())
    left_out = "".join(f"; without {other}: {reason}" for other, reason in trial.left_out.items())
    return SparseChoice(name, f"sparse: {name}, none is 5 % faster on masks of this run (ms a pass: {seen}){left_out}")
