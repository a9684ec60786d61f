"""What the cells of the transfer study say together: tables with intervals over seeds and heads, and a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from arms import ARMS, CROSS, CROSS_PLAIN, CURRENT, MAE, SUPERVISED, SUPERVISED_PLAIN
from endpoints import DRAWS, LABELLED, RAW_CROP, RAW_SCAN, TRANSFERS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scans import REAL_PAIRS

from reporting import table
from voxelwave.ops.seeding import numpy_generator

RANDOM, RANDOM_PLAIN = "random weights", "random weights, plain transformer"
RESAMPLES = 2000
INTERVAL = (2.5, 97.5)
ENDPOINTS = tuple(f"{origin}→{goal}, {labelled}" for origin, goal in TRANSFERS for labelled in LABELLED)
DIFFERENCES = (
    *((CROSS, other) for other in (CURRENT, MAE, SUPERVISED, RAW_CROP, RAW_SCAN, RANDOM)),
    *((SUPERVISED, other) for other in (CURRENT, RAW_CROP)),
    *((CROSS_PLAIN, other) for other in (CURRENT, CROSS, SUPERVISED_PLAIN, MAE, RAW_CROP, RAW_SCAN, RANDOM_PLAIN)),
)
PLACES = ("own place T1→CT", *(f"own place, {name}" for name in REAL_PAIRS), "other head T1→CT, mm")
Cell = dict[str, Any]
Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Study:
    """All cells of a study, and draws of seeds and of heads."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        named = dict.fromkeys((RAW_CROP, RAW_SCAN, RANDOM, RANDOM_PLAIN, *ARMS, *(cell["arm"] for cell in cells)))
        self.by_arm = {arm: [cell for cell in cells if cell["arm"] == arm] for arm in named}
        self.by_arm = {arm: sorted(of, key=lambda cell: int(cell["seed"])) for arm, of in self.by_arm.items() if of}
        self.asked = next(cell["asked"] for cell in cells if "asked" in cell)
        heads = len(next(iter(self.asked.values())))
        drawn = numpy_generator("transfer heads").integers(heads, size=(RESAMPLES, heads))
        # How often each head is in each resample; first of all, once each.
        self.weights = np.stack([np.bincount(one, minlength=heads) for one in (np.arange(heads), *drawn)])

    def draws(self, arm: str, endpoint: str, measure: Measure, *, like: str = "") -> np.ndarray:
        """Return a measure of an arm, the mean over its seeds: of all, and then of each draw of seeds and heads.

        `like` takes the seeds alone that another arm has, too.
        """
        seeds_of = {cell["seed"] for cell in self.by_arm[like or arm]}
        goal, labelled = endpoint.split("→")[1].split(", ")
        asked = self.weights @ np.array(self.asked[goal]) * (DRAWS if labelled == "1" else 1)
        by_seed = []
        for cell in (cell for cell in self.by_arm[arm] if cell["seed"] in seeds_of):
            if endpoint not in cell["transfers"]:  # of an arm that reads no CT
                return np.full(RESAMPLES + 1, np.nan)
            counts = cell["transfers"][endpoint]
            hits = self.weights @ np.array(counts["hits"])
            told = self.weights @ np.array(counts.get("told", counts["hits"]))
            by_seed.append(measure(hits, told, asked))
        values = np.stack(by_seed)
        seeds = numpy_generator("transfer seeds", arm).integers(len(values), size=(RESAMPLES, len(values)))
        rows = np.arange(1, RESAMPLES + 1)
        return np.concatenate([values[:, :1].mean(0), values[seeds, rows[:, None]].mean(1)])


def balanced_accuracy(hits: np.ndarray, told: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the mean share of the tokens of each class that were told right."""
    shares: np.ndarray = np.divide(hits, asked, out=np.full(hits.shape, np.nan), where=asked > 0)
    found: np.ndarray = np.nanmean(shares, -1)
    return found


def dice(hits: np.ndarray, told: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the mean Dice of the classes, of tokens."""
    found: np.ndarray = (2 * hits / np.maximum(told + asked, 1)).mean(-1)
    return found


def shown(draws: np.ndarray, sign: str = "", scale: float = 100) -> str:
    """Write a value and its interval."""
    if np.isnan(draws[0]):
        return "–"
    low, high = np.percentile(draws[1:], INTERVAL)
    return f"{scale * draws[0]:{sign}.1f} [{scale * low:{sign}.1f}, {scale * high:{sign}.1f}]"


def score_lines(cell: Cell) -> list[str]:
    """Return what a cell says by itself, in points."""
    lines = [f"{cell['arm']}, seed {cell['seed']}, {cell['duration_s']} s"]
    if "asked" in cell:
        study = Study([cell])
        names = [name for name in ENDPOINTS if name in cell["transfers"]]
        scores = [f"{name}: {100 * study.draws(cell['arm'], name, balanced_accuracy)[0]:.1f}" for name in names]
        lines.append("  " + "; ".join(scores))
    for name, by_arm in cell["places"].items():
        lines.append(f"  {name}: " + ", ".join(f"{arm} {np.mean(values):.3f}" for arm, values in by_arm.items()))
    return lines


def write_report(cells: Sequence[Cell], steps: Mapping[str, int], results: Path) -> None:
    """Write `transfer.json`, `transfer.md` and `transfer.png`."""
    study = Study(cells)
    arms = [arm for arm in study.by_arm if arm in (RAW_CROP, RAW_SCAN, RANDOM, RANDOM_PLAIN, *ARMS)]
    ablated = [arm for arm in study.by_arm if arm not in arms]
    scores = {(arm, name): study.draws(arm, name, balanced_accuracy) for arm in study.by_arm for name in ENDPOINTS}
    counts = {arm: len(of) for arm, of in study.by_arm.items()}
    texts = [
        "# Transfer",
        "Steps of pretraining, in about the same time, and seeds: "
        + "; ".join(f"{arm} {steps[arm]}, {counts[arm]}" for arm in arms if arm in steps)
        + ". In brackets 95 % of draws of seeds and of heads that were asked; which heads are labelled stays.",
        "## Tissues of tokens: balanced accuracy, points",
        "`A→B, n`: a probe of frozen features was fitted on n labelled heads in A and asked for other heads in B.",
        table(
            "endpoint | " + " | ".join(arms),
            [(name, *(shown(scores[arm, name]) for arm in arms)) for name in ENDPOINTS],
        ),
        "## Differences, points",
    ]
    pairs = [(one, other) for one, other in DIFFERENCES if one in arms and other in arms]
    texts.append(
        table(
            "endpoint | " + " | ".join(f"{one} − {other}" for one, other in pairs),
            [
                (name, *(shown(scores[one, name] - scores[other, name], "+") for one, other in pairs))
                for name in ENDPOINTS
            ],
        )
    )
    if ablated:
        rows = [
            (
                name,
                *(
                    shown(scores[arm, name] - study.draws(_base(arm), name, balanced_accuracy, like=arm), "+")
                    for arm in ablated
                ),
            )
            for name in ENDPOINTS
        ]
        texts += [
            "## Settings: differences from the same seeds of the arm that they are of, points",
            table("endpoint | " + " | ".join(f"{arm} ({counts[arm]} seeds)" for arm in ablated), rows),
        ]
    few = [name for name in ENDPOINTS if name.endswith(", 1")]
    overlaps = {(arm, name): study.draws(arm, name, dice) for arm in arms for name in few}
    texts += [
        "## Dice of tokens, one labelled head, points",
        table(
            "endpoint | " + " | ".join(arms), [(name, *(shown(overlaps[arm, name]) for arm in arms)) for name in few]
        ),
        "Share of what the goal's own labels bring, %:",
        table(
            "transfer | " + " | ".join(arms),
            [
                (f"{name} over {own}", *(shown(overlaps[arm, name] / overlaps[arm, own]) for arm in arms))
                for name, own in (("T1→CT, 1", "CT→CT, 1"), ("CT→T1, 1", "T1→T1, 1"))
            ],
        ),
        "## Places: share within one token, %; of another head the distance in mm",
        "Mean over seeds (lowest…highest), each of several heads or fields of view.",
    ]
    networks = [arm for arm in arms if arm not in (RAW_CROP, RAW_SCAN)]
    rows = []
    for place in PLACES:
        scale = 1 if place.endswith("mm") else 100
        found: dict[str, list[float]] = {}
        for arm in networks:
            for cell in study.by_arm[arm]:
                for kind, values in cell["places"].get(place, {}).items():
                    found.setdefault(arm if kind == "features" else kind, []).append(scale * float(np.mean(values)))
        cells_of = [found.get(name, []) for name in (*networks, "raw voxels", "chance", "oracle")]
        rows.append((place, *(f"{np.mean(of):.1f} ({min(of):.1f}…{max(of):.1f})" if of else "–" for of in cells_of)))
    texts.append(table("place | " + " | ".join((*networks, "raw voxels", "chance", "oracle")), rows))
    (results / "transfer.md").write_text("\n\n".join(texts) + "\n")
    figures = {
        "steps": dict(steps),
        "seeds": counts,
        "balanced_accuracy": {
            arm: {
                name: [
                    round(float(x), 4) for x in (scores[arm, name][0], *np.percentile(scores[arm, name][1:], INTERVAL))
                ]
                for name in ENDPOINTS
                if not np.isnan(scores[arm, name][0])
            }
            for arm in study.by_arm
        },
    }
    (results / "transfer.json").write_text(json.dumps(figures, indent=1) + "\n")
    _draw(scores, arms, results / "transfer.png")


def _base(arm: str) -> str:
    return CROSS if arm.startswith(CROSS) else CURRENT


def _draw(scores: Mapping[tuple[str, str], np.ndarray], arms: Sequence[str], path: Path) -> None:
    figure = Figure(figsize=(13, 5), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, labelled in zip(figure.subplots(1, len(LABELLED), sharey=True), LABELLED, strict=True):
        names = [name for name in ENDPOINTS if name.endswith(f", {labelled}")]
        for number, arm in enumerate(arms):
            at = np.arange(len(names)) + 0.8 * (number / max(1, len(arms) - 1) - 0.5)
            values = np.array([100 * scores[arm, name][0] for name in names])
            ends = np.array([np.percentile(100 * scores[arm, name][1:], INTERVAL) for name in names])
            errors = np.abs(ends.T - values)
            axis.errorbar(at, values, errors, fmt="os"[number // 10], ms=4, capsize=2, label=arm, color=f"C{number}")
        axis.axhline(100 / 6, color="grey", lw=0.8, ls=":")
        axis.set_xticks(range(len(names)), [name.split(",")[0] for name in names])
        axis.set(title=f"{labelled} labelled", ylabel="balanced accuracy of tissues, points")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=90)
