import math

import numpy as np
import pytest
import torch

from voxelwave.jobs.subsample.images import ImageSet
from voxelwave.jobs.subsample.scoring import Scores
from voxelwave.jobs.subsample.study.cases import Case
from voxelwave.jobs.subsample.study.report import losses
from voxelwave.jobs.subsample.study.summary import difference, explained, kept_power, radial_density, rows_of
from voxelwave.jobs.subsample.study.testing import ScoredCase, StudyTest
from voxelwave.jobs.subsample.study.verdict import Verdict
from voxelwave.physics.fixed_masks import disc

SIDE, SUBJECTS = 16, 8
RECORDED = {part: {"network": {"psnr_db": 30.0}} for part in ("training", "validation")}


def scored(mask, psnr, *, seed=0, filled=20.0):
    scores = [
        Scores([float(one) for one in of], [0.9] * len(psnr), [1e-3] * len(psnr)) for of in (psnr, [filled] * len(psnr))
    ]
    sampled = disc((SIDE, SIDE), drop_rate=0.5)
    verdict = Verdict("neither", 0.0, 0.0, "")
    return ScoredCase(Case(mask, 0.5, seed), {"scores": RECORDED}, sampled, *scores, verdict, None)


def images(subjects):
    kspace = torch.ones(len(subjects), SIDE, SIDE, dtype=torch.complex64)
    names = [f"image {index}" for index in range(len(subjects))]
    return ImageSet(kspace, names, list(subjects), names)


def rows(*cases, subjects="abcdefgh"):
    return rows_of(StudyTest(list(cases), {}, images(subjects), []))


def test_a_difference_is_paired_and_its_interval_that_of_the_mean_over_subjects():
    generator = np.random.default_rng(0)
    hard, gain = generator.normal(30, 5, SUBJECTS), generator.normal(0.5, 0.2, SUBJECTS)
    ours, theirs = rows(scored("learned", hard + gain), scored("power", hard))
    found = difference(ours, theirs, images("abcdefgh"))
    assert found.value == pytest.approx(gain.mean())
    # The images differ by 5 dB, the gain by .2: an interval that is not paired would be ten times as wide.
    half = 1.96 * gain.std() / math.sqrt(SUBJECTS)
    assert found.low == pytest.approx(gain.mean() - half, abs=0.06)
    assert found.high == pytest.approx(gain.mean() + half, abs=0.06)
    assert (found.worst_image, found.worst_db) == (f"image {gain.argmin()}", pytest.approx(gain.min()))


def test_images_of_one_subject_are_drawn_together_and_few_subjects_have_no_interval():
    values = np.repeat([0.0, 1.0, 2.0, 3.0, 4.0], 4)
    ours, theirs = rows(
        scored("learned", 30 + values), scored("power", 30 + 0 * values), subjects="aaaabbbbccccddddeeee"
    )
    wide = difference(ours, theirs, images("aaaabbbbccccddddeeee"))
    narrow = difference(ours, theirs, images("abcdefghijklmnopqrst"))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    assert math.isnan(difference(ours, theirs, images("aaaaabbbbbcccccddddd")).low)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_an_interval_does_not_tell_from_0_is_said_of_gains_as_of_losses(sign):
    noise = np.array([-3.0, 3.0, -2.0, 2.0, -1.0, 1.0, -2.5, 2.5])
    unsure, sure = 0.01 * sign + noise, 1.0 * sign + 0.1 * noise
    for gain, caveat in ((unsure, True), (sure, False)):
        found = difference(*rows(scored("learned", 30 + gain), scored("power", [30] * 8)), images("abcdefgh"))
        (said,) = losses({("learned", "power"): [found]}) or [""]
        assert ("the interval does not tell from 0" in said) == caveat


def test_deviations_over_images_and_over_seeds_stand_apart():
    (row,) = rows(scored("learned", [30, 34], seed=0), scored("learned", [31, 35], seed=1), subjects="ab")
    assert row.test["psnr_db"] == 32.5
    assert row.test["psnr_db_deviation"] == pytest.approx(np.std([30, 34], ddof=1))
    assert row.over_seeds == pytest.approx(np.std([32, 33], ddof=1))


def test_where_nothing_is_removed_that_is_said():
    of = rows(scored("learned", [30] * 8, filled=math.inf), scored("power", [30] * 8, filled=math.inf))
    said = explained(0.5, of, images("abcdefgh").kspace)
    assert "The mask 'power' removes nothing." in said
    assert said[-1].endswith("nothing is removed.")


def test_power_and_density_are_those_of_a_disc():
    sampled = disc((64, 64), drop_rate=0.5)
    kspace = torch.ones(2, 64, 64, dtype=torch.complex64)
    assert kept_power(sampled, kspace) == pytest.approx(0.5)
    radius, share = radial_density(sampled)
    # Half of the area of a square of side 2 is a disc of this radius.
    edge = math.sqrt(2 / math.pi)
    assert all(of == 1 for at, of in zip(radius, share, strict=True) if at < edge - 0.1)
    assert all(of == 0 for at, of in zip(radius, share, strict=True) if at > edge + 0.1)
