"""Small runs of `voxelwave subsample`."""

from voxelwave.jobs.subsample.config import StudyConfig, SubsampleConfig, check_subsample_config

IMAGES = {"source": "phantoms", "volumes": 6, "slices": 2, "size": 32}


def subsample(folder, kind=SubsampleConfig, *, mask=None, data=None, training=None, run=None, **sections):
    """Return a configuration of a run in `folder` that takes seconds."""
    raw = {
        "run": {"out_dir": str(folder), "tensorboard": False, **(run or {})},
        "data": IMAGES | (data or {}),
        "mask": mask or {},
        "training": {"epochs": 4, "batch_size": 4, "device": "cpu", **(training or {})},
        "model": {"name": "plain", "channels": 2, "depth": 2},
        **sections,
    }
    return check_subsample_config(kind, raw)


def study(folder, *, mask=None, data=None, **of):
    """Return a study of two cases."""
    settings = {"drop_rates": [0.5], "masks": ["learned"], "controls": ["power"], "l1_wavelet": False, "workers": 2}
    return subsample(folder, StudyConfig, mask={"epochs": 2} | (mask or {}), data=data, study=settings | of)
