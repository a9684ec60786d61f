"""Random generators keyed by what they are for, so that a draw depends on nothing that came before it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch


def key_to_seed(*key: int | str) -> int:
    """Map a key such as (seed, "mask", epoch, rank, index) to 63 well-mixed bits, the same on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def number_and_checksum(names: Sequence[int | str]) -> str:
    """Return the number of `names`, and a checksum of them in this order."""
    return f"{len(names)}:{key_to_seed(*names):016x}"


def torch_generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator for `key`; draw on the CPU and move, so that every device sees the same numbers."""
    return torch.Generator().manual_seed(key_to_seed(*key))


def numpy_generator(*key: int | str) -> np.random.Generator:
    """Return a NumPy generator for `key`."""
    return np.random.default_rng(key_to_seed(*key))
