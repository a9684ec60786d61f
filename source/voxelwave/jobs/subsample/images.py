"""Images as k-space in parts, and how those of training and validation are stored for the cases of a study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Complex64
from torch import Tensor

from voxelwave.data.reading.unreadable import as_unusable
from voxelwave.errors import DamagedVolume, InputError, UnusableVolume
from voxelwave.ops.files import replacing, write_text
from voxelwave.ops.seeding import number_and_checksum
from voxelwave.ops.texts import read_json, to_json

PARTS = ("training", "validation", "test")
RECORD, FORMAT = "subsample_images.json", "images of voxelwave subsample"
Images = Complex64[Tensor, "image height width"]


class ImageSet(NamedTuple):
    """K-space of some images, each with its name, whose it is, and a mark: the same for the same source.

    Where nothing tells the subject, its volume stands for it.
    """

    kspace: Images
    names: list[str]
    subjects: list[str]
    marks: list[str]

    @property
    def fingerprint(self) -> str:
        """Tells this set from any other: how many images it holds, and a checksum of their marks."""
        return number_and_checksum(self.marks)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.kspace.shape[1], self.kspace.shape[2]

    def one(self, index: int) -> ImageSet:
        """Return the set of one image."""
        return ImageSet(self.kspace[index : index + 1], *(of[index : index + 1] for of in self[1:]))


class Parted(NamedTuple):
    """The images of a source. Those of the test are read when `open_test` is called, and not kept.

    `kind` says what they are; `unknown` is the number of volumes whose subject nothing tells.
    """

    training: ImageSet
    validation: ImageSet
    open_test: Callable[[], ImageSet] | None
    counts: dict[str, int]
    kind: str
    unknown: int


def store(parted: Parted, folder: Path) -> None:
    """Write the images of training and validation, and none of the test, as a source for other runs."""
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"format": FORMAT, "counts": parted.counts, "kind": parted.kind, "unknown": parted.unknown}
    for name in PARTS[:2]:
        images: ImageSet = getattr(parted, name)
        with replacing(folder / f"{name}.npy") as path, path.open("wb") as file:
            np.save(file, images.kspace.numpy())
        record[name] = {"names": images.names, "subjects": images.subjects, "marks": images.marks}
    write_text(folder / RECORD, to_json(record))


def read_stored(folder: Path) -> Parted:
    """Read what `store` wrote; raises InputError for a folder that holds something else."""
    sets = []
    try:
        record = read_json(folder / RECORD)
        if record["format"] != FORMAT:
            raise ValueError(f"{RECORD} is of another format")
        for name in PARTS[:2]:
            path = folder / f"{name}.npy"
            with as_unusable(path), path.open("rb") as file:
                kspace = torch.from_numpy(np.load(file, allow_pickle=False))
            of = record[name]
            if kspace.ndim != 3 or kspace.dtype != torch.complex64 or not len(kspace) or not kspace.isfinite().all():
                raise ValueError(f"{name}.npy holds no images")
            images = ImageSet(kspace, *([str(one) for one in of[key]] for key in ("names", "subjects", "marks")))
            if {len(column) for column in images[1:]} != {len(kspace)}:
                raise ValueError(f"{name}.npy does not fit {RECORD}")
            sets.append(images)
        check_same_size(*sets)
        counts = {str(name): int(count) for name, count in record["counts"].items()}
        return Parted(sets[0], sets[1], None, counts, str(record["kind"]), int(record["unknown"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UnusableVolume, DamagedVolume) as error:
        raise InputError(f"{folder}: its images cannot be used: {error}") from None


def check_same_size(*sets: ImageSet) -> None:
    """Raise InputError where sets are of several sizes."""
    for images in sets[1:]:
        if images.shape != sets[0].shape:
            sizes = " and ".join(f"{of.shape[0]} × {of.shape[1]}" for of in (sets[0], images))
            raise InputError(f"{images.names[0]}: images are of two sizes, {sizes}: set data.size to one size")
