"""The manifest of a prepared data set: one row a file, with what became of it and why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from voxelwave.errors import InputError
from voxelwave.ops import tables
from voxelwave.ops.files import below, write_text
from voxelwave.ops.loggers import printable
from voxelwave.ops.texts import read_bytes

MANIFEST, DATASET = "manifest.csv", "dataset.json"

LABEL = "label"
OF_STORED = ("minimum", "maximum", "mean", "std", "split", "label_for", "output", "stored_shape", "stored_spacing_mm")


def _split(text: Any) -> Any:
    return tuple(text.split("x") if text else ()) if isinstance(text, str) else text


def _join(sides: tuple[float, ...]) -> str:
    return "x".join(f"{side:.6g}" for side in sides)


Text = Annotated[str, BeforeValidator(printable)]
Sides = Annotated[tuple[int, ...], BeforeValidator(_split), PlainSerializer(_join)]
Lengths = Annotated[tuple[float, ...], BeforeValidator(_split), PlainSerializer(_join)]
Number = Annotated[float | None, BeforeValidator(lambda text: None if text == "" else text)]


class Row(BaseModel):
    """What is known of one volume; columns of the manifest, in this order.

    Attributes:
        file: the file it comes from, or the folder of a DICOM series; `#3` is the fourth volume of a file of several.
        subject: whose scan it is; never parted by a split.
        modality: "mri", "ct", … or "label"; empty where nothing told it.
        told_by: the rule that told the modality, with "unsure" where it is one.
        shape, spacing_mm, orientation: of the file, in its order of storage.
        minimum, maximum: of what is stored, in the units of the file; CT after its padding was raised to -1024.
        mean, std: of the foreground of that.
        nonfinite: voxels that were not a number or infinite.
        hash: of the values, orientation aside.
        status, reason: "accepted", or "refused" and why.
        damaged: refused because it cannot be read at all.
        note: what was done to it beyond the settings.
        split: "train" or "test", by subject.
        label_for: the file of the image that a label map belongs to.
        output, stored_shape, stored_spacing_mm: what was written, relative to the manifest.
        file_bytes, file_mtime_ns: of the file, so that a change is noticed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Text
    subject: Text = ""
    modality: str = ""
    told_by: Text = ""
    shape: Sides = ()
    spacing_mm: Lengths = ()
    orientation: str = ""
    minimum: Number = None
    maximum: Number = None
    mean: Number = None
    std: Number = None
    nonfinite: int = 0
    hash: str = ""
    status: Literal["accepted", "refused"]
    reason: Text = ""
    damaged: bool = False
    note: Text = ""
    split: str = ""
    label_for: Text = ""
    output: str = ""
    stored_shape: Sides = ()
    stored_spacing_mm: Lengths = ()
    file_bytes: int = 0
    file_mtime_ns: int = 0

    @property
    def accepted(self) -> bool:
        """Whether the volume was stored."""
        return self.status == "accepted"

    def as_refused(self, reason: str) -> Row:
        """Return the row of the same file where nothing of it is stored."""
        blank = {name: field.default for name, field in Row.model_fields.items() if name in OF_STORED}
        return self.model_copy(update={**blank, "status": "refused", "reason": reason})


COLUMNS = tuple(Row.model_fields)


def as_csv(rows: Iterable[Row], *, header: bool) -> str:
    """Return rows as lines of a CSV."""
    # With this end of a line, both of its signs are quoted within a name.
    return tables.as_csv(COLUMNS, (row.model_dump() for row in rows), header=header, line_end="\r\n", checked=True)


def write_manifest(path: Path, rows: Iterable[Row]) -> None:
    """Write the manifest atomically."""
    write_text(path, as_csv(rows, header=True))


def read_manifest(path: Path) -> list[Row]:
    """Read the rows; a last line that was cut off, as when its writer was killed, is left out.

    Raises InputError for a file that is no manifest, one of whose rows is not what was written, or one whose outputs do
    not lie below its folder.
    """
    try:
        # Without the cut line first: it may end within a letter.
        text = tables.without_cut_line(read_bytes(path, most_mb=tables.MOST_MB)).decode("utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the manifest {path}: {error}") from None
    rows = []
    other = "is not a manifest of this version of voxelwave: prepare into another folder"
    for line, cells in tables.read_checked(path, COLUMNS, otherwise=other, text=text):
        try:
            row = Row.model_validate(cells)
        except ValidationError as error:
            problem = str(error).splitlines()[0]
            raise InputError(f"{path}, line {line}, is not a row of a manifest ({problem})") from None
        if row.output:
            # Here, so that whoever has a row can read, replace and delete what it names.
            below(path.parent, row.output)
        rows.append(row)
    return rows


def is_prepared(folder: Path) -> bool:
    """Tell whether `voxelwave prepare` wrote a folder."""
    return (folder / DATASET).is_file() and (folder / MANIFEST).is_file()


def stored_rows(folder: Path) -> tuple[list[Row], list[Row]]:
    """Return the rows of the images that are stored in a prepared folder, and those of the label maps.

    Raises InputError where its manifest cannot be read.
    """
    rows = [row for row in read_manifest(folder / MANIFEST) if row.accepted]
    return [row for row in rows if row.modality != LABEL], [row for row in rows if row.modality == LABEL]


def split_of(subject: str, *, holdout: float, seed: int = 0) -> str:
    """Return "test" for a share `holdout` of all subjects, else "train".

    The answer follows from the subject's name alone, so that it stays the same when other subjects are added.
    """
    digest = hashlib.blake2b(f"{seed}/{subject}".encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") < holdout * 2**64 else "train"
