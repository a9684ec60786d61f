"""What is printed and written of reconstructions, against scikit-image and means by hand, and every error."""

import csv
import io
import json
import logging
import math
from statistics import fmean, stdev
from urllib.parse import unquote

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from support.command import error_of, voxelwave
from voxelwave.data.kspace.images.writing import write_hdf5
from voxelwave.data.kspace.synthesis import synthesize_kspace, target_of
from voxelwave.data.kspace.writing import plain_header, write_challenge, write_fastmri
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.reconstruct.scoring import comparison
from voxelwave.jobs.reconstruct.scoring.evaluate import evaluate_reconstructions
from voxelwave.jobs.reconstruct.scoring.pairs import pair_files, result_places
from voxelwave.jobs.reconstruct.scoring.scores import Score, load_volumes, score_of, summary_of
from voxelwave.losses.image_mask import challenge_mask
from voxelwave.ops.seeding import numpy_generator, torch_generator
from voxelwave.physics.phantoms2d import draw_phantoms

SLICES, SIZE, WIDTH = 2, (28, 24), 32
BRIGHT = 3e-4  # far above the thresholds of the challenge's mask


def every(rate, width=WIDTH, centre=6):
    sampled = torch.arange(width) % rate == (width // 2) % rate
    sampled[width // 2 - centre // 2 : width // 2 + centre // 2] = True
    return sampled


def kspace(number, slices=SLICES):
    heads = draw_phantoms([torch_generator(number, index) for index in range(slices)], size=WIDTH) * BRIGHT
    return synthesize_kspace(heads, num_coils=3, seed=number)


def noisy(target, number, sigma=0.05):
    noise = numpy_generator(number, "noise").normal(size=target.shape) * sigma * float(target.max())
    return np.maximum(target + noise, 0).astype(np.float32)


def add(root, name, *, rate, anatomy="", number=0, attributes=True, sigma=0.05, slices=SLICES, mask=True):
    """Write a file of the challenge into data/acc<rate>, and its reconstruction; return target and the latter."""
    values = kspace(number, slices)
    write_challenge(root / "data" / f"acc{rate}", name, values, every(rate), size=SIZE)
    target = target_of(values, SIZE).numpy()
    images = noisy(target, number, sigma)
    out = root / "out" / f"acc{rate}"
    out.mkdir(parents=True, exist_ok=True)
    said = {"anatomy": anatomy, "acceleration": float(rate), "method": "network", "specialist": f"{anatomy}{rate}"}
    write_hdf5(out / name, images, said if attributes else {}, every(rate).numpy() if mask else None)
    return target, images


def evaluate(root, **settings):
    printed = Console(file=io.StringIO(), width=200)
    summary = evaluate_reconstructions(root / "out", root / "data", console=printed, **settings)
    return summary, printed.file.getvalue()


def by_scikit(images, target, anatomy=None):
    """The similarity of each slice, by the public library."""
    limit = float(target.max())
    if anatomy:
        inside = challenge_mask(torch.from_numpy(target), anatomy=anatomy).numpy()
        images, target = images * inside, target * inside
    return [
        structural_similarity(one.astype(np.float64), other.astype(np.float64), win_size=7, data_range=limit)
        for one, other in zip(images, target, strict=True)
    ]


def refused(root, expected, **settings):
    with pytest.raises(InputError, match=expected) as caught:
        evaluate(root, worst=0, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("anatomy", ["", "knee"])
def test_scores_equal_those_of_scikit_image(tmp_path, anatomy):
    target, images = add(tmp_path, "a.h5", rate=4, anatomy=anatomy)
    summary, _ = evaluate(tmp_path, worst=0)
    (group,) = summary["groups"]
    assert group["ssim"] == pytest.approx(fmean(by_scikit(images, target, anatomy or None)), abs=1e-6)
    error = ((images.astype(np.float64) - target) ** 2).mean()
    assert group["psnr_db"] == pytest.approx(10 * math.log10(float(target.max()) ** 2 / error), abs=1e-6)
    assert group["nmse"] == pytest.approx(error / (target.astype(np.float64) ** 2).mean(), rel=1e-6)
    assert summary["mask"] == ("of the challenge" if anatomy else "none")


def score(anatomy, rate, ssims, psnr_db, nmse):
    return Score("a", anatomy, rate, rate, "network", "", anatomy, tuple(ssims), psnr_db, nmse)


def test_means_of_two_anatomies_and_two_rates_are_those_by_hand():
    summary = summary_of(
        [
            score("brain", 4.0, [0.9, 0.8], 30.0, 0.01),
            score("brain", 3.9, [0.6, 0.6, 0.6, 0.6], 20.0, 0.03),
            score("knee", 4.0, [1.0], 40.0, 0.02),
            score("knee", 8.0, [0.5, 0.7], 25.0, 0.04),
        ]
    )
    named = {(row["anatomy"], row["rate"]): row for row in summary["groups"]}
    assert list(named) == [("brain", "4×"), ("knee", "4×"), ("knee", "8×")]
    brain = named["brain", "4×"]
    assert (brain["volumes"], brain["slices"]) == (2, 6)
    # Of the group over volumes: (.85 + .6) / 2; of the rate over slices: (.9 + .8 + 4 × .6 + 1) / 7.
    assert brain["ssim"] == pytest.approx(0.725)
    assert brain["ssim_deviation"] == pytest.approx(stdev([0.85, 0.6]))
    assert named["knee", "8×"]["ssim_deviation"] is None
    rates = {row["rate"]: row for row in summary["rates"]}
    assert rates["4×"]["ssim"] == pytest.approx(5.1 / 7)
    assert (rates["4×"]["psnr_db"], rates["8×"]["ssim"]) == (pytest.approx(30.0), pytest.approx(0.6))
    assert summary["mean"]["ssim"] == pytest.approx((5.1 / 7 + 0.6) / 2)
    assert summary["mean"]["nmse"] == pytest.approx((0.02 + 0.04) / 2)


def test_tables_page_and_pictures_of_a_whole_evaluation(tmp_path):
    given = [("brain", 4, 0), ("knee", 4, 1), ("brain", 8, 2)]
    for anatomy, rate, number in given:
        add(tmp_path, f"{anatomy}_test1.h5", rate=rate, anatomy=anatomy, number=number, sigma=0.02 + 0.05 * number)
    summary, printed = evaluate(tmp_path, worst=2)
    # 1. Printed.
    for name in ("brain 4×", "brain 8×", "knee 4×", "all 4×", "all 8×", "mean of the rates"):
        assert name in printed
    assert f"{summary['mean']['ssim']:.4f}" in printed
    # 2. Written.
    folder = tmp_path / "out" / "evaluation"
    assert json.loads((folder / "summary.json").read_text()) == summary
    rows = list(csv.DictReader((folder / "scores.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["acc4/brain_test1.h5", "acc4/knee_test1.h5", "acc8/brain_test1.h5"]
    assert {row["method"] for row in rows} == {"network"}
    assert float(rows[2]["effective_acceleration"]) == pytest.approx(WIDTH / int(every(8).sum()))
    assert min(float(row["worst_ssim"]) for row in rows) == float(rows[2]["worst_ssim"])
    # 3. Shown: the worst is of the volume with the most noise.
    page = (folder / "index.html").read_text()
    assert page.index("acc8/brain_test1.h5") < page.index("pictures/02.png")
    for picture in ("01.png", "02.png", "scores.png", "maps.png"):
        with Image.open(folder / "pictures" / picture) as image:
            assert np.asarray(image.convert("L")).std() > 10
        assert f"./pictures/{picture}" in unquote(page)
    # 4. Again, with what was written before: the same.
    assert evaluate(tmp_path, worst=2) == (summary, printed)


def test_what_is_shown_beside_a_reconstruction_is_of_the_same_lines_and_size(tmp_path):
    add(tmp_path, "a.h5", rate=4, anatomy="brain")
    (pair,) = pair_files(tmp_path / "out", str(tmp_path / "data"))
    volumes = load_volumes(pair, data_range="volume", anatomy=None)
    shown = comparison.compare(pair, volumes, 1)
    assert list(shown.images) == ["target", "zero-filled", "SENSE", "L1-wavelet", "reconstruction"]
    assert {image.shape for image in shown.images.values()} == {SIZE}
    np.testing.assert_allclose(shown.images["zero-filled"], pair.file.image("image_input", 1), rtol=1e-4, atol=1e-9)
    expected = score_of("a", volumes)
    assert shown.scores["reconstruction"].startswith(f"SSIM {expected.ssims[1]:.4f}\n")
    assert shown.maps.shape == (3, *SIZE)
    np.testing.assert_allclose((shown.maps**2).sum(0), 1, rtol=1e-4)


def test_files_of_others_have_the_rate_of_their_mask_and_the_anatomy_that_is_said(tmp_path):
    target, images = add(tmp_path, "a.h5", rate=4, attributes=False, mask=False)
    summary, _ = evaluate(tmp_path, worst=1)
    assert [(row["anatomy"], row["rate"]) for row in summary["groups"]] == [("unknown", "4×")]
    said, _ = evaluate(tmp_path, worst=0, anatomy="brain")
    assert [(row["anatomy"], row["rate"]) for row in said["groups"]] == [("brain", "4×")]
    assert said["groups"][0]["ssim"] == pytest.approx(fmean(by_scikit(images, target, "brain")), abs=1e-6)
    # What a file says comes before.
    add(tmp_path, "a.h5", rate=4, anatomy="knee")
    assert evaluate(tmp_path, worst=0, anatomy="brain")[0]["groups"][0]["anatomy"] == "knee"


def test_without_any_mask_the_rate_is_unknown_and_nothing_else_is_shown(tmp_path):
    values = kspace(0)
    (tmp_path / "data").mkdir()
    (tmp_path / "out").mkdir()
    write_fastmri(tmp_path / "data" / "a.h5", values, plain_header(values))
    write_hdf5(tmp_path / "out" / "a.h5", noisy(target_of(values, (WIDTH, WIDTH)).numpy(), 0), {})
    summary, _ = evaluate(tmp_path, worst=1)
    assert summary["rates"][0]["rate"] == "unknown"
    page = (tmp_path / "out" / "evaluation" / "index.html").read_text()
    assert "its lines are not known" in page
    assert "maps.png" not in page


def test_without_sigpy_the_page_says_what_is_missing(tmp_path, monkeypatch):
    add(tmp_path, "a.h5", rate=4)
    monkeypatch.setattr(comparison, "find_spec", lambda name: None)
    evaluate(tmp_path, worst=1)
    assert "no L1-wavelet reconstruction is shown: pip install" in (
        (tmp_path / "out" / "evaluation" / "index.html").read_text()
    )


def test_equal_images_have_an_infinite_psnr_which_is_null_in_json(tmp_path):
    for number, name in enumerate(("a.h5", "b.h5")):
        target, _ = add(tmp_path, name, rate=4, number=number)
        write_hdf5(tmp_path / "out" / "acc4" / name, target, {"acceleration": 4.0})
    summary, _ = evaluate(tmp_path, worst=1)
    assert summary["mean"]["psnr_db"] == math.inf
    assert summary["groups"][0]["psnr_db_deviation"] is None
    written = json.loads((tmp_path / "out" / "evaluation" / "summary.json").read_text())
    assert (written["mean"]["psnr_db"], written["mean"]["ssim"]) == (None, pytest.approx(1.0))


@pytest.mark.parametrize("data_range", ["volume", "slice", "attribute"])
def test_the_data_range_is_a_choice(tmp_path, data_range):
    target, images = add(tmp_path, "a.h5", rate=4)
    limits = target.max(axis=(1, 2)) if data_range == "slice" else [float(target.max())] * SLICES
    expected = [
        structural_similarity(one.astype(np.float64), other.astype(np.float64), win_size=7, data_range=float(limit))
        for one, other, limit in zip(images, target, limits, strict=True)
    ]
    summary, _ = evaluate(tmp_path, worst=1, data_range=data_range)
    assert summary["mean"]["ssim"] == pytest.approx(fmean(expected), abs=1e-6)


def test_a_target_in_another_unit_has_no_mask_and_it_is_said(tmp_path, caplog):
    values = kspace(0) * 1e-3
    write_challenge(tmp_path / "data", "a.h5", values, every(4), size=SIZE)
    (tmp_path / "out").mkdir()
    write_hdf5(tmp_path / "out" / "a.h5", noisy(target_of(values, SIZE).numpy(), 0), {"anatomy": "knee"})
    with caplog.at_level(logging.WARNING, logger="voxelwave"):
        summary, _ = evaluate(tmp_path, worst=0)
    assert summary["mask"] == "none"
    assert "it seems to be in another unit" in caplog.text


def test_whatever_a_file_is_called_stays_text_on_the_page(tmp_path):
    name = "<u>&\"'\u202e.h5"
    add(tmp_path, name, rate=4, anatomy="<script>")
    evaluate(tmp_path, worst=1)
    page = (tmp_path / "out" / "evaluation" / "index.html").read_text()
    assert "<u>" not in page
    assert "<script>" not in page
    assert "&lt;u&gt;" in page


def test_every_target_needs_a_reconstruction_and_every_reconstruction_a_target(tmp_path):
    add(tmp_path, "a.h5", rate=4)
    add(tmp_path, "b.h5", rate=4, number=1)
    out, data = tmp_path / "out" / "acc4", tmp_path / "data" / "acc4"
    (out / "b.h5").rename(out / "c.h5")
    refused(tmp_path, r"kspace/b\.h5 has no reconstruction in .*out: reconstruct all of")
    (out / "a.h5").rename(out / "d.h5")
    refused(tmp_path, r"kspace/a\.h5 has no reconstruction in .*out, and 1 more: ")
    (out / "d.h5").rename(out / "a.h5")
    write_hdf5(out / "b.h5", np.ones((SLICES, *SIZE), np.float32), {})
    refused(tmp_path, r"acc4/c\.h5 is of no file of '.*data': give its data, too, or move it away")
    (out / "c.h5").unlink()
    evaluate(tmp_path, worst=0)
    (data / "image" / "b.h5").unlink()
    refused(tmp_path, r"acc4/b\.h5: .*kspace/b\.h5 has no target")
    (out / "b.h5").unlink()
    assert evaluate(tmp_path, worst=0)[0]["groups"][0]["volumes"] == 1
    (data / "image" / "a.h5").unlink()
    (out / "a.h5").unlink()
    refused(tmp_path, "holds no targets to compare with")


def test_what_has_another_shape_or_no_numbers_is_refused_with_its_name(tmp_path):
    _, images = add(tmp_path, "a.h5", rate=4)
    path = tmp_path / "out" / "acc4" / "a.h5"
    broken = images.copy()
    broken[1, 3, 3] = np.inf
    wrong = {
        r"is 1×28×24, and the target of .*a\.h5 2×28×24: slices, rows and columns": images[:1],
        r"is 2×24×28, and the target": images.transpose(0, 2, 1),
        r"slice 1 holds NaN or infinite values": broken,
    }
    for expected, values in wrong.items():
        write_hdf5(path, values, {})
        refused(tmp_path, rf"acc4/a\.h5: {expected}")
    write_hdf5(path, images, {}, every(4, width=30).numpy())
    refused(tmp_path, r"acc4/a\.h5: its mask has 30 columns, and the k-space of .* 32")


def test_a_target_that_is_empty_or_says_no_maximum_is_refused(tmp_path):
    values = kspace(0)
    (tmp_path / "data").mkdir()
    (tmp_path / "out").mkdir()
    path = tmp_path / "data" / "a.h5"
    write_fastmri(path, values, plain_header(values))
    with h5py.File(path, "r+") as file:
        del file.attrs["max"]
        file["reconstruction_rss"][1] = 0
    write_hdf5(tmp_path / "out" / "a.h5", np.ones((SLICES, WIDTH, WIDTH), np.float32), {})
    refused(tmp_path, r"a\.h5: has no attribute 'max' .*take --data-range volume", data_range="attribute")
    refused(tmp_path, r"a\.h5: slice 1 of its target has no value above 0", data_range="slice")


def test_options_that_do_not_exist_are_one_line(tmp_path):
    add(tmp_path, "a.h5", rate=4)
    refused(tmp_path, "--data-range is one of attribute, volume, slice, got 'largest'", data_range="largest")
    refused(tmp_path, "--anatomy is one of brain, knee, got 'heart'", anatomy="heart")
    with pytest.raises(InputError, match="is no folder: give the one that `voxelwave reconstruct run` wrote"):
        evaluate_reconstructions(tmp_path / "none", tmp_path / "data")
    with pytest.raises(InputError, match="at least 0, got -1"):
        evaluate_reconstructions(tmp_path / "out", tmp_path / "data", worst=-1)


def test_results_lie_as_the_data_or_by_name_alone_and_may_lie_below_the_data(tmp_path):
    for rate in (4, 8):
        add(tmp_path, "a.h5", rate=rate, number=rate)
    out, data = tmp_path / "out", tmp_path / "data"
    paths = [data / f"acc{rate}" / "kspace" / "a.h5" for rate in (4, 8)]
    assert [place.as_posix() for place in result_places(paths, str(data))] == ["acc4/a.h5", "acc8/a.h5"]
    assert [pair.reconstruction for pair in pair_files(out, str(data))] == [out / "acc4/a.h5", out / "acc8/a.h5"]
    # Of one folder of the data, the results lie flat.
    (pair,) = pair_files(out / "acc4", str(data / "acc4"))
    assert pair.reconstruction == out / "acc4" / "a.h5"
    # Flat, one name does not say of which file it is.
    (out / "acc4" / "a.h5").rename(out / "a.h5")
    with pytest.raises(InputError, match=r"acc4/kspace/a\.h5 has no reconstruction"):
        pair_files(out, str(data))
    (out / "a.h5").rename(out / "acc4" / "a.h5")
    out.rename(data / "out")
    assert len(pair_files(data / "out", str(data))) == 2


def test_the_command_prints_the_means_and_says_what_is_wrong_in_one_line(tmp_path):
    add(tmp_path, "a.h5", rate=4)
    ended = voxelwave("reconstruct", "evaluate", "out", "data", "--worst", 0, "--anatomy", "knee", folder=tmp_path)
    assert (ended.code, ended.err.strip()) == (0, "")
    assert "knee 4×" in ended.out
    assert "out/evaluation/index.html" in ended.out
    assert "'else' holds no k-space" in error_of(voxelwave("reconstruct", "evaluate", "out", "else", folder=tmp_path))
