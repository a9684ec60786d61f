import csv
import json

import pytest

from support.subsample_runs import study
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.subsample.study.cases import Case, cases_of, chosen_by_validation
from voxelwave.jobs.subsample.study.run import run_study

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = study(tmp_path_factory.mktemp("study"))
    assert run_study(config, console=QUIET).exit_code == 0
    return config


def test_it_leaves_a_page_a_table_and_the_pictures_that_the_page_shows(finished):
    folder = finished.run_folder()
    with (folder / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mask"] for row in rows] == ["learned", "power"]
    assert {row["kept"] for row in rows} == {"512"}
    assert all(float(row["test_psnr_db"]) > 10 for row in rows)
    page = (folder / "report.html").read_text()
    shown = [part.split('"')[0] for part in page.split('src="./')[1:]]
    assert {"pictures/psnr.png", "examples/learned_0.5_seed0.png", "pictures/spread.png"} <= set(shown)
    assert all((folder / name).stat().st_size > 1000 for name in shown)
    summary = json.loads((folder / "summary.json").read_text())
    masks = {row["mask"] for row in summary["without_network"]}
    assert {"half_plane", "half_plane_of_magnitudes", "disc", "poisson_disc", "random_with_zero"} <= masks
    (difference,) = summary["differences"]["learned - power"]
    assert difference["low"] <= difference["value"] <= difference["high"]


def test_the_cases_never_saw_the_test_and_it_is_opened_with_their_weights_alone(finished, monkeypatch):
    folder = finished.run_folder()
    names = json.loads((folder / "images" / "images.json").read_text())
    assert not {"test"} & {*names}
    recorded = json.loads((folder / "cases" / "power_0.5_seed0" / "results.json").read_text())
    assert set(recorded["scores"]) == {"training", "validation"}
    # The same call goes on, and finds all trained; other weights are refused.
    assert run_study(finished, console=QUIET).exit_code == 0
    weights = folder / "cases" / "power_0.5_seed0" / "best_model.pth"
    kept = weights.read_bytes()
    weights.write_bytes(kept + b" ")
    with pytest.raises(InputError, match="the test was opened with other weights"):
        run_study(finished, console=QUIET)
    weights.write_bytes(kept)


def test_another_study_in_the_same_folder_is_refused(finished):
    other = study(finished.run.out_dir, drop_rates=[0.4])
    with pytest.raises(InputError, match=r"holds a study with another 'study': choose another run.name"):
        run_study(other, console=QUIET)


def test_every_mask_has_every_rate_and_seed_and_several_rates_of_the_scores_are_tried(tmp_path):
    config = study(tmp_path, drop_rates=[0.1, 0.2], masks=["random", "learned"], mask_lrs=[0.1, 1.0], seeds=[3, 4])
    cases = cases_of(config)
    assert len(cases) == len({case.name for case in cases}) == 2 * 2 * (1 + 2 + 1)
    raw = Case("described", 0.2, 3).config(config, tmp_path)
    assert raw["mask"]["rule"] == {"name": "described"}
    assert (raw["mask"]["learn"], raw["mask"]["drop_rate"], raw["run"]["seed"]) == (True, 0.2, 3)
    # At 0.1 the second rate is better on the mean of the seeds, at 0.2 the first.
    psnr = {case.name: 30.0 for case in cases}
    psnr |= {"learned_0.1_lr0.1_seed3": 33.0, "learned_0.1_lr1_seed3": 31.0, "learned_0.1_lr1_seed4": 35.0}
    psnr |= {"learned_0.2_lr0.1_seed3": 30.1}
    chosen = {case.name for case in chosen_by_validation(cases, psnr) if case.mask == "learned"}
    assert chosen == {f"learned_0.1_lr1_seed{seed}" for seed in (3, 4)} | {
        f"learned_0.2_lr0.1_seed{seed}" for seed in (3, 4)
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masks": ["nonsense"]}, "unknown mask 'nonsense'; known: random"),
        ({"masks": ["power"]}, "'power' is one of study.masks"),
        ({"drop_rates": [0.5, 0.5]}, "0.5 is named twice"),
        ({"drop_rates": [1.0]}, "study.drop_rates"),
        ({"drop_rates": []}, "study.drop_rates"),
    ],
)
def test_a_study_that_cannot_be_is_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        study(tmp_path, **settings)
