"""The probes of two backbones and of raw voxels, of the same cases, measure by measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from numpy import ndarray

from voxelwave.data.listing.cases import Case
from voxelwave.evaluation.estimates import Estimate, estimate, gain
from voxelwave.evaluation.probing import (
    LabelledTokens,
    Targets,
    knn_probe,
    linear_probe,
    probe_problem,
    tissue_probe,
    transfer_probe,
    transfer_problem,
)
from voxelwave.evaluation.representation import effective_rank, feature_std
from voxelwave.evaluation.retrieval import retrieval
from voxelwave.jobs.probe.correspondence import Answers
from voxelwave.jobs.probe.features import RAW, Probed
from voxelwave.jobs.probe.kinds import Transfer, is_of
from voxelwave.jobs.probe.raw import PLACES, over_channels

PRETRAINED, UNTRAINED = "pretrained", "random init"
ARMS = (PRETRAINED, UNTRAINED, RAW)
ARROW = "→"
COMMON = 10  # subjects that have a tissue, of twenty or more: two for each of five folds
LABELLED = (1, 24)  # heads that a probe is fitted on which is to read another kind of scan
Vectors = Mapping[str, Float32[ndarray, "..."]]


@dataclass(frozen=True)
class Result:
    """One measure of both backbones and of raw voxels: a row of the table; `oracle` is the best that there could be."""

    task: str
    modality: str
    probe: str
    measure: str
    pretrained: Estimate
    untrained: Estimate
    raw: Estimate
    oracle: float | None = None

    @property
    def gain(self) -> Estimate:
        """What pretraining is worth."""
        return gain(self.pretrained, self.untrained)

    @property
    def gain_over_raw(self) -> Estimate:
        """What the features are worth beside the voxels that they are computed from."""
        return gain(self.pretrained, self.raw)

    def as_json(self) -> dict[str, Any]:
        """Return plain values; `error` is the standard error over subjects."""
        values = {
            **{"pretrained": self.pretrained, "random_init": self.untrained, "raw_voxels": self.raw},
            **{"gain": self.gain, "gain_over_raw": self.gain_over_raw},
        }
        return {
            **{"task": self.task, "modality": self.modality, "probe": self.probe, "measure": self.measure},
            **{name: {"value": of.value, "error": of.error} for name, of in values.items()},
            "chance": self.pretrained.chance,
            **({} if self.oracle is None else {"oracle": self.oracle}),
        }


class Comparison:
    """Collects `results`, and `problems`: by task, why it could not be probed."""

    def __init__(self, *, seed: int) -> None:
        self.seed = seed
        self.results: list[Result] = []
        self.problems: dict[str, str] = {}

    def representation(self, modality: str, probed: Probed) -> None:
        """Add what needs no labels: retrieval between the crops of a scan, effective rank and deviation of tokens."""
        if len(probed.cases) < 2:
            self.problems[f"retrieval ({modality})"] = "two scans are needed"
        else:
            subjects = [case.subject for case in probed.cases]
            self._add("scan", modality, "retrieval", probed.crops, lambda x: retrieval(x, subjects, seed=self.seed))
        self._add("features", modality, "none", probed.tokens, _gauges)

    def tissues(self, modality: str, probed: Probed) -> None:
        """Add the probe of single tokens, where cases have label maps, for labels that enough subjects have."""
        labelled = probed.token_labels > 0
        subjects = np.array([probed.cases[number].subject for number in probed.token_case[labelled]])
        labels = probed.token_labels[labelled]
        if not any(case.label for case in probed.cases):
            return
        enough, rare = _rare(labels, subjects)
        kept = ~np.isin(labels, list(rare))
        if rare:
            named = ", ".join(f"{probed.label_names.get(one, one)} ({count})" for one, count in rare.items())
            self.problems[f"rare tissues ({modality})"] = f"fewer than {enough} subjects have tokens of {named}"
        if problem := probe_problem(labels[kept], subjects[kept]):
            self.problems[f"tissue ({modality})"] = problem
            return
        features = {name: tokens[labelled][kept] for name, tokens in probed.tokens.items()}
        self._add(
            *("tissue", modality, "linear, tokens", features),
            lambda x: tissue_probe(x, labels[kept], subjects[kept], seed=self.seed),
        )

    def target(self, name: str, modality: str, cases: Sequence[Case], scans: Vectors, values: Sequence[int]) -> None:
        """Add the probes of whole scans for a target with a value for each of `cases`."""
        targets, subjects = np.array(values, dtype=np.int64), np.array([case.subject for case in cases])
        if problem := probe_problem(targets, subjects):
            self.problems[f"{name} ({modality})"] = problem
            return
        self._add(name, modality, "linear", scans, lambda x: linear_probe(x, targets, subjects, seed=self.seed))
        self._add(name, modality, "kNN", scans, lambda x: knn_probe(x, targets, subjects, seed=self.seed))

    def transfer(self, transfer: Transfer, probed: Mapping[str, Probed]) -> None:
        """Add probes of single tokens that are fitted on few or many heads of one kind of scan and read another."""
        name = ARROW.join(transfer)
        origin, goal = (_of_kind(kind, probed) for kind in transfer)
        both, known = [], None
        for of, cases in (origin, goal):
            rows = np.flatnonzero(np.isin(of.token_case, cases) & (of.token_labels > 0))
            labels = of.token_labels[rows]
            subjects = np.array([of.cases[number].subject for number in of.token_case[rows]], dtype=object).astype(str)
            common = set(np.unique(labels).tolist()) - set(_rare(labels, subjects)[1])
            known = common if known is None else known & common
            both.append((of, rows, labels, subjects))
        mixed = origin[0].channels != goal[0].channels

        def tokens(side: int, arm: str) -> LabelledTokens:
            of, rows, labels, subjects = both[side]
            kept = np.isin(labels, sorted(known or ()))
            features = of.tokens[arm][rows[kept]]
            if arm == RAW and mixed:
                features = over_channels(features, of.channels, places=PLACES)
            return LabelledTokens(features, labels[kept], subjects[kept])

        if problem := transfer_problem(tokens(0, PRETRAINED), tokens(1, PRETRAINED)):
            self.problems[f"tissue ({name})"] = problem
            return
        features = {arm: (tokens(0, arm), tokens(1, arm)) for arm in ARMS}
        for heads in LABELLED:

            def measure(pair: tuple[LabelledTokens, LabelledTokens], heads: int = heads) -> dict[str, Estimate]:
                return transfer_probe(*pair, heads=heads, seed=self.seed)

            self._add(
                *("tissue", name, f"linear, {heads} labelled" if heads == 1 else f"linear, up to {heads} labelled"),
                features,
                measure,
            )

    def correspondence(self, transfer: Transfer, own: Answers, other: Answers) -> None:
        """Add where tokens of one kind of scan are found in another."""
        name = ARROW.join(transfer)
        for task, measure, answers, problem in (
            ("own place", "share within one token", own, "no subject has scans of both in one session"),
            ("other head", "distance in mm, less is better", other, "no other subject has a scan"),
        ):
            if not answers.subjects:
                self.problems[f"{task} ({name})"] = f"{problem} that overlap"
                continue
            subjects, blind = np.array(answers.subjects), float(np.concatenate(answers.blind).mean())

            def mean(
                parts: Sequence[ndarray], measure: str = measure, subjects: ndarray = subjects, blind: float = blind
            ) -> dict[str, Estimate]:
                values = np.concatenate(parts)
                return {
                    measure: estimate(lambda rows: float(values[rows].mean()), subjects, chance=blind, seed=self.seed)
                }

            oracle = float(np.concatenate(answers.oracle).mean()) if answers.oracle else None
            self._add(task, name, "nearest token", answers.measured, mean, oracle=oracle)

    def _add(
        self,
        task: str,
        modality: str,
        probe: str,
        features: Mapping[str, Any],
        measure: Callable[[Any], dict[str, Estimate]],
        *,
        oracle: float | None = None,
    ) -> None:
        pretrained, untrained, raw = (measure(features[arm]) for arm in ARMS)
        self.results += [
            Result(task, modality, probe, name, pretrained[name], untrained[name], raw[name], oracle)
            for name in pretrained
        ]


def _rare(labels: Targets, subjects: Shaped[ndarray, " sample"]) -> tuple[int, dict[int, int]]:
    """Return how many subjects must have a label for it to count, and the number of those that fewer have.

    In a mean over labels one with a handful of tokens would weigh as much as those with thousands.
    """
    enough = max(2, min(COMMON, len(np.unique(subjects)) // 2))
    counts = {int(one): len(np.unique(subjects[labels == one])) for one in np.unique(labels)}
    return enough, {one: count for one, count in counts.items() if count < enough}


def _of_kind(kind: str, probed: Mapping[str, Probed]) -> tuple[Probed, list[int]]:
    """Return the cases of a kind: those of one modality, and their numbers."""
    for of in probed.values():
        numbers = [number for number, case in enumerate(of.cases) if is_of(kind)(case)]
        if numbers:
            return of, numbers
    return next(iter(probed.values())), []


def _gauges(tokens: Float32[ndarray, "token embed"]) -> dict[str, Estimate]:
    rows = torch.from_numpy(tokens)
    return {"effective rank": Estimate(effective_rank(rows)), "feature deviation": Estimate(feature_std(rows))}
