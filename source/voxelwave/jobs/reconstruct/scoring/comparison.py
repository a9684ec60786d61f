"""One slice of a volume beside its target, and beside what classical methods make of the same samples."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from torch import Tensor

from voxelwave.contracts import Reconstruction
from voxelwave.evaluation.image_quality import data_ranges, nmse, psnr_db, ssim
from voxelwave.jobs.reconstruct.scoring.pairs import Pair
from voxelwave.jobs.reconstruct.scoring.scores import Volumes
from voxelwave.physics.fourier import center_crop, crop_readout
from voxelwave.unrolled.classical import L1Wavelet
from voxelwave.unrolled.sense import Sense
from voxelwave.unrolled.sensitivity import low_resolution_maps
from voxelwave.unrolled.zero_filled import zero_filled

TARGET, RECONSTRUCTION = "target", "reconstruction"
Image = Float32[ndarray, "rows columns"]


@dataclass(frozen=True)
class Comparison:
    """A slice as several methods show it, all of the size of the target.

    Attributes:
        images: by method; the target first, the reconstruction last.
        scores: of all but the target, in words.
        sampled: which columns, None where nothing says it.
        maps: magnitudes of the coils' maps, None where there are none.
        notes: what could not be shown, and why.
    """

    images: dict[str, Image]
    scores: dict[str, str]
    sampled: ndarray | None
    maps: Float32[ndarray, "coil rows columns"] | None
    notes: tuple[str, ...]


def compare(pair: Pair, of: Volumes, index: int) -> Comparison:
    """Reconstruct slice `index` from what was sampled of it, and score each image as the volume was scored."""
    size = (of.target.shape[1], of.target.shape[2])
    images = {TARGET: of.target[index]}
    maps, notes = None, []
    if of.sampled is None:
        notes.append("its lines are not known, so that no other reconstruction is shown")
    else:
        # Cropped first along the read-out, which no choice of lines cares for: half of fastMRI's rows are air.
        kspace, lines = crop_readout(pair.file.slice(index), size[0])[None], of.sampled[None]
        methods: dict[str, Reconstruction] = {"zero-filled": zero_filled, "SENSE": Sense()}
        if find_spec("sigpy") is None:
            notes.append("no L1-wavelet reconstruction is shown: pip install 'voxelwave[classical]'")
        else:
            methods["L1-wavelet"] = L1Wavelet()
        try:
            maps = center_crop(low_resolution_maps(kspace[:, 0], lines)[0].abs(), size).numpy()
        except ValueError as error:
            notes.append(f"no maps of its coils: {error}")
            methods = {"zero-filled": zero_filled}
        for name, method in methods.items():
            try:
                images[name] = center_crop(method(kspace, lines)[0], size)
            except ValueError as error:
                notes.append(f"no {name}: {error}")
    images[RECONSTRUCTION] = of.images[index]
    limit = float(data_ranges(of.target, of.data_range)[index])
    inside = None if of.inside is None else of.inside[index : index + 1]

    def words(image: Tensor) -> str:
        pair_of = image[None], of.target[index : index + 1]
        similarity = ssim(*pair_of, data_range=limit, inside=inside)
        return f"SSIM {similarity:.4f}\n{psnr_db(*pair_of, data_range=limit):.2f} dB, NMSE {nmse(*pair_of):.4f}"

    return Comparison(
        images={name: np.asarray(image.numpy(), dtype=np.float32) for name, image in images.items()},
        scores={name: words(image) for name, image in images.items() if name != TARGET},
        sampled=None if of.sampled is None else of.sampled.numpy(),
        maps=maps,
        notes=tuple(notes),
    )
