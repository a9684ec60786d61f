import pytest

from voxelwave.jobs.subsample.study.verdict import verdict_of


def scores(network, filled):
    return {"network": {"psnr_db": network}, "zero_filled": {"psnr_db": filled}}


FLAT = [1.0] * 20


@pytest.mark.parametrize(
    ("training", "test", "errors", "fit"),
    [
        (scores(36, 33), scores(35, 33), FLAT, "over"),  # +3 dB and +2 dB
        (scores(36, 33), scores(30.8, 28), FLAT, "neither"),  # the test is harder, and gains as much
        (scores(33.05, 33), scores(33.05, 33), FLAT, "under"),
        (scores(36, 33), scores(36, 33), [1.0] * 18 + [0.9, 0.9], "under"),  # still falling
        (scores(36, 33), scores(36, 33), [1.0] * 18 + [0.99, 0.99], "neither"),
        (scores(36, None), scores(36, float("inf")), FLAT, "neither"),  # nothing is removed; JSON has no infinity
    ],
)
def test_the_rule(training, test, errors, fit):
    verdict = verdict_of(training, test, errors)
    assert verdict.fit == fit
    assert verdict.gap_db == training["network"]["psnr_db"] - test["network"]["psnr_db"]


def test_one_epoch_is_enough_for_a_verdict():
    assert verdict_of(scores(36, 33), scores(36, 33), [1.0]).fit == "neither"
