"""Probing: how much frozen features tell, compared with those of the same network untrained and with raw voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from voxelwave import __version__
from voxelwave.data.listing.cases import Case, find_cases
from voxelwave.downstream.embedding import untrained_twin
from voxelwave.downstream.load_backbone import load_backbone
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.engine.runtime import best_device
from voxelwave.errors import InputError
from voxelwave.evaluation.estimates import Estimate
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.probe.correspondence import compare_scans
from voxelwave.jobs.probe.features import RAW, Probed, parse_classes, probe_cases
from voxelwave.jobs.probe.figures import draw_embeddings
from voxelwave.jobs.probe.kinds import is_of, parse_transfers
from voxelwave.jobs.probe.raw import over_channels
from voxelwave.jobs.probe.tasks import ARMS, PRETRAINED, UNTRAINED, Comparison, Result
from voxelwave.ops.files import replacing, write_text
from voxelwave.ops.texts import to_json
from voxelwave.registry import MODALITIES

MODALITY = "modality"  # a target that every case has


def probe(
    weights: str | Path,
    cases: str | Path,
    *,
    modality: str = "",
    label: str = "",
    targets: Sequence[str] | None = None,
    label_classes: str = "",
    depth: int | None = None,
    out: Path = Path("probe.json"),
    transfer: str = "",
    seed: int = 0,
    console: Console | None = None,
) -> list[Result]:
    """Probe a backbone, its untrained twin and raw voxels on the same cases; print a table, write `out` and a picture.

    For each modality: a linear classifier and nearest neighbours for every target; a linear classifier of single tokens
    for the labels that ten subjects have, or half of the subjects where they are fewer than twenty; retrieval between
    the crops of a scan; effective rank and deviation. Where cases are of several modalities, `modality` is a target
    too, but an easy one: each channel count has its own patch embedding, so that a random backbone tells them apart.
    From each kind of scan to each that `transfer` names: classifiers of tokens that were fitted on the one and read the
    other, and where the nearest token of a scan of the other lies.

    Args:
        weights: what `load_backbone` takes.
        cases: what `find_cases` takes.
        modality: of images for which the list says none; images of other modalities are left out. "" takes all.
        label: a word in the names of label maps, where a prepared image has several.
        targets: None takes all that can be learned from these cases.
        label_classes: label values to tell apart, such as "grey=6,deep=8+11"; "" tells all apart.
        depth: the block after which features are taken, of both; None is the last.
        out: a .json file, which is overwritten.
        transfer: what `parse_transfers` takes, such as "mri:ct,T1:T2"; "" is from each modality to each.
        seed: of the untrained backbone, the crops, tokens, folds and resamples.

    Raises InputError for what cannot be used.
    """
    console = console or Console()
    # 1. What is asked, before anything is computed.
    if out.suffix != ".json":
        raise InputError(f"--out is a file that ends in .json, got '{out}'")
    out.parent.mkdir(parents=True, exist_ok=True)
    if modality and modality not in MODALITIES.names():
        raise InputError(f"unknown modality '{modality}'; known: {', '.join(MODALITIES.names())}")
    classes = parse_classes(label_classes)
    features = load_backbone(weights, depths=None if depth is None else [depth]).to(best_device()).eval()
    listed = find_cases(cases, modality=modality, label=label, targets=targets)
    asked = _asked(listed, targets, str(cases))
    if classes is not None and not any(case.label for case in listed):
        raise InputError(f"--label-classes: no case of {cases} has a label map")
    transfers = parse_transfers(transfer, listed)
    reader, names = ScanReader(features), list(dict.fromkeys(case.modality for case in listed))
    for name in names:
        reader.modality(name)

    # 2. Both backbones look at the same scans, crops and tokens.
    backbones = {PRETRAINED: features, UNTRAINED: untrained_twin(features, seed=seed)}
    probed: dict[str, Probed] = {}
    for name in names:
        of_modality = [case for case in listed if case.modality == name]
        probed[name], unusable = probe_cases(of_modality, backbones, classes=classes, seed=seed)
        console.say(*(f"left out {problem}" for problem in unusable))

    # 3. The probes.
    comparison = Comparison(seed=seed)
    for name, of in probed.items():
        comparison.representation(name, of)
        comparison.tissues(name, of)
        for target in asked:
            known = [number for number, case in enumerate(of.cases) if target in case.targets]
            if known:
                chosen = [of.cases[number] for number in known]
                scans = {arm: vectors[known] for arm, vectors in of.scans.items()}
                comparison.target(target, name, chosen, scans, [case.targets[target] for case in chosen])
    usable = [case for of in probed.values() for case in of.cases]
    if MODALITY in asked:
        joined = {arm: np.concatenate([of.scans[arm] for of in probed.values()]) for arm in backbones}
        joined[RAW] = np.concatenate([over_channels(of.scans[RAW], of.channels) for of in probed.values()])
        comparison.target(MODALITY, "all", usable, joined, [names.index(case.modality) for case in usable])
    for one in transfers:
        comparison.transfer(one, probed)
        origin, goal = ([case for case in usable if is_of(kind)(case)] for kind in one)
        comparison.correspondence(one, *compare_scans(origin, goal, backbones, classes=classes, seed=seed))
    console.say(*(f"not probed: {task}: {problem}" for task, problem in comparison.problems.items()))
    if targets and not {result.task for result in comparison.results} & set(targets):
        raise InputError(f"no target can be probed: {'; '.join(map(': '.join, comparison.problems.items()))}")

    # 4. What is left of it.
    console.print(_table(comparison.results))
    assert features.report is not None
    loaded = {"weights": str(weights), "sha256": features.report.sha256, "depth": features.depths[-1]}
    _write(out, comparison, probed, {**loaded, "cases": str(cases)})
    picture = out.with_suffix(".png")
    _draw(picture, probed, asked)
    console.say(f"written: {out} and {picture}")
    return comparison.results


def _asked(cases: Sequence[Case], targets: Sequence[str] | None, where: str) -> list[str]:
    """Return the targets to probe; raises InputError where no case has one of those that were named."""
    known = sorted({name for case in cases for name in case.targets})
    if len({case.modality for case in cases}) > 1:
        known.append(MODALITY)
    for name in targets or ():
        if name == MODALITY and name not in known:
            raise InputError(f"--targets modality: all cases of {where} are of modality {cases[0].modality}")
        if name not in known:
            raise InputError(f"no case of {where} has the target '{name}'; there are: {', '.join(known) or 'none'}")
    return list(dict.fromkeys(targets)) if targets else known


def _table(results: Sequence[Result]) -> Table:
    columns = ("task", "probe", *ARMS, "gain", "gain over raw", "chance")
    has_oracle = any(result.oracle is not None for result in results)
    table = Table(*columns, *["oracle"] * has_oracle, caption="± standard error over subjects")
    for column in table.columns[2:]:
        column.justify = "right"
    before = ""
    for result in results:
        task = f"{result.task} ({result.modality})"
        if before and task != before:
            table.add_section()
        probe = result.measure if result.probe == "none" else f"{result.probe}: {result.measure}"
        chance = "" if result.pretrained.chance is None else f"{result.pretrained.chance:.2f}"
        values = [_figure(of) for of in (result.pretrained, result.untrained, result.raw)]
        values += [_figure(of, "+") for of in (result.gain, result.gain_over_raw)]
        oracle = "" if result.oracle is None else f"{result.oracle:.2f}"
        table.add_row(escape(task) if task != before else "", probe, *values, chance, *[oracle] * has_oracle)
        before = task
    return table


def _figure(estimate: Estimate, sign: str = "") -> str:
    return f"{round(estimate.value, 2) + 0.0:{sign}.2f}" + (
        "" if estimate.error is None else f" ± {estimate.error:.2f}"
    )


def _write(out: Path, comparison: Comparison, probed: Mapping[str, Probed], of: Mapping[str, Any]) -> None:
    record = {
        **of,
        "voxelwave": __version__,
        "seed": comparison.seed,
        "modalities": {
            name: {"scans": len(one.cases), "subjects": len({case.subject for case in one.cases})}
            for name, one in probed.items()
        },
        "results": [result.as_json() for result in comparison.results],
        "not_probed": comparison.problems,
    }
    write_text(out, to_json(record))


def _draw(path: Path, probed: Mapping[str, Probed], asked: Sequence[str]) -> None:
    """Draw the pretrained embeddings of each modality, coloured by target; without a target by modality."""
    panels = {}
    for name, of in probed.items():
        own = [target for target in asked if any(target in case.targets for case in of.cases)]
        colours = {target: [str(case.targets.get(target, "")) for case in of.cases] for target in own}
        panels[name] = (of.scans, colours or {MODALITY: [name] * len(of.cases)})
    with replacing(path) as part:
        draw_embeddings(panels, part)
