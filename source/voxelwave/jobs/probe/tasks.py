"""The probes of two backbones that looked at the same cases, measure by measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray

from voxelwave.data.listing.cases import Case
from voxelwave.evaluation.estimates import Estimate, gain
from voxelwave.evaluation.probing import knn_probe, linear_probe, probe_problem, tissue_probe
from voxelwave.evaluation.representation import effective_rank, feature_std
from voxelwave.evaluation.retrieval import retrieval
from voxelwave.jobs.probe.features import Probed

PRETRAINED, UNTRAINED = "pretrained", "random init"
COMMON = 10  # subjects that have a tissue, of twenty or more: two for each of five folds
Vectors = Mapping[str, Float32[ndarray, "..."]]


@dataclass(frozen=True)
class Result:
    """One measure of both backbones: a row of the table."""

    task: str
    modality: str
    probe: str
    measure: str
    pretrained: Estimate
    untrained: Estimate

    @property
    def gain(self) -> Estimate:
        """What pretraining is worth."""
        return gain(self.pretrained, self.untrained)

    def as_json(self) -> dict[str, Any]:
        """Return plain values; `error` is the standard error over subjects."""
        values = {"pretrained": self.pretrained, "random_init": self.untrained, "gain": self.gain}
        return {
            **{"task": self.task, "modality": self.modality, "probe": self.probe, "measure": self.measure},
            **{name: {"value": of.value, "error": of.error} for name, of in values.items()},
            "chance": self.pretrained.chance,
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
            self._add("scan", modality, "retrieval", probed.crops, lambda x: retrieval(x, seed=self.seed))
        self._add("features", modality, "none", probed.tokens, _gauges)

    def tissues(self, modality: str, probed: Probed) -> None:
        """Add the probe of single tokens, where cases have label maps, for labels that enough subjects have."""
        labelled = probed.token_labels > 0
        subjects = np.array([probed.cases[number].subject for number in probed.token_case[labelled]])
        labels = probed.token_labels[labelled]
        if not any(case.label for case in probed.cases):
            return
        # In a mean over labels one with a handful of tokens would weigh as much as those with thousands.
        enough = max(2, min(COMMON, len(np.unique(subjects)) // 2))
        counts = {int(one): len(np.unique(subjects[labels == one])) for one in np.unique(labels)}
        rare = {one: count for one, count in counts.items() if count < enough}
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

    def _add(
        self,
        task: str,
        modality: str,
        probe: str,
        features: Vectors,
        measure: Callable[[Float32[ndarray, "..."]], dict[str, Estimate]],
    ) -> None:
        pretrained, untrained = measure(features[PRETRAINED]), measure(features[UNTRAINED])
        self.results += [Result(task, modality, probe, name, pretrained[name], untrained[name]) for name in pretrained]


def _gauges(tokens: Float32[ndarray, "token embed"]) -> dict[str, Estimate]:
    rows = torch.from_numpy(tokens)
    return {"effective rank": Estimate(effective_rank(rows)), "feature deviation": Estimate(feature_std(rows))}
