"""The test of a study: what all chosen cases score on images that no choice depended on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from jaxtyping import Bool
from torch import Tensor, nn

from voxelwave.engine.run_log import METRICS, read_metrics
from voxelwave.engine.signals import stop_on_signal
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console, tracked
from voxelwave.jobs.common.processes import run_all
from voxelwave.jobs.subsample.config import WITHOUT_NETWORK, StudyConfig
from voxelwave.jobs.subsample.figures import draw_example
from voxelwave.jobs.subsample.images import ImageSet, Parted
from voxelwave.jobs.subsample.model import load_subsampled
from voxelwave.jobs.subsample.own_model import OwnModel
from voxelwave.jobs.subsample.scoring import Scores, by_network, opened_by_others, score, tuned_on_test, zero_filled
from voxelwave.jobs.subsample.study.cases import Case
from voxelwave.jobs.subsample.study.untouched import MaskToScore, Untouched, l1_wavelet
from voxelwave.jobs.subsample.study.verdict import Verdict, verdict_of
from voxelwave.jobs.subsample.train import LOSS, RESULTS
from voxelwave.objectives.subsampled_reconstruction import SubsampledReconstruction
from voxelwave.ops.cores import available_cores
from voxelwave.ops.seeding import torch_generator
from voxelwave.ops.texts import read_json
from voxelwave.physics.fixed_masks import FixedMaskName, fixed_mask, half_plane
from voxelwave.physics.fourier import fft2c, ifft2c
from voxelwave.unrolled.subsampling import FixedMask, Subsampling

SUMMARY = ("psnr_db", "psnr_db_deviation", "psnr_db_pooled", "ssim", "ssim_deviation")
MAGNITUDES = "half_plane_of_magnitudes"
DRAWN = ("random", "random_with_zero", "variable_density", "poisson_disc")  # anew for each seed


@dataclass(frozen=True)
class ScoredCase:
    """One case after its test.

    Attributes:
        recorded: what its run left as results: scores of training and validation.
        network, filled: of the images of the test, with the network and without it.
        untouched: of a reconstruction that the mask was not learned with, None where that was not asked for.
    """

    case: Case
    recorded: dict[str, Any]
    sampled: Bool[Tensor, "height width"]
    network: Scores
    filled: Scores
    verdict: Verdict
    untouched: Untouched | None


@dataclass(frozen=True)
class StudyTest:
    """All cases, and what masks without a network keep: by mask and drop rate, of each seed."""

    cases: list[ScoredCase]
    without_network: dict[tuple[str, float], list[Scores]]
    test: ImageSet
    notes: list[str]


@dataclass(frozen=True)
class Trained:
    """A case before its test: what it left, whole."""

    case: Case
    recorded: dict[str, Any]
    layer: Subsampling
    model: nn.Module
    validation_errors: list[float]


def read_results(run: Path) -> dict[str, Any]:
    """Return what a case recorded; raises InputError where that cannot be used.

    JSON has no word for the PSNR of an image that is reproduced exactly: null is that.
    """
    try:
        recorded: dict[str, Any] = read_json(run / RESULTS)
        for part in ("training", "validation"):
            for way in ("network", "zero_filled"):
                scores = recorded["scores"][part][way]
                for name in SUMMARY:
                    if scores[name] is None and not name.startswith("ssim"):
                        scores[name] = math.nan if name.endswith("deviation") else math.inf
                    elif not math.isfinite(float(scores[name])):
                        raise ValueError(f"{name} is {scores[name]}")
        for name in ("kept", "epochs", "best_epoch"):
            int(recorded[name])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run / RESULTS} cannot be used ({error}): delete {run}, and start the study again") from None
    return recorded


def load_case(run: Path, case: Case, recorded: dict[str, Any], own: OwnModel | None) -> Trained:
    """Return a case with its best weights; raises InputError where what it left is damaged."""
    layer, model, config = load_subsampled(run, own)
    moving = config.mask.epochs if case.learned else 0
    try:
        records = [of for of in read_metrics(run / METRICS) if LOSS in of and of["epoch"] > moving]
        errors = [float(of[LOSS]) for of in records]
    except (OSError, ValueError, KeyError, TypeError):
        errors = []
    if not errors:
        raise InputError(f"{run / METRICS} cannot be used: delete {run}, and start the study again")
    return Trained(case, recorded, layer, model, errors)


def test_cases(
    config: StudyConfig, cases: list[Trained], parted: Parted, test: ImageSet, folder: Path, *, console: Console
) -> StudyTest | None:
    """Score all cases on the `test`, and draw one image of each; None where that was stopped.

    L1-wavelet reconstructs with the masks of the first seed.
    """
    found, masks = dict[str, tuple[Scores, Scores, Verdict]](), list[MaskToScore]()
    (folder / "examples").mkdir(exist_ok=True)
    for of in tracked(cases, "tested", total=len(cases)):
        objective = SubsampledReconstruction(of.model)
        network, filled = score(by_network(objective), test), score(zero_filled(of.layer), test)
        scores = {"network": network.summary(), "zero_filled": filled.summary()}
        verdict = verdict_of(of.recorded["scores"]["training"], scores, of.validation_errors)
        found[of.case.name] = network, filled, verdict
        draw_example(test, 0, of.layer, by_network(objective), folder / "examples" / f"{of.case.name}.png")
        if of.case.seed == config.study.seeds[0]:
            masks.append(MaskToScore(of.case.name, of.layer.mask(), parted.validation, test))
    untouched, notes = dict[str, Untouched](), list[str]()
    if others := opened_by_others(folder, test):
        notes.append(tuned_on_test(others))
        console.say(*notes)
    if config.study.l1_wavelet:
        workers = config.study.workers or available_cores()
        try:
            with stop_on_signal() as signalled:
                scored = run_all(l1_wavelet, masks, workers=workers, should_stop=lambda: signalled.asked)
                untouched = dict(tracked(scored, "L1-wavelet", total=len(masks)))
                if len(untouched) < len(masks):
                    return None
        except InputError as error:
            notes.append(f"without L1-wavelet: {error}")
            console.say(notes[-1])
    tested = [
        ScoredCase(of.case, of.recorded, of.layer.mask(), *found[of.case.name], untouched.get(of.case.name))
        for of in cases
    ]
    return StudyTest(tested, masks_alone(config, parted.training, test), test, notes)


def masks_alone(config: StudyConfig, training: ImageSet, test: ImageSet) -> dict[tuple[str, float], list[Scores]]:
    """Return what the zero-filled images of every fixed mask score, of random ones with every seed of the study.

    Half a plane is completed with conjugates; that is done with the magnitudes of the test, too.
    """
    found: dict[tuple[str, float], list[Scores]] = {}
    magnitudes = test._replace(kspace=fft2c(ifft2c(test.kspace).abs() + 0j))
    lines = config.mask.lines
    for rate in config.study.drop_rates:
        for name in get_args(FixedMaskName):
            try:
                masks = [
                    fixed_mask(
                        *(name, test.shape, torch_generator(seed, "mask", name)),
                        drop_rate=rate,
                        lines=lines,
                        training=training.kspace,
                    )
                    for seed in (config.study.seeds if name in DRAWN else (0,))
                ]
            except ValueError:  # discs that lie apart keep neither lines nor nearly everything
                continue
            layers = [FixedMask(mask, completes=name == WITHOUT_NETWORK) for mask in masks]
            found[name, rate] = [score(zero_filled(layer), test) for layer in layers]
        half = FixedMask(half_plane(test.shape, drop_rate=rate, lines=lines), completes=True)
        found[MAGNITUDES, rate] = [score(zero_filled(half), magnitudes)]
    return found
