"""Reconstruction of files of k-space: which network takes which file, and one volume after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32
from numpy import ndarray
from torch import Tensor

from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.images.writing import FIRST_DICOM, write_dicom, write_hdf5, write_nifti, write_png
from voxelwave.data.kspace.slices import KspaceSlices, has_gaps, measured_columns
from voxelwave.engine.runtime import best_device
from voxelwave.engine.signals import stop_on_signal
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console, tracked
from voxelwave.jobs.common.kspace_files import MARKED_BLOCKS, RESULTS
from voxelwave.jobs.common.outcome import Outcome
from voxelwave.jobs.reconstruct.data import preparation_of
from voxelwave.jobs.reconstruct.picking import METHODS, NETWORK, Specialist, Specialists
from voxelwave.jobs.reconstruct.preparation import Preparation
from voxelwave.jobs.reconstruct.schedule import blocks_of
from voxelwave.jobs.reconstruct.scoring.pairs import kspace_outside, result_places
from voxelwave.ops.files import content_mark, locked, write_text
from voxelwave.ops.texts import read_json, to_json
from voxelwave.physics.fourier import center_crop
from voxelwave.physics.sampled_lines import Acceleration, acceleration_of, as_lines

FORMATS = ("hdf5", "nifti", "dicom", "png")


class Volume(NamedTuple):
    """A reconstructed volume, and what is known of how it was sampled."""

    images: Float32[ndarray, "slice rows columns"]
    sampled: Bool[ndarray, " width"] | None
    acceleration: Acceleration | None


def reconstruct_files(
    run: Path,
    source: str,
    out: Path,
    *,
    method: str = NETWORK,
    formats: Sequence[str] = ("hdf5",),
    slices_at_once: int = 1,
    coils_at_once: int | None = None,
    regularisation: float | None = None,
    console: Console | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Reconstruct every file of k-space at `source`; what is in `out` already is kept.

    Each volume is written to `out` at its place below `source`: `NAME.h5`, and beside it, as `formats` ask,
    `NAME.nii.gz`, a folder `NAME` of DICOM files, and a sheet `NAME.png`. A file that holds all of its k-space is
    undersampled as the run validates, by its mask where it has one.

    Args:
        run: the folder of a run, or one that holds the runs of several specialists and of a router; for a classical
            method a configuration will do.
        method: "network", or a classical one for comparison.
        slices_at_once: bounds the memory together with the size of a slice.
        coils_at_once: bounds what is in memory of each slice beside its k-space and maps; None takes all coils.
            L1-wavelet and GRAPPA always do.
        regularisation: of a classical method; None takes its default.

    Raises InputError where there is nothing to reconstruct or to do it with, or `out` holds other results.
    """
    console = console or Console()
    for given, known, option in ((method, METHODS, "method"), *((one, FORMATS, "format") for one in formats)):
        if given not in known:
            raise InputError(f"unknown {option} '{given}'; known: {', '.join(known)}")
    for option, number in (("slices_at_once", slices_at_once), ("coils_at_once", coils_at_once)):
        if number is not None and number < 1:
            raise InputError(f"{option} is at least 1, got {number}")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give a folder to write the volumes to")
    # 1. Networks and files.
    specialists = Specialists(
        run, method=method, device=best_device(), coils_at_once=coils_at_once, regularisation=regularisation
    )
    paths = kspace_outside(source, out)
    places = dict(zip(paths, result_places(paths, source), strict=True))
    done, refused, complete = 0, list[str](), True
    out.mkdir(parents=True, exist_ok=True)
    with locked(out), stop_on_signal() as signalled:
        settings = {} if regularisation is None else {"regularisation": regularisation}
        record = _Record(out, {"method": method, "weights": specialists.marks, **settings})
        # 2. One file after the other but for those that are done.
        for path in tracked(paths, "reconstructed"):
            if signalled.asked or should_stop():
                complete = False
                break
            todo = [form for form in formats if not _written(out / places[path], form)]
            try:
                record.add(path, places[path], begun=any(_written(out / places[path], form) for form in FORMATS))
                if todo:
                    _reconstruct_file(path, out / places[path], todo, specialists, slices_at_once, console)
            except InputError as error:
                refused.append(str(error))
                continue
            done += 1
    # 3. What became of all.
    if len(paths) == len(refused) == 1:
        raise InputError(refused[0])
    if refused:
        console.say(f"cannot be reconstructed: {len(refused)} of {len(paths)}", *(f"  {line}" for line in refused))
        if not done and complete:
            raise InputError(
                f"none of the {len(paths)} files at '{source}' can be reconstructed; the first, {refused[0]}"
            )
    console.say(f"{done} of {len(paths)} volumes are in {out}")
    return Outcome(complete, unusable=len(refused))


class _Record:
    """What a folder holds: by which method and weights, and of which files, which names alone do not tell.

    Raises InputError where it holds results by others, or its record is damaged.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self._out, self._path, self._settings = out, out / RESULTS, settings
        self._files: dict[str, str] = {}
        if self._path.exists():
            try:
                before = dict(read_json(self._path))
                self._files = dict(before.pop("files", {}))
            except (ValueError, TypeError):
                raise InputError(f"{self._path} cannot be read: choose another folder") from None
            if before != settings:
                raise InputError(
                    f"{out} holds reconstructions by another method or other weights: choose another folder"
                )
        self._write()

    def add(self, path: Path, place: Path, *, begun: bool) -> None:
        """Note that the result at `place` is of `path`; raises InputError where one was `begun` of another file."""
        try:
            mark = content_mark(path, blocks=MARKED_BLOCKS)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        name = place.as_posix()
        if begun and self._files.get(name) != mark:
            raise InputError(f"{path}: {self._out / place} is of another file of this name: choose another folder")
        if self._files.get(name) != mark:
            self._files[name] = mark
            self._write()

    def _write(self) -> None:
        write_text(self._path, to_json(self._settings | {"files": self._files}))


def _target_of(place: Path, form: str) -> Path:
    """Return where the volume at `place`, an HDF5 file, lies in another format."""
    stem = place.with_suffix("")
    return {"hdf5": place, "nifti": Path(f"{stem}.nii.gz"), "dicom": stem, "png": Path(f"{stem}.png")}[form]


def _written(place: Path, form: str) -> bool:
    there = _target_of(place, form)
    # A folder of that name may be one of other results; the first of a series is written last.
    return (there / FIRST_DICOM).exists() if form == "dicom" else there.exists()


def _reconstruct_file(
    path: Path, place: Path, formats: Sequence[str], specialists: Specialists, slices_at_once: int, console: Console
) -> None:
    file = KspaceFile(path)
    anatomy = specialists.anatomy(file)
    lines = own_lines(file)
    specialist = specialists.pick(anatomy, None if lines is None else acceleration_of(lines), file.info.size[1])
    volume = reconstruct_volume(
        file, specialist, undersample=lines is None, slices_at_once=slices_at_once, device=specialists.device
    )
    rate = volume.acceleration
    if rate is not None:
        rate = specialist.as_configured(rate, drawn=lines is None)
    attributes: dict[str, str | float] = {
        "anatomy": anatomy,
        "method": specialist.method,
        "specialist": specialist.name if specialist.method == NETWORK else "",
    }
    if rate is not None:
        attributes |= {"acceleration": rate.nominal, "effective_acceleration": rate.effective}
    place.parent.mkdir(parents=True, exist_ok=True)
    refused = list[str]()
    for form in formats:
        where = _target_of(place, form)
        try:
            if form == "hdf5":
                write_hdf5(where, volume.images, attributes, volume.sampled)
            elif form == "nifti":
                write_nifti(where, volume.images, file.info)
            elif form == "dicom":
                # Other scans may have the same name.
                scan = f"{path.name} {content_mark(path, blocks=MARKED_BLOCKS)}"
                write_dicom(where, volume.images, file.info, name=scan, description=file.info.acquisition)
            else:
                write_png(where, volume.images)
        except InputError as error:
            refused.append(str(error))
    by = f"{specialist.name}, " if len(specialists.paths) > 1 else ""
    said = "" if rate is None else f", {rate.nominal:.3g}× nominal, {rate.effective:.3g}× effective"
    console.say(f"{path}: {by}{anatomy or 'no anatomy'}{said}")
    if refused:
        raise InputError(f"{path}: {'; '.join(refused)}")


def own_lines(file: KspaceFile) -> Bool[Tensor, " width"] | None:
    """Return the lines that a file itself chooses, by its mask or by holding no others; None without gaps."""
    if file.info.sampled is not None:
        lines = torch.tensor(file.info.sampled)
    else:
        lines = measured_columns(file.slice(len(file) // 2), file.path)
    return lines if has_gaps(lines) else None


def _prepared(
    slices: KspaceSlices, prepare: Preparation, numbers: range, *, least_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is reconstructed of some slices, where that is sampled, and where the files are.

    Of single slices, there is no other copy of their k-space in memory.
    """
    kspaces, places, sampled = list[Tensor](), list[Tensor](), None
    for number in numbers:
        item = slices[number]
        sampled = item.sampled if sampled is None else sampled
        kspace, chosen = prepare(item.kspace, item.sampled, slices.place(number)[0], least_rows=least_rows)
        kspaces.append(kspace)
        places.append(chosen)
    assert sampled is not None
    return kspaces[0][None] if len(kspaces) == 1 else torch.stack(kspaces), torch.stack(places), sampled


@torch.no_grad()
def reconstruct_volume(
    file: KspaceFile, specialist: Specialist, *, undersample: bool, slices_at_once: int, device: torch.device
) -> Volume:
    """Return the images of all slices, of lines as the run validates with where it is to `undersample`.

    Raises InputError for k-space that cannot be used.
    """
    config, info = specialist.config, file.info
    sampling = blocks_of(config.blocks)[-1].sampling() if undersample else None
    slices = KspaceSlices(
        [file], sampling, neighbours=specialist.neighbours, seed=config.run.seed, by_file=True, data_range="slice"
    )
    size = info.target_size or info.image_size
    prepare, rows = preparation_of(config.data), size[0] if size else 0
    images, sampled = list[ndarray](), torch.empty(0)
    for first in range(0, len(slices), slices_at_once):
        numbers = range(first, min(first + slices_at_once, len(slices)))
        kspace, places, sampled = _prepared(slices, prepare, numbers, least_rows=rows)
        kspace, chosen = kspace.to(device), as_lines(places.to(device))
        try:
            image = specialist.reconstruct(kspace, chosen)
        except ValueError as error:
            raise InputError(f"{file.path}: slice {first}: {error}") from None
        if size is not None:
            image = center_crop(image, (min(size[0], image.shape[-2]), min(size[1], image.shape[-1])))
        images += [one.numpy() for one in image.float().cpu()]
    chosen = as_lines(sampled[None])[0]
    values = np.stack(images)
    if not np.isfinite(values).all():
        raise InputError(f"{file.path}: its reconstruction is not finite: the weights do not fit such k-space")
    if chosen.ndim > 1:  # single places
        return Volume(values, None, None)
    return Volume(values, chosen.numpy(), acceleration_of(chosen))
