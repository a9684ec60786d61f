"""Pictures of what a phantom model is shown, without a display."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from voxelwave.data.kspace.complex_transforms import ComplexPipeline
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.phantom.config import PhantomConfig
from voxelwave.jobs.phantom.data import phantoms, seen
from voxelwave.jobs.phantom.figures import draw_preview
from voxelwave.ops.seeding import torch_generator

TITLES = ("anatomy", "all of k-space", "first view", "second view", "first, moved", "second, moved")


def preview_phantoms(config: PhantomConfig, out: Path, *, samples: int, console: Console | None = None) -> list[Path]:
    """Draw `samples` phantoms of training and both of their views into `<out>/phantoms.png`, and return its path.

    With a `run.prefix` each has a file of its own, `<prefix>sample_<N>.png`. Of coils and complex values the largest
    magnitude is shown.
    """
    data = config.data.model_copy(update={"train_length": max(config.data.train_length, samples)})
    shown = phantoms(data, seed=config.run.seed, validation=False)
    items = shown.items(range(samples))
    columns = [shown.anatomies(range(samples)), coil_maximum(items)]
    for augmented in (False, True):
        for name, view in (("first", config.data.first), ("second", config.data.second)):
            generators = [torch_generator(config.run.seed, "preview", name, index) for index in range(samples)]
            columns.append(coil_maximum(ComplexPipeline(*seen(view, augmented=augmented))(items, generators)))
    rows: list[tuple[str, list[Float[ndarray, "height width"]]]] = [
        (f"phantom {number}", [column[number].numpy() for column in columns]) for number in range(samples)
    ]
    out.mkdir(parents=True, exist_ok=True)
    files = {out / "phantoms.png": rows}
    if prefix := config.run.prefix:
        files = {out / f"{prefix}sample_{number}.png": [row] for number, row in enumerate(rows)}
    for path, shown_there in files.items():
        draw_preview(shown_there, TITLES, path)
        (console or Console()).say(f"{path}: {len(shown_there)} phantom{'s' * (len(shown_there) > 1)}")
    return list(files)


def coil_maximum(pairs: Float[Tensor, "batch coil height width 2"]) -> Float[Tensor, "batch height width"]:
    """Return the largest magnitude of all coils at each pixel."""
    largest: Tensor = torch.linalg.vector_norm(pairs, dim=-1).amax(1)
    return largest
