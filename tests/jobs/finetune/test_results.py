import json
import math
import statistics

import pytest

from voxelwave.jobs.finetune.results import over_folds, write_results


def test_over_folds_every_shared_number_has_its_mean_and_deviation():
    folds = [
        {"validation": {"mean_dice": value, "dice": {"cortex": value, "stem": stem}, "name": "x"}}
        for value, stem in ((0.5, 0.1), (0.7, None), (0.9, math.nan))
    ]
    summary = over_folds(folds)["validation"]
    assert summary["mean_dice"] == {
        "mean": pytest.approx(0.7),
        "std": pytest.approx(statistics.stdev([0.5, 0.7, 0.9])),
        "folds": [0.5, 0.7, 0.9],
    }
    assert summary["dice"]["stem"]["mean"] == 0.1
    assert summary["dice"]["stem"]["std"] is None
    assert "name" not in summary
    assert over_folds([{"dice": None}, {"dice": None}])["dice"]["mean"] is None


def test_what_is_no_number_is_null(tmp_path):
    write_results(tmp_path, {"a": math.nan, "b": [1.0, math.inf], "c": {"d": 2}})
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [1.0, None], "c": {"d": 2}}
