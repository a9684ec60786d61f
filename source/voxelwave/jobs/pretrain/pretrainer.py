"""The pretrainer of a configuration: backbone, masking, encoder, decoder, losses."""

from __future__ import annotations

from typing import Any

import torch

from voxelwave.contracts import Masking
from voxelwave.downstream.description import channel_counts
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import check_crop
from voxelwave.jobs.pretrain.config import Config
from voxelwave.losses.masked_reconstruction import MaskedReconstruction
from voxelwave.objectives.masked_modeling import Backbone, MaskedFeatures, MaskedModeling, MaskedVoxels
from voxelwave.objectives.supervised_synthesis import SupervisedSynthesis
from voxelwave.ops.patches import token_grid
from voxelwave.ops.seeding import key_to_seed
from voxelwave.registry import BACKBONES, CONTRASTIVE_LOSSES, MASKINGS, OBJECTIVES
from voxelwave.sparse.decoder import LightDecoder
from voxelwave.sparse.encoder import SparseEncoder

Pretrainer = MaskedModeling | SupervisedSynthesis


def build_pretrainer(config: Config) -> Pretrainer:
    """Build the module that a run trains; its initial weights follow from `run.seed` alone.

    Called on a volume `[B, 1 or 3, D, H, W]` and a CPU `generator` it returns a `StepOutput`.
    Raises InputError for settings that do not go together.
    """
    model, loss = config.model, config.loss
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_to_seed(config.run.seed, "weights"))
        backbone = BACKBONES.build(model.backbone.name, channel_counts(), **model.backbone.settings)
        masking = MASKINGS.build(config.masking.name, **config.masking.settings)
        _check_crop(config, backbone, masking)
        objective = config.objective
        if objective is not None and not OBJECTIVES.get(objective.name).hides:
            plain: Pretrainer = OBJECTIVES.build(objective.name, backbone, **objective.settings)
            return plain
        encoder = SparseEncoder(backbone.channels, widths=model.encoder_widths, backend=model.sparse)
        decoder = LightDecoder(model.encoder_widths, width=model.decoder_width)
        if objective is not None:
            reconstruction = MaskedReconstruction(**loss.reconstruction)
            runtime = (backbone, masking, encoder, decoder, reconstruction)
            built: Pretrainer = OBJECTIVES.build(objective.name, *runtime, **objective.settings)
            return built
        contrastive = CONTRASTIVE_LOSSES.build(loss.name, (backbone.channels, backbone.channels), **loss.settings)
        parts = (backbone, masking, encoder, decoder, contrastive)
        settings: dict[str, Any] = {
            "decoder_width": model.decoder_width,
            "contrastive_weight": loss.contrastive_weight,
            "shallow_depth": loss.shallow_depth,
        }
        try:
            reconstruction = MaskedReconstruction(**loss.reconstruction)
            if model.target == "features":
                return MaskedFeatures(*parts, reconstruction, **settings, **model.features.model_dump())
            return MaskedVoxels(*parts, reconstruction, **settings)
        except ValueError as error:
            raise InputError(f"loss: {error}") from error


def _check_crop(config: Config, backbone: Backbone, masking: Masking) -> None:
    """Draw one mask for the crop, so that a crop too small for patches or blocks is refused before data is read."""
    crop = config.data.crop_size
    check_crop(crop, backbone.patch_size)
    grid = token_grid(crop, backbone.patch_size)
    try:
        masking(grid, 1, torch.Generator())
    except ValueError as error:
        raise InputError(f"keys 'data.crop_size' and 'masking' do not go together: {error}") from None
    levels, most = getattr(backbone, "wavelet_levels", 0), (max(grid) - 1).bit_length()
    if levels > most:
        raise InputError(
            f"key 'model.backbone.wavelet_levels': blocks of {levels} levels hold more than the {grid} tokens of "
            f"data.crop_size: at most {most}"
        )


def count_parameters(pretrainer: Pretrainer) -> dict[str, int]:
    """Count trained parameters by part."""
    counts: dict[str, int] = {}
    for name, parameter in pretrainer.named_parameters():
        if parameter.requires_grad:
            part = name.split(".")[0]
            counts[part] = counts.get(part, 0) + parameter.numel()
    return counts
