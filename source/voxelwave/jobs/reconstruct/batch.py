"""What a network is trained on at a time: one slice between its neighbours, or a band of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Complex64, Float, Float32
from torch import Tensor

from voxelwave.data.kspace.slices import KspaceItem, KspaceSlices
from voxelwave.errors import InputError
from voxelwave.jobs.reconstruct.preparation import Preparation
from voxelwave.physics.fourier import crop_readout
from voxelwave.physics.sampled_lines import lines_of


class ReconstructionBatch(NamedTuple):
    """One slice between its neighbours.

    Attributes:
        kspace: 0 where it is not sampled.
        target: the image to be reconstructed, the centre of that of the k-space; None where there is none.
        data_range: the largest value of the target, as its score takes it.
        modality: the anatomy, "kspace" where it is not said.
        files: the name of the file, with the number of the slice.
        passed_over: the numbers of the slices that could not be used in its place, and why.
    """

    kspace: Complex64[Tensor, "1 slice coil height width"]
    sampled: Bool[Tensor, "1 height width"]
    target: Float32[Tensor, "1 rows columns"] | None
    data_range: Float[Tensor, "1"]
    modality: str
    files: list[str]
    passed_over: tuple[tuple[int, str], ...] = ()

    def to(self, device: torch.device) -> ReconstructionBatch:
        """Return the batch on a device."""
        target = None if self.target is None else self.target.to(device)
        return self._replace(
            kspace=self.kspace.to(device),
            sampled=self.sampled.to(device),
            target=target,
            data_range=self.data_range.to(device),
        )


def batch_of(slices: KspaceSlices, index: int, prepare: Preparation, modality: str) -> ReconstructionBatch:
    """Return one item as a batch; raises InputError, which names the file, for one that cannot be used."""
    file, _ = slices.place(index)
    item: KspaceItem = slices[index]
    # The target of a slice that augmentation turned has other rows than that of its file.
    rows = 0 if item.target is None else item.target.shape[0]
    kspace, sampled = prepare(item.kspace, item.sampled, file, least_rows=rows)
    return ReconstructionBatch(
        kspace[None],
        sampled[None],
        None if item.target is None else item.target[None],
        torch.tensor([item.data_range], dtype=torch.float64),
        modality,
        [f"{item.file}, slice {item.slice_index}"],
    )


def band_of(batch: ReconstructionBatch, rows: int, generator: torch.Generator) -> ReconstructionBatch:
    """Return the k-space of a random band of `rows` of the image, where there are more, and the target of that.

    A transform along the read-out commutes with the choice of lines: the band is undersampled as the slice is.
    Raises InputError where single places are sampled.
    """
    height = batch.kspace.shape[-2]
    inner = height if batch.target is None else batch.target.shape[-2]
    if rows >= inner:
        return batch
    first = int(torch.randint(inner - rows + 1, (), generator=generator))
    try:
        lines = lines_of(batch.sampled[0])
    except ValueError as error:
        raise InputError(f"{batch.files[0]}: {error}; set data.band_rows to null") from None
    return batch._replace(
        kspace=crop_readout(batch.kspace, rows, first=(height - inner) // 2 + first),
        sampled=lines.repeat(1, rows, 1),
        target=None if batch.target is None else batch.target[:, first : first + rows],
    )
