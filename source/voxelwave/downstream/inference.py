"""From a model and a whole volume to a label map in the space of the file that the volume came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from numpy import ndarray
from torch import Tensor, nn

from voxelwave.contracts import Grid
from voxelwave.data.label_maps import in_smallest_type, reach, voxel_to_voxel
from voxelwave.data.reading.volume import Affine, VolumeInfo
from voxelwave.ops.evaluating import evaluating
from voxelwave.ops.files import replacing

SCANNER = 1  # the code of an affine that leads to the coordinates of the scanner
SLAB_VOXELS = 2**20
# Of windows, as a share of their side: a quarter is three times as fast, and less right (docs/measured.md).
OVERLAP = 0.5
AT_ONCE = 2  # windows: of one alone torch takes a way for convolutions of few channels that is slow on a CPU
AIR = 0.05  # which no voxel of a window without tissue exceeds, of an intensity in [0, 1]; of CT that is -660 HU
CERTAIN = 10.0  # the logit of the background there


def predict_volume(
    model: nn.Module,
    volume: Float[Tensor, "channel depth height width"],
    *,
    window: Grid,
    overlap: float = OVERLAP,
    batch_size: int = AT_ONCE,
    num_classes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "class depth height width"]:
    """Return the logits of a whole volume, on its device: windows, blended with Gaussian weights (MONAI).

    A side that is shorter than the window is padded with 0, air, and the logits are cropped back. The model runs in
    eval mode, on its own device; every module has its mode back at the end.

    Args:
        volume: in [0, 1], air at 0.
        window: sides that the model takes.
        overlap: of neighbouring windows, as a share of their side.
        batch_size: windows at a time.
        num_classes: of a model whose class 0 is the background. Windows without tissue are then that, and not computed.
        progress: called with how many windows are done, and how many there are.
    """
    # Importing MONAI takes seconds.
    from monai.data.utils import dense_patch_slices
    from monai.inferers import sliding_window_inference

    parameter = next(model.parameters(), volume)
    sides = [max(side, of_window) for side, of_window in zip(volume.shape[1:], window, strict=True)]
    steps = [max(1, int(side * (1 - overlap))) for side in window]
    total, done = len(dense_patch_slices(sides, window, steps)), 0

    def logits_of(windows: Tensor) -> Tensor:
        nonlocal done
        done += len(windows)
        shows = windows.flatten(1).amax(1) > AIR
        if num_classes is None or bool(shows.all()):
            logits: Tensor = model(windows).float()
        else:
            logits = windows.new_zeros(len(windows), num_classes, *windows.shape[2:])
            logits[:, 0] = CERTAIN
            if bool(shows.any()):
                logits[shows] = model(windows[shows]).float()
        if progress is not None:
            progress(min(done, total), total)
        return logits

    with evaluating(model):
        logits: Tensor = sliding_window_inference(
            volume[None].float(),
            window,
            batch_size,
            logits_of,
            overlap=overlap,
            mode="gaussian",
            sw_device=parameter.device,
            device=volume.device,
        )
    return logits[0]


def labels_onto_grid(
    logits: Float[Tensor, "class depth height width"], affine: Affine, *, shape: Grid, to_affine: Affine
) -> Integer[ndarray, "other_depth other_height other_width"]:
    """Return the most probable class on another grid, 0 where `data.label_maps.reach` ends.

    Probabilities are interpolated (trilinear) before the best is taken, which keeps surfaces smooth where the grid is
    finer than that of the model: nearest labels would have its steps. Done in slabs, so that memory holds no more than
    the classes at the resolution of the model and the labels at that of the file.
    """
    probabilities = logits.softmax(dim=0)[None]
    device, sides = logits.device, torch.tensor(logits.shape[1:], device=logits.device)
    matrix = voxel_to_voxel(affine, to_affine)
    way, far = (torch.from_numpy(array).to(device) for array in (matrix, reach(matrix)))
    rows, columns = (torch.arange(side, device=device, dtype=torch.float64) for side in shape[1:])
    labels = np.empty(shape, dtype=np.int32)
    thickness = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], thickness):
        planes = torch.arange(start, min(start + thickness, shape[0]), device=device, dtype=torch.float64)
        voxels = torch.stack(torch.meshgrid(planes, rows, columns, indexing="ij"), dim=-1)
        places = voxels @ way[:3, :3].T + way[:3, 3]
        inside = ((places >= -far) & (places <= sides - 1 + far)).all(dim=-1)
        # grid_sample goes from -1, the border of the first voxel, to 1, that of the last; its x is the last axis.
        sampled = F.grid_sample(
            probabilities,
            ((2 * places + 1) / sides - 1).flip(-1)[None].to(probabilities.dtype),
            padding_mode="border",
            align_corners=False,
        )
        labels[start : start + thickness] = (sampled[0].argmax(dim=0) * inside).cpu().numpy()
    return labels


def write_prediction(
    path: Path, logits: Float[Tensor, "class depth height width"], affine: Affine, *, like: VolumeInfo
) -> Integer[ndarray, "file_depth file_height file_width"]:
    """Write the most probable class of each voxel of the file `like` as a NIfTI file, and return what was written.

    Both affines of a NIfTI file and their codes are kept as they are, so that viewers lay the labels over the image.

    Raises OSError where the disk does not take the file.
    """
    labels = in_smallest_type(labels_onto_grid(logits, affine, shape=like.grid, to_affine=like.affine))
    # Affines of the header are in its own unit, and without another one nibabel leaves them as they are.
    image = nibabel.Nifti1Image(labels, None if like.placement else like.affine)
    if like.placement:
        for field, value in like.placement.items():
            image.header[field] = value
        image.header["pixdim"][4:] = 0
    else:
        image.header.set_xyzt_units("mm")
        image.set_sform(like.affine, SCANNER)
    with replacing(path) as part:
        nibabel.save(image, part)
    return labels
