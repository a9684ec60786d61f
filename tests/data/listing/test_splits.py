from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelwave.data.listing.cases import Case
from voxelwave.data.listing.splits import few, k_folds, split_cases

seeds = st.integers(0, 2**31)
names = st.sets(st.text("abc123", min_size=1, max_size=4), min_size=1, max_size=20)


# Where all are alike in what is spread, they are dealt in turn.
def alike(subjects):
    return {key: {"mri"} for key in subjects}


def cases_of(subjects, *, scans=2, split=""):
    return [
        Case(name=f"{subject}_{scan}", image=Path("x.nii"), modality="mri", subject=subject, split=split)
        for scan in range(scans)
        for subject in sorted(subjects)
    ]


def subjects_of(cases):
    return {case.subject for case in cases}


@given(names, seeds, st.data())
def test_every_subject_is_validated_once_and_never_trained_on_then(subjects, seed, data):
    folds = data.draw(st.integers(2, max(2, len(subjects))))
    cases = cases_of(subjects)
    if len(subjects) < folds:
        with pytest.raises(ValueError, match="folds need as many subjects"):
            split_cases(cases, folds=folds, seed=seed)
        return
    validated = []
    for fold in range(folds):
        train, validation, test = split_cases(cases, folds=folds, fold=fold, seed=seed)
        assert not test
        assert not subjects_of(train) & subjects_of(validation)
        assert sorted([*train, *validation], key=cases.index) == cases
        assert train
        assert validation
        validated += sorted(subjects_of(validation))
    assert sorted(validated) == sorted(subjects)


@given(names, seeds, st.data())
def test_few_subjects_are_nested_whatever_the_order_of_the_cases(subjects, seed, data):
    counts = sorted(data.draw(st.lists(st.integers(1, len(subjects)), min_size=2, max_size=4)))
    chosen = [few(subjects, count, seed=seed) for count in counts]
    for smaller, larger in pairwise(chosen):
        assert larger[: len(smaller)] == smaller
    assert [len(set(one)) for one in chosen] == counts
    turned = data.draw(st.permutations(sorted(subjects)))
    assert few(turned, counts[-1], seed=seed) == chosen[-1]
    assert k_folds(alike(turned), folds=2, seed=seed) == k_folds(alike(subjects), folds=2, seed=seed)


@given(names, seeds, st.integers(2, 5))
def test_subjects_that_are_alike_are_dealt_in_turn(subjects, seed, folds):
    groups = k_folds(alike(subjects), folds=folds, seed=seed)
    in_turn = [group[turn] for turn in range(len(groups[0])) for group in groups if turn < len(group)]
    assert sorted(in_turn) == sorted(subjects)
    assert [len(group) for group in groups] == sorted(map(len, groups), reverse=True)
    assert len(groups[0]) - len(groups[-1]) <= 1


@given(st.dictionaries(st.text("abc123", min_size=1), st.sets(st.sampled_from("pqrst"), min_size=1)), seeds)
def test_the_rarest_trait_is_spread_evenly_and_no_fold_is_empty(traits, seed):
    groups = k_folds(traits, folds=3, seed=seed)
    assert sorted(subject for group in groups for subject in group) == sorted(traits)
    assert all(groups) == (len(traits) >= 3)
    counts = {trait: sum(trait in of for of in traits.values()) for of in traits.values() for trait in of}
    if counts:
        rarest = min(counts, key=lambda trait: (counts[trait], trait))
        held = [sum(rarest in traits[subject] for subject in group) for group in groups]
        assert max(held) - min(held) <= 1


def test_targets_that_are_true_together_are_spread_each_for_itself():
    # Of 20 subjects five have each of three targets, most of them two at once.
    true = {"A": {0, 1, 2, 3, 4}, "B": {2, 3, 4, 5, 6}, "C": {0, 4, 6, 7, 8}}
    traits = {
        f"s{number}": {"ct", *(f"{name}: {int(number in of)}" for name, of in true.items())} for number in range(20)
    }
    for seed in range(20):
        groups = k_folds(traits, folds=5, seed=seed)
        assert {len(group) for group in groups} == {4}
        for name in true:
            assert [sum(f"{name}: 1" in traits[subject] for subject in group) for group in groups] == [1] * 5


def test_folds_that_a_list_names_are_taken_as_they_are():
    cases = [replace(case, fold=1 + "abc".index(case.subject)) for case in cases_of("abc")]
    cases += [replace(case, fold=0) for case in cases_of("xyz")] + cases_of("t", split="test")
    for fold, held in enumerate([{"x", "y", "z"}, {"a"}, {"b"}, {"c"}]):
        train, validation, test = split_cases(cases, folds=4, fold=fold, seed=fold)
        assert subjects_of(validation) == held
        assert subjects_of(train) == set("abcxyz") - held
        assert subjects_of(test) == {"t"}
    assert not split_cases(cases, folds=1).validation


def in_folds(*folds):
    return [replace(case, fold=fold) for case, fold in zip(cases_of("abcd"[: len(folds)], scans=1), folds, strict=True)]


def test_every_fold_has_its_share_of_rare_targets_and_of_modalities():
    # Of 100 subjects 5 have one target, 10 another; 20 have a CT beside the MRI of all.
    def case(number, modality):
        targets = {"rare": int(number % 20 == 0), "less": int(number % 10 == 3)}
        return Case(f"{number}_{modality}", Path("x.nii"), modality, f"s{number}", targets=targets)

    cases = [case(number, "mri") for number in range(100)] + [case(number, "ct") for number in range(1, 100, 5)]
    for seed in range(3):
        for fold in range(5):
            held = split_cases(cases, folds=5, fold=fold, seed=seed, targets=("rare", "less")).validation
            mri = [case for case in held if case.modality == "mri"]
            assert sum(case.targets["rare"] for case in mri) == 1
            assert sum(case.targets["less"] for case in mri) == 2
            assert len(held) - len(mri) == 4
            assert len(mri) == 20
    # Not without being told of them.
    unaware = [split_cases(cases, folds=5, fold=fold, seed=0).validation for fold in range(5)]
    assert {sum(case.targets["rare"] for case in of if case.modality == "mri") for of in unaware} != {1}


def test_another_seed_gives_other_folds_and_other_subjects():
    subjects = [f"s{number}" for number in range(30)]
    assert k_folds(alike(subjects), folds=3, seed=0) != k_folds(alike(subjects), folds=3, seed=1)
    assert few(subjects, 5, seed=0) != few(subjects, 5, seed=1)
    # How the folds were made does not tell which subjects are the few.
    assert set(few(subjects, 10, seed=0)) != set(k_folds(alike(subjects), folds=3, seed=0)[0])
    assert {len(fold) for fold in k_folds(alike(subjects), folds=4, seed=0)} == {7, 8}


def test_few_are_taken_of_what_the_fold_leaves_and_validation_stays():
    cases = cases_of("abcdefgh")
    whole = split_cases(cases, folds=4, fold=1)
    before: set[str] = set()
    for count in (1, 2, 4, 6):
        train, validation, _ = split_cases(cases, folds=4, fold=1, num_train_subjects=count)
        assert before < subjects_of(train) <= subjects_of(whole.train)
        assert len(subjects_of(train)) == count
        assert len(train) == 2 * count
        assert validation == whole.validation
        before = subjects_of(train)


def test_test_cases_are_in_no_fold_and_one_fold_validates_on_none():
    cases = cases_of("abcd") + cases_of("xy", split="test")
    for fold in range(4):
        train, validation, test = split_cases(cases, folds=4, fold=fold)
        assert subjects_of(test) == {"x", "y"}
        assert subjects_of(train) | subjects_of(validation) == set("abcd")
    train, validation, test = split_cases(cases, folds=1)
    assert subjects_of(train) == set("abcd")
    assert not validation
    assert subjects_of(test) == {"x", "y"}


@pytest.mark.parametrize(
    ("cases", "settings", "message"),
    [
        (cases_of("ab"), {"folds": 3}, "3 folds need as many subjects, got 2: ask for fewer folds"),
        (cases_of("a", split="test"), {"folds": 1}, "all 2 cases have the split test"),
        (cases_of("abcd"), {"folds": 2, "num_train_subjects": 3}, "num_train_subjects is 3: fold 0 of 2 leaves 1…2"),
        (cases_of("abcd"), {"folds": 2, "fold": 2}, "fold is 0…1, got 2"),
        (cases_of("abc") + cases_of("a", split="test"), {"folds": 2}, "subject 'a' has cases with split test and"),
        (cases_of("abc", split="val"), {"folds": 2}, "case 'a_0' has the split 'val'"),
        (in_folds(0, None), {"folds": 2}, "case 'b_0' has no fold: where a list names folds, each case has one of 0…1"),
        (in_folds(0, 1, 2), {"folds": 2}, "case 'c_0' has the fold 2"),
        (in_folds(0, -1), {"folds": 2}, "case 'b_0' has the fold -1"),
        (in_folds(0, 2, 2), {"folds": 3}, "no case has the fold 1, and there are to be 3"),
        (in_folds(0, 1) + in_folds(1), {"folds": 2}, "subject 'a' has cases of fold 0 and of fold 1: give all one"),
    ],
)
def test_a_split_that_cannot_be_is_one_clear_line(cases, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        split_cases(cases, **settings)
    assert "\n" not in str(caught.value)
