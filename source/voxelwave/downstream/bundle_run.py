"""What the configuration of a bundle calls: reads the scans of a folder, runs the model on each, writes the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxelwave.data.listing.discovery import walk
from voxelwave.data.recognition.labels import label_map_reason, without_suffix
from voxelwave.data.scaled import Scaled
from voxelwave.downstream.inference import write_prediction
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.ops.files import replacing, write_text
from voxelwave.ops.loggers import logger
from voxelwave.ops.texts import to_json


class ScanFile(NamedTuple):
    """A file, its place in the folder without a suffix, and a function that reads it."""

    path: Path
    name: str
    read: Callable[[], Scaled]


class Scans:
    """The scans of a folder and all folders below it; label maps, told by their names, are left out.

    Args:
        folder: or a single file.
        transform: reads a file of a modality as the model was trained on, such as a `ScanReader`.
        modality: of all scans.

    Raises InputError where there is no scan, or two whose results would have one name.
    """

    def __init__(self, folder: str, *, transform: Callable[[Path, str], Scaled], modality: str) -> None:
        place = Path(folder).expanduser()
        self._transform = transform
        self._modality = modality
        self._files = [place] if place.is_file() else [file for file in walk(place) if label_map_reason(file) is None]
        self._root = place.parent if place.is_file() else place
        if not self._files:
            raise InputError(f"no scan in {place}: set dataset_dir to a folder of NIfTI files")
        names = [self._name(file) for file in self._files]
        if twice := next((name for name, number in Counter(names).items() if number > 1), None):
            raise InputError(f"{place} holds '{twice}' in two formats, and results go by that name: take one out")

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[ScanFile]:
        for file in self._files:
            yield ScanFile(file, self._name(file), partial(self._transform, file, self._modality))

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self._root).with_name(without_suffix(file.name)))


class Evaluator:
    """Predicts every scan and writes what comes out.

    Args:
        network: the model.
        dataset: the scans.
        inferer: is called with the model and a scaled volume `[channel, D, H, W]`, and returns the result.
        postprocessing: writes the result of a scan to a path that still lacks its suffix, and returns the file.
        output_dir: results have the places in it that the scans have in their folder.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        dataset: Scans,
        inferer: Callable[[nn.Module, Tensor], Tensor],
        postprocessing: Callable[[Tensor, ScanFile, Scaled, Path], Path],
        output_dir: str,
    ) -> None:
        self.network = network
        self.dataset = dataset
        self.inferer = inferer
        self.postprocessing = postprocessing
        self.output_dir = Path(output_dir).expanduser()

    def run(self) -> list[Path]:
        """Return the files that were written; raises InputError at the end where scans could not be read."""
        written: list[Path] = []
        unusable = []
        for scan in self.dataset:
            try:
                scaled = scan.read()
            except UnusableVolume as error:
                unusable.append(f"{scan.path}: {error}")
                logger.warning("left out: %s", unusable[-1])
                continue
            with torch.inference_mode():
                result = self.inferer(self.network, scaled.volume)
            place = self.output_dir / scan.name
            place.parent.mkdir(parents=True, exist_ok=True)
            written.append(self.postprocessing(result, scan, scaled, place))
            logger.info("wrote %s", written[-1])
        if unusable:
            raise InputError(f"{len(unusable)} of {len(self.dataset)} scans could not be read: {unusable[0]}")
        return written


def write_segmentation(
    result: Float[Tensor, "class depth height width"], _scan: ScanFile, scaled: Scaled, place: Path
) -> Path:
    """Write the most probable class of each voxel, in the grid of the scan's own file."""
    out = place.with_name(f"{place.name}_seg.nii.gz")
    write_prediction(out, result, scaled.affine, like=scaled.source)
    return out


def write_probabilities(
    result: Float[Tensor, " target"], _scan: ScanFile, _scaled: Scaled, place: Path, *, targets: list[str]
) -> Path:
    """Write the probability of each target, by its name."""
    out = place.with_name(f"{place.name}.json")
    write_text(out, to_json(dict(zip(targets, result.double().sigmoid().tolist(), strict=True))))
    return out


def write_embedding(result: Float[Tensor, " embed"], _scan: ScanFile, _scaled: Scaled, place: Path) -> Path:
    """Write the vector of a scan as `embedding`."""
    out = place.with_name(f"{place.name}.npz")
    with replacing(out) as part:
        np.savez(part, embedding=result.cpu().numpy())
    return out
