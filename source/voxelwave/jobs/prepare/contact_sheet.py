"""The contact sheet of a data set: one page with three slices of each volume, and why files were refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from voxelwave.ops.files import replacing

SIDE = 112
MARGIN = 2
BRIGHT = 0.1
SAMPLED_SIDE = 64
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Entry:
    """What the page says of one file, in words; an empty text is left out.

    `told_by` says how the modality was told, `picture` is the path of the strip from the page, `reason` is
    why the file was refused, None where it was accepted.
    """

    name: str
    modality: str
    subject: str = ""
    shape: str = ""
    spacing: str = ""
    values: str = ""
    told_by: str = ""
    split: str = ""
    note: str = ""
    picture: str | None = None
    reason: str | None = None


def three_slices(
    volume: Float[ndarray, "channel depth height width"], spacing_mm: tuple[float, float, float]
) -> UInt8[ndarray, "row column"]:
    """Return the sagittal, coronal and axial slice of the first channel, each in a square of SIDE pixels.

    The axes of `volume` lead to right, anterior and superior, its values lie in [0, 1]. The slices lie as
    radiologists see them: sagittal with the front at the left, the others with the patient's right at the
    left. They go through the middle of what is bright and share one scale in pixels per mm.
    """
    values = volume[0]
    extent_mm = np.multiply(values.shape, spacing_mm)
    pixels_per_mm = (SIDE - 2 * MARGIN) / extent_mm.max()
    pixels = np.maximum(1, np.rint(extent_mm * pixels_per_mm)).astype(int)
    strip = np.zeros((SIDE, 3 * SIDE), dtype=np.uint8)
    for axis, position in enumerate(_bright_centre(values)):
        # Transposed and reversed, each plane has its higher axis upwards and R or A at the left.
        plane = np.moveaxis(values, axis, 0)[position].T[::-1, ::-1]
        grey = np.rint(255 * np.nan_to_num(np.clip(plane, 0, 1))).astype(np.uint8)
        across, up = np.delete(pixels, axis).tolist()
        top, left = (SIDE - up) // 2, (SIDE - across) // 2 + axis * SIDE
        # Pillow widens the filter where it shrinks, so that fine structure is averaged and not skipped.
        picture = Image.fromarray(grey).resize((across, up), Image.Resampling.BICUBIC)
        strip[top : top + up, left : left + across] = np.asarray(picture)
    return strip


def save_strip(path: Path, strip: UInt8[ndarray, "row column"]) -> None:
    """Write a strip of slices as a JPEG of some kilobytes, whole or not at all."""
    with replacing(path) as part:
        Image.fromarray(strip).save(part, "JPEG", quality=JPEG_QUALITY, optimize=True)


def contact_sheet(entries: Sequence[Entry], title: str, summary: Mapping[str, str]) -> str:
    """Return the page as HTML that needs nothing but the pictures beside it; `summary` stands at its top."""
    accepted: dict[str, list[str]] = {}
    refused: dict[str, list[str]] = {}
    for entry in entries:
        if entry.reason is None:
            accepted.setdefault(entry.modality, []).append(_card(entry))
        else:
            refused.setdefault(_kind(entry.reason), []).append(_row(entry, entry.reason))
    sections = [
        (name.upper(), len(cards), f'<ul class="cards">{"".join(cards)}</ul>') for name, cards in accepted.items()
    ]
    if refused:
        sections.append(("Refused", sum(map(len, refused.values())), _refused_table(refused)))
    links = "\n".join(f'<a href="#part{i}">{_text(name)} {count:,}</a>' for i, (name, count, _) in enumerate(sections))
    parts = "".join(
        f'<section id="part{i}" data-group>\n<h2>{_text(name)} <small>{count:,}</small></h2>\n{body}\n</section>\n'
        for i, (name, count, body) in enumerate(sections)
    )
    modalities = sorted({entry.modality for entry in entries if entry.modality})
    options = "".join(f'<option value="{_text(name)}">{_text(name.upper())}</option>' for name in modalities)
    return PAGE.substitute(title=_text(title), summary=_facts(summary), links=links, options=options, parts=parts)


def _bright_centre(values: Float[ndarray, "depth height width"]) -> list[int]:
    """Return the mean position of voxels above BRIGHT, from a subsample; the middle where there are none."""
    steps = [-(-side // SAMPLED_SIDE) for side in values.shape]
    bright = np.argwhere(values[tuple(slice(step // 2, None, step) for step in steps)] > BRIGHT)
    if not len(bright):
        return [side // 2 for side in values.shape]
    return [int(mean * step + step // 2) for mean, step in zip(bright.mean(0), steps, strict=True)]


def _kind(reason: str) -> str:
    """Return what reasons of a kind begin with: their details stand after a colon, a comma or in brackets."""
    return re.split(r"[:,(]", reason)[0].strip()


def _text(text: str) -> str:
    """Escape `text` for HTML; bytes of file names that are no UTF-8 are written out."""
    return escape(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _facts(facts: Mapping[str, str]) -> str:
    rows = [f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>\n" for key, value in facts.items() if value]
    return f"<dl>\n{''.join(rows)}</dl>" if rows else ""


def _name(entry: Entry) -> str:
    # Isolated, since a name written from right to left would turn what stands around it.
    return f'<p class="name"><bdi>{_text(entry.name)}</bdi></p>'


def _picture(entry: Entry) -> str:
    if entry.picture is None:
        return '<p class="blank">no picture</p>'
    # From ./ on, a path cannot be taken for a scheme or a host.
    source = "./" + quote(entry.picture.encode("utf-8", "surrogateescape"))
    return (
        f'<img src="{source}" alt="Sagittal, coronal and axial slice of {_text(entry.name)}" '
        f'width="{3 * SIDE}" height="{SIDE}" loading="lazy" decoding="async">'
    )


def _known(entry: Entry) -> dict[str, str]:
    return {
        "Subject": entry.subject,
        "Split": entry.split,
        "Shape": entry.shape,
        "Spacing": entry.spacing,
        "Values": entry.values,
        "Modality": " ".join(filter(None, (entry.modality.upper(), entry.told_by and f"({entry.told_by})"))),
        "Note": entry.note,
    }


def _card(entry: Entry) -> str:
    start = f'<li data-modality="{_text(entry.modality)}">'
    return f"{start}\n{_picture(entry)}\n{_name(entry)}\n{_facts(_known(entry))}\n</li>\n"


def _row(entry: Entry, reason: str) -> str:
    file = _name(entry) + (_picture(entry) if entry.picture else "")
    cells = "".join(f"<td>{cell}</td>\n" for cell in (file, _text(reason), _facts(_known(entry))))
    return f'<tr data-modality="{_text(entry.modality)}">\n{cells}</tr>\n'


def _refused_table(rows_by_kind: Mapping[str, Sequence[str]]) -> str:
    bodies = [
        f'<tbody data-group>\n<tr><th colspan="3" scope="rowgroup">{_text(kind)} ({len(rows):,})</th></tr>\n'
        f"{''.join(rows)}</tbody>\n"
        for kind, rows in sorted(rows_by_kind.items(), key=lambda item: -len(item[1]))
    ]
    head = "".join(f'<th scope="col">{name}</th>' for name in ("File", "Reason", "Known"))
    return f"<table>\n<thead><tr>{head}</tr></thead>\n{''.join(bodies)}</table>"


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ground: #f6f6f4; --card: #fff; --ink: #1c1d1f; --dim: #5c6066; --line: #d9dadc; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #131416; --card: #1d1f22; --ink: #e8e8e6; --dim: #a2a6ad; --line: #35383d; } }
body { margin: 0 auto; max-width: 110rem; padding: 0 1rem 3rem; font: 0.875rem/1.4 system-ui, sans-serif;
  background: var(--ground); color: var(--ink); }
p, dl, dd, ul { margin: 0; padding: 0; }
a, label, input, select { margin-right: 0.75rem; color: inherit; font: inherit; }
dt, small, header p, output { color: var(--dim); font-weight: normal; }
dt { flex: none; }
dl { display: flex; flex-wrap: wrap; gap: 0 1rem; margin: 0.25rem 0; }
dl > div { display: flex; gap: 0.4rem; }
.bar { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 0.5rem 1.5rem; padding: 0.75rem 0;
  background: var(--ground); border-bottom: 1px solid var(--line); }
section { scroll-margin-top: 4rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 0.75rem; }
.cards > li { list-style: none; padding: 0.5rem; border: 1px solid var(--line);
  content-visibility: auto; contain-intrinsic-size: auto 13rem; }
img, .blank { display: grid; place-items: center; width: 100%; height: auto; aspect-ratio: 3; background: #000;
  color: #a2a6ad; }
.name { margin-top: 0.25rem; font-weight: 600; }
.cards > li, td { background: var(--card); overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { width: 33%; padding: 0.4rem; border: 1px solid var(--line); text-align: left; vertical-align: baseline; }
[hidden] { display: none !important; }
@media (max-width: 40rem) { .bar { position: static; } thead { display: none; }
  tr, td, tbody th { display: block; width: auto; border-width: 0; } tbody tr { border-top: 1px solid var(--line); } }
</style>
</head>
<body>
<header>
<h1>$title</h1>
$summary
<p>Sagittal (front at the left), coronal and axial slice (the patient's right at the left, as radiologists see it),
through the middle of what is bright, in true proportions. CT is shown in its first window, that of the brain.</p>
</header>
<div class="bar">
<nav aria-label="Parts of this page">$links</nav>
<div role="search" hidden>
<label>Filter <input type="search" placeholder="name, subject …"></label>
<label>Modality <select><option value="">all</option>$options</select></label>
<output aria-live="polite"></output>
</div></div>
<main>
$parts</main>
<script>
const [text, modality, shown] = ["input", "select", "output"].map(name => document.querySelector(name));
const fold = words => words.normalize("NFKC").toLowerCase();
const items = [...document.querySelectorAll("[data-modality]")].map(node => [node, fold(node.textContent)]);
function filter() {
  const words = fold(text.value).split(" ");
  let count = 0;
  for (const [node, content] of items) {
    const fits = !modality.value || node.dataset.modality === modality.value;
    node.hidden = !fits || words.some(word => !content.includes(word));
    count += !node.hidden;
  }
  for (const group of document.querySelectorAll("[data-group]"))
    group.hidden = !group.querySelector("[data-modality]:not([hidden])");
  shown.value = count + " of " + items.length + " files";
}
for (const field of [text, modality]) field.addEventListener("input", filter);
document.querySelector("[role=search]").hidden = false;
filter();
</script>
</body>
</html>
""")
