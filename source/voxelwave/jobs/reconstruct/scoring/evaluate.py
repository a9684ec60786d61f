"""Scores of reconstructed volumes against their targets, as tables, a page, and pictures of the worst slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, get_args

from rich.table import Table

from voxelwave.data.kspace.slices import DataRange
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console, tracked
from voxelwave.jobs.reconstruct.scoring.comparison import RECONSTRUCTION, TARGET, compare
from voxelwave.jobs.reconstruct.scoring.figures import draw_coil_maps, draw_scores
from voxelwave.jobs.reconstruct.scoring.pairs import EVALUATION, Pair, pair_files
from voxelwave.jobs.reconstruct.scoring.scores import Score, load_volumes, score_of, summary_of
from voxelwave.losses.image_mask import Anatomy
from voxelwave.ops.files import write_text
from voxelwave.ops.tables import as_csv
from voxelwave.ops.texts import to_json
from voxelwave.reports.comparisons import draw_comparison
from voxelwave.reports.pages import render

TITLES = {"ssim": "SSIM", "psnr_db": "PSNR (dB)", "nmse": "NMSE"}
DIGITS = {"ssim": 4, "psnr_db": 2, "nmse": 5}
COLUMNS = (
    *("name", "anatomy", "acceleration", "effective_acceleration", "method", "specialist", "slices", "inside"),
    *("ssim", "psnr_db", "nmse", "worst_slice", "worst_ssim"),
)
PICTURES = "pictures"


class Choices(TypedDict):
    """How volumes are read and scored."""

    data_range: DataRange
    anatomy: Anatomy | None


class Shown(NamedTuple):
    """What the page says of one slice; paths are from the page."""

    name: str
    slice_index: int
    facts: dict[str, str]
    picture: str
    notes: tuple[str, ...]


def evaluate_reconstructions(
    out: Path,
    data: str | Path,
    *,
    data_range: str = "volume",
    anatomy: str | None = None,
    worst: int = 6,
    console: Console | None = None,
) -> dict[str, Any]:
    """Score every reconstruction in `out` against the target of its file in `data`; print and return the means.

    Similarity is taken inside of the challenge's mask where the anatomy is known, which `anatomy` says of files that do
    not. `out/evaluation` gets `scores.csv` with a row a volume, `summary.json` with what is returned, and `index.html`
    with pictures of the `worst` slices by similarity.

    Args:
        data_range: "volume" takes the largest value of a target, "slice" that of each slice, "attribute" what its file
            says.
        anatomy: "brain" or "knee".

    Raises InputError for another of these, and as `pair_files` and `load_volumes` do.
    """
    console = console or Console()
    if worst < 0:
        raise InputError(f"the number of worst slices to show is at least 0, got {worst}")
    measured: Choices = {
        "data_range": _choice(data_range, get_args(DataRange), "--data-range"),
        "anatomy": None if anatomy is None else _choice(anatomy, get_args(Anatomy), "--anatomy"),
    }
    # 1. Every volume, one in memory at a time.
    pairs = pair_files(out, str(data))
    scores = [
        score_of(pair.name, load_volumes(pair, **measured)) for pair in tracked(pairs, "scored", total=len(pairs))
    ]
    # 2. Their means.
    summary = {"data_range": data_range, "mask": _masks(scores), **summary_of(scores)}
    _print(summary, console)
    # 3. Files.
    folder = out / EVALUATION
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    write_text(folder / "scores.csv", as_csv(COLUMNS, map(_row, scores)))
    write_text(folder / "summary.json", to_json(summary))
    by_group: dict[str, list[Score]] = {}
    for score in sorted(scores, key=lambda score: score.group):
        by_group.setdefault("\n".join(score.group), []).append(score)
    draw_scores(
        {
            title: {group: [getattr(score, name) for score in of] for group, of in by_group.items()}
            for name, title in TITLES.items()
        },
        folder / PICTURES / "scores.png",
    )
    shown, maps = _worst_slices(pairs, scores, folder, count=worst, measured=measured)
    write_text(folder / "index.html", _page(out, summary, shown, maps))
    console.say(f"{folder / 'index.html'}")
    return summary


def _worst_slices(
    pairs: Sequence[Pair],
    scores: Sequence[Score],
    folder: Path,
    *,
    count: int,
    measured: Choices,
) -> tuple[list[Shown], str | None]:
    """Draw the slices of the lowest similarity, the worst first, and the coils' maps of the first that has some."""
    ranked = sorted(
        (similarity, number, index) for number, of in enumerate(scores) for index, similarity in enumerate(of.ssims)
    )[:count]
    shown, maps = [], None
    for place, (_, number, index) in enumerate(tracked(ranked, "drawn", total=len(ranked)), start=1):
        pair, score = pairs[number], scores[number]
        compared = compare(pair, load_volumes(pair, **measured), index)
        picture = f"{PICTURES}/{place:02d}.png"
        draw_comparison(
            compared.images,
            compared.scores,
            compared.sampled,
            f"{score.rate} nominal, {score.effective_acceleration:.2f}× effective",
            folder / picture,
            target=TARGET,
            reconstruction=RECONSTRUCTION,
        )
        if maps is None and compared.maps is not None:
            maps = f"{PICTURES}/maps.png"
            draw_coil_maps(compared.maps, folder / maps)
        facts = {
            "SSIM": f"{score.ssims[index]:.4f}",
            "Volume": f"{score.ssim:.4f}",
            "Anatomy": score.anatomy,
            "Rate": score.rate,
            "Method": " ".join(filter(None, (score.method, score.specialist))),
            "Mask": score.inside or "none",
        }
        shown.append(Shown(pair.name, index, facts, picture, compared.notes))
    return shown, maps


def _choice(value: str, choices: Sequence[Any], option: str) -> Any:
    if value not in choices:
        raise InputError(f"{option} is one of {', '.join(choices)}, got '{value}'")
    return value


def _masks(scores: Sequence[Score]) -> str:
    """Say in which mask the similarity was taken."""
    inside = sum(bool(score.inside) for score in scores)
    if inside in (0, len(scores)):
        return "of the challenge" if inside else "none"
    return f"of the challenge for {inside} of {len(scores)} volumes"


def _row(score: Score) -> dict[str, Any]:
    worst = min(range(len(score.ssims)), key=score.ssims.__getitem__)
    own = {name: getattr(score, name) for name in COLUMNS if hasattr(score, name)}
    return {**own, "slices": len(score.ssims), "worst_slice": worst, "worst_ssim": score.ssims[worst]}


def _print(summary: dict[str, Any], console: Console) -> None:
    table = Table(title=f"data range: {summary['data_range']}, mask: {summary['mask']}")
    for name in ("", "volumes", "slices", *TITLES.values()):
        table.add_column(name, justify="left" if not name else "right")
    for name, cells in _lines(summary):
        table.add_row(name, *cells)
    console.print(table)


def _lines(summary: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the rows of the table: by anatomy and rate, by rate, the mean of the rates."""
    lines = []
    for row in (*summary["groups"], *summary["rates"]):
        name = f"{row['anatomy']} {row['rate']}" if "anatomy" in row else f"all {row['rate']}"
        cells = [_words(row[score], score, row.get(f"{score}_deviation")) for score in TITLES]
        lines.append((name, [str(row["volumes"]), str(row["slices"]), *cells]))
    lines.append(("mean of the rates", ["", "", *(_words(summary["mean"][score], score) for score in TITLES)]))
    return lines


def _words(value: float, score: str, deviation: float | None = None) -> str:
    digits = DIGITS[score]
    return f"{value:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _page(out: Path, summary: dict[str, Any], shown: Sequence[Shown], maps: str | None) -> str:
    volumes, slices = (sum(row[name] for row in summary["rates"]) for name in ("volumes", "slices"))
    return render(
        "jobs/reconstruct/scoring/templates/evaluation.html",
        title=f"Reconstructions in {out.resolve().name}",
        facts_of_all={
            "Volumes": f"{volumes:,}",
            "Slices": f"{slices:,}",
            "Mean SSIM of the rates": _words(summary["mean"]["ssim"], "ssim"),
            "Data range": summary["data_range"],
            "Mask": summary["mask"],
        },
        titles=["Volumes", "Slices", *TITLES.values()],
        lines=_lines(summary),
        shown=shown,
        scores=f"{PICTURES}/scores.png",
        maps=maps,
    )
