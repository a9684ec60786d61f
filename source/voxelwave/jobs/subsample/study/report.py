"""The page of a study, its tables as CSV, and its pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from voxelwave.jobs.common.console import Console
from voxelwave.jobs.subsample.config import StudyConfig
from voxelwave.jobs.subsample.images import Parted
from voxelwave.jobs.subsample.own_model import OwnModel
from voxelwave.jobs.subsample.study.cases import CASES, Case
from voxelwave.jobs.subsample.study.figures import draw_density, draw_evolution, draw_psnr, draw_spread
from voxelwave.jobs.subsample.study.summary import Difference, Row, difference, explained, rows_of
from voxelwave.jobs.subsample.study.testing import StudyTest
from voxelwave.jobs.subsample.train import MASKS
from voxelwave.ops.files import write_text
from voxelwave.ops.tables import as_csv
from voxelwave.ops.texts import to_json
from voxelwave.reports.pages import render

COLUMNS = (
    *("mask", "drop_rate", "seed", "mask_lr", "kept", "epochs", "best_epoch"),
    *(f"{part}_{name}" for part in ("training", "validation", "test") for name in ("psnr_db", "psnr_db_deviation")),
    *(f"{part}_psnr_db_pooled" for part in ("training", "validation", "test")),
    *(f"{part}_{name}" for part in ("training", "validation", "test") for name in ("ssim", "ssim_deviation")),
    *("zero_filled_psnr_db", "l1_wavelet_psnr_db", "l1_wavelet_ssim", "gap_db", "gain_gap_db", "fit"),
)
PICTURES, PAGE, TABLE, SUMMARY = "pictures", "report.html", "cases.csv", "summary.json"
FITS = {"over": "over-fitted", "under": "under-fitted", "neither": "neither"}


def write_report(
    config: StudyConfig,
    cases: Sequence[Case],
    tested: StudyTest,
    parted: Parted,
    folder: Path,
    *,
    own: OwnModel | None = None,
    console: Console,
) -> None:
    """Write report.html, cases.csv, summary.json and their pictures, and print the table."""
    rows = rows_of(tested)
    rates = config.study.drop_rates
    by_key = {(row.mask, row.drop_rate): row for row in rows}
    # 1. Differences of every learned mask to all others.
    learned = [mask for mask in dict.fromkeys(case.mask for case in cases) if Case(mask, 0.0, 0).learned]
    others = list(dict.fromkeys(case.mask for case in cases))
    differences = {
        (mask, other): [difference(by_key[mask, rate], by_key[other, rate], tested.test) for rate in rates]
        for mask in learned
        for other in others
        if other != mask
    }
    # 2. Files.
    write_text(folder / TABLE, as_csv(COLUMNS, [_cells(one) for one in tested.cases]))
    summary = _summary(rows, differences, tested)
    write_text(folder / SUMMARY, to_json(summary))
    # 3. Pictures.
    pictures = folder / PICTURES
    pictures.mkdir(exist_ok=True)
    draw_psnr(rows, tested.without_network, pictures / "psnr.png")
    draw_density(rows, pictures / "density.png")
    draw_spread(rows, pictures / "spread.png")
    evolutions = {}
    for case in cases:
        steps = sorted((folder / CASES / case.name / MASKS).glob("epoch_*.png"))
        if steps and case.seed == config.study.seeds[0]:
            evolutions[case.name] = f"{PICTURES}/evolution_{case.name}.png"
            draw_evolution(steps, folder / evolutions[case.name])
    # 4. The page.
    page = render(
        "jobs/subsample/study/templates/report.html",
        title=f"Subsampling: {config.run.name}",
        facts_of_all={
            "Images": parted.kind,
            "Size": "×".join(map(str, tested.test.shape)),
            "Training": f"{len(parted.training.kspace)} images, {parted.counts['training']} volumes",
            "Validation": f"{len(parted.validation.kspace)}, {parted.counts['validation']}",
            "Test": f"{len(tested.test.kspace)}, {parted.counts['test']}",
            "Subjects": f"unknown of {parted.unknown} volumes" if parted.unknown else "known of all volumes",
            "Network": config.model.name if own is None else "a file of the user's own",
            "Epochs": f"{config.training.epochs} behind a mask, {config.mask.epochs} before that while it is learned",
            "Seeds": ", ".join(map(str, config.study.seeds)),
        },
        rows=[_shown(row) for row in rows],
        with_seeds=len(config.study.seeds) > 1,
        with_l1=any(row.untouched_psnr_db is not None for row in rows),
        differences={f"{mask} − {other}": [_words(of) for of in found] for (mask, other), found in differences.items()},
        losses=losses(differences),
        alone=_alone(tested.without_network, rates),
        alone_names=list(dict.fromkeys(name for name, _ in tested.without_network)),
        explained={f"{rate:g}": explained(rate, rows, tested.test.kspace) for rate in rates},
        examples=[(case.name, f"examples/{case.name}.png") for case in cases if case.seed == config.study.seeds[0]],
        evolutions=evolutions,
        pictures=PICTURES,
        notes=tested.notes,
        symmetric=parted.kind.startswith("magnitude images"),
    )
    write_text(folder / PAGE, page)
    _print(rows, console)
    console.say(f"{folder / PAGE}")


def _cells(one: Any) -> dict[str, Any]:
    scores = {part: one.recorded["scores"][part]["network"] for part in ("training", "validation")}
    scores["test"] = one.network.summary()
    cells = {f"{part}_{name}": value for part, of in scores.items() for name, value in of.items()}
    untouched = None if one.untouched is None else one.untouched.scores.summary()
    return {
        "mask": one.case.mask,
        "drop_rate": one.case.drop_rate,
        "seed": one.case.seed,
        "mask_lr": one.case.mask_lr,
        **{name: one.recorded[name] for name in ("kept", "epochs", "best_epoch")},
        **cells,
        "zero_filled_psnr_db": one.filled.summary()["psnr_db"],
        "l1_wavelet_psnr_db": untouched and untouched["psnr_db"],
        "l1_wavelet_ssim": untouched and untouched["ssim"],
        "gap_db": one.verdict.gap_db,
        "gain_gap_db": one.verdict.gain_gap_db,
        "fit": one.verdict.fit,
    }


def _summary(
    rows: Sequence[Row], differences: Mapping[tuple[str, str], Sequence[Difference]], tested: StudyTest
) -> dict[str, Any]:
    return {
        "rows": [
            {
                "mask": row.mask,
                "drop_rate": row.drop_rate,
                "training": row.training,
                "validation": row.validation,
                "test": row.test,
                "zero_filled": row.filled,
                "psnr_db_deviation_over_seeds": row.over_seeds,
                "l1_wavelet": {"psnr_db": row.untouched_psnr_db, "ssim": row.untouched_ssim},
                "fit": row.fits,
            }
            for row in rows
        ],
        "differences": {f"{a} - {b}": [vars(one) for one in of] for (a, b), of in differences.items()},
        "without_network": [
            {"mask": name, "drop_rate": rate, "psnr_db": [of.summary()["psnr_db"] for of in scores]}
            for (name, rate), scores in tested.without_network.items()
        ],
    }


def _shown(row: Row) -> dict[str, str]:
    fits = list(dict.fromkeys(FITS[fit] for fit in row.fits))
    return {
        "mask": row.mask,
        "rate": f"{row.drop_rate:g}",
        "training": f"{row.training['psnr_db']:.2f} ± {row.training['psnr_db_deviation']:.2f}",
        "test": f"{row.test['psnr_db']:.2f} ± {row.test['psnr_db_deviation']:.2f}",
        "pooled": f"{row.test['psnr_db_pooled']:.2f}",
        "seeds": "" if row.over_seeds is None else f"{row.over_seeds:.2f}",
        "ssim": f"{row.test['ssim']:.4f} ± {row.test['ssim_deviation']:.4f}",
        "training_ssim": f"{row.training['ssim']:.4f} ± {row.training['ssim_deviation']:.4f}",
        "filled": f"{row.filled['psnr_db']:.2f}",
        "l1": "" if row.untouched_psnr_db is None else f"{row.untouched_psnr_db:.2f}",
        "gap": f"{row.gap_db:+.2f}",
        "fit": ", ".join(fits),
        "reason": row.reason,
    }


def _words(of: Difference) -> str:
    interval = "too few subjects" if math.isnan(of.low) else f"{of.low:+.2f}, {of.high:+.2f}"
    return f"{of.value:+.2f} [{interval}]"


def losses(differences: Mapping[tuple[str, str], Sequence[Difference]]) -> list[str]:
    """Say where a learned mask is behind another one, on average or with an image."""
    said = []
    for (mask, other), found in differences.items():
        for of in found:
            sure = ", which the interval does not tell from 0" if of.low <= 0 <= of.high else ""
            if of.value < 0:
                most = f"{-of.worst_db:.2f} dB on {of.worst_image}"
                said.append(
                    f"At {of.drop_rate:g}, '{mask}' is {-of.value:.2f} dB below '{other}'{sure}; at most, {most}."
                )
            elif of.worst_db < 0:
                most = f"{-of.worst_db:.2f} dB below it on {of.worst_image}"
                said.append(f"At {of.drop_rate:g}, '{mask}' is above '{other}' on average{sure}, and {most}.")
    return said


def _alone(found: Mapping[tuple[str, float], Sequence[Any]], rates: Sequence[float]) -> list[tuple[str, list[str]]]:
    """Return of each drop rate the PSNR of each mask without a network, with its deviation over seeds."""
    names = list(dict.fromkeys(name for name, _ in found))
    return [(f"{rate:g}", [_over_seeds(found.get((name, rate), [])) for name in names]) for rate in rates]


def _over_seeds(scores: Sequence[Any]) -> str:
    values = [of.summary()["psnr_db"] for of in scores]
    if not values:
        return "–"
    if not all(map(math.isfinite, values)):
        return "exact"
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1))
    return f"{mean:.2f}" + (f" ± {spread:.2f}" if len(values) > 1 else "")


def _print(rows: Sequence[Row], console: Console) -> None:
    table = Table(title="PSNR in dB, mean ± deviation over images; the range is the largest value of each")
    for name in ("mask", "drop rate", "training", "test", "zero-filled", "L1-wavelet", "SSIM", "fit"):
        table.add_column(name, justify="left" if name in ("mask", "fit") else "right")
    for row in sorted(rows, key=lambda row: row.drop_rate):
        of = _shown(row)
        table.add_row(*(of[key] for key in ("mask", "rate", "training", "test", "filled", "l1", "ssim", "fit")))
    console.print(table)
