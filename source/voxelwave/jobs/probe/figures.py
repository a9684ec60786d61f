"""A picture of embeddings: the plane in which they vary most, coloured by what is known of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from voxelwave.reports.plots import new_figure

Embeddings = Mapping[str, Float[ndarray, "sample dim"]]
Colours = Mapping[str, Sequence[str]]


def principal_plane(
    features: Float[ndarray, "sample dim"],
) -> tuple[Float[ndarray, "sample 2"], Float[ndarray, "2"]]:
    """Return features on their first two principal axes, and the share of the variance that each explains."""
    centred = features.astype(np.float64) - features.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    points, shares = np.zeros((len(features), 2)), np.zeros(2)
    count = min(2, len(singular))
    points[:, :count] = left[:, :count] * singular[:count]
    if singular.any():
        shares[:count] = singular[:count] ** 2 / np.sum(singular**2)
    return points, shares


def draw_embeddings(panels: Mapping[str, tuple[Embeddings, Colours]], path: Path) -> None:
    """Draw for each of `panels` a row a backbone, and a column a target: a name for every sample, "" if unknown."""
    rows = [
        (f"{title}, {name}", features, colours)
        for title, (embeddings, colours) in panels.items()
        for name, features in embeddings.items()
    ]
    columns = max(len(colours) for _, _, colours in rows)
    figure = new_figure(4.4 * columns, 3.8 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (title, features, colours) in zip(grid, rows, strict=True):
        points, shares = principal_plane(features)
        for axis in line[len(colours) :]:
            axis.set_axis_off()
        for axis, (target, names) in zip(line, colours.items(), strict=False):
            for name in sorted(set(names)):
                own = points[np.array(names) == name]
                axis.scatter(*own.T, s=16, label=name or "not known", color=None if name else "lightgrey")
            axis.set_title(f"{title}: {target}")
            axis.set_xlabel(f"first axis, {shares[0]:.0%} of the variance")
            axis.set_ylabel(f"second axis, {shares[1]:.0%}")
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=90)
