"""K-space of generated images, or of a user's own, as files: data to run on for who has none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Bool
from torch import Tensor

from voxelwave.data.kspace import synthesis
from voxelwave.data.kspace.files import IMAGE_FOLDER, KSPACE_FOLDER
from voxelwave.data.kspace.writing import (
    LEFT,
    POSTERIOR,
    SUPERIOR,
    plain_header,
    write_challenge,
    write_fastmri,
    write_mrd,
)
from voxelwave.engine.signals import stop_on_signal
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.config_file import naming, validated
from voxelwave.jobs.common.console import Console, tracked
from voxelwave.jobs.common.made_folder import RECORD, filling, is_filled
from voxelwave.jobs.common.magnitude_images import GENERATED, ImageSource, Slices, image_source
from voxelwave.jobs.common.outcome import Outcome
from voxelwave.jobs.common.processes import run_all
from voxelwave.jobs.reconstruct.synthesis.config import SynthesisConfig
from voxelwave.ops.files import write_text
from voxelwave.ops.seeding import key_to_seed, torch_generator
from voxelwave.ops.tables import as_csv
from voxelwave.physics.sampled_lines import lines_of, num_center_lines
from voxelwave.physics.samplings.equispaced import EquispacedLines

# As in fastMRI's files of brains, in whose unit the image mask of the challenge has its thresholds.
BRIGHTEST = 1e-3
NOISE_CORRELATION = 0.3  # of neighbouring coils, where a noise scan tells of it
NOISE_SAMPLES = 4096
THINGS, VOLUMES = "k-space", "volumes.csv"


class Volume(NamedTuple):
    """One volume to write: its number, the name of its file, and where its images are from."""

    number: int
    name: str
    origin: str


def synthesize_kspace(out: Path, *, console: Console | None = None, **settings: Any) -> Outcome:
    """Write volumes of k-space to `out`, with `settings` as `SynthesisConfig` has them.

    The layout challenge is `out/kspace` and `out/image`, the others are files in `out`; `volumes.csv` says what each is
    made of. A volume depends on the seed, its own number and its images alone. Files that exist are kept, so that the
    same call goes on where it was stopped; it is then not complete.

    Raises InputError for settings that do not fit, images that cannot be used, or an `out` that holds k-space made with
    other settings.
    """
    checked = validated(SynthesisConfig, settings, "settings")
    if checked.size is not None:
        fixed_lines(checked, checked.size)
    console = console or Console()
    source = image_source(checked)
    volumes = _plan(checked, source)
    if source.left_out:
        console.say(f"left out: {len(source.left_out)}", *(f"  {line}" for line in source.left_out))
    if source.unused:
        console.say(f"'{checked.source}' holds {source.unused} more, which --volumes and --slices leave out")
    places = [out / KSPACE_FOLDER, out / IMAGE_FOLDER] if checked.layout == "challenge" else [out]
    planned = [place / volume.name for volume in volumes for place in places]
    with filling(out, checked.model_dump(mode="json"), things=THINGS, planned=planned) as complete:
        missing = [volume for volume in volumes if not all((place / volume.name).exists() for place in places)]
        write = partial(_write_volume, out=out, settings=checked, read=source.read)
        with stop_on_signal() as signalled:
            written = run_all(write, missing, workers=1, should_stop=lambda: signalled.asked)
            count = sum(1 for _ in tracked(written, "synthesized volumes", total=len(missing)))
        there = len(volumes) - len(missing) + count
        if count < len(missing):
            console.say(f"stopped, the same command goes on; so far {there} of {len(volumes)} volumes; {out}")
            return Outcome(complete=False)
        rows = [{"file": volume.name, "made_of": volume.origin} for volume in volumes]
        write_text(out / VOLUMES, as_csv(list(rows[0]), rows))
        complete()
    fewer = f", all that '{checked.source}' holds" if there < checked.volumes else ""
    console.say(f"{there} volumes of k-space{fewer}; {out}")
    return Outcome()


def synthesize_missing(folder: Path, settings: SynthesisConfig, *, console: Console | None = None) -> Outcome:
    """Make the data of a configuration unless `folder` has them: those of a finished call, or files of anybody's.

    Raises InputError as `synthesize_kspace` does.
    """
    plain = settings.model_dump(mode="json")
    is_of_others = folder.is_dir() and not (folder / RECORD).exists() and any(folder.iterdir())
    if is_of_others or is_filled(folder, plain, things=THINGS):
        return Outcome()
    return synthesize_kspace(folder, console=console, **plain)


def fixed_lines(settings: SynthesisConfig, width: int) -> Bool[Tensor, " width"]:
    """Return the lines of a k-space that its mask chooses, the same in all volumes of a width.

    Raises InputError where such a mask does not fit the width, or leaves no calibration centre.
    """
    try:
        sampling = EquispacedLines(
            acceleration=settings.acceleration, center_fraction=settings.center_fraction, offset="origin"
        )
        sampled = lines_of(sampling((1, width), torch_generator(settings.seed, "mask")))
    except ValueError as error:
        raise InputError(f"a k-space of {width} columns cannot be sampled so: {error}") from None
    if not num_center_lines(sampled):
        raise InputError(
            f"a center_fraction of {settings.center_fraction:g} leaves {width} columns no calibration centre: raise it"
        )
    return sampled


def _plan(settings: SynthesisConfig, source: ImageSource) -> list[Volume]:
    name = settings.anatomy or ("brain" if settings.source in GENERATED else "volume")
    rate = f"_acc{settings.acceleration}" if settings.undersampled or settings.layout == "challenge" else ""
    return [Volume(number, f"{name}{rate}_{number + 1}.h5", of) for number, of in enumerate(source.origins)]


def _write_volume(volume: Volume, *, out: Path, settings: SynthesisConfig, read: Callable[[int], Slices]) -> None:
    try:
        slices = read(volume.number)
    except UnusableVolume as error:
        raise InputError(f"{volume.origin}: {error}") from None
    images = BRIGHTEST * slices.images
    rows, columns = images.shape[1:]
    with naming(volume.origin):
        sampled = fixed_lines(settings, columns)
    correlation = NOISE_CORRELATION if settings.layout == "mrd" else 0.0
    kspace = synthesis.synthesize_kspace(
        images,
        num_coils=settings.coils,
        noise=settings.noise,
        correlation=correlation,
        oversampling=settings.oversampling,
        seed=key_to_seed(settings.seed, "scanner", volume.number),
    )
    if settings.layout == "challenge":
        write_challenge(out, volume.name, kspace, sampled, size=(rows, columns))
        return
    acquisition = f"AX{slices.contrast}" if slices.contrast else "SYNTHETIC"
    header = plain_header(
        kspace, oversampling=settings.oversampling, protocol=acquisition, spacing_mm=slices.spacing_mm
    )
    kept = sampled if settings.undersampled else None
    if settings.layout == "fastmri":
        write_fastmri(out / volume.name, kspace, header, kept, acquisition=acquisition)
        return
    generator = torch_generator(settings.seed, "noise scan", volume.number)
    sigma = settings.noise * BRIGHTEST
    noise = synthesis.coil_noise(settings.coils, NOISE_SAMPLES, generator, sigma=sigma, correlation=correlation)
    write_mrd(
        out / volume.name,
        kspace,
        header,
        kept,
        noise if settings.noise else None,
        directions=(POSTERIOR, LEFT, SUPERIOR),
    )
