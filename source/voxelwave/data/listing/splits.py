"""Cases for training, validation and test: all cases of a subject are in the same part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from voxelwave.data.listing.cases import Case
from voxelwave.errors import InputError
from voxelwave.ops.seeding import key_to_seed

TEST = "test"
KNOWN = ("", "train", TEST)


class Split(NamedTuple):
    """The cases of one fold, each list in the order in which they were given."""

    train: list[Case]
    validation: list[Case]
    test: list[Case]


def k_folds(subjects: Iterable[str], *, folds: int, seed: int) -> list[list[str]]:
    """Divide the subjects at random into `folds` groups whose sizes differ by one at most."""
    order = _shuffled(subjects, seed, "folds")
    return [order[fold::folds] for fold in range(folds)]


def few(subjects: Iterable[str], count: int, *, seed: int) -> list[str]:
    """Choose `count` of the subjects at random; a larger count chooses the same ones and more."""
    return _shuffled(subjects, seed, "few")[:count]


def split_cases(
    cases: Sequence[Case], *, folds: int, fold: int = 0, seed: int = 0, num_train_subjects: int | None = None
) -> Split:
    """Return the cases for training, validation and test in `fold` of `folds`.

    Cases whose split is "test" are in no fold. With one fold there is no validation: all other cases are for training.

    Args:
        num_train_subjects: how many of the fold's training subjects are used; None uses all.

    Raises InputError where there are not enough subjects, or the test has one that is also elsewhere, in one line.
    """
    for case in cases:
        if case.split not in KNOWN:
            raise InputError(
                f"case '{case.name}' has the split '{case.split}': it is train, test or empty; what is validated on "
                f"follows from the folds"
            )
    test = [case for case in cases if case.split == TEST]
    rest = [case for case in cases if case.split != TEST]
    subjects = {case.subject for case in rest}
    if both := sorted(subjects & {case.subject for case in test}):
        raise InputError(f"subject '{both[0]}' has cases with split test and cases without: give all of them one split")
    if not rest:
        raise InputError(f"all {len(test)} cases have the split test: none is left to train on")
    if not 0 <= fold < folds:
        raise InputError(f"fold is 0…{folds - 1}, got {fold}")
    if len(subjects) < folds:
        raise InputError(f"{folds} folds need as many subjects, got {len(subjects)}: ask for fewer folds")
    held_out = set(k_folds(subjects, folds=folds, seed=seed)[fold]) if folds > 1 else set()
    trained = subjects - held_out
    if num_train_subjects is not None:
        if not 1 <= num_train_subjects <= len(trained):
            raise InputError(
                f"num_train_subjects is {num_train_subjects}: fold {fold} of {folds} leaves 1…{len(trained)} of them"
            )
        trained = set(few(trained, num_train_subjects, seed=seed))
    return Split(
        [case for case in rest if case.subject in trained],
        [case for case in rest if case.subject in held_out],
        test,
    )


def _shuffled(subjects: Iterable[str], seed: int, what: str) -> list[str]:
    """Order subjects by a number that follows from the name of each, so that no subject changes the order of others."""
    return sorted(set(subjects), key=lambda subject: (key_to_seed(seed, what, subject), subject))
