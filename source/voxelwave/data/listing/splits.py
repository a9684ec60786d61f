"""Cases for training, validation and test: all cases of a subject are in the same part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
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


def k_folds(traits: Mapping[str, Set[str]], *, folds: int, seed: int) -> list[list[str]]:
    """Divide subjects at random into `folds` groups, so that every trait is spread over them as evenly as can be.

    Those with the rarest trait that is left are dealt first, each to the group that has fewest of them (Sechidis,
    Tsoumakas and Vlahavas 2011, "On the stratification of multi-label data"); of these to the one that has fewest with
    the subject's other traits, the rarest first, and then to the smallest. Where there are as many subjects as groups,
    none is empty.

    Args:
        traits: of every subject, one at least.
    """
    groups: list[list[str]] = [[] for _ in range(folds)]
    held: list[Counter[str]] = [Counter() for _ in range(folds)]
    counts = Counter(trait for of in traits.values() for trait in of)
    by_rarity = {subject: sorted(of, key=lambda trait: (counts[trait], trait)) for subject, of in traits.items()}
    left = _shuffled(traits, seed, "folds")
    while left:
        still = Counter(trait for subject in left for trait in traits[subject])
        rarest = min(still, key=lambda trait: (still[trait], trait))
        for subject in (one for one in left if rarest in traits[one]):
            own = [rarest, *by_rarity[subject]]
            fewest = min(range(folds), key=lambda fold: ([held[fold][of] for of in own], len(groups[fold])))
            groups[fewest].append(subject)
            held[fewest].update(traits[subject])
        left = [subject for subject in left if rarest not in traits[subject]]
    return groups


def few(subjects: Iterable[str], count: int, *, seed: int) -> list[str]:
    """Choose `count` of the subjects at random; a larger count chooses the same ones and more."""
    return _shuffled(subjects, seed, "few")[:count]


def split_cases(
    cases: Sequence[Case],
    *,
    folds: int,
    fold: int = 0,
    seed: int = 0,
    num_train_subjects: int | None = None,
    targets: Sequence[str] = (),
) -> Split:
    """Return the cases for training, validation and test in `fold` of `folds`.

    Cases whose split is "test" are in no fold. With one fold there is no validation: all other cases are for training.
    Folds are those that the cases name; where they name none, each has its share of every modality, and of the subjects
    of which a target is true, and false.

    Args:
        targets: names of those that are spread over the folds.
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
    traits: dict[str, set[str]] = {}
    for case in rest:
        known = {f"{name}: {case.targets[name]}" for name in targets if name in case.targets}
        traits.setdefault(case.subject, set()).update(known, [case.modality])
    subjects = set(traits)
    if both := sorted(subjects & {case.subject for case in test}):
        raise InputError(f"subject '{both[0]}' has cases with split test and cases without: give all of them one split")
    if not rest:
        raise InputError(f"all {len(test)} cases have the split test: none is left to train on")
    if not 0 <= fold < folds:
        raise InputError(f"fold is 0…{folds - 1}, got {fold}")
    if len(subjects) < folds:
        raise InputError(f"{folds} folds need as many subjects, got {len(subjects)}: ask for fewer folds")
    groups = _named_folds(rest, folds) or k_folds(traits, folds=folds, seed=seed)
    held_out = set(groups[fold]) if folds > 1 else set()
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


def _named_folds(cases: Sequence[Case], folds: int) -> list[set[str]] | None:
    """Return the subjects of each fold as the cases name them, or None where none does; raises InputError."""
    if all(case.fold is None for case in cases) or folds == 1:
        return None
    groups: list[set[str]] = [set() for _ in range(folds)]
    fold_of: dict[str, int] = {}
    for case in cases:
        if case.fold is None or not 0 <= case.fold < folds:
            named = "no fold" if case.fold is None else f"the fold {case.fold}"
            raise InputError(
                f"case '{case.name}' has {named}: where a list names folds, each case has one of 0…{folds - 1}"
            )
        if (other := fold_of.setdefault(case.subject, case.fold)) != case.fold:
            raise InputError(
                f"subject '{case.subject}' has cases of fold {other} and of fold {case.fold}: give all one"
            )
        groups[case.fold].add(case.subject)
    if empty := [fold for fold, group in enumerate(groups) if not group]:
        raise InputError(f"no case has the fold {empty[0]}, and there are to be {folds} (data.folds)")
    return groups


def _shuffled(subjects: Iterable[str], seed: int, what: str) -> list[str]:
    """Order subjects by a number that follows from the name of each, so that no subject changes the order of others."""
    return sorted(set(subjects), key=lambda subject: (key_to_seed(seed, what, subject), subject))
