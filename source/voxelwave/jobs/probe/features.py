"""What probes are fitted on: embeddings of scans, of crops of scans, and of single tokens with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Integer
from numpy import ndarray
from torch import Tensor

from voxelwave.contracts import Grid
from voxelwave.data.label_maps import Classes, check_same_grid, onto_grid, read_labels
from voxelwave.data.listing.cases import Case
from voxelwave.data.recognition.labels import without_suffix
from voxelwave.data.scaled import Scaled
from voxelwave.downstream.embedding import (
    embed_crops,
    embed_scan,
    fitted_size,
    frame,
    occupied_tokens,
    random_crops,
)
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.console import tracked
from voxelwave.jobs.probe.raw import raw_scan, raw_tokens
from voxelwave.ops.patches import patchify, token_grid
from voxelwave.ops.seeding import torch_generator

RAW = "raw voxels"  # the name of what is known without a network, beside those of backbones
CROPS = 4
TOKENS = 512  # of each scan


@dataclass(frozen=True)
class Probed:
    """The features of several backbones for the same cases, by the backbone's name, and those of `RAW`.

    Attributes:
        cases: those that could be read.
        scans, crops, tokens: features; the tokens are drawn at random, up to 512 of each scan.
        token_case: the number of the case that a token is of.
        token_labels: the class of most voxels of a token; 0 for none.
        label_names: the names of the classes that have one.
        channels: of the volumes.
    """

    cases: list[Case]
    scans: dict[str, Float32[ndarray, "scan embed"]]
    crops: dict[str, Float32[ndarray, "scan crop embed"]]
    tokens: dict[str, Float32[ndarray, "token embed"]]
    token_case: Int64[ndarray, " token"]
    token_labels: Int64[ndarray, " token"]
    label_names: Mapping[int, str]
    channels: int = 1


def parse_classes(text: str) -> Classes | None:
    """Read `grey=6,white=7,deep=8+11-13`: classes by name, each of the label values that it joins; "" is None.

    Raises InputError for another form, or a value in two classes.
    """
    if not text.strip():
        return None
    values: dict[str, list[str | int]] = {}
    for part in text.split(","):
        name, _, joined = part.partition("=")
        values[name.strip()] = [*(joined or name).split("+")]
    try:
        return Classes(values, others="background")
    except ValueError as error:
        raise InputError(f"--label-classes takes NAME=VALUE+VALUE,… such as grey=6,deep=8+11: {error}") from None


def probe_cases(
    cases: Sequence[Case], backbones: Mapping[str, FeaturePyramid], *, classes: Classes | None, seed: int
) -> tuple[Probed, list[str]]:
    """Embed cases of one modality, each read once, and say which could not be used and why."""
    first = next(iter(backbones.values()))
    reader, size, patch_size = ScanReader(first), fitted_size(first), first.strides[-1]
    used: list[Case] = []
    problems: list[str] = []
    labels: list[Tensor] = []
    owners: list[int] = []
    rows: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in (*backbones, RAW)}
    for case in tracked(cases, f"embedded {cases[0].modality} scans"):
        try:
            scaled = reader(case.image, case.modality)
            framed = frame(scaled.volume, patch_size, size=size)
            label = prevailing(labels_of(case, scaled, classes), patch_size, size)
        except UnusableVolume as unusable:
            problems.append(f"{case.image}: {unusable}")
            continue
        key = key_of(case)
        chosen = some_of(occupied_tokens(framed, patch_size), TOKENS, torch_generator(seed, "tokens", *key))
        for name, features in backbones.items():
            # The same crops for all of them.
            generator = torch_generator(seed, "crops", *key)
            whole, tokens = embed_scan(features, scaled.volume, chosen=chosen, size=size)
            crops = embed_crops(features, scaled.volume, count=CROPS, generator=generator, size=size)
            rows[name].append((whole, crops, tokens))
        generator = torch_generator(seed, "crops", *key)
        crops = random_crops(first, scaled.volume, count=CROPS, generator=generator, size=size)
        rows[RAW].append(
            (
                raw_scan(scaled.volume, patch_size, size=size),
                torch.stack([raw_scan(crop, patch_size, size=None) for crop in crops]),
                raw_tokens(framed, patch_size, chosen=chosen),
            )
        )
        labels.append(label[chosen])
        owners += [len(used)] * len(labels[-1])
        used.append(case)
    if not used:
        raise InputError(f"none of the {len(cases)} {cases[0].modality} cases can be used: {problems[0]}")
    of_scans, of_crops, of_tokens = (
        {name: join([row[part] for row in own]).numpy() for name, own in rows.items()}
        for part, join in enumerate((torch.stack, torch.stack, torch.cat))
    )
    owned, names = np.array(owners, dtype=np.int64), dict(enumerate(classes.names if classes else ()))
    channels = reader.modality(cases[0].modality).channels
    return Probed(used, of_scans, of_crops, of_tokens, owned, torch.cat(labels).numpy(), names, channels), problems


def key_of(case: Case) -> tuple[str, str, str]:
    """Return what everything that is drawn for a case follows from: many a scan is called T1 in a folder of its own."""
    return case.subject, case.session, without_suffix(case.image.name)


def some_of(asked: Bool[Tensor, "d h w"], count: int, generator: torch.Generator) -> Bool[Tensor, "d h w"]:
    """Return `count` of the tokens that are asked for, drawn at random, or all where they are fewer."""
    places = asked.nonzero()
    places = places[torch.randperm(len(places), generator=generator)[:count]]
    chosen = torch.zeros_like(asked)
    chosen[tuple(places.T)] = True
    return chosen


def labels_of(case: Case, scaled: Scaled, classes: Classes | None) -> Integer[ndarray, "depth height width"]:
    """Return the label of each voxel of a scan: its number in `classes`, or its value; 0 where there is no label map.

    Raises UnusableVolume for a label map that cannot be read or lies elsewhere.
    """
    if case.label is None:
        return np.zeros(scaled.volume.shape[1:], dtype=np.uint8)
    try:
        labels = read_labels(case.label)
        check_same_grid(labels, case.image)
    except UnusableVolume as unusable:
        raise UnusableVolume(f"its label map {case.label.name}: {unusable}") from None
    array = labels.array if classes is None else classes.indices(labels.array)
    return onto_grid(array, labels.affine, shape=scaled.volume.shape[1:], to_affine=scaled.affine)


def prevailing(
    labels: Integer[ndarray, "depth height width"], patch_size: int, size: Grid | None
) -> Int64[Tensor, "d h w"]:
    """Return the label that most voxels of each token have."""
    # The share of a patch that each label takes, by the way that the image went.
    names = np.unique(labels)
    shares = []
    for name in names:
        framed = frame(torch.from_numpy((labels == name).astype(np.float32))[None], patch_size, size=size)
        shares.append(patchify(framed[None], patch_size)[0, :, 0].mean(1))
    most: Tensor = torch.from_numpy(names.astype(np.int64))[torch.stack(shares).argmax(0)]
    return most.view(token_grid(framed.shape, patch_size))
