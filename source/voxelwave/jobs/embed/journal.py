"""The embeddings of a call that is not at its end: a row each on disk, from which the same call goes on."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from voxelwave.data.listing.cases import Case
from voxelwave.errors import InputError
from voxelwave.jobs.common.images import is_of, origin_of
from voxelwave.ops.files import absolute, naming, write_text
from voxelwave.ops.loggers import printable
from voxelwave.ops.tables import MOST_MB, as_csv, read_checked, without_cut_line
from voxelwave.ops.texts import read_bytes

COLUMNS = ("image", "modality", "bytes", "sha256", "model", "embedding")
SUFFIX = ".begun"
Vector = Float32[ndarray, " embed"]


class Journal:
    """What is embedded for the table `out`, in a file beside it, by a `model` (its weights and the depth of features).

    Rows of another model do not count, and those of an image that has changed since do not.
    Raises InputError for a file that is no journal, or is damaged.
    """

    def __init__(self, out: Path, model: str) -> None:
        self._path, self._model = absolute(out).with_name(out.name + SUFFIX), model
        self._rows: dict[str, dict[str, str]] = {}
        if not self._path.exists():
            return
        try:
            text = without_cut_line(read_bytes(self._path, most_mb=MOST_MB)).decode()
        except (OSError, ValueError) as error:
            raise InputError(f"{self._path} cannot be read: {error}; move it away to begin anew") from None
        other = "is no journal of voxelwave embed: move it away"
        rows = [row for _, row in read_checked(self._path, COLUMNS, otherwise=other, text=text)]
        self._rows = {row["image"]: row for row in rows if row["model"] == model}
        # Without what does not count, and the start of a line at its end.
        write_text(self._path, as_csv(COLUMNS, self._rows.values(), checked=True))

    def has(self, case: Case) -> bool:
        """Tell whether the image of a case is embedded, as it is now, and as of the modality that it is said to be."""
        row = self._rows.get(printable(case.place))
        if row is None:
            return False
        if is_of(case, row):
            return True
        del self._rows[row["image"]]  # whether or not it can be embedded anew
        return False

    def add(self, case: Case, vector: Vector) -> None:
        """Keep an embedding."""
        origin = origin_of(case)
        row = {**origin._asdict(), "bytes": str(origin.bytes), "modality": case.modality, "model": self._model}
        row["embedding"] = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        self._rows[origin.image] = row
        with naming(self._path), self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(as_csv(COLUMNS, [row], header=file.tell() == 0, checked=True))

    def embedded(self, cases: Sequence[Case]) -> tuple[list[Case], Float32[ndarray, "scan embed"]]:
        """Return those of the cases that have a row, with the modality that they were read as, and their embeddings."""
        found = [(case, row) for case in cases if (row := self._rows.get(printable(case.place))) is not None]
        vectors = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for _, row in found]
        return [replace(case, modality=row["modality"]) for case, row in found], np.stack(vectors).astype(np.float32)

    def end(self) -> None:
        """Remove the file: all that it says is in the table."""
        self._path.unlink(missing_ok=True)
