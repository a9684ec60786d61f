"""Volumes on disk in several ways, and how a training crop is made of each: what store_speed.py compares."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch
from nibabel import orientations
from torch import Tensor

from voxelwave.contracts import Grid
from voxelwave.data.batches.cuboids import Cuboids, InMemory, InStore
from voxelwave.data.batches.views import RandomView
from voxelwave.data.modalities import Bounds, Modality
from voxelwave.data.reading.nifti import read_volume
from voxelwave.data.scaled import read_scaled
from voxelwave.data.store import StoredInfo, StoredVolume, write_stored
from voxelwave.ops.seeding import numpy_generator, torch_generator
from voxelwave.physics.heads3d import draw_head, render_ct, render_mri
from voxelwave.registry import MODALITIES

CROP: Grid = (96, 96, 96)
PLACES = 1024
REAL = {
    "T1 (mne_ecog)": "mr/mne_ecog_T1.mgz",
    "FLAIR (ms07)": "mr/ms07_FLAIR.nii.gz",
    "CT (ge_head)": "ct/ge_head_ct.nii.gz",
}
AT = {"store": "volume.vxw", "raw": "volume.nii.gz", "mapped": "volume.nii", "persistent": "cache"}
FACTS = "facts.json"

Crop = Callable[[int], object]


class Mapped:
    """An uncompressed .nii that nibabel maps into memory; bounds and foreground are known, as they are to the store."""

    def __init__(self, path: Path, modality: Modality, bounds: Bounds, places: list[list[int]]) -> None:
        self._image, self._modality, self._bounds, self._places = nibabel.load(path), modality, bounds, places
        self._axes = orientations.io_orientation(self._image.affine)

    @property
    def grid(self) -> Grid:
        """The voxels along each axis, towards RAS."""
        sides = dict(zip(self._axes[:, 0], self._image.shape, strict=True))
        return int(sides[0]), int(sides[1]), int(sides[2])

    def cut(self, start: Grid, size: Grid) -> Tensor:
        """Return the cuboid of `size` that begins at `start`; no other voxel is read."""
        slices = []
        for (axis, flip), side in zip(self._axes, self._image.shape, strict=True):
            first, length = start[int(axis)], size[int(axis)]
            first = first if flip > 0 else int(side) - first - length
            slices.append(slice(first, first + length))
        values = orientations.apply_orientation(np.asarray(self._image.dataobj[tuple(slices)]), self._axes)
        return torch.from_numpy(self._modality.scale(values, self._bounds))

    def foreground_voxel(self, generator: torch.Generator) -> list[int]:
        """Return a voxel of the foreground."""
        return self._places[int(torch.randint(len(self._places), (), generator=generator))]


def make_volumes(folder: Path, *, size: int) -> dict[str, Path]:
    """Write the real volumes that are there, and two heads of `size`, each into a folder of its own in every way."""
    sources = Path(os.environ.get("VOXELWAVE_REAL_DATA", "../shared/data")) / "volumes"
    images = {name: nibabel.load(sources / file) for name, file in REAL.items() if (sources / file).is_file()}
    generator = numpy_generator("crop_ways")
    labels = draw_head(generator, size=size)
    # Scanners store whole numbers; so does this.
    mri = np.rint(render_mri(labels, generator, contrast="T1")).astype(np.int16)
    for name, head in (("T1 (generated)", mri), ("CT (generated)", render_ct(labels, generator))):
        images[name] = nibabel.Nifti1Image(head, np.eye(4))
    places = {}
    for name, image in images.items():
        place = places[name] = folder / re.sub(r"\W+", "_", name).strip("_")
        (place / AT["persistent"]).mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine), place / AT["mapped"])
        (place / AT["raw"]).write_bytes(gzip.compress((place / AT["mapped"]).read_bytes(), 6))
        _store(place, "ct" if "CT" in name else "mri", generator)
        cropper(place, "persistent")(0)
    return places


def _store(place: Path, name: str, generator: np.random.Generator) -> None:
    """Write the store of a volume on its own grid, and what the mapped file has to know."""
    modality = MODALITIES.build(name)
    volume = read_volume(place / AT["raw"], channels=modality.channels)
    bounds = modality.bounds(volume.array)
    packed = modality.pack(volume.array, bounds)
    found = np.argwhere(modality.foreground(volume.array, bounds))
    foreground = generator.choice(found, PLACES, replace=False).astype(np.int16)
    info = StoredInfo(modality=name, affine=volume.affine.tolist(), bounds=packed.bounds)
    write_stored(place / AT["store"], packed.array, info, foreground)
    facts = {"modality": name, "shape": volume.array.shape, "bounds": bounds, "foreground": foreground.tolist()}
    (place / FACTS).write_text(json.dumps(facts))


def openers(place: Path) -> dict[str, Callable[[], Cuboids]]:
    """Return what opens a volume in each way of ours."""
    facts = json.loads((place / FACTS).read_text())
    modality = MODALITIES.build(facts["modality"])
    return {
        "store": lambda: InStore(StoredVolume(place / AT["store"]), modality),
        "raw": lambda: InMemory(read_scaled(place / AT["raw"], modality).volume),
        "mapped": lambda: Mapped(place / AT["mapped"], modality, facts["bounds"], facts["foreground"]),
    }


def cropper(place: Path, way: str) -> Crop:
    """Return what opens a volume one way and makes crop number `index` of it."""
    if way != "persistent":
        view, opened = RandomView(crop_size=CROP), openers(place)[way]
        return lambda index: view(opened(), torch_generator(index))
    from monai import data, transforms

    steps = [
        transforms.LoadImaged("image"),
        transforms.EnsureChannelFirstd("image"),
        transforms.Orientationd("image", axcodes="RAS", labels=None),
        transforms.ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1, clip=True),
        transforms.RandSpatialCropd("image", CROP, random_size=False),
    ]
    files, steps = [{"image": str(place / AT["raw"])}], transforms.Compose(steps).set_random_state(0)
    dataset = data.PersistentDataset(files, steps, place / AT["persistent"])
    return lambda index: dataset[0]["image"]


def largest_difference(place: Path) -> float:
    """Return by how much a voxel of the same crops differs at most between store, raw and mapped file, of [0, 1]."""
    store, *others = (opened() for opened in openers(place).values())
    view = RandomView(crop_size=CROP, foreground_share=0.0)
    cuts = [view.draw(store, torch_generator(index)) for index in range(4)]
    return max(float((store.cut(*cut) - other.cut(*cut)).abs().max()) for cut in cuts for other in others)
