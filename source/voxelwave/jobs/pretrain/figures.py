"""Pictures of a pretraining run: loss curves, and what was hidden and predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from voxelwave.reports.plots import draw_smoothed, new_figure, running_mean, series

COLOURS = {"mri": "#1f77b4", "ct": "#d62728"}
CURVES = {
    "loss": "total loss",
    "reconstruction": "reconstruction",
    "contrastive": "spatial InfoNCE",
    "alignment": "places that find themselves (top-1)",
}
GAUGES = {
    "effective_rank": "effective rank",
    "feature_std": "feature deviation",
    "retrieval": "crops that find their scan (top-1)",
}
PROBES = {"linear": "-", "knn": ":"}
MARKERS = "osv^Dx"
MOST_IN_ONE_ROW = 4


def curves_figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the losses of each modality over the steps, smoothed, and what was measured of the features.

    What no record has gets no panel; there is at least one record.
    """
    modalities = list(dict.fromkeys(record["modality"] for record in records))
    recorded = {name for record in records for name in record}
    curves = [name for name in CURVES if name in recorded]
    parts = list(dict.fromkeys(part for modality in modalities for part in modality.split("+")))  # of pairs
    gauges = [name for name in GAUGES if any(f"{name}_{modality}" in recorded for modality in parts)]
    probes = _probes(recorded, parts)
    panels = len(curves) + len(gauges) + bool(probes)
    rows = 1 if panels <= MOST_IN_ONE_ROW else 2
    columns = math.ceil(panels / rows)
    figure = new_figure(4.5 * columns, 3.5 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for name, axis in zip(curves, axes, strict=False):
        for modality in modalities:
            of_modality = series([record for record in records if record["modality"] == modality], name)
            draw_smoothed(axis, *of_modality, colour=COLOURS.get(modality), label=modality.upper())
        if name == "reconstruction":
            steps, values = series(records, "baseline")
            axis.plot(steps, running_mean(values), color="grey", linestyle=":", label="guessing the mean")
        axis.set(title=CURVES[name], xlabel="step")
        axis.legend()
    for name, axis in zip(gauges, axes[len(curves) :], strict=False):
        for modality in parts:
            steps, values = series(records, f"{name}_{modality}")
            if steps:
                axis.plot(steps, values, color=COLOURS.get(modality), marker=".", label=modality.upper())
        axis.set(title=GAUGES[name], xlabel="step")
        axis.set_ylim(bottom=0)
        axis.legend()
    if probes:
        _draw_probes(axes[panels - 1], records, probes)
    for axis in axes[panels:]:
        axis.remove()
    return figure


def _probes(recorded: set[str], modalities: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return probe, target and modality of every score that was recorded."""
    return sorted(
        (probe, name.removeprefix(f"{probe}_").removesuffix(f"_{modality}"), modality)
        for name in recorded
        for probe in PROBES
        for modality in modalities
        if name.startswith(f"{probe}_") and name.endswith(f"_{modality}")
    )


def _draw_probes(axis: Axes, records: Sequence[Mapping[str, Any]], probes: Sequence[tuple[str, str, str]]) -> None:
    """Draw the scores of all targets: the modality is the colour, the probe the line, the target the marker."""
    targets = sorted({target for _, target, _ in probes})
    for probe, target, modality in probes:
        axis.plot(
            *series(records, f"{probe}_{target}_{modality}"),
            color=COLOURS.get(modality),
            linestyle=PROBES[probe],
            marker=MARKERS[targets.index(target) % len(MARKERS)],
            markersize=4,
            label=f"{target}, {modality.upper()}, {probe}",
        )
    axis.set(title="probes of labelled cases (balanced accuracy)", xlabel="step", ylim=(0, 1))
    axis.legend(fontsize=7)


def draw_reconstructions(rows: Sequence[tuple[str, Sequence[NDArray[Any]]]], titles: Sequence[str], path: Path) -> None:
    """Draw three orthogonal middle slices of each volume `[D, H, W]` in 0…1; NaN voxels are drawn as hidden.

    A row is a label and one volume for each of `titles`.
    """
    figure = new_figure(2.0 * 3 * len(titles) + 0.6, 2.1 * len(rows) + 0.6)
    figure.set_facecolor("black")
    panels = figure.subfigures(1, len(titles), wspace=0.04, squeeze=False)[0]
    for column, (title, panel) in enumerate(zip(titles, panels, strict=True)):
        panel.set_facecolor("black")
        panel.suptitle(title, color="white", fontsize=13)
        axes = panel.subplots(len(rows), 3, squeeze=False)
        for (label, volumes), line in zip(rows, axes, strict=True):
            for axis, image in zip(line, middle_slices(volumes[column]), strict=True):
                axis.imshow(_grey_with_holes(image), origin="lower", interpolation="nearest")
                axis.set_axis_off()
            if column == 0:
                line[0].set_title(label, color="white", fontsize=10, loc="left")
    figure.savefig(path, dpi=100, facecolor="black")


def middle_slices(volume: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the axial, coronal and sagittal middle slices of a RAS volume, each with its up direction up."""
    x, y, z = (side // 2 for side in volume.shape)
    return [volume[:, :, z].T, volume[:, y, :].T, volume[x, :, :].T]


def _grey_with_holes(image: NDArray[Any]) -> NDArray[Any]:
    grey = np.clip(np.nan_to_num(image), 0, 1)
    return np.where(np.isnan(image)[..., None], (0.16, 0.24, 0.42), np.stack([grey] * 3, -1))
