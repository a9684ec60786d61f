from pathlib import Path

from voxelwave.data.listing.cases import Case
from voxelwave.jobs.probe.kinds import is_of, parse_transfers

CASES = [
    Case("head_0_T1", Path("a.nii"), "mri", "a", targets={"contrast": 0}),
    Case("head_0_T1c", Path("b.nii"), "mri", "a", targets={"contrast": 4}),
    Case("head_0_hu", Path("c.nii"), "ct", "a"),
]


def test_a_kind_is_a_modality_a_word_of_the_name_or_a_value():
    for kind, expected in (("mri", "110"), ("CT", "001"), ("t1", "100"), ("contrast=4", "010"), ("contrast=1", "000")):
        assert "".join(str(int(is_of(kind)(case))) for case in CASES) == expected


def test_without_a_word_it_is_from_each_modality_to_each():
    assert parse_transfers("", CASES) == [("mri", "mri"), ("mri", "ct"), ("ct", "mri"), ("ct", "ct")]
    assert parse_transfers("", CASES[:2]) == []
    assert parse_transfers("T1:ct, T1 : contrast=4,T1:ct", CASES) == [("T1", "ct"), ("T1", "contrast=4")]
