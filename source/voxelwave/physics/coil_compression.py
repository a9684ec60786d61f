"""Fewer, virtual coils that hold nearly all that the coils measured."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from voxelwave.physics.fourier import along_readout

Calibration = Complex[Tensor, "... coil height width"]


def compression_matrix(calibration: Calibration, *, num_virtual: int) -> Complex[Tensor, "virtual coil"]:
    """Return orthonormal combinations of the coils, those of the most energy first, alike for all of `calibration`.

    Of all choices of `num_virtual` combinations they keep the most, see `kept_energy`.
    Raises ValueError for more virtual coils than there are coils.
    Source: Buehrer et al., Array compression for MRI with large coil arrays, 2007; Huang et al., 2008.
    """
    coils = calibration.shape[-3]
    _check(num_virtual, coils)
    return _leading(calibration.movedim(-3, 0).reshape(coils, -1), num_virtual)


def kept_energy(calibration: Calibration) -> Float[Tensor, " coil"]:
    """Return the share of the energy of `calibration` that the first 1, 2, … virtual coils hold together."""
    energies: Tensor = torch.linalg.svdvals(calibration.movedim(-3, 0).flatten(1)).square()
    shares: Tensor = energies.cumsum(0) / energies.sum()
    return shares


def compress(
    kspace: Complex[Tensor, "... coil height width"], matrix: Complex[Tensor, "virtual coil"]
) -> Complex[Tensor, "... virtual height width"]:
    """Return the virtual coils of `kspace`, or of images or sensitivity maps."""
    return torch.einsum("vc,...cyx->...vyx", matrix.to(kspace), kspace)


def geometric_matrices(
    calibration: Complex[Tensor, "coil height lines"], *, num_virtual: int, window: int = 5
) -> Complex[Tensor, "height virtual coil"]:
    """Return combinations of the coils for each place along the readout, which is the height, that vary smoothly.

    What the coils see differs from place to place, so that fewer virtual ones hold as much. `calibration` are lines of
    k-space that are whole along the height, such as those at the centre. A place is decomposed with its neighbours,
    `window` in all, and its combinations are turned to lie nearest to those of the place before: singular vectors may
    change sign, order and phase from place to place, which would make k-space jump.

    Raises ValueError for more virtual coils than coils, or a window that is even or below 1.
    Source: Zhang et al., Coil compression for accelerated imaging with Cartesian sampling, 2013, sections 2.2, 2.3.
    """
    coils, height, _ = calibration.shape
    _check(num_virtual, coils)
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and at least 1, got {window}")
    # 1. Places along the readout, [height, coil, lines].
    places = along_readout(calibration, inverse=True).movedim(1, 0)
    # 2. The leading combinations of each place with its neighbours, as far as there are any.
    matrices = [
        _leading(places[max(0, place - window // 2) : place + window // 2 + 1].movedim(1, 0).flatten(1), num_virtual)
        for place in range(height)
    ]
    # 3. From the middle, where the object is, outwards: the nearest unitary turn (orthogonal Procrustes).
    middle = height // 2
    for place in (*range(middle + 1, height), *range(middle - 1, -1, -1)):
        neighbour = matrices[place - 1 if place > middle else place + 1]
        left, _, right = torch.linalg.svd(neighbour @ matrices[place].mH)
        matrices[place] = left @ right @ matrices[place]
    return torch.stack(matrices)


def compress_geometrically(
    kspace: Complex[Tensor, "... coil height width"], matrices: Complex[Tensor, "height virtual coil"]
) -> Complex[Tensor, "... virtual height width"]:
    """Return the virtual coils of `kspace`, whose lines are whole along the height."""
    places = along_readout(kspace, inverse=True)
    return along_readout(torch.einsum("yvc,...cyx->...vyx", matrices.to(kspace), places), inverse=False)


def _leading(values: Complex[Tensor, "coil sample"], num_virtual: int) -> Complex[Tensor, "virtual coil"]:
    # Of the coils' own products: the samples are many, and of their singular vectors nothing is needed.
    _, vectors = torch.linalg.eigh(values @ values.mH)
    leading: Tensor = vectors.flip(1)[:, :num_virtual].mH
    return leading


def _check(num_virtual: int, coils: int) -> None:
    if not 1 <= num_virtual <= coils:
        raise ValueError(f"num_virtual must lie between 1 and the number of coils, {coils}, got {num_virtual}")
