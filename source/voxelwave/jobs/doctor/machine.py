"""What `voxelwave doctor` finds without torch: packages, processor, memory, shared memory, folders."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from voxelwave.ops.cores import bound_cores, core_limit, machine_memory, memory_limit

SHARED_MEMORY = Path("/dev/shm")
GB = 10**9
SMALL_SHARED_MEMORY = 1 * GB
# Twenty epochs, the best and two generations of the last of configs/pretrain/production.yaml.
CHECKPOINTS = 17 * GB

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report: a `note` is worth knowing, a `problem` keeps something needed from working."""

    level: Level
    what: str
    found: str
    remedy: str = ""


EXTRAS = {
    "classical": "reconstruct by compressed sensing and GRAPPA",
    "dicom": "read DICOM series and NRRD",
    "export": "write ONNX, bundles and Parquet",
    "twix": "read Siemens' raw files",
    "umap": "draw maps by UMAP",
}


def installed_version(package: str) -> str | None:
    """The version of an installed package, None where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_packages() -> Iterator[Finding]:
    """The versions of voxelwave, Python and what voxelwave depends on, and the extras."""
    yield Finding("ok", "voxelwave", metadata.version("voxelwave"))
    yield Finding("ok", "Python", f"{platform.python_version()} at {sys.executable}")
    found, missing = _sorted_out(_requirements(""))
    yield Finding("ok", "dependencies", ", ".join(found))
    for requirement, version in missing:
        yield Finding(
            "problem",
            requirement.name,
            "is not installed" if version is None else f"{version}, which does not fit",
            f"pip install '{requirement.name}{requirement.specifier}'",
        )
    for extra, purpose in EXTRAS.items():
        found, missing = _sorted_out(_requirements(extra))
        if missing:
            lacking = ", ".join(requirement.name for requirement, _ in missing)
            yield Finding("note", extra, f"without {lacking}", f"to {purpose}: pip install 'voxelwave[{extra}]'")
        else:
            yield Finding("ok", extra, f"can {purpose}: {', '.join(found)}")


def _requirements(extra: str) -> list[Requirement]:
    """What voxelwave asks for, or what an extra adds."""
    every = [Requirement(text) for text in metadata.requires("voxelwave") or ()]
    return [
        requirement
        for requirement in every
        if (requirement.marker is None or requirement.marker.evaluate({"extra": extra}))
        and (not extra or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})))
    ]


def _sorted_out(requirements: Iterable[Requirement]) -> tuple[list[str], list[tuple[Requirement, str | None]]]:
    """What fits, with its version, and what does not."""
    found, missing = [], []
    for requirement in requirements:
        version = installed_version(requirement.name)
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} {version}")
        else:
            missing.append((requirement, version))
    return found, missing


def check_machine() -> Iterator[Finding]:
    """Cores and memory, as far as this process may use them."""
    cores = bound_cores()
    quota = core_limit()
    limited = "" if quota is None or quota >= cores else f", of which this container may use {quota:g}"
    yield Finding("ok", "CPU", f"{cores} cores{limited}")
    memory, limit = machine_memory(), memory_limit()
    if limit is not None and limit < memory:
        yield Finding("ok", "memory", f"{limit / GB:.1f} GB for this container, of {memory / GB:.1f} GB")
    else:
        yield Finding("ok", "memory", f"{memory / GB:.1f} GB")


def check_shared_memory(place: Path = SHARED_MEMORY) -> Iterator[Finding]:
    """Data workers hand batches over in shared memory; Docker gives 64 MB of it."""
    if not place.is_dir():
        return
    size = shutil.disk_usage(place).total
    if size < SMALL_SHARED_MEMORY:
        yield Finding(
            "note",
            "shared memory",
            f"{size / 10**6:.0f} MB in {place}: data workers end with a bus error",
            "docker run --shm-size=8g or --ipc=host; or --set data.num_workers=0",
        )
    else:
        yield Finding("ok", "shared memory", f"{size / GB:.1f} GB in {place}")


def check_folders(given: Sequence[Path]) -> Iterator[Finding]:
    """Whether the folders where files would be written are there and take files, and what is free."""
    yield _folder("temporary files", Path(tempfile.gettempdir()), needed=True, enough=1 * GB)
    yield _folder("current folder", Path.cwd(), needed=False, enough=CHECKPOINTS if not given else 0)
    for path in given:
        yield _folder("folder", path, needed=True, enough=CHECKPOINTS)


def _folder(what: str, path: Path, *, needed: bool, enough: int) -> Finding:
    path = path.expanduser().absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        remedy = 'name a folder that you can write to, or change its owner; in Docker --user "$(id -u):$(id -g)"'
        return Finding("problem" if needed else "note", what, f"{there} takes no files: {error.strerror}", remedy)
    free = shutil.disk_usage(there).free
    found = f"{path}: {'' if there == path else 'does not exist yet, '}{free / GB:.1f} GB free"
    if free < enough:
        return Finding("note", what, found, f"under {enough / GB:.0f} GB: checkpoints may fill it, see run.out_dir")
    return Finding("ok", what, found)
