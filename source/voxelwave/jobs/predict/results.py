"""What predictions are written to: a folder of label maps or a table of probabilities; a repeated call adds to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from voxelwave.contracts import Grid
from voxelwave.data.listing.cases import Case
from voxelwave.data.scaled import Scaled
from voxelwave.downstream.classification import predict_targets
from voxelwave.downstream.description import crop_size
from voxelwave.downstream.inference import predict_volume, write_prediction
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.console import progress_of
from voxelwave.jobs.common.images import Origin, is_of, origin_of
from voxelwave.ops.files import write_text
from voxelwave.ops.loggers import printable
from voxelwave.ops.tables import as_csv, read_checked
from voxelwave.ops.texts import read_json, to_json

LEGEND = "labels.json"
ORIGINS = "predictions.csv"
OF_A_SEGMENTATION = "_seg.nii.gz"  # a word by which label maps are told from images, here and elsewhere
MODEL_DIGITS = 16


class SegmentationFolder:
    """A label map for each case, in the voxels of its own file, and `labels.json`, which says what the values mean.

    `predictions.csv` says of which image each label map is.

    Args:
        out: the folder.
        places: of the cases below it, by `Case.place`, without suffix.
        overlap: of windows, see `predict_volume`.
        batch_size: windows at a time.

    Raises InputError for a place that cannot be such a folder.
    """

    def __init__(
        self,
        model: nn.Module,
        description: Mapping[str, Any],
        out: Path,
        *,
        places: Mapping[str, str],
        overlap: float,
        batch_size: int,
    ) -> None:
        if out.suffix in (".csv", ".nii", ".gz") or (out.exists() and not out.is_dir()):
            raise InputError(f"{out} is no folder: the label maps of a segmentation go into one")
        self._model, self._out, self._places = model, out, places
        self._window, self._overlap, self._batch_size = _window(description), overlap, batch_size
        self._legend: dict[str, Any] = {
            "classes": {str(value): name for value, name in enumerate(description["task"]["classes"])},
            "model": description["sha256"],
            "overlap": overlap,
        }
        self._origins: dict[str, Origin] = {}
        out.mkdir(parents=True, exist_ok=True)

    def go_on(self) -> None:
        """Take what an earlier call wrote for done.

        Raises InputError where that are the predictions of another model, or made otherwise.
        """
        record = self._out / LEGEND
        if record.exists() and (differing := _differing(record, self._legend)):
            raise InputError(
                f"{self._out} holds predictions with another {differing} ({record}): choose another folder"
            )
        self._origins = dict(self._read())

    def has(self, case: Case) -> bool:
        """Tell whether the label map of a case is there, and of its image as it is now.

        Raises UnusableVolume where the label map is of another image, or nothing says of which.
        """
        path = self._path(case)
        if not path.exists():
            return False
        if (known := self._origins.get(printable(self._name(case)))) is None:
            raise UnusableVolume(
                f"{path} is there, and {ORIGINS} does not say of which image: move it away, or choose another folder"
            )
        now = origin_of(case)
        if not known.same_content(now) and known.image != now.image:
            raise UnusableVolume(f"{path} is of {known.image}, another image: choose another folder")
        return known.same_content(now)

    def add(self, case: Case, scan: Scaled) -> None:
        """Segment a scan."""
        with progress_of("windows") as done:
            logits = predict_volume(
                *(self._model, scan.volume),
                window=self._window,
                overlap=self._overlap,
                batch_size=self._batch_size,
                num_classes=len(self._legend["classes"]),
                progress=done,
            )
        path = self._path(case)
        write_text(self._out / LEGEND, to_json(self._legend))
        path.parent.mkdir(parents=True, exist_ok=True)
        # In this order, so that no label map ever lies beside the name of another image.
        path.unlink(missing_ok=True)
        self._note(case)
        write_prediction(path, logits, scan.affine, like=scan.source)

    def _name(self, case: Case) -> str:
        return f"{self._places[case.place]}{OF_A_SEGMENTATION}"

    def _path(self, case: Case) -> Path:
        return self._out / self._name(case)

    def _note(self, case: Case) -> None:
        self._origins[printable(self._name(case))] = origin_of(case)
        rows = ({"result": name} | origin._asdict() for name, origin in self._origins.items())
        write_text(self._out / ORIGINS, as_csv(["result", *Origin._fields], rows, checked=True))

    def _read(self) -> Iterator[tuple[str, Origin]]:
        record = self._out / ORIGINS
        if not record.exists():
            return
        try:
            for _, row in read_checked(record, ["result", *Origin._fields], otherwise="has other columns"):
                yield printable(row["result"]), Origin(printable(row["image"]), int(row["bytes"]), row["sha256"])
        except ValueError as error:
            raise InputError(
                f"{record} does not say which image each prediction is of ({error}): move it away"
            ) from None


class TargetTable:
    """A CSV with a row for each case: image, modality, probability of each target, model, and the image's checksum.

    Raises InputError for a place that cannot be such a file.
    """

    def __init__(self, model: nn.Module, description: Mapping[str, Any], out: Path) -> None:
        if out.suffix.lower() != ".csv" or out.is_dir():
            raise InputError(
                f"{out} is no table: the probabilities of a classification go into a file that ends in .csv"
            )
        self._model, self._out, self._size = model, out, _window(description)
        self._targets = list(description["task"]["targets"])
        self._name = description["sha256"][:MODEL_DIGITS]
        self._columns = ["image", "modality", *self._targets, "model", "bytes", "sha256"]
        self._rows: dict[str, dict[str, str]] = {}
        out.parent.mkdir(parents=True, exist_ok=True)

    def go_on(self) -> None:
        """Take the rows of an earlier call for done; raises InputError where they are another model's, or no table."""
        if self._out.exists():
            self._rows = {printable(row["image"]): row for row in self._read()}

    def has(self, case: Case) -> bool:
        """Tell whether a case has a row, of its image as it is now, and read as the modality that it is said to be."""
        row = self._rows.get(printable(case.place))
        return row is not None and is_of(case, row)

    def add(self, case: Case, scan: Scaled) -> None:
        """Classify a scan; the table is on disk before the next."""
        probabilities = predict_targets(self._model, scan.volume, size=self._size).double().sigmoid().tolist()
        origin = origin_of(case)
        row = {"modality": case.modality, "model": self._name, **origin._asdict(), "bytes": str(origin.bytes)}
        named = zip(self._targets, probabilities, strict=True)
        self._rows[origin.image] = row | {target: f"{probability:.12g}" for target, probability in named}
        write_text(self._out, as_csv(self._columns, self._rows.values(), checked=True))

    def _read(self) -> list[dict[str, str]]:
        other = "is no table of predictions of this model: choose another file"
        rows = [row for _, row in read_checked(self._out, self._columns, otherwise=other)]
        if any(row["model"] != self._name for row in rows):
            raise InputError(f"{self._out} {other}")
        return rows


def _window(description: Mapping[str, Any]) -> Grid:
    """Return the size at which the model was trained; raises InputError where its description lacks it."""
    if (size := crop_size(description)) is None:
        raise InputError("the description of the model names no crop_size: take it from its run again")
    return size


def _differing(record: Path, legend: Mapping[str, Any]) -> str | None:
    """Return the first key of `legend` that has another value in the `record` of an earlier call, None for no key."""
    try:
        before = read_json(record)
        return next((key for key, value in legend.items() if before.get(key) != value), None)
    except (ValueError, AttributeError):
        return "legend"
