"""What frozen features are worth: tissues of single tokens from contrast to contrast, and the own place in real scans.

Probes are logistic regressions, fitted on tokens of the heads of one set and asked for those of another. What is kept
of each are counts for each head that was asked, so that heads can be drawn again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scans import CHOICE_FIT, CHOICE_TEST, CLASSES, FIT, HEADS, REAL_PAIRS, TEST, Crops, image_of, read_crops
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from voxelwave.data.listing.cases import Case
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.downstream.load_backbone import load_backbone
from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.evaluation.representation import effective_rank
from voxelwave.jobs.pretrain.config import load_config
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer
from voxelwave.jobs.probe.correspondence import Answers, compare_scans
from voxelwave.objectives.masked_modeling import MaskedVoxels
from voxelwave.ops.seeding import numpy_generator
from voxelwave.sparse.volume import SparseVolume

FITTED_ON = ("T1", "CT")
ASKED = ("T1", "T2", "FLAIR", "CT")
# What is fitted on and asked: the same contrast, the other modality, and contrasts that were never labelled.
TRANSFERS = (("T1", "T1"), ("CT", "CT"), ("T1", "CT"), ("CT", "T1"), ("T1", "T2"), ("T1", "FLAIR"))
LABELLED = (1, 24)
DRAWS = 4  # of one labelled head
PENALTY = 0.1
RAW_CROP, RAW_SCAN = "raw voxels, place in the crop", "raw voxels, place in the scan"
FOUND_ON = 12  # heads of which T1 and CT are compared
SETS = {False: (FIT, TEST), True: (CHOICE_FIT, CHOICE_TEST)}

# By head and class: tokens that were told right, and tokens that were told to be of the class.
Counts = dict[str, list[list[int]]]


class Heads:
    """The crops that probes are fitted on and asked for; `choice` takes the heads on which things are chosen."""

    def __init__(self, folder: Path, *, choice: bool) -> None:
        fit, self.tested = SETS[choice]
        self.fitted = {contrast: read_crops(folder, fit, contrast) for contrast in FITTED_ON}
        self.asked = {contrast: read_crops(folder, self.tested, contrast) for contrast in ASKED}
        self.folder = folder


class WithEncoder(nn.Module):
    """The backbone of a run and its SparK encoder, whose finest scale is put behind the features of each token."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        pretrainer = build_pretrainer(load_config(run / "config.yaml"))
        pretrainer.load_state_dict(load_checkpoint(run / "last.pth")["model"])
        assert isinstance(pretrainer, MaskedVoxels)
        self.pretrainer = pretrainer

    def forward(self, volume: torch.Tensor) -> list[torch.Tensor]:
        """Return one grid."""
        deep, _ = self.pretrainer.backbone.forward_intermediates(volume)
        everywhere = torch.ones(len(deep), *deep.shape[2:], dtype=torch.bool)
        fine = self.pretrainer.encoder(SparseVolume.at(deep, everywhere))[0]
        encoded = fine.features.unflatten(0, everywhere.shape).movedim(-1, 1)
        return [torch.cat([deep, encoded], 1)]


def network_tokens(features: FeaturePyramid | WithEncoder, crops: Crops) -> np.ndarray:
    """Return the features of the tokens of brain."""
    rows = []
    with torch.no_grad():
        for volumes, chosen in zip(crops.volumes.split(16), crops.chosen.split(16), strict=True):
            rows.append(features(volumes)[-1].movedim(1, -1)[chosen])
    return torch.cat(rows).float().numpy()


def raw_tokens(crops: Crops, *, place: str, over_channels: bool) -> np.ndarray:
    """Return the voxels of the tokens of brain and their place; over the channels where MRI and CT are compared."""
    raw = crops.raw.mean(1) if over_channels else crops.raw.reshape(len(crops.raw), -1)
    return np.concatenate([raw, crops.in_crop if place == RAW_CROP else crops.in_scan], 1)


def transfers(heads: Heads, tokens: Any, *, reads_ct: bool = True) -> dict[str, Counts]:
    """Fit and ask for each transfer and number of labelled heads; `tokens(crops, both)` gives what is probed."""
    found: dict[str, Counts] = {}
    for origin, goal in TRANSFERS:
        if "CT" in (origin, goal) and not reads_ct:
            continue
        mixed = (origin == "CT") != (goal == "CT")
        fitted, asked = heads.fitted[origin], heads.asked[goal]
        train, test = tokens(fitted, mixed), tokens(asked, mixed)
        for labelled in LABELLED:
            order = numpy_generator("transfer labelled").permutation(np.unique(fitted.heads))
            hits, told = np.zeros((2, HEADS[heads.tested], len(CLASSES)), np.int64)
            for draw in range(DRAWS if labelled == 1 else 1):
                chosen = np.isin(fitted.heads, order[draw * labelled :][:labelled])
                answer = logistic(train[chosen], fitted.labels[chosen], test)
                right = answer == asked.labels
                np.add.at(hits, (asked.heads[right], answer[right] - 1), 1)
                np.add.at(told, (asked.heads, answer - 1), 1)
            counts = {"hits": hits.tolist()}
            if labelled == 1:
                counts["told"] = told.tolist()
            found[f"{origin}→{goal}, {labelled}"] = counts
    return found


def logistic(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return what a balanced logistic regression on standardised features says of `test`."""
    told: np.ndarray = fitted(train, labels).predict(test)
    return told


def fitted(train: np.ndarray, labels: np.ndarray, penalty: float = PENALTY) -> Pipeline:
    """Return a balanced logistic regression on standardised features."""
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=300, tol=1e-3)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(train, labels)


def places(answers: Answers) -> dict[str, dict[str, list[float]]]:
    """Return the mean of each asked scan by arm, and what guessing and the best answer would have."""
    subjects = np.array(answers.subjects)

    def means(parts: list[np.ndarray]) -> list[float]:
        values = np.concatenate(parts)
        return [round(float(values[subjects == one].mean()), 4) for one in dict.fromkeys(answers.subjects)]

    found = {name: means(parts) for name, parts in answers.measured.items()}
    found["chance"] = means(answers.blind)
    if answers.oracle:
        found["oracle"] = means(answers.oracle)
    return {"by head": found}


def generated_places(heads: Heads, backbones: Mapping[str, FeaturePyramid]) -> dict[str, Any]:
    """Look up places of heads in T1 in CT of the same head and of other heads."""
    t1, ct = ([_case(heads, contrast, number) for number in range(FOUND_ON)] for contrast in FITTED_ON)
    own, other = compare_scans(t1, ct, backbones, classes=None, seed=0)
    return {"own place T1→CT": places(own)["by head"], "other head T1→CT, mm": places(other)["by head"]}


def real_places(scans: Mapping[str, Path], backbones: Mapping[str, FeaturePyramid]) -> dict[str, Any]:
    """Look up places of real scans in another contrast of the same head, under another field of view."""
    found = {}
    for name, (origin, goal) in REAL_PAIRS.items():
        # Several fields of view: one pair of scans has but one answer each.
        by_view: dict[str, list[float]] = {}
        for seed in range(3):
            cases = [Case(one, scans[one], "mri", name) for one in (origin, goal)]
            own, _ = compare_scans(cases[:1], cases[1:], backbones, classes=None, seed=seed)
            for arm, values in places(own)["by head"].items():
                by_view.setdefault(arm, []).extend(values)
        found[f"own place, {name}"] = by_view
    return found


def _case(heads: Heads, contrast: str, number: int) -> Case:
    image = image_of(heads.folder, heads.tested, contrast, number)
    return Case(f"{contrast}{number}", image, "ct" if contrast == "CT" else "mri", f"head{number}")


def measure(run: Path | None, heads: Heads, scans: Mapping[str, Path], *, untrained: FeaturePyramid | None) -> Any:
    """Measure the features of a run, or of `untrained` weights."""
    features = untrained if run is None else load_backbone(run).eval()
    assert features is not None
    backbones, reads_ct = {"features": features}, 3 in features.in_channels
    return {
        "transfers": transfers(heads, lambda crops, _: network_tokens(features, crops), reads_ct=reads_ct),
        "places": {
            **(generated_places(heads, backbones) if reads_ct else {}),
            **(real_places(scans, backbones) if scans else {}),
        },
        "asked": {contrast: asked_tokens(heads, contrast).tolist() for contrast in ASKED},
        "effective rank": {
            contrast: round(effective_rank(torch.from_numpy(network_tokens(features, crops))), 1)
            for contrast, crops in heads.fitted.items()
            if contrast != "CT" or reads_ct
        },
    }


def measure_encoder(run: Path, heads: Heads) -> Any:
    """Measure the backbone of a run together with its encoder."""
    features = WithEncoder(run).eval()
    return {
        "transfers": transfers(heads, lambda crops, _: network_tokens(features, crops)),
        "places": {},
        "asked": {contrast: asked_tokens(heads, contrast).tolist() for contrast in ASKED},
    }


def measure_raw(heads: Heads, place: str) -> Any:
    """Measure what the voxels themselves tell."""
    return {
        "transfers": transfers(heads, lambda crops, mixed: raw_tokens(crops, place=place, over_channels=mixed)),
        "places": {},
        "asked": {contrast: asked_tokens(heads, contrast).tolist() for contrast in ASKED},
    }


def asked_tokens(heads: Heads, contrast: str) -> np.ndarray:
    """Count the tokens of each head and class."""
    counts = np.zeros((HEADS[heads.tested], len(CLASSES)), np.int64)
    np.add.at(counts, (heads.asked[contrast].heads, heads.asked[contrast].labels - 1), 1)
    return counts
