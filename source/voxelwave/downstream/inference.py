"""From a model and a whole volume to a label map in the space of the file that the volume came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Integer
from numpy import ndarray
from scipy.ndimage import affine_transform
from torch import Tensor, nn

from voxelwave.contracts import Grid
from voxelwave.data.reading.nifti import read_header
from voxelwave.data.reading.unreadable import as_unusable
from voxelwave.data.reading.volume import Affine, without_trailing_ones
from voxelwave.data.store import StoredVolume, is_stored
from voxelwave.ops.files import replacing

SCANNER = 1  # the code of an affine that leads to the coordinates of the scanner
# What tells viewers where a NIfTI file lies; which of its two affines they believe differs from one to the other.
PLACE = (
    *("sform_code", "srow_x", "srow_y", "srow_z", "qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "pixdim", "xyzt_units"),
)
DECIMALS = 6  # of a voxel; affines that should agree differ by rounding, and halves are to go one way
SLAB_VOXELS = 2**20


class FileGrid(NamedTuple):
    """The voxels of a file, axes in its own order, and the way from them to mm (RAS+)."""

    shape: Grid
    affine: Affine


def predict_volume(
    model: nn.Module,
    volume: Float[Tensor, "channel depth height width"],
    *,
    window: Grid,
    overlap: float = 0.5,
    batch_size: int = 1,
) -> Float[Tensor, "class depth height width"]:
    """Return the logits of a whole volume, on its device: windows, blended with Gaussian weights (MONAI).

    A side that is shorter than the window is padded with 0, air, and the logits are cropped back. The model runs in
    eval mode, on its own device; every module has its mode back at the end.

    Args:
        window: sides that the model takes.
        overlap: of neighbouring windows, as a share of their side.
        batch_size: windows at a time.
    """
    # Importing MONAI takes seconds.
    from monai.inferers import sliding_window_inference

    parameter = next(model.parameters(), volume)
    # Each by itself: a part that is kept frozen is in eval mode while the rest trains.
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            logits: Tensor = sliding_window_inference(
                volume[None].float(),
                window,
                batch_size,
                lambda windows: model(windows).float(),
                overlap=overlap,
                mode="gaussian",
                sw_device=parameter.device,
                device=volume.device,
            )
    finally:
        for module, mode in modes.items():
            module.training = mode
    return logits[0]


def onto_grid(
    labels: Integer[ndarray, "depth height width"], affine: Affine, *, shape: Grid, to_affine: Affine
) -> Integer[ndarray, "other_depth other_height other_width"]:
    """Return labels on another grid: each of its voxels gets the nearest label in space, 0 outside."""
    way = _way(affine, to_affine)
    if labels.shape == shape and np.array_equal(way, np.eye(4)):
        return labels.copy()
    placed: ndarray = affine_transform(labels, way, output_shape=shape, order=0, mode="grid-constant", cval=0)
    return placed


def labels_onto_grid(
    logits: Float[Tensor, "class depth height width"], affine: Affine, *, shape: Grid, to_affine: Affine
) -> Integer[ndarray, "other_depth other_height other_width"]:
    """Return the most probable class on another grid, 0 outside.

    Probabilities are interpolated (trilinear) before the best is taken, which keeps surfaces smooth where the grid is
    finer than that of the model: nearest labels would have its steps. Done in slabs, so that memory holds no more than
    the classes at the resolution of the model and the labels at that of the file.
    """
    probabilities = logits.softmax(dim=0)[None]
    device, sides = logits.device, torch.tensor(logits.shape[1:], device=logits.device)
    way = torch.from_numpy(_way(affine, to_affine)).to(device)
    rows, columns = (torch.arange(side, device=device, dtype=torch.float64) for side in shape[1:])
    labels = np.empty(shape, dtype=np.int32)
    thickness = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], thickness):
        planes = torch.arange(start, min(start + thickness, shape[0]), device=device, dtype=torch.float64)
        voxels = torch.stack(torch.meshgrid(planes, rows, columns, indexing="ij"), dim=-1)
        places = voxels @ way[:3, :3].T + way[:3, 3]
        inside = ((places >= -0.5) & (places < sides - 0.5)).all(dim=-1)
        # grid_sample goes from -1, the border of the first voxel, to 1, that of the last; its x is the last axis.
        sampled = F.grid_sample(
            probabilities,
            ((2 * places + 1) / sides - 1).flip(-1)[None].to(probabilities.dtype),
            padding_mode="border",
            align_corners=False,
        )
        labels[start : start + thickness] = (sampled[0].argmax(dim=0) * inside).cpu().numpy()
    return labels


def grid_of(path: Path) -> FileGrid:
    """Return the grid of an image file; of a stored volume that of the file it was made of, axes towards RAS.

    Raises UnusableVolume where the file cannot be read.
    """
    if is_stored(path):
        stored = StoredVolume(path)
        if not stored.info.source_shape:
            return FileGrid(stored.grid, stored.affine)
        return FileGrid(_three(stored.info.source_shape), np.array(stored.info.source_affine, dtype=np.float64))
    info = read_header(path)
    return FileGrid(_three(info.shape), info.affine)


def write_prediction(
    path: Path, labels: Integer[ndarray, "depth height width"], affine: Affine, *, like: Path
) -> Integer[ndarray, "file_depth file_height file_width"]:
    """Write labels as a NIfTI file of whole numbers in the grid of the file `like`, and return what was written.

    Labels on another grid go there by nearest neighbour; `labels_onto_grid` is better for a model that worked at
    another spacing, and what it returns passes here unchanged. Both affines of a NIfTI file and their codes are kept
    as they are, so that viewers lay the labels over the image.

    Raises:
        UnusableVolume: where `like` cannot be read.
        OSError: where the disk does not take the file.
    """
    grid = grid_of(like)
    placed = _smallest(onto_grid(labels, affine, shape=grid.shape, to_affine=grid.affine))
    image = nibabel.Nifti1Image(placed, grid.affine)
    if (header := _nifti_header(like)) is not None:
        for field in PLACE:
            image.header[field] = header[field]
        image.header["pixdim"][4:] = 0
    else:
        image.header.set_xyzt_units("mm")
        image.set_sform(grid.affine, SCANNER)
    with replacing(path) as part:
        nibabel.save(image, part)
    return placed


def _way(affine: Affine, to_affine: Affine) -> Float64[ndarray, "4 4"]:
    """Return the way from the voxels of a grid to those of one with `affine`."""
    way: Float64[ndarray, "4 4"] = np.round(np.linalg.inv(affine) @ to_affine, DECIMALS) + 0.0
    return way


def _three(shape: tuple[int, ...]) -> Grid:
    """Return the sides of an image without its channels."""
    depth, height, width = (int(side) for side in without_trailing_ones(shape)[:3])
    return depth, height, width


def _smallest(labels: Integer[ndarray, "..."]) -> Integer[ndarray, "..."]:
    """Return labels in the smallest type that every reader of NIfTI knows."""
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
            return labels.astype(dtype)
    raise ValueError(f"labels are whole numbers of 32 bits, got {lowest} to {highest}")


def _nifti_header(path: Path) -> Any:
    if is_stored(path):
        return None
    with as_unusable(path):
        image = nibabel.load(path)
        return image.header if isinstance(image, nibabel.Nifti1Image) else None
