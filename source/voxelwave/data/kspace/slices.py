"""Slices of many files as a data set: undersampled k-space, target, mask, and where they are from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Complex64, Float32
from torch import Tensor
from torch.utils.data import Dataset

from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.mraugment import MRAugment
from voxelwave.errors import InputError
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.acquisition import sample
from voxelwave.physics.samplings import Sampling

DataRange = Literal["attribute", "volume", "slice"]
HOLES = 0.01  # of the places within columns, that may be 0 by chance
ROUNDING = 1e-6  # of the largest value: what moves leave where there was nothing to move


class KspaceItem(NamedTuple):
    """One slice between its neighbours.

    Attributes:
        kspace: 0 where it is not sampled; the slice itself is in the middle.
        sampled: where it is sampled, alike for all slices and coils.
        target: the image to be reconstructed, the centre of it; None where the file has none.
        data_range: the largest value of the target, as its scores take it; 0 where there is no target.
        file: the name of the file, without its folder.
        slice_index: its number in the file.
        acquisition: contrast or protocol, as the file names it.
    """

    kspace: Complex64[Tensor, "slice coil height width"]
    sampled: Bool[Tensor, "height width"]
    target: Float32[Tensor, "rows columns"] | None
    data_range: float
    file: str
    slice_index: int
    acquisition: str


@runtime_checkable
class SamplingByFile(Protocol):
    """A sampling that knows what to choose for the name of a file, as fastMRI's do."""

    def of_file(self, shape: tuple[int, int], name: str) -> Bool[Tensor, "height width"]:
        """Return where a k-space of `shape` is sampled."""
        ...


def measured_columns(kspace: Complex64[Tensor, "slice coil height width"], path: Path) -> Bool[Tensor, " width"]:
    """Return which columns hold anything but 0; margins of a column may, as of an echo that was cut.

    Raises InputError, which names the file, where places within columns were left out.
    """
    places = kspace.ne(0).any(dim=0).any(dim=0)
    inside = (places.cumsum(0) > 0) & (places.flip(0).cumsum(0).flip(0) > 0)
    if int((inside & ~places).sum()) > HOLES * int(inside.sum()):
        raise InputError(
            f"{path}: within its columns places are 0: it was sampled place by place, or its lines lie along the "
            "width; whole columns alone can be read"
        )
    return places.any(dim=0)


def has_gaps(columns: Bool[Tensor, " width"]) -> bool:
    """Tell whether a column is missing between the first and the last one: margins alone are of partial Fourier."""
    inner = columns.nonzero()[:, 0]
    return len(inner) > 0 and not bool(columns[int(inner[0]) : int(inner[-1])].all())


class KspaceSlices(Dataset[KspaceItem]):
    """Item i is the i-th slice of all files, in order, with `neighbours` on each side.

    Files may differ in size and number of coils: take them one by one (`DataLoader(batch_size=None)`). What is drawn
    depends on (seed, epoch, i) alone, and not on workers or on what was drawn before; see `set_epoch`. Columns that the
    scanner did not measure, which a file holds as 0, count as not sampled, whatever is drawn.

    Args:
        files: in the order of the items.
        sampling: chooses what is sampled; None takes the mask of the file, or all that was measured where it has none.
        augment: changes images and targets before anything is chosen.
        neighbours: slices on each side.
        by_file: choose the same for all slices of a file, by its name, in every epoch: for validation.
        data_range: "attribute" is what the file says, of its whole volume; "volume" the largest value of its target,
            "slice" that of the one slice. A slice that was augmented always has the one of its own target.

    Raises InputError, which names the file, for what cannot be used.
    """

    def __init__(
        self,
        files: Sequence[KspaceFile],
        sampling: Sampling | None = None,
        augment: MRAugment | None = None,
        *,
        neighbours: int = 1,
        seed: int = 0,
        by_file: bool = False,
        data_range: DataRange = "attribute",
    ) -> None:
        if not files:
            raise InputError("no files of k-space were given")
        self.files, self.sampling, self.augment = list(files), sampling, augment
        self.neighbours, self.seed, self.by_file, self.data_range = neighbours, seed, by_file, data_range
        self.epoch = 0
        self._ends = list(accumulate(len(file) for file in self.files))
        self._maxima: dict[Path, float] = {}

    def __len__(self) -> int:
        return self._ends[-1]

    def set_epoch(self, epoch: int) -> None:
        """Draw anew for this epoch, the first is 1; workers of a loader have to start after this."""
        self.epoch = epoch

    def place(self, item: int) -> tuple[KspaceFile, int]:
        """Return the file and the slice in it of an item; raises IndexError where there is none."""
        if not 0 <= item < len(self):
            raise IndexError(f"there are items 0 to {len(self) - 1}, got {item}")
        number = bisect_right(self._ends, item)
        return self.files[number], item - (self._ends[number] - len(self.files[number]))

    def __getitem__(self, item: int) -> KspaceItem:
        """Return one item; raises IndexError beyond the last."""
        file, index = self.place(item)
        # 1. All that was measured.
        kspace, target = file.slice(index, neighbours=self.neighbours), file.target(index)
        largest = 0.0 if target is None else self._largest(file, target)
        measured = measured_columns(kspace, file.path)
        if has_gaps(measured) and (self.augment is not None or self.sampling is not None):
            raise InputError(
                f"{file.path}: is undersampled already: only whole images can be augmented or undersampled; leave it "
                "out, or leave augmentation and samplings out"
            )
        # 2. Moves of the image. Where they interpolate, they also fill what was not measured.
        if self.augment is not None:
            generator = torch_generator(self.seed, "augment", self.epoch, item)
            moved = self.augment(kspace, target, generator, epoch=self.epoch)
            if moved is not None:
                kspace, target = moved.kspace, moved.target
                by_column = kspace.abs().amax((0, 1, 2))
                measured = by_column > ROUNDING * by_column.max()
                largest = 0.0 if target is None else float(target.max())
        # 3. What of it is sampled.
        try:
            sampled = self._chosen(file, item, (kspace.shape[-2], kspace.shape[-1])) & measured
        except ValueError as error:
            raise InputError(f"{file.path}: {error}") from None
        if not bool(sampled.any()):
            raise InputError(f"{file.path}: slice {index}: none of the sampled columns was measured")
        acquisition, name = file.info.acquisition, file.path.name
        return KspaceItem(sample(kspace, sampled), sampled, target, largest, name, index, acquisition)

    def _chosen(self, file: KspaceFile, item: int, shape: tuple[int, int]) -> Bool[Tensor, "height width"]:
        if self.sampling is None:
            chosen = torch.ones(shape[1], dtype=torch.bool)
            first, last = file.info.measured_columns
            if file.info.sampled is not None:
                if len(file.info.sampled) != shape[1]:
                    raise ValueError(
                        f"augmentation turned it to {shape[1]} columns, and its mask has {len(file.info.sampled)}: "
                        "take no 'rotate90', or name samplings"
                    )
                chosen = torch.tensor(file.info.sampled)
                chosen[:first] = chosen[last:] = False
            return chosen.repeat(shape[0], 1)
        if not self.by_file:
            return self.sampling(shape, torch_generator(self.seed, "sampling", self.epoch, item))
        if isinstance(self.sampling, SamplingByFile):
            return self.sampling.of_file(shape, file.path.name)
        return self.sampling(shape, torch_generator(self.seed, "sampling", file.path.name))

    def _largest(self, file: KspaceFile, target: Float32[Tensor, "rows columns"]) -> float:
        if self.data_range == "slice":
            if not bool((target > 0).any()):
                raise InputError(f"{file.path}: a slice of its target has no value above 0: take data_range 'volume'")
            return float(target.max())
        if self.data_range == "attribute":
            if file.info.data_range is None:
                raise InputError(f"{file.path}: has no attribute 'max' for the data range: take data_range 'volume'")
            return file.info.data_range
        if file.path not in self._maxima:
            images = (file.target(index) for index in range(len(file)))
            self._maxima[file.path] = max(float(image.max()) for image in images if image is not None)
        if not self._maxima[file.path] > 0:
            raise InputError(f"{file.path}: its target has no value above 0, and shows nothing: leave it out")
        return self._maxima[file.path]
