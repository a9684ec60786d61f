"""The schedule against counting by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from voxelwave.data.alternating import AlternatingSchedule


def schedule(**options):
    return AlternatingSchedule({"mri": 7, "ct": 3}, {"mri": 2, "ct": 2}, seed=0, **options)


def indices(draws):
    return [draw.index for draw in draws]


def test_even_steps_are_mri_and_odd_steps_ct_in_full_batches():
    for step, batch in enumerate(schedule().batches(0, 20)):
        assert {draw.modality for draw in batch} == {"mri" if step % 2 == 0 else "ct"}
        assert len(batch) == 2


def test_every_volume_comes_once_before_any_comes_again_and_the_shorter_set_starts_over():
    batches = list(schedule().batches(0, 14))
    mri = [index for batch in batches[0::2] for index in indices(batch)]
    ct = [index for batch in batches[1::2] for index in indices(batch)]
    assert sorted(mri[:7]) == sorted(mri[7:14]) == list(range(7))
    assert [sorted(ct[first : first + 3]) for first in (0, 3, 6, 9)] == [[0, 1, 2]] * 4
    assert mri[:7] != mri[7:14]


def test_a_run_entered_at_any_step_is_the_tail_of_the_whole_run():
    whole = list(schedule(accumulate=2).batches(0, 12))
    for start in range(12):
        assert list(schedule(accumulate=2).batches(start, 12)) == whole[2 * start :]


def test_ranks_share_what_one_rank_with_a_double_batch_sees():
    double = AlternatingSchedule({"mri": 7, "ct": 3}, {"mri": 4, "ct": 4}, seed=0)
    ranks = [schedule(rank=rank, world_size=2) for rank in (0, 1)]
    for step in range(10):
        first, second = (rank.draw(step) for rank in ranks)
        assert indices(first) + indices(second) == indices(double.draw(step))
        assert first[0].modality == second[0].modality


def test_accumulated_micro_batches_see_what_one_large_batch_sees():
    large = AlternatingSchedule({"mri": 7, "ct": 3}, {"mri": 6, "ct": 6}, seed=0)
    small = schedule(accumulate=3)
    for step in range(6):
        micros = [index for micro in range(3) for index in indices(small.draw(step, micro))]
        assert micros == indices(large.draw(step))


def test_no_two_samples_share_the_key_of_their_augmentation():
    ranks = [schedule(rank=rank, world_size=2, accumulate=2) for rank in (0, 1)]
    keys = Counter(draw.key for rank in ranks for batch in rank.batches(0, 40) for draw in batch)
    assert max(keys.values()) == 1


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 8), ({"world_size": 2}, 4), ({"accumulate": 2}, 4), ({"accumulate": 4}, 2)],
)
def test_an_epoch_shows_every_volume_at_least_once(options, steps):
    assert schedule(**options).steps_per_epoch == steps


def test_length_counts_micro_batches():
    batches = schedule(accumulate=3).batches(2, 9)
    assert len(batches) == len(list(batches)) == len(list(batches)) == 21


def test_one_modality_alone_takes_every_step():
    single = AlternatingSchedule({"ct": 5}, {"ct": 5}, seed=3)
    assert [sorted(indices(batch)) for batch in single.batches(0, 3)] == [list(range(5))] * 3


def test_an_empty_modality_is_refused():
    with pytest.raises(ValueError, match="'ct' needs volumes"):
        AlternatingSchedule({"mri": 1, "ct": 0}, {"mri": 1, "ct": 1}, seed=0)
