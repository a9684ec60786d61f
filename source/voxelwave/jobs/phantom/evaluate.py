"""What a trained phantom embedding is worth: scores of phantoms it never saw, maps, and vectors as a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from rich.table import Table

from voxelwave.backbones.embedding2d import EmbeddingModel
from voxelwave.data.kspace.phantoms import RandomPhantomDataset
from voxelwave.engine.runtime import best_device
from voxelwave.errors import InputError
from voxelwave.evaluation.metric_learning import cluster_scores, triplet_scores
from voxelwave.evaluation.retrieval import recall_at
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.phantom.config import PhantomConfig
from voxelwave.jobs.phantom.data import AllBatches, triplets, views
from voxelwave.jobs.phantom.figures import draw_maps
from voxelwave.jobs.phantom.train import load_phantom_model
from voxelwave.ops.files import replacing, write_text
from voxelwave.ops.seeding import torch_generator
from voxelwave.ops.texts import to_json

RANKS = (1, 5, 10)
SHOWN_PHANTOMS, VIEWS = 30, 8  # of maps and clusters

Vectors = Float[ndarray, "sample dim"]


def evaluate_phantoms(path: Path, out: Path | None = None, *, console: Console | None = None) -> dict[str, float]:
    """Score a run or a checkpoint on its phantoms of validation, and return the scores by name.

    Distances, violations and Recall@K are of the two views as in training, without augmentation. For the clusters and
    the maps `VIEWS` augmented views of each of `SHOWN_PHANTOMS` are embedded. Scores and maps go into `out`, by default
    `evaluation` in the folder of the run.

    Raises InputError for a file that is no checkpoint of phantom training.
    """
    console = console or Console()
    model, config = load_phantom_model(path)
    out = out or (path if path.is_dir() else path.parent) / "evaluation"
    model.to(best_device())
    # 1. Pairs and triplets.
    first, second, other = _of_triplets(model, config)
    margin = float(config.loss.settings["margin"])
    scores = triplet_scores(first, second, other, margin=margin)
    scores |= {f"recall_at_{rank}": share for rank, share in recall_at(first, second, RANKS).items()}
    # 2. Clusters.
    vectors, numbers = several_views(model, config)
    scores |= cluster_scores(vectors, numbers, seed=config.run.seed)
    # 3. Files.
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "scores.json", to_json(scores))
    draw_maps(vectors, numbers, out / "maps.png", seed=config.run.seed)
    table = Table("score", "value", title=f"{config.data.val_length} phantoms that were not trained on")
    for name, value in scores.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    console.print(table)
    console.say(f"{out}")
    return scores


def embed_phantoms(path: Path, out: Path, *, console: Console | None = None) -> None:
    """Write the vectors of both views of all phantoms of validation to `out`, a .npz file.

    It holds `first` and `second`, `[phantom, dim]`, and `number`, the phantoms' numbers.
    Raises InputError for a file that is no checkpoint of phantom training, and for another ending.
    """
    if out.suffix != ".npz":
        raise InputError(f"'{out}' does not end in .npz, and vectors are written as NumPy arrays")
    model, config = load_phantom_model(path)
    first, second, _ = _of_triplets(model.to(best_device()), config)
    number = np.arange(len(first)) + config.data.train_length
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as part, part.open("wb") as stream:
        np.savez(stream, first=first, second=second, number=number)
    (console or Console()).say(f"{out}: {len(first)} phantoms, {first.shape[1]} numbers for each view")


def several_views(model: EmbeddingModel, config: PhantomConfig) -> tuple[Vectors, Int[ndarray, " sample"]]:
    """Return the vectors of augmented views of some phantoms of validation, with the number of each one's phantom."""
    data, seed = config.data, config.run.seed
    count = min(SHOWN_PHANTOMS, data.val_length)
    # Other coils, phases and noise for each view, as with `rescan`; the phantoms are those of validation.
    seen = RandomPhantomDataset(
        count,
        image_size=data.image_size,
        num_coils=data.num_coils,
        noise=data.noise,
        seed=seed,
        offset=data.train_length,
        deterministic=False,
    )
    pipelines = views(data, augmented=True)
    vectors = []
    for number in range(VIEWS):
        seen.set_epoch(number)
        generators = [torch_generator(seed, "evaluation", number, index) for index in range(count)]
        images = pipelines[number % 2](seen.items(range(count)), generators)
        vectors.append(_embedded(model, images))
    return np.concatenate(vectors), np.tile(np.arange(count) + data.train_length, VIEWS)


def _of_triplets(model: EmbeddingModel, config: PhantomConfig) -> tuple[Vectors, Vectors, Vectors]:
    held_out = triplets(config.data, seed=config.run.seed, validation=True)
    parts = [
        _embedded(model, batch.images).reshape(3, batch.numbers.shape[1], -1)
        for batch in AllBatches(held_out, batch_size=config.training.batch_size)
    ]
    first, second, other = np.concatenate(parts, 1)
    return first, second, other


def _embedded(model: EmbeddingModel, images: torch.Tensor) -> Vectors:
    device = next(model.parameters()).device
    vectors = np.concatenate([model.embed(part.to(device), None).cpu().numpy() for part in images.split(64)])
    if not np.isfinite(vectors).all():
        raise InputError("the model's vectors are no numbers: its training diverged; take an earlier checkpoint")
    return vectors
