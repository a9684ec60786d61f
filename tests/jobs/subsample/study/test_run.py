import csv
import json
import math

import numpy as np
import pytest

from support.subsample_runs import study
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.subsample.images import store
from voxelwave.jobs.subsample.parts import load_images
from voxelwave.jobs.subsample.study.cases import Case, cases_of, chosen_by_validation
from voxelwave.jobs.subsample.study.run import run_study
from voxelwave.jobs.subsample.study.testing import read_results

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
    assert (difference["low"], difference["high"]) == (None, None)  # nothing can be told of one subject


def test_the_cases_never_saw_the_test_and_it_is_opened_with_their_weights_alone(finished, monkeypatch):
    folder = finished.run_folder()
    names = json.loads((folder / "images" / "subsample_images.json").read_text())
    assert not {"test"} & {*names}
    recorded = json.loads((folder / "cases" / "power_0.5_seed0" / "results.json").read_text())
    assert set(recorded["scores"]) == {"training", "validation"}
    # The same call goes on, and finds all trained; other weights are refused.
    assert run_study(finished, console=QUIET).exit_code == 0
    opened = folder / "test_opened.json"
    kept = opened.read_text()
    opened.write_text(kept.replace(json.loads(kept)["weights"], "others"))
    with pytest.raises(InputError, match="the test was opened with other weights"):
        run_study(finished, console=QUIET)
    opened.write_text(kept)


def test_an_image_that_is_reproduced_exactly_has_an_infinite_psnr_and_a_missing_ssim_is_damage(finished, tmp_path):
    recorded = json.loads((finished.run_folder() / "cases" / "power_0.5_seed0" / "results.json").read_text())
    exact = recorded["scores"]["validation"]["network"]
    exact |= {"psnr_db": None, "psnr_db_pooled": None, "psnr_db_deviation": None}
    (tmp_path / "results.json").write_text(json.dumps(recorded))
    read = read_results(tmp_path)["scores"]["validation"]["network"]
    assert read["psnr_db"] == read["psnr_db_pooled"] == math.inf
    assert math.isnan(read["psnr_db_deviation"])
    exact["ssim"] = None
    (tmp_path / "results.json").write_text(json.dumps(recorded))
    with pytest.raises(InputError, match="cannot be used"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("best_model.pth", b"nothing", "best_model.pth"),
        ("results.json", b'{"scores": {}}', "results.json cannot be used"),
        ("metrics.jsonl", b"", "metrics.jsonl cannot be used"),
    ],
)
def test_what_is_damaged_is_said_before_the_test_is_opened(finished, name, content, message):
    folder = finished.run_folder()
    opened, damaged = folder / "test_opened.json", folder / "cases" / "power_0.5_seed0" / name
    seal, whole = opened.read_bytes(), damaged.read_bytes()
    opened.unlink()
    damaged.write_bytes(content)
    with pytest.raises(InputError, match=message):
        run_study(finished, console=QUIET)
    assert not opened.exists()
    opened.write_bytes(seal)
    damaged.write_bytes(whole)


def test_a_source_that_has_changed_is_refused(tmp_path):
    images = np.random.default_rng(0).random((9, 32, 32), dtype=np.float32)
    np.save(tmp_path / "stack.npy", images)
    config = study(tmp_path, data={"source": str(tmp_path / "stack.npy"), "volumes": 9, "slices": 1})
    store(load_images(config.data), config.run_folder() / "images")
    np.save(tmp_path / "stack.npy", images[:8])
    with pytest.raises(InputError, match=r"began with other images of training: data.source has changed"):
        run_study(config, console=QUIET)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": {"source": "nowhere"}}, "nowhere"),
        ({"drop_rates": [0.5, 0.9999]}, "case learned_0.9999_seed0: .*keeps none of 1024"),
        ({"masks": ["poisson_disc"], "mask": {"lines": True}}, "case poisson_disc_0.5_seed0: .*not of lines"),
    ],
)
def test_what_cannot_work_is_said_before_the_settings_are_kept(tmp_path, settings, message):
    config = study(tmp_path, **settings)
    with pytest.raises(InputError, match=message):
        run_study(config, console=QUIET)
    assert not config.run_folder().exists()


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
    given = config.model_copy(update={"mask": config.mask.model_copy(update={"mask_lr": 0.3})})
    assert [Case(mask, 0.1, 3).config(given, tmp_path)["mask"]["mask_lr"] for mask in ("random", "learned")] == [
        None,
        0.3,
    ]
    # At 0.1 the second rate is better on the mean of the seeds, at 0.2 the first.
    psnr = {case.name: 30.0 for case in cases}
    psnr |= {"learned_0.1_lr0.1_seed3": 33.0, "learned_0.1_lr1.0_seed3": 31.0, "learned_0.1_lr1.0_seed4": 35.0}
    psnr |= {"learned_0.2_lr0.1_seed3": 30.1}
    chosen = {case.name for case in chosen_by_validation(cases, psnr) if case.mask == "learned"}
    assert chosen == {f"learned_0.1_lr1.0_seed{seed}" for seed in (3, 4)} | {
        f"learned_0.2_lr0.1_seed{seed}" for seed in (3, 4)
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masks": ["nonsense"]}, "unknown mask 'nonsense'; known: random"),
        ({"masks": ["power"]}, "'power' is one of study.masks"),
        ({"drop_rates": [0.5, 0.5]}, "0.5 is named twice"),
        ({"masks": ["described"], "mask_lrs": [0.1]}, "'study.mask_lrs': are tried for the mask 'learned'"),
        ({"drop_rates": [1.0]}, "study.drop_rates"),
        ({"drop_rates": []}, "study.drop_rates"),
    ],
)
def test_a_study_that_cannot_be_is_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        study(tmp_path, **settings)
