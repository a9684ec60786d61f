"""All folds of a run: each a run of its own, and a summary of them."""

import numpy as np
import pytest

from support.finetuning_runs import config_of, results, rows, run
from support.stopping import stop_after
from voxelwave.data.listing.cases import find_cases
from voxelwave.jobs.finetune.config import load_finetune_config
from voxelwave.jobs.finetune.run import finetune


def test_all_folds_are_runs_of_their_own_with_a_summary(heads, tmp_path):
    config = config_of(
        heads, tmp_path, "all", data={"fold": "all"}, training={"max_steps": 2, "validate_every_steps": 2}
    )
    assert not finetune(config, should_stop=stop_after(3))  # in the second fold
    with pytest.raises(ValueError, match="holds a run already"):
        finetune(config)
    folder = run(config, resume=True)
    dice = [results(folder / f"fold_{fold}")["validation"]["mean_dice"] for fold in (0, 1)]
    summary = results(folder)
    assert summary["folds"] == 2
    assert summary["validation"]["mean_dice"]["folds"] == dice
    assert summary["validation"]["mean_dice"]["mean"] == pytest.approx(np.mean(dice))
    assert summary["validation"]["mean_dice"]["std"] == pytest.approx(np.std(dice, ddof=1))
    assert set(summary["validation"]["dice"]) == {"brain", "bone"}
    validated = [row["case"] for fold in (0, 1) for row in rows(folder / f"fold_{fold}" / "results.csv")]
    assert sorted(set(validated)) == [case.name for case in find_cases(heads, modality="mri")]
    assert load_finetune_config(folder / "fold_1" / "config.yaml").data.fold == 1


def test_nothing_of_a_run_of_all_folds_is_lost_to_a_call_that_is_refused(heads, tmp_path):
    sections = {"data": {"fold": "all", "folds": 2}, "training": {"max_steps": 2, "validate_every_steps": 2}}
    folder = run(config_of(heads, tmp_path, "all", **sections))

    def content():
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = content()
    other = {**sections, "training": {**sections["training"], "batch_size": 1}}
    with pytest.raises(ValueError, match=r"cannot resume .*fold_0: 'training.batch_size' was"):
        finetune(config_of(heads, tmp_path, "all", **other), resume=True)
    one = {**sections, "data": {"fold": 0, "folds": 2}}
    with pytest.raises(ValueError, match=r"holds a run of all folds: choose another run\.name"):
        finetune(config_of(heads, tmp_path, "all", **one), resume=True)
    assert content() == before
