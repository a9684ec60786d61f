"""Rules that tell the modality of a scan, and whose it is, by names and values; each answer names its rule."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from voxelwave.data.recognition.labels import LABEL_WORDS, without_suffix
from voxelwave.errors import UnusableVolume

BIDS_SUFFIXES = re.compile(
    r"T1w|T2w|PDw|PDT2|FLAIR|T2star|T2starw|MP2RAGE|UNIT1|T1rho|inplaneT[12]|MEGRE|MESE|VFA|MPM|angio|SWI|bold|sbref|dwi|epi"
)
MODALITY_WORDS = {
    "ct": re.compile(r"ct|cta|ncct|cect|hu"),
    "mri": re.compile(
        r"mr|mri|mra|t1w?c?|t2w?|t1ce|t1gd|t1n|t2f|t2star|mprage|spgr|flair|pd|pdw|dwi|adc|swi|epi|bold|fmri|tof|mp2?rage|unit1|angio|openmind"
    ),
    # Neither: these stop the search, so that a folder further up is not believed.
    "": re.compile(r"pet|spect|phase|phase[12]|phasediff|fieldmap|dose|rtstruct"),
}
OF_CT_TOO = ("phase", "dose")  # an arterial phase, a low dose
# What BIDS and dcm2niix write into the name of a part of a complex image that is not its magnitude.
NO_MAGNITUDE = re.compile(r"_(part-(?:phase|real|imag))(?=_)|_(ph|phase|real|imag|imaginary)$", re.IGNORECASE)
DICOM_MODALITIES = {"CT": "ct", "MR": "mri"}

# Of air with its noise; lower values are those of padding, which MRI may have, too.
AIR_HU, AIR_SHARE = (-1100, -900), 0.02

# Data sets whose names say of whose and of which scan a file is, the subject in the first group.
NAMED_BY_SUBJECT = (
    re.compile(r"(\d{6})_\d{2}_\d{2}_\d{3}-\d{3}"),  # DeepLesion
    re.compile(r"(OAS\d_\d{4})(?:_.*)?"),  # OASIS
    re.compile(r"(?:ADNI_)?(\d{3}_S_\d{4})(?:_.*)?"),  # ADNI
    re.compile(r"(BraTS-[A-Za-z]+-\d{5})-\d{3}(?:-.*)?"),  # BraTS since 2023
)
# Words behind a name that tell which scan of a subject it is, and not whose.
OF_A_SCAN = re.compile(
    r"\d+(p\d+)?mm|pre|post|visit\d*|ses\d*|session\d*|month\d*|baseline|followup|orig|norm|brain|thin|plain|contrast"
    r"|ax|axi?|axial|sag|sagittal|cor|coronal|tra|transversal|timepoint\d*|tp\d+"
)
CHANNEL = re.compile(r"_\d{4}$")  # of nnU-Net, below imagesTr and imagesTs
OF_NO_DATA_SET = ("rawdata", "sourcedata", "images")
BIDS_SUBJECT = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+)(?=_|$)")
BIDS_SESSION = re.compile(r"(?:^|(?<=[_/]))ses-[A-Za-z0-9]+")


class Told(NamedTuple):
    """A modality (None: unknown; "": none of those that can be used), the rule that told it, and whether it is sure."""

    modality: str | None
    rule: str
    sure: bool = True

    def known(self) -> str:
        """Return the modality; raises UnusableVolume where nothing tells it, or where it is none that can be used."""
        if self.modality:
            return self.modality
        what = "modality unknown: " if self.modality is None else "neither MRI nor CT by "
        raise UnusableVolume(f"{what}{self.rule}; say which with --modality")


def modality_by_name(path: Path, root: Path) -> Told:
    """Tell the modality by the name of the file, then by its folders up to and including `root`, the nearest first."""
    stem = without_suffix(path.name)
    suffix = stem.rpartition("_")[2]
    if stem.startswith("sub-") and path.parent.name == "fmap":
        return Told("", "the BIDS folder fmap")
    of_ct = any(name == "ct" for name, _ in _telling_words(stem))
    if not of_ct and (part := NO_MAGNITUDE.search(stem)):
        return Told("", f"'{part[1] or part[2]}' in the name '{stem}', which is no magnitude image")
    if stem.startswith("sub-") and BIDS_SUFFIXES.fullmatch(suffix):
        return Told("mri", f"BIDS suffix {suffix}")
    for place, kind in ((stem, "name"), *((name, "folder") for name in _folders(path, root))):
        if told := _telling_words(place):
            # The last word counts, as in CT_to_T1: but where words disagree, nobody can be sure.
            name, word = told[-1]
            return Told(name, f"'{word}' in the {kind} '{place}'", sure=len({name for name, _ in told}) == 1)
    return Told(None, "neither name nor folder tells it")


def modality_by_content(array: Float32[ndarray, "..."]) -> Told:
    """Tell the modality by shape and values: three channels, or air at -1000, are taken for CT, but are not sure."""
    if array.ndim > 3:
        return Told("ct", "three channels", sure=False)
    if _holds_air(array):
        return Told("ct", "air at about -1000, as in Hounsfield units", sure=False)
    return Told(None, "neither name, folder nor values tell it")


def contradiction(told: Told, array: Float32[ndarray, "..."]) -> str | None:
    """Say why the values speak against a modality told by a name, or None."""
    if told.modality == "mri" and array.ndim == 3 and _holds_air(array):
        return f"taken for MRI by {told.rule}, but its values look like Hounsfield units: say which with --modality"
    return None


def subject_by_name(
    path: Path, root: Path, pattern: re.Pattern[str] | None = None, *, patient: str = "", study: str = ""
) -> str:
    """Tell whose scan a file is; scans of one subject must never be parted by a split.

    In this order: the first group of `pattern` that holds something in the path below `root`; BIDS' `sub-…`, with the
    folder of its data set, since another one counts from 01 again; the `patient` that DICOM names; the subject in names
    of DeepLesion, OASIS, ADNI and BraTS; the name of the file without words of modality, label and kind of scan
    (`stroke_T1`, `stroke_T2_post`: stroke) or nnU-Net's number of a channel. Where nothing else is in the name, it is
    the highest folder that says more (`patient07/month12/T1`: patient07). What the folder of a series says is mostly
    the name of the series: its `study`, where DICOM names one, comes before that.
    """
    stem = without_suffix(path.name)
    *folders, root_name = _folders(path, root) or [""]
    folders.reverse()
    below = "/".join([*folders, stem])
    if pattern is not None and (found := pattern.search(below)):
        told = found.groups() if pattern.groups else (found[0],)
        if any(told):
            return str(next(filter(None, told)))
    for place, folder in enumerate(folders):
        if found := BIDS_SUBJECT.search(folder):
            above = takewhile(lambda name: name != "derivatives", folders[:place])
            data_set = [name for name in above if own_words(name) and not _telling_words(name)]
            return "/".join([*(name for name in data_set if name not in OF_NO_DATA_SET), folder[: found.end()]])
    if found := BIDS_SUBJECT.search(stem):
        return stem[: found.end()]
    if patient:
        return patient
    for name in (stem, *folders):
        if found := next(filter(None, (of.fullmatch(name) for of in NAMED_BY_SUBJECT)), None):
            return found[1]
    if (folders or [root_name])[-1] in ("imagesTr", "imagesTs"):
        stem = CHANNEL.sub("", stem)
    if study and own_words(stem):
        return study
    names = (stem, *folders, root_name)
    return next(("_".join(words) for name in names if (words := own_words(name))), stem)


def session_by_name(path: str) -> str:
    """Return BIDS' `ses-…` of a path, by which the visits of a subject are told apart; "" where there is none."""
    found = BIDS_SESSION.search(path)
    return found[0] if found else ""


def own_words(name: str) -> list[str]:
    """Return the words of a name that tell neither a modality, a label map nor the kind of a scan."""
    return [word for word in re.split(r"[\W_]+", name) if word and not _is_kind(word.lower())]


def _is_kind(word: str) -> bool:
    return bool(LABEL_WORDS.fullmatch(word.rstrip("0123456789")) or OF_A_SCAN.fullmatch(word)) or any(
        telling.fullmatch(word) for telling in MODALITY_WORDS.values()
    )


def _telling_words(place: str) -> list[tuple[str, str]]:
    """Return (modality, word) for each word of a name that tells one."""
    words = [word for word in re.split(r"[^a-z0-9]+", place.lower()) if word]
    told = [(name, word) for word in words for name, telling in MODALITY_WORDS.items() if telling.fullmatch(word)]
    if any(name == "ct" for name, _ in told):
        return [(name, word) for name, word in told if word not in OF_CT_TOO]
    return told


def _folders(path: Path, root: Path) -> list[str]:
    """Return the folders of `path`, the nearest first, up to `root` (all where it is elsewhere)."""
    folders = path.parent.relative_to(root.parent) if path.is_relative_to(root) else path.parent
    return list(reversed(folders.parts))


def _holds_air(array: Float32[ndarray, "..."]) -> bool:
    sample = array[::4, ::4, ::4]
    return bool(np.mean((sample >= AIR_HU[0]) & (sample < AIR_HU[1])) > AIR_SHARE)
