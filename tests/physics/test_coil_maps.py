import cmath
import math

import numpy as np
import pytest
import torch
from sigpy.mri import birdcage_maps as sigpy_maps

from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.coil_maps import batched_birdcage_maps, birdcage_maps

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def rings(count, dtype=torch.float64, device="cpu"):
    draws = torch.rand(5, count, generator=torch_generator(0), dtype=dtype).to(device)
    radius, rotation, phase, *shift = draws
    return {
        "relative_radius": 1.5 + radius,
        "rotation": 6 * rotation,
        "shift": torch.stack(shift, 1) * 0.2 - 0.1,
        "phase": 6 * phase,
    }


@pytest.mark.parametrize("num_coils", [1, 2, 5, 8])
@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (12, 5), (1, 1)])
@pytest.mark.parametrize("radius", [1.5, 2.3])
def test_sigpy_makes_the_same_maps(num_coils, shape, radius):
    maps = birdcage_maps(num_coils, shape, relative_radius=radius, dtype=torch.complex128)
    np.testing.assert_allclose(maps.numpy(), sigpy_maps((num_coils, *shape), r=radius), atol=1e-12)
    assert birdcage_maps(num_coils, shape).dtype == torch.complex64


def test_the_formula_in_plain_loops_gives_the_same_moved_and_turned_rings():
    num_coils, height, width, count = 3, 5, 4, 4
    settings = rings(count)
    maps = batched_birdcage_maps(num_coils, (height, width), **settings)
    for sample in range(count):
        radius, rotation, phase = (float(settings[key][sample]) for key in ("relative_radius", "rotation", "phase"))
        down, right = settings["shift"][sample].tolist()
        for row in range(height):
            for column in range(width):
                fields = []
                for coil in range(num_coils):
                    angle = rotation + 2 * math.pi * coil / num_coils
                    x = (column - width / 2) / (width / 2) - right - radius * math.cos(angle)
                    y = (row - height / 2) / (height / 2) - down - radius * math.sin(angle)
                    fields.append(cmath.rect(1 / math.hypot(x, y), math.atan2(x, -y) - angle + phase))
                norm = math.sqrt(sum(abs(field) ** 2 for field in fields))
                expected = torch.tensor(fields, dtype=torch.complex128) / norm
                assert torch.allclose(maps[sample, :, row, column], expected, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_coils", [1, 8])
def test_squared_magnitudes_sum_to_one_in_single_precision(num_coils, device):
    maps = batched_birdcage_maps(num_coils, (33, 20), **rings(6, torch.float32, device))
    assert maps.shape == (6, num_coils, 33, 20)
    assert (maps.dtype, maps.device.type) == (torch.complex64, device)
    total = maps.abs().square().sum(1)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-5)


def test_a_batch_holds_what_its_samples_give_one_by_one():
    settings = rings(3)
    maps = batched_birdcage_maps(4, (6, 7), **settings)
    for sample, expected in enumerate(maps):
        own = {key: value[sample].tolist() for key, value in settings.items()}
        own["shift"] = tuple(own["shift"])
        assert torch.allclose(birdcage_maps(4, (6, 7), dtype=torch.complex128, **own), expected, atol=1e-12)


def test_a_turned_ring_is_the_turned_image_of_the_ring():
    # The grid turns onto itself about pixel (5, 5) once its first row and column are left out.
    still, turned = (
        birdcage_maps(3, (10, 10), rotation=angle, dtype=torch.complex128)[:, 1:, 1:]
        for angle in (0.3, 0.3 + math.pi / 2)
    )
    # A turn from the axis of the width towards that of the height: what lay right of the centre lies below it.
    assert torch.allclose(turned, still.rot90(-1, (1, 2)), atol=1e-12)


def test_a_coil_is_strongest_beside_itself():
    maps = birdcage_maps(4, (9, 9)).abs()
    for coil, (row, column) in enumerate([(4, 8), (8, 4), (4, 0), (0, 4)]):
        assert int(maps[:, row, column].argmax()) == coil


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_coil_on_a_pixel_has_it_to_itself(dtype):
    # Coil 0 of 4 stands at 0.5 along the width, which is column 6 of row 4.
    maps = birdcage_maps(4, (8, 8), relative_radius=0.5, dtype=dtype)
    assert bool(maps.isfinite().all())
    assert maps[:, 4, 6].abs().tolist() == pytest.approx([1, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("num_coils", "shape", "radius", "message"),
    [
        (0, (4, 4), 1.5, "at least one coil.*got 0"),
        (4, (0, 4), 1.5, "one pixel.*0, 4"),
        (4, (4, 4), 0.0, "relative_radius must be above 0"),
        (4, (4, 4), math.nan, "relative_radius must be above 0"),
        (4, (4, 4), math.inf, "relative_radius must be above 0"),
    ],
)
def test_rings_that_cannot_be_are_refused(num_coils, shape, radius, message):
    with pytest.raises(ValueError, match=message):
        birdcage_maps(num_coils, shape, relative_radius=radius)
