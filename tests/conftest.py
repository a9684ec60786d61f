"""What tests of every part share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# Shapes and types of the package's signatures are checked in the tests, and cost nothing elsewhere.
install_import_hook("voxelwave", "typechecking.check")

# The models of the tests are tiny: threads would wait for each other longer than they work.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def minkowski() -> str:
    """Return the name of the backend; skip where it is not installed, and fail where it has to be."""
    from voxelwave.sparse.backends import why_not

    reason = why_not("minkowski", torch.device("cpu"))
    if reason and os.environ.get("VOXELWAVE_REQUIRE_MINKOWSKI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    return "minkowski"


@pytest.fixture(params=["dense", "gather", "minkowski"])
def sparse_backend(request) -> str:
    """Return the name of each backend."""
    return request.getfixturevalue("minkowski") if request.param == "minkowski" else request.param


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real volumes, which are not part of the project."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("VOXELWAVE_REAL_DATA", default))
    if not (folder / "volumes").is_dir():
        pytest.skip(f"no real volumes in {folder}: set VOXELWAVE_REAL_DATA to a folder that holds volumes/")
    return folder


@pytest.fixture(scope="session")
def heads(tmp_path_factory) -> Path:
    """Five MRI and three CT heads of 32³ voxels of 1 mm."""
    from support.heads import at_1_mm
    from voxelwave.jobs.synthesize.run import synthesize

    folder = tmp_path_factory.mktemp("heads")
    synthesize(folder, num_mri=5, num_ct=3, size=32, seed=0, workers=1)
    return at_1_mm(folder)
