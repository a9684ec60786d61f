"""Cases of a downstream task: an image with its label map, its targets, and whose scan it is."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from voxelwave.data.listing.discovery import home_expanded, no_file
from voxelwave.data.listing.manifest import Row, is_prepared, stored_rows
from voxelwave.data.listing.scans import files_of
from voxelwave.data.reading.dicom_header import Series
from voxelwave.data.recognition.labels import without_suffix
from voxelwave.data.recognition.rules import session_by_name
from voxelwave.errors import InputError
from voxelwave.ops.files import absolute, free_stem, real_path
from voxelwave.ops.tables import read_csv
from voxelwave.registry import MODALITIES

CASES = "cases.csv"
NAME_IT = "name it in a column 'modality', or for all (data.modality, --modality)"
NAME_THEM = "; where this column is no target, name those that are (--targets, task.targets)"
COLUMNS = ("image", "label", "subject", "session", "modality", "split", "fold")
# What is no target, whatever numbers it holds, but whose scan it is by another name.
SUBJECT = re.compile(
    r"(subjects?|patients?|participants?|cases?)([ _-]?(id|no|nr|number|name))?|sub|pid", re.IGNORECASE
)

# Not more digits than a number in a table of any program has without rounding.
WHOLE_NUMBER = re.compile(r"([+-]?\d{1,15})(?:\.0*)?", re.ASCII)


@dataclass(frozen=True)
class Case:
    """One image of a task.

    Attributes:
        name: no other case has it.
        image, label: files; a case need not have a label map.
        modality: "mri", "ct", …
        subject: whose scan it is; never parted by a split.
        session: which visit of the subject it is of; "" where nothing tells.
        targets: whole numbers by name, for classification; a target that is not known is not there.
        split: as the list has it: "train", "test", … or "".
        fold: which one the list puts it in; None where it says none.
        series: the files of a DICOM series, of which `image` is the folder.
    """

    name: str
    image: Path
    modality: str
    subject: str
    session: str = ""
    label: Path | None = None
    targets: Mapping[str, int] = field(default_factory=dict)
    split: str = ""
    fold: int | None = None
    series: Series | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that hold the image."""
        return files_of(self.image, self.series)

    @property
    def place(self) -> str:
        """The whole path of the image, with the number of its series where a folder may hold several."""
        return f"{absolute(self.image)}{f'#{self.series.uid}' if self.series else ''}"


def find_cases(
    path: str | Path,
    *,
    modality: str = "",
    label: str | None = "",
    targets: Collection[str] | None = None,
    needs_modality: bool = True,
) -> list[Case]:
    """List the cases of a CSV, of a folder with a `cases.csv`, or of one that `voxelwave prepare` wrote, in order.

    A CSV has a column `image` and may have `label`, `subject`, `session`, `modality`, `split` and `fold`; every other
    column is a target of whole numbers, empty where it is not known. Paths are relative to the CSV. An image without a
    subject is taken as the only one of its subject, one without a session as of that which BIDS' `ses-…` in its path
    names.

    Args:
        modality: of the images for which the list says none; images of other modalities are left out. "" takes all.
        label: a word of the names of the label maps to take, where a prepared image has several; None takes none of a
            prepared folder.
        targets: names of the targets that are needed; of other columns what is no whole number is passed over. With
            None all are.
        needs_modality: raises for an image of which neither `modality` nor the list says it; else it is "".

    Raises InputError for a file that is missing or not such a list, in one line.
    """
    place = home_expanded(str(path))
    if (place / CASES).is_file():
        place = place / CASES
    if place.is_file() and place.suffix.lower() == ".csv":
        if label:
            raise InputError(
                f"'{label}' is to choose among the label maps of a prepared folder (data.label), and the list {place} "
                "names them in its column 'label'"
            )
        cases = _listed(place, modality, targets, needs_modality=needs_modality)
    elif is_prepared(place):
        cases = named_apart(prepared_cases(place, label=label))
    else:
        raise InputError(
            f"{place} is neither a list of cases (CSV), nor a folder with a {CASES}, nor one that `voxelwave prepare` "
            f"wrote (working folder: {Path.cwd()})"
        )
    cases = [case for case in cases if modality in ("", case.modality)]
    if not cases:
        raise InputError(f"{place} holds no case{f' of modality {modality}' if modality else ''}")
    return cases


def columns_of(table: Path) -> list[str]:
    """Return the columns of a list; the case and the blanks of those that are known here mean nothing."""
    names = (name.strip() for name in next(read_csv(table), (0, []))[1])
    return [name.lower() if name.lower() in COLUMNS else name for name in names]


def _listed(table: Path, modality: str, wanted: Collection[str] | None, *, needs_modality: bool) -> list[Case]:
    columns, rows = columns_of(table), read_csv(table)
    next(rows, None)
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise InputError(f"list '{table}' has two columns '{twice}'")
    if "subject" not in columns and (other := next((name for name in columns if SUBJECT.fullmatch(name)), None)):
        raise InputError(
            f"list '{table}' has a column '{other}' and no 'subject': name it 'subject', by which cases are "
            f"parted, or give a column 'subject' beside it"
        )
    if "image" not in columns:
        raise InputError(f"list '{table}' needs a column 'image' in its first line, got {columns}")
    needed = {column: wanted is None or column in wanted for column in columns if column not in COLUMNS}
    cases = []
    for line, cells in rows:
        where = f"list '{table}', line {line}"
        if not any(map(str.strip, cells)):
            continue  # as spreadsheets leave them
        if len(cells) > len(columns):
            raise InputError(f"{where}: more cells than columns")
        row = dict.fromkeys(columns, "") | dict(zip(columns, cells, strict=False))
        case = _case(row, table.parent, where, needed, modality)
        if not case.modality and needs_modality:
            raise InputError(f"{where}: modality '' is none of {', '.join(MODALITIES.names())}: {NAME_IT}")
        cases.append(case)
    seen: set[Path] = set()
    for case in cases:
        if (image := real_path(case.image)) in seen:
            raise InputError(f"list '{table}' has {case.image} twice; links and other paths count, too")
        seen.add(image)
    return [replace(case, subject=case.subject or case.name) for case in named_apart(cases)]


def _case(row: Mapping[str, str], folder: Path, where: str, needed: Mapping[str, bool], modality: str) -> Case:
    files = {}
    for column in ("image", "label"):
        given = (row.get(column) or "").strip()
        files[column] = folder / home_expanded(given) if given else None
        # A path that is too long for the system makes Path.is_file raise.
        if (file := files[column]) is not None and not os.path.isfile(file):  # noqa: PTH113
            raise InputError(f"{where}: {no_file(file)}")
    if (image := files["image"]) is None:
        raise InputError(f"{where}: the cell 'image' is empty")
    named = (row.get("modality") or modality).strip().lower()
    if named and named not in MODALITIES.names():
        raise InputError(f"{where}: modality '{named}' is none of {', '.join(MODALITIES.names())}: {NAME_IT}")
    return Case(
        name=without_suffix(image.name),
        image=image,
        modality=named,
        subject=(row.get("subject") or "").strip(),
        session=(row.get("session") or "").strip() or session_by_name(image.as_posix()),
        label=files["label"],
        targets={
            name: number
            for name, is_needed in needed.items()
            if (number := _number(row[name], f"{where}, column '{name}': a target", NAME_THEM, needed=is_needed))
            is not None
        },
        split=(row.get("split") or "").strip(),
        fold=_number(row.get("fold") or "", f"{where}: a fold"),
    )


def _number(text: str, what: str, way_out: str = "", *, needed: bool = True) -> int | None:
    """Return the number in a cell, None for an empty one, and for what is none and is not `needed`."""
    # Tables with gaps are often written with 1.0 for 1.
    if found := WHOLE_NUMBER.fullmatch(text.strip()):
        return int(found[1])
    if needed and text.strip():
        rule = "is a whole number of at most 15 digits, or empty where it is not known"
        raise InputError(f"{what} {rule}, got '{text}'{way_out}")
    return None


def named_apart(cases: Sequence[Case]) -> list[Case]:
    """Put folders before the names of all cases until no two are alike: results are written by name.

    What no folders tell apart, such as T1.nii and T1.nii.gz of one folder, is numbered, and long names are cut.
    """
    parents = [case.image.absolute().parent.parts[1:] for case in cases]  # without the root

    def names_with(folders: int) -> list[str]:
        told = zip(parents, cases, strict=True)
        return ["_".join([*parts[max(len(parts) - folders, 0) :], case.name]) for parts, case in told]

    # Of the numbers of folders that part the most of them the lowest.
    names = max(map(names_with, range(max(map(len, parents), default=0) + 1)), key=lambda names: len(set(names)))
    taken: set[str] = set()
    return [replace(case, name=free_stem(name, taken)) for case, name in zip(cases, names, strict=True)]


def prepared_cases(folder: Path, *, label: str | None) -> list[Case]:
    """List the images of a prepared folder, each with its label map.

    Args:
        label: a word in the names of the label maps that count; with None none does.

    Raises InputError where an image has several that count.
    """
    images, label_maps = stored_rows(folder)
    maps_of: dict[str, list[Row]] = {}
    for row in label_maps:
        if label is not None and label in Path(row.file).name:
            maps_of.setdefault(row.label_for, []).append(row)
    cases = []
    for row in images:
        own = maps_of.get(row.file, [])
        if len(own) > 1:
            names = ", ".join(of.file for of in own)
            raise InputError(f"{folder}: {row.output} has several label maps ({names}): choose by a word of their name")
        cases.append(
            Case(
                name=without_suffix(Path(row.output).name),
                image=folder / row.output,
                modality=row.modality,
                subject=row.subject,
                session=session_by_name(row.file),
                label=folder / own[0].output if own else None,
                split=row.split,
            )
        )
    return cases
