"""The kinds of scans between which probes are transferred: modalities, and contrasts as the cases tell them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from voxelwave.data.listing.cases import Case
from voxelwave.errors import InputError
from voxelwave.registry import MODALITIES

WORDS = re.compile(r"[\W_]+")

Transfer = tuple[str, str]


def parse_transfers(text: str, cases: Sequence[Case]) -> list[Transfer]:
    """Read `mri:ct,T1:T2,contrast=0:contrast=2`: from which kind of scans to which; "" is from each modality to each.

    A kind is a modality, a word in the names of images, or a value of a target. With "" there is none where all cases
    are of one modality. Raises InputError for another form, and for a kind that no case is of or that spans modalities.
    """
    modalities = list(dict.fromkeys(case.modality for case in cases))
    if not text.strip():
        return [(one, other) for one in modalities for other in modalities] if len(modalities) > 1 else []
    transfers = []
    for part in text.split(","):
        origin, colon, goal = (word.strip() for word in part.partition(":"))
        if not (origin and colon and goal):
            raise InputError(f"--transfer takes FROM:TO,… such as mri:ct,T1:T2, got '{part.strip()}'")
        for kind in (origin, goal):
            _check(kind, cases)
        transfers.append((origin, goal))
    return list(dict.fromkeys(transfers))


def is_of(kind: str) -> Callable[[Case], bool]:
    """Return what tells whether a case is of a kind; a modality is meant where the word is the name of one."""
    name, equals, value = (word.strip() for word in kind.partition("="))
    if equals:
        return lambda case: str(case.targets.get(name, "")) == value
    if kind.lower() in MODALITIES.names():
        return lambda case: case.modality == kind.lower()
    return lambda case: kind.lower() in WORDS.split(case.name.lower())


def _check(kind: str, cases: Sequence[Case]) -> None:
    modalities = {case.modality for case in filter(is_of(kind), cases)}
    if not modalities:
        targets = sorted({name for case in cases for name in case.targets})
        raise InputError(
            f"--transfer: no case is of kind '{kind}': it is a modality, a word in the names of images, or a target "
            f"with its value, such as {targets[0] if targets else 'contrast'}=1"
        )
    if len(modalities) > 1:
        raise InputError(
            f"--transfer: cases of kind '{kind}' are of several modalities ({', '.join(sorted(modalities))})"
        )
