"""The schedule against counting by hand."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelwave.data.batches.alternating import AlternatingSchedule, Draw
from voxelwave.ops.seeding import torch_generator

SOURCES = st.lists(st.integers(1, 12), min_size=1, max_size=4)
TEMPERATURES = st.one_of(st.floats(1, 20), st.just(math.inf))


def schedule(**options):
    return AlternatingSchedule({"mri": [7], "ct": [3]}, {"mri": 2, "ct": 2}, seed=0, **options)


def indices(draws):
    return [draw.index for draw in draws]


def entries(sources, number, *, temperature=1.0, seed=0):
    """Return the first `number` volumes of a single modality."""
    single = AlternatingSchedule({"mri": sources}, {"mri": 1}, seed=seed, temperature=temperature)
    return [single.draw(step)[0].index for step in range(number)]


def source_of(sources):
    """Return the source of every index."""
    return [source for source, size in enumerate(sources) for _ in range(size)]


def shares(sources, temperature):
    """Return the entries of each source in a sweep: what the first sweep holds."""
    owners = source_of(sources)
    counted = Counter(owners[index] for index in entries(sources, sum(sources), temperature=temperature))
    return [counted[source] for source in range(len(sources))]


def permutation(size, *key):
    return torch.randperm(size, generator=torch_generator(*key)).tolist()


def counted_stream(seed, modality, sources, shares, crops):
    """Yield (index, sweep, position, crop) of every sample, counting on from the first."""

    def counted_source(source):
        for order in itertools.count():
            for volume in permutation(sources[source], seed, "order", modality, source, order):
                yield sum(sources[:source]) + volume

    streams = [counted_source(source) for source in range(len(sources))]
    turns = [source for source, share in enumerate(shares) for _ in range(share)]
    for sweep in itertools.count():
        for position, turn in enumerate(permutation(len(turns), seed, "turns", modality, sweep)):
            index = next(streams[turns[turn]])
            for crop in range(crops):
                yield index, sweep, position, crop


def counted_cycle(steps):
    """Hand out the steps of a cycle as Webster's method hands out seats."""
    had = dict.fromkeys(steps, 0)
    for _ in range(sum(steps.values())):
        # k / (2j + 1) compared by cross-multiplication; the first of equals wins.
        best = next(iter(steps))
        for name in steps:
            if steps[name] * (2 * had[best] + 1) > steps[best] * (2 * had[name] + 1):
                best = name
        had[best] += 1
        yield best


@settings(deadline=None, max_examples=60)
@given(
    sources=st.tuples(SOURCES, SOURCES),
    steps=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    batch=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    world_size=st.integers(1, 3),
    accumulate=st.integers(1, 3),
    temperature=TEMPERATURES,
    crops=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_every_draw_is_what_a_plain_loop_from_step_zero_hands_out(
    sources, steps, batch, world_size, accumulate, temperature, crops, seed
):
    names = ("mri", "ct")
    steps_of = dict(zip(names, steps, strict=True))
    batch_of = dict(zip(names, batch, strict=True))
    ranks = [
        AlternatingSchedule(
            dict(zip(names, sources, strict=True)),
            batch_of,
            seed=seed,
            rank=rank,
            world_size=world_size,
            accumulate=accumulate,
            steps=steps_of,
            temperature=temperature,
            crops_per_volume=crops,
        )
        for rank in range(world_size)
    ]
    streams = {
        name: counted_stream(seed, name, of_name, shares(of_name, temperature), crops)
        for name, of_name in zip(names, sources, strict=True)
    }
    for step, name in enumerate(itertools.islice(itertools.cycle(counted_cycle(steps_of)), 16)):
        for micro in range(accumulate):
            for rank in range(world_size):
                expected = []
                for _ in range(batch_of[name]):
                    index, sweep, position, crop = next(streams[name])
                    expected.append(Draw(name, index, (seed, "sample", name, sweep, rank, position, crop)))
                assert ranks[rank].modality(step) == name
                assert ranks[rank].draw(step, micro) == expected


@pytest.mark.parametrize(
    ("steps", "cycle"),
    [
        (None, "mri ct"),
        ({"mri": 1, "ct": 1}, "mri ct"),
        ({"mri": 2}, "mri ct mri"),
        ({"ct": 2}, "ct mri ct"),
        ({"mri": 3, "ct": 1}, "mri mri ct mri"),
        ({"mri": 3, "ct": 2}, "mri ct mri ct mri"),
        ({"mri": 2, "ct": 2}, "mri ct mri ct"),
        ({"mri": 1, "ct": 1, "absent": 5}, "mri ct"),
    ],
)
def test_a_cycle_spreads_its_steps(steps, cycle):
    cycle = cycle.split()
    batches = schedule(steps=steps).batches(0, 3 * len(cycle))
    assert [[draw.modality for draw in batch] for batch in batches] == [[name] * 2 for name in 3 * cycle]


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_every_cycle_has_the_ratio_and_no_stretch_of_steps_is_far_from_it(steps):
    by_name = {f"modality{number}": count for number, count in enumerate(steps)}
    turns = AlternatingSchedule({name: [1] for name in by_name}, dict.fromkeys(by_name, 1), seed=0, steps=by_name)
    length = sum(steps)
    modalities = [turns.modality(step) for step in range(3 * length)]
    for cycle in range(3):
        assert Counter(modalities[cycle * length : (cycle + 1) * length]) == by_name
    for name, count in by_name.items():
        # A prefix ends at some point x of the cycle, where each of M modalities has its k * x rounded: off by 1/2 at
        # most. The length of the prefix is the sum of these, so that x is off by at most M/2 steps.
        slack = 0.5 + len(steps) / 2 * count / length
        for end in range(len(modalities)):
            assert abs(modalities[:end].count(name) - end * count / length) <= slack + 1e-9


def test_every_volume_comes_once_before_any_comes_again_and_the_shorter_set_starts_over():
    batches = list(schedule().batches(0, 14))
    mri = [index for batch in batches[0::2] for index in indices(batch)]
    ct = [index for batch in batches[1::2] for index in indices(batch)]
    assert sorted(mri[:7]) == sorted(mri[7:14]) == list(range(7))
    assert [sorted(ct[first : first + 3]) for first in (0, 3, 6, 9)] == [[0, 1, 2]] * 4
    assert mri[:7] != mri[7:14]


@settings(deadline=None, max_examples=40)
@given(sources=SOURCES, seed=st.integers(0, 99))
def test_at_temperature_one_each_sweep_holds_every_volume_once(sources, seed):
    total = sum(sources)
    stream = entries(sources, 4 * total, seed=seed)
    for first in range(0, 4 * total, total):
        assert sorted(stream[first : first + total]) == list(range(total))


@settings(deadline=None, max_examples=200)
@given(
    sources=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    temperature=st.one_of(TEMPERATURES, st.sampled_from([1.0, 1 + 1e-15, 2.0, 1e9])),
)
def test_a_source_has_its_tempered_share_of_every_sweep_to_within_one_entry_and_none_starves(sources, temperature):
    weights = [size ** (1 / temperature) for size in sources]
    counted = shares(sources, temperature)
    assert sum(counted) == sum(sources)
    assert min(counted) >= 1
    for count, weight in zip(counted, weights, strict=True):
        assert abs(count - sum(sources) * weight / sum(weights)) < 1 + 1e-9


@pytest.mark.parametrize(
    ("temperature", "expected"),
    # 100 entries a sweep: in proportion to 90 : 9 : 1, to their roots 9.49 : 3 : 1, and to 1 : 1 : 1.
    [(1.0, [90, 9, 1]), (2.0, [70, 22, 8]), (math.inf, [34, 33, 33])],
)
def test_shares_hold_over_many_sweeps(temperature, expected):
    sources = [90, 9, 1]
    owners = source_of(sources)
    stream = [owners[index] for index in entries(sources, 2000, temperature=temperature)]
    for first in range(0, 2000, 100):
        sweep = Counter(stream[first : first + 100])
        assert [sweep[source] for source in range(3)] == expected


@settings(deadline=None, max_examples=40)
@given(sources=SOURCES, temperature=TEMPERATURES, seed=st.integers(0, 99))
def test_within_a_source_a_volume_comes_again_only_after_all_others_came_as_often(sources, temperature, seed):
    owners, seen = source_of(sources), [0] * sum(sources)
    for index in entries(sources, 5 * sum(sources), temperature=temperature, seed=seed):
        of_source = [count for count, owner in zip(seen, owners, strict=True) if owner == owners[index]]
        assert seen[index] == min(of_source)
        seen[index] += 1


def test_sources_are_mixed_over_the_whole_sweep():
    sources = [30, 10]
    owners = source_of(sources)
    stream = [owners[index] for index in entries(sources, 40 * 500)]
    places = [number % 40 for number, source in enumerate(stream) if source == 1]
    # 5,000 places of a uniform spread over 0...39 have their mean within 4 standard errors of 19.5.
    assert abs(sum(places) / len(places) - 19.5) < 4 * math.sqrt((40**2 - 1) / 12 / len(places))
    assert min(Counter(places).values()) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 2},
        {"accumulate": 2, "steps": {"mri": 3, "ct": 2}, "crops_per_volume": 3, "rank": 1, "world_size": 2},
    ],
)
def test_a_run_entered_at_any_step_is_the_tail_of_the_whole_run(options):
    whole = list(schedule(**options).batches(0, 12))
    for start in range(12):
        assert list(schedule(**options).batches(start, 12)) == whole[2 * start :]


@pytest.mark.parametrize("crops", [1, 2, 3])
def test_ranks_share_what_one_rank_with_a_double_batch_sees(crops):
    options = {"steps": {"mri": 2}, "crops_per_volume": crops}
    double = AlternatingSchedule({"mri": [7], "ct": [3]}, {"mri": 4, "ct": 4}, seed=0, **options)
    ranks = [schedule(rank=rank, world_size=2, **options) for rank in (0, 1)]
    for step in range(10):
        first, second = (rank.draw(step) for rank in ranks)
        assert indices(first) + indices(second) == indices(double.draw(step))
        assert first[0].modality == second[0].modality == double.modality(step)


@settings(deadline=None, max_examples=40)
@given(sources=SOURCES, batch=st.integers(1, 3), crops=st.integers(1, 3), temperature=TEMPERATURES)
def test_no_two_samples_share_the_key_of_their_augmentation(sources, batch, crops, temperature):
    options = {"world_size": 2, "accumulate": 2, "temperature": temperature, "crops_per_volume": crops}
    volumes, size = {"mri": sources, "ct": [2, 1]}, {"mri": batch, "ct": 2}
    ranks = [AlternatingSchedule(volumes, size, seed=0, rank=rank, **options) for rank in (0, 1)]
    keys = Counter(draw.key for rank in ranks for batch in rank.batches(0, 40) for draw in batch)
    assert max(keys.values()) == 1


def test_ranks_are_disjoint_within_a_sweep():
    options = {"seed": 0, "world_size": 2, "crops_per_volume": 2}
    ranks = [AlternatingSchedule({"mri": [5, 11]}, {"mri": 4}, rank=rank, **options) for rank in (0, 1)]
    first, second = ({draw.index for batch in rank.batches(0, 4) for draw in batch} for rank in ranks)
    assert first | second == set(range(16))
    assert not first & second


@settings(deadline=None, max_examples=40)
@given(
    sources=SOURCES,
    crops=st.integers(1, 4),
    groups=st.integers(1, 3),
    world_size=st.integers(1, 3),
    temperature=TEMPERATURES,
)
def test_whole_groups_of_crops_of_one_volume_lie_in_one_batch(sources, crops, groups, world_size, temperature):
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "temperature": temperature, "crops_per_volume": crops}
        single = AlternatingSchedule({"mri": sources}, {"mri": groups * crops}, seed=0, **options)
        volumes = AlternatingSchedule({"mri": sources}, {"mri": groups}, seed=0, **options | {"crops_per_volume": 1})
        for step in range(6):
            draws = single.draw(step)
            assert indices(draws) == [index for index in indices(volumes.draw(step)) for _ in range(crops)]
            assert len({draw.key for draw in draws}) == len(draws)
            assert [draw.key[-1] for draw in draws] == list(range(crops)) * groups


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 8),
        ({"world_size": 2}, 4),
        ({"accumulate": 4}, 2),
        ({"steps": {"mri": 2}}, 6),
        ({"steps": {"mri": 4}}, 10),
        ({"crops_per_volume": 2}, 14),
        ({"crops_per_volume": 2, "steps": {"mri": 2}}, 12),
    ],
)
def test_an_epoch_shows_every_volume_at_least_once(options, steps):
    assert schedule(**options).steps_per_epoch == steps


@settings(deadline=None, max_examples=40)
@given(
    mri=SOURCES,
    ct=SOURCES,
    steps=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    world_size=st.integers(1, 2),
    accumulate=st.integers(1, 2),
    crops=st.integers(1, 3),
)
def test_an_epoch_is_the_least_number_of_whole_cycles_that_shows_all_crops(
    mri, ct, steps, world_size, accumulate, crops
):
    ranks = [
        AlternatingSchedule(
            {"mri": mri, "ct": ct},
            {"mri": 3, "ct": 2},
            seed=0,
            rank=rank,
            world_size=world_size,
            accumulate=accumulate,
            steps={"mri": steps[0], "ct": steps[1]},
            crops_per_volume=crops,
        )
        for rank in range(world_size)
    ]
    wanted = {
        (name, index, crop)
        for name, of in (("mri", mri), ("ct", ct))
        for index in range(sum(of))
        for crop in range(crops)
    }

    def shown(num_steps):
        draws = [draw for rank in ranks for batch in rank.batches(0, num_steps) for draw in batch]
        return {(draw.modality, draw.index, draw.key[-1]) for draw in draws}

    epoch = ranks[0].steps_per_epoch
    assert epoch % sum(steps) == 0
    assert shown(epoch) == wanted
    assert shown(epoch - sum(steps)) < wanted


def test_a_sweep_is_made_once_and_not_at_every_step(monkeypatch):
    made = []

    def counting_generator(*key):
        made.append(key)
        return torch_generator(*key)

    monkeypatch.setattr("voxelwave.data.batches.alternating.torch_generator", counting_generator)
    large = AlternatingSchedule({"mri": [5000, 990, 10]}, {"mri": 4}, seed=12345)
    assert len(list(large.batches(0, 1500))) == 1500
    assert len(made) == len(set(made)) == 4


def test_length_counts_micro_batches():
    batches = schedule(accumulate=3).batches(2, 9)
    assert len(batches) == len(list(batches)) == len(list(batches)) == 21


@pytest.mark.parametrize("sources", [[], [0], [3, 0]])
def test_an_empty_modality_or_source_is_refused(sources):
    with pytest.raises(ValueError, match="'ct' needs volumes"):
        AlternatingSchedule({"mri": [1], "ct": sources}, {"mri": 1, "ct": 1}, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": {"mri": 2, "ct": 0}}, r"at least 1 step of 'ct', got 0: give 1 or more"),
        ({"temperature": 0.5}, r"temperature must be at least 1, got 0\.5: 1 shows"),
        ({"temperature": math.nan}, r"temperature must be at least 1, got nan"),
        ({"crops_per_volume": 0}, r"crops_per_volume must be at least 1, got 0"),
        ({"accumulate": 0}, r"accumulate >= 1"),
        ({"rank": 2, "world_size": 2}, r"0 <= rank < world_size"),
    ],
)
def test_a_number_outside_its_range_is_refused_with_the_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        schedule(**options)
