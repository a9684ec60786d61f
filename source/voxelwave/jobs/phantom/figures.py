"""Pictures of metric learning: its curves, maps of the embeddings, and a sheet of what the model is shown."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from numpy import ndarray

from voxelwave.errors import InputError
from voxelwave.ops.seeding import key_to_seed
from voxelwave.reports.plots import draw_smoothed, new_figure, series

Method = Literal["tsne", "umap"]
Embeddings = Float[ndarray, "sample dim"]
Image = Float[ndarray, "height width"]

TITLES: dict[Method, str] = {"tsne": "t-SNE", "umap": "UMAP"}
# What each panel shows: names of the records, those of validation with VALIDATION before them.
PANELS = {
    "loss": ("loss",),
    "distances": ("d_pos", "d_neg"),
    "violations of the margin": ("violations",),
    "found by the other view": ("recall_at_1", "recall_at_5"),
    "margin, and share of triplets mined": ("margin", "mined"),
    "learning rate": ("learning_rate",),
}
SCHEDULED = ("margin", "learning_rate")  # of which a running mean would show what never was
VALIDATION = "validation_"
GOLDEN = 0.618  # of the colours: steps of this share fall nowhere near the last ones


def draw_learning(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw what was measured over the steps: training with its running mean, validation as points on a line.

    A record has its `step` and any of the names of PANELS; what no record has is left out.
    """
    figure = new_figure(15, 7.5)
    for axis, (title, names) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        for colour, name in enumerate(names):
            for key, label in ((name, "training"), (VALIDATION + name, "validation")):
                steps, values = series(records, key)
                shade, label = f"C{2 * colour + (key != name)}", f"{name}, {label}"
                if steps and key == name and name not in SCHEDULED:
                    draw_smoothed(axis, steps, values, colour=shade, label=label)
                elif steps:
                    axis.plot(steps, values, color=shade, marker="." if len(values) < 100 else "", label=label)
        axis.set(title=title, xlabel="step")
        if axis.lines:
            axis.set_ylim(0, 1.05 * axis.dataLim.y1 or 1)
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=90)


def flattened(embeddings: Embeddings, method: Method, *, seed: int = 0) -> Float[ndarray, "sample 2"]:
    """Return the embeddings in the plane, near ones near each other; where all are the same, all lie at 0.

    Raises InputError where UMAP is asked for and not installed, ValueError for embeddings that are not finite.
    Source: van der Maaten and Hinton, t-SNE, 2008; McInnes, Healy and Melville, UMAP, 2018.
    """
    if not np.isfinite(embeddings).all():
        raise ValueError("embeddings must be finite to be drawn")
    if method == "umap" and not umap_is_installed():
        raise InputError("a map by UMAP needs umap-learn: pip install 'voxelwave[umap]', or take t-SNE")
    count = len(embeddings)
    if count < 4 or not np.ptp(embeddings, axis=0).any():
        # Two or three points have no neighbours to speak of: their distances from the first are all there is to see.
        apart = np.linalg.norm(embeddings - embeddings[:1], axis=1)
        return np.stack([apart, np.zeros(count)], 1)
    random = key_to_seed(seed, "map") % 2**32
    if method == "umap":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # of a part that needs Tensorflow
            from umap import UMAP
        # From as few as fit into one neighbourhood its own start, by eigenvectors, cannot be computed.
        few = count <= 16
        plane = UMAP(
            n_neighbors=min(15, count - 1), init="random" if few else "spectral", random_state=random, n_jobs=1
        )
    else:
        from sklearn.manifold import TSNE

        start = "pca" if embeddings.shape[1] > 1 else "random"
        plane = TSNE(perplexity=min(30.0, (count - 1) / 3), init=start, random_state=random)
    return np.asarray(plane.fit_transform(embeddings), dtype=np.float64)


def umap_is_installed() -> bool:
    """Tell whether the extra `umap` is there."""
    return find_spec("umap") is not None


def draw_maps(
    embeddings: Embeddings,
    numbers: Int[ndarray, " sample"],
    path: Path,
    *,
    methods: Sequence[Method] | None = None,
    seed: int = 0,
) -> None:
    """Draw a map by each of `methods`, by default all that are installed.

    `numbers` says which phantom each row shows: its views share a colour, and a line joins them.
    """
    drawn: Sequence[Method] = methods or (("tsne", "umap") if umap_is_installed() else ("tsne",))
    phantoms, phantom = np.unique(numbers, return_inverse=True)
    colours = colormaps["turbo"](np.arange(len(phantoms)) * GOLDEN % 1)
    figure = new_figure(6.5 * len(drawn), 6.5)
    for axis, method in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        points = flattened(embeddings, method, seed=seed)
        lines = [points[phantom == one] for one in range(len(phantoms))]
        axis.add_collection(LineCollection(lines, colors=colours, linewidths=0.7, alpha=0.6))
        axis.scatter(*points.T, s=14, c=colours[phantom], linewidths=0)
        axis.set(title=f"{TITLES[method]} of {len(points)} views of {len(phantoms)} phantoms", xticks=[], yticks=[])
    figure.savefig(path, dpi=100)


def draw_preview(rows: Sequence[tuple[str, Sequence[Image]]], titles: Sequence[str], path: Path) -> None:
    """Draw a row a sample: its label, and an image for each of `titles`, in grey from its least to its largest."""
    figure = new_figure(2.2 * len(titles), 2.2 * len(rows) + 0.4)
    figure.set_facecolor("black")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for (label, images), line in zip(rows, axes, strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image, cmap="gray", interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, color="white", fontsize=9)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, color="white", fontsize=10)
    figure.savefig(path, dpi=100)
