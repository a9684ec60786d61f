"""The network of a configuration, and that of a run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from voxelwave.engine.checkpoint import best_weights, load_checkpoint, taken_for
from voxelwave.jobs.reconstruct.config import ReconstructionConfig, check_reconstruction_config
from voxelwave.registry import RECONSTRUCTIONS

NETWORK = "network."  # begins the names of its weights in a checkpoint


class Trained(NamedTuple):
    """A network in evaluation mode, and the configuration that it was trained with."""

    network: nn.Module
    config: ReconstructionConfig


def build_network(config: ReconstructionConfig) -> nn.Module:
    """Return the network of a configuration with random weights; raises InputError for settings that make none."""
    network = RECONSTRUCTIONS.build(config.model.name, **config.model.settings)
    assert isinstance(network, nn.Module)
    # Channels beside each other: a step of a small network takes a seventh less time on a CPU.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def num_slices(network: nn.Module) -> int:
    """Return how many adjacent slices a network sees together."""
    return int(network.num_slices)  # type: ignore[arg-type]  # of every network of the registry


def load_reconstruction(path: Path) -> Trained:
    """Return the network of a run folder (its best weights) or of a checkpoint.

    Raises InputError for a missing, damaged or foreign file.
    """
    file = best_weights(path)
    checkpoint = load_checkpoint(file)
    with taken_for(file, "checkpoint of `voxelwave reconstruct train`"):
        config = check_reconstruction_config(checkpoint["config"], str(file))
        network = build_network(config)
        weights = {
            name.removeprefix(NETWORK): of for name, of in checkpoint["model"].items() if name.startswith(NETWORK)
        }
        network.load_state_dict(weights)
    return Trained(network.eval(), config)
