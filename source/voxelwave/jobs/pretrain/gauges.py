"""What the features are worth while they are trained: gauges that need no labels, and probes of labelled cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxelwave import __version__
from voxelwave.data.foreground import CroppedAt
from voxelwave.data.listing.cases import Case, find_cases
from voxelwave.downstream.description import describe_run
from voxelwave.downstream.embedding import embed_volume, fitted_size, frame, random_crops
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.errors import DivergedError, InputError, UnusableVolume
from voxelwave.evaluation.probing import BALANCED_ACCURACY, knn_probe, linear_probe, probe_problem
from voxelwave.evaluation.representation import effective_rank, feature_std
from voxelwave.evaluation.retrieval import retrieval
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.pretrain.config import Config
from voxelwave.jobs.pretrain.data import TrainingData
from voxelwave.jobs.pretrain.pair_data import PairData
from voxelwave.jobs.pretrain.pretrainer import Pretrainer
from voxelwave.ops.files import real_path
from voxelwave.ops.seeding import numpy_generator, torch_generator

ALIGNMENT, SOLVED = "alignment", 0.99
RETRIEVED_SCANS, CROPS = 16, 2
INVERSE_PENALTY = 0.01  # one, so that a probing takes a moment: `voxelwave probe` chooses among several


class OnlineProbe:
    """Called every some steps it returns, for each modality, how good the features of the backbone are by now.

    - `effective_rank_<modality>`, `feature_std_<modality>`: of the tokens of one batch of training volumes.
    - `retrieval_<modality>`: Recall@1 between two crops of a scan, of up to 16 training volumes.
    - `linear_<target>_<modality>`, `knn_<target>_<modality>`: balanced accuracy for the targets of `data.probe_cases`,
      asked of subjects that the classifier has not seen.

    Scans and crops are always the same, read at the first call and kept in half precision. All random numbers have
    generators of their own, so that a run with other probes has the same losses. Where `writes` is False, as on all
    ranks but the first, there are the first two alone.

    `cropped` says at which spacing the volumes of the run were cropped, so that scans are read so, too.

    Raises InputError where `data.probe_cases` cannot be used.
    """

    def __init__(
        self,
        config: Config,
        pretrainer: Pretrainer,
        data: TrainingData | PairData,
        *,
        cropped: CroppedAt | None,
        writes: bool,
        console: Console,
    ) -> None:
        self._config, self._pretrainer, self._data = config, pretrainer, data
        self._writes, self._console = writes, console
        described = describe_run(
            config.model_dump(mode="json"),
            volumes=data.counts(),
            cropped=cropped,
            step=0,
            version=__version__,
        )
        depth = pretrainer.backbone.depth
        self._features = FeaturePyramid(pretrainer.backbone, depths=[depth], description=described)
        self._reader, self._size = ScanReader(self._features), fitted_size(self._features)
        self._cases = self._find_cases()
        self._scans, self._crops = cache(self._read_scans), cache(self._read_crops)

    @torch.no_grad()
    def __call__(self, step: int) -> dict[str, float]:
        """Return the gauges of all modalities by name."""
        # Whole scans are of many sizes: a compiled block would be compiled for each of them.
        compiled = self._config.training.compile
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            gauges = self._collapse(step)
            if self._writes:
                for modality in self._data.counts():
                    gauges |= self._retrieval(modality) | self._targets(modality)
        return gauges

    def _collapse(self, step: int) -> dict[str, float]:
        """Effective rank and deviation of the backbone's features; raises DivergedError where they are no numbers."""
        gauges = {}
        device = next(self._features.parameters()).device
        for modality, batch in self._data.probe_batches().items():
            tokens = self._pretrainer.encode(batch.volume.to(device)).flatten(0, 1).float()
            if not bool(tokens.isfinite().all()):
                raise DivergedError(
                    f"the features of {modality} are not finite after step {step}: lower training.learning_rate, then "
                    "go on with --resume, or start again where no checkpoint is left"
                )
            gauges[f"effective_rank_{modality}"] = effective_rank(tokens)
            gauges[f"feature_std_{modality}"] = feature_std(tokens)
        return gauges

    def _retrieval(self, modality: str) -> dict[str, float]:
        scans = self._crops(modality)
        if len(scans) < 2:
            return {}
        embeddings = np.stack([self._embedded(list(crops)) for crops in scans])
        return {f"retrieval_{modality}": retrieval(embeddings, ranks=(1,))["Recall@1"].value}

    def _targets(self, modality: str) -> dict[str, float]:
        scans = self._scans(modality)
        if not scans:
            return {}
        cases, embeddings = [case for case, _ in scans], self._embedded([volume for _, volume in scans])
        gauges = {}
        for target in _targets_of(cases):
            known, targets, subjects = _known(cases, target)
            if probe_problem(targets, subjects):
                continue
            asked = (embeddings[known], targets, subjects)
            linear = linear_probe(*asked, inverse_penalties=(INVERSE_PENALTY,), seed=self._data.seed)
            gauges[f"linear_{target}_{modality}"] = linear[BALANCED_ACCURACY].value
            gauges[f"knn_{target}_{modality}"] = knn_probe(*asked)[BALANCED_ACCURACY].value
        return gauges

    def _embedded(self, volumes: Sequence[Tensor]) -> np.ndarray:
        # They were framed when they were read.
        return torch.stack([embed_volume(self._features, volume.float(), size=None) for volume in volumes]).numpy()

    def _read_scans(self, modality: str) -> list[tuple[Case, Tensor]]:
        patch_size = self._features.strides[-1]
        cases = {case.image: case for case in self._cases if case.modality == modality}
        volumes = self._read(list(cases), modality, lambda volume, _: frame(volume, patch_size, size=self._size))
        return [(cases[path], volume) for path, volume in volumes]

    def _read_crops(self, modality: str) -> list[Tensor]:
        files = self._data.files()[modality]
        order = numpy_generator(self._data.seed, "probed scans", modality).permutation(len(files))
        chosen = [files[number].path for number in order[:RETRIEVED_SCANS]]

        def cut(volume: Tensor, number: int) -> Tensor:
            generator = torch_generator(self._data.seed, "probed crops", modality, number)
            return random_crops(self._features, volume, count=CROPS, generator=generator, size=self._size)

        return [crops for _, crops in self._read(chosen, modality, cut)]

    def _read(
        self, paths: Sequence[Path], modality: str, shown: Callable[[Tensor, int], Tensor]
    ) -> list[tuple[Path, Tensor]]:
        """Read each scan and keep of it what is shown; one that cannot be used is left out and said to be."""
        read = []
        for number, path in enumerate(paths):
            try:
                read.append((path, shown(self._reader(path, modality).volume, number).half()))
            except UnusableVolume as unusable:
                self._console.say(f"left out of the probes: {path}: {unusable}")
        return read

    def _find_cases(self) -> list[Case]:
        place, modalities = self._config.data.probe_cases, list(self._data.counts())
        if place is None:
            return []
        try:
            cases = [case for case in find_cases(place) if case.modality in modalities]
        except InputError as error:
            raise InputError(f"key 'data.probe_cases': {error}") from None
        if not any(case.targets for case in cases):
            raise InputError(
                f"key 'data.probe_cases': no case of {place} is of {' or '.join(modalities)} and has a target"
            )
        trained = {real_path(path) for path in self._data.trained_on()}
        shown = [{real_path(path) for path in (case.image, case.label) if path} for case in cases]
        also = sum(bool(paths & trained) for paths in shown)
        self._console.say(f"probe cases: {len(cases)}, of {also} of them the files are also trained on")
        for modality in modalities:
            own = [case for case in cases if case.modality == modality]
            for target in _targets_of(own):
                _, targets, subjects = _known(own, target)
                if problem := probe_problem(targets, subjects):
                    self._console.say(f"not probed: {target} ({modality}): {problem}")
        return cases


class Saturation:
    """Called with the row of every epoch it returns its loss, and says once when the contrastive task is solved.

    That is when in each modality more than 99 % of the places find themselves, on average over the epoch.
    """

    def __init__(self, console: Console, *, weight: float) -> None:
        self._console, self._waits = console, weight > 0

    def __call__(self, row: Mapping[str, Any]) -> float:
        """Return the loss of the epoch, which its weights are judged by."""
        found = [value for name, value in row.items() if name == ALIGNMENT or name.endswith(f"_{ALIGNMENT}")]
        if self._waits and found and min(found) > SOLVED:
            self._waits = False
            self._console.say(
                f"alignment stayed above {SOLVED} in epoch {row['epoch']}: nearly every place finds itself: "
                f"the contrastive task is solved and teaches nothing more; what the features are worth is said by "
                f"`voxelwave probe`, beside raw voxels"
            )
        return float(row["loss"])


def _targets_of(cases: Sequence[Case]) -> list[str]:
    return sorted({name for case in cases for name in case.targets})


def _known(cases: Sequence[Case], target: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return which cases have the target, its values, and the subjects."""
    known = [number for number, case in enumerate(cases) if target in case.targets]
    values = [cases[number].targets[target] for number in known]
    return known, np.array(values, dtype=np.int64), np.array([cases[number].subject for number in known])
