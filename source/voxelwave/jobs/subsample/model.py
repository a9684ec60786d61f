"""The mask and the network of a configuration, and those of a run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from voxelwave.engine.checkpoint import BEST, load_checkpoint, taken_for
from voxelwave.errors import InputError
from voxelwave.jobs.subsample.config import OWN, MaskConfig, SubsampleConfig, check_subsample_config
from voxelwave.jobs.subsample.images import ImageSet
from voxelwave.jobs.subsample.own_model import OwnModel
from voxelwave.objectives.subsampled_reconstruction import SubsampledReconstruction
from voxelwave.ops.evaluating import evaluating
from voxelwave.ops.seeding import key_to_seed, torch_generator
from voxelwave.ops.texts import one_line
from voxelwave.physics.fixed_masks import fixed_mask
from voxelwave.registry import MASK_RULES, SUBSAMPLED_MODELS
from voxelwave.unrolled.learned_mask import LearnedMask
from voxelwave.unrolled.subsampling import FixedMask, Subsampling

LARGEST = 1 << 14  # side of a mask


class Built(NamedTuple):
    """A layer, and the objective whose model stands behind it."""

    layer: Subsampling
    objective: SubsampledReconstruction


def build_layer(mask: MaskConfig, shape: tuple[int, int], *, seed: int, training: Tensor | None) -> Subsampling:
    """Return the subsampling layer; `training` is the k-space that the mask of highest mean power is made of.

    Raises InputError for a mask that does not fit the images.
    """
    if mask.learn:
        settings = {"drop_rate": mask.drop_rate, "lines": mask.lines, "seed": seed}
        layer: LearnedMask = MASK_RULES.build(mask.rule.name, shape, **mask.rule.settings, **settings)
        return layer
    generator = torch_generator(seed, "mask", mask.fixed)
    try:
        kept = fixed_mask(mask.fixed, shape, generator, drop_rate=mask.drop_rate, lines=mask.lines, training=training)
    except ValueError as error:
        raise InputError(f"mask '{mask.fixed}': {error}") from None
    return FixedMask(kept)


def build(config: SubsampleConfig, images: ImageSet, own: OwnModel | None = None) -> Built:
    """Return layer and objective with random weights; raises InputError for a model that does not call its layer."""
    seed = config.run.seed
    layer = build_layer(config.mask, images.shape, seed=seed, training=images.kspace)
    torch.manual_seed(key_to_seed(seed, "weights"))
    built = _behind(config, layer, own)
    _check(built, images)
    return built


def _behind(config: SubsampleConfig, layer: Subsampling, own: OwnModel | None) -> Built:
    if config.model.name == OWN:
        if own is None:
            raise InputError("the model is a file of yours: name it with --model FILE.py")
        model = own.build(layer)
    else:
        model = SUBSAMPLED_MODELS.build(config.model.name, layer, **config.model.settings)
    # Channels beside each other: a step of a small convolutional model takes less time on a CPU.
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Built(layer, SubsampledReconstruction(model))


def _check(built: Built, images: ImageSet) -> None:
    """Raise InputError for a model that fails on the images, does not call its layer, or sees what that removes."""
    model, called = built.objective.model, list[int]()
    name, shape = type(model).__name__, (2, 2, *images.shape)
    if not any(module is built.layer for module in model.modules()):
        raise InputError(f"model {name}: does not keep the subsampling layer, so that it would not be saved: store it")
    watched = built.layer.register_forward_hook(lambda *_: called.append(1))
    kspace = images.kspace[[0, -1]]
    try:
        with torch.no_grad(), evaluating(model):
            given, again = model(kspace), model(kspace)
            removed = torch.where(built.layer.mask(), kspace, 0)
            without = model(removed)
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(
            f"model {name}: fails on k-space of {images.shape[0]} × {images.shape[1]}: {reason}"
        ) from error
    finally:
        watched.remove()
    if not called:
        raise InputError(f"model {name}: does not call the subsampling layer: call it first, on the k-space")
    if not isinstance(given, Tensor) or given.is_complex() or tuple(given.shape) != shape:
        got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise InputError(f"model {name}: returns {got}, and is to return real and imaginary parts, {shape}")
    if not bool(given.isfinite().all()):
        raise InputError(f"model {name}: returns values that are not finite, with the weights that it begins with")
    if not torch.equal(given, again):
        raise InputError(f"model {name}: says something else each time in evaluation mode: draw nothing there")
    if not torch.equal(given, without):
        raise InputError(f"model {name}: sees frequencies that the layer removes: use what the layer returns alone")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"model {name}: has nothing to train")
    if isinstance(built.layer, LearnedMask) and not _mask_learns(built, kspace):
        raise InputError(f"model {name}: hands no gradient on to the mask: detach nothing that the layer returns")


def _mask_learns(built: Built, kspace: Tensor) -> bool:
    """Tell whether the gradient of the loss reaches a learned mask; nothing of that is kept."""
    objective = copy.deepcopy(built.objective).train()
    (layer,) = (module for module in objective.modules() if isinstance(module, LearnedMask))
    objective(kspace).loss.backward()
    try:
        layer.mask_step(0.0)
    except ValueError:
        return False
    return True


def load_weights(built: Built, path: Path) -> None:
    """Load the weights and the mask of a run folder (its best ones); raises InputError where they do not fit."""
    file = path / BEST
    with taken_for(file, "checkpoint of this model"):
        built.objective.load_state_dict(load_checkpoint(file)["model"])


def load_subsampled(path: Path, own: OwnModel | None = None) -> tuple[Subsampling, nn.Module, SubsampleConfig]:
    """Return the layer and the model of a run folder in evaluation mode, and its configuration.

    `own` is the model of a run that was trained with a file of the user's.
    Raises InputError for a missing, damaged or foreign file.
    """
    checkpoint = load_checkpoint(path / BEST)
    try:
        config = check_subsample_config(SubsampleConfig, checkpoint["config"], str(path / BEST))
        shape = tuple(int(side) for side in checkpoint["shape"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path / BEST} is no checkpoint of `voxelwave subsample train`: {error}") from None
    if len(shape) != 2 or not all(0 < side <= LARGEST for side in shape):
        raise InputError(f"{path / BEST} is no checkpoint of `voxelwave subsample train`: its masks are of {shape}")
    if own is not None and config.model.settings.get("checksum") != own.checksum:
        raise InputError(f"{path} was trained with another file than {own.path}, or with one that was edited since")
    # What is loaded next says which frequencies are kept.
    layer = (
        build_layer(config.mask, shape, seed=config.run.seed, training=None)
        if config.mask.learn
        else FixedMask(torch.ones(shape, dtype=torch.bool))
    )
    built = _behind(config, layer, own)
    load_weights(built, path)
    return layer, built.objective.model.eval(), config
