"""Where the features of a scan lead in another one: of the same head, and of other heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float32, Integer
from numpy import ndarray
from torch import Tensor

from voxelwave.contracts import Grid
from voxelwave.data.label_maps import Classes
from voxelwave.data.listing.cases import Case
from voxelwave.data.scaled import Scaled
from voxelwave.downstream.embedding import embed_tokens, fitted_size, frame, occupied_tokens, token_centres
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.evaluation.correspondence import (
    Tokens,
    blind_mm,
    corresponding_place,
    distance_mm,
    guessed_share,
    most_alike,
    moved,
    oracle_mm,
    same_place,
    there,
    within_one_token,
)
from voxelwave.jobs.common.console import tracked
from voxelwave.jobs.probe.features import RAW, key_of, labels_of, prevailing
from voxelwave.jobs.probe.raw import PLACES, over_channels, raw_tokens
from voxelwave.ops.seeding import numpy_generator

SUBJECTS = 24  # of each kind: two scans of each are read and embedded
QUERIES = 256  # of each pair of scans
SHOWN = 0.75  # of each side of a scan
CORNER = 0.25  # of the way that a field of view can be shifted: the two of a pair lie in opposite quarters of it
BOX = (1, 99)  # percentiles between which a head lies


@dataclass(frozen=True)
class View:
    """A part of a scan as the networks see it: its tokens that count, and their features by backbone."""

    tokens: Tokens
    features: Mapping[str, Float32[ndarray, "token dim"]]


@dataclass
class Answers:
    """What was found for tokens of many pairs of scans, token by token.

    Attributes:
        subjects: whose token was asked for.
        measured: of each backbone.
        blind, oracle: of answers without any features, and of the best that there could be; the latter may be empty.
    """

    measured: dict[str, list[ndarray]] = field(default_factory=dict)
    subjects: list[str] = field(default_factory=list)
    blind: list[ndarray] = field(default_factory=list)
    oracle: list[ndarray] = field(default_factory=list)


def compare_scans(
    origin: Sequence[Case],
    goal: Sequence[Case],
    backbones: Mapping[str, FeaturePyramid],
    *,
    classes: Classes | None,
    seed: int,
) -> tuple[Answers, Answers]:
    """Look up tokens of scans of one kind in those of another, by cosine: in the same head, and in another head.

    Every scan is cut to 3/4 of its sides before it is embedded, those of one kind near one corner and those of the
    other near the opposite one, at a random voxel. Features that code the place in the field of view thus find another
    one. Only tokens count that are not air; where a scan has a label map, those of its labels.

    Two scans of one session of a subject are of the same head. Of that it is measured whether what is found is within
    one token of the same place in space, as the affines say, and `blind` is the chance of that. Of another head it is
    the distance in mm from the corresponding place, see `corresponding_place`; `blind` always answers with the middle,
    `oracle` with the nearest token of the same tissue.
    """
    patch_size, size = next(iter(backbones.values())).strides[-1], fitted_size(next(iter(backbones.values())))
    reader = ScanReader(next(iter(backbones.values())))
    channels = {case.modality: reader.modality(case.modality).channels for case in (*origin, *goal)}
    cases = {case.place: case for case in (*origin, *goal)}

    @lru_cache(maxsize=3)
    def see(place: str, last: bool) -> View:
        case = cases[place]
        scaled = reader(case.image, case.modality)
        labels = labels_of(case, scaled, classes)
        part = field_of_view(scaled.volume.shape[1:], patch_size, last=last, key=key_of(case), seed=seed)
        volume = scaled.volume[(slice(None), *part)].contiguous()
        tokens, counted = _tokens(case, scaled, labels, part, patch_size, size)
        raw = raw_tokens(frame(volume, patch_size, size=size), patch_size, chosen=counted).numpy()
        if len(set(channels.values())) > 1:
            raw = over_channels(raw, channels[case.modality], places=PLACES)
        features = {name: embed_tokens(of, volume, chosen=counted, size=size).numpy() for name, of in backbones.items()}
        return View(tokens, {**features, RAW: raw})

    own, other = Answers(), Answers()
    asked, offered = _pairs(origin, goal), _first_scans(goal)
    for number, (subject, (case, again)) in enumerate(tracked(list(asked.items())[:SUBJECTS], "compared scans")):
        generator = numpy_generator(seed, "asked tokens", subject)
        if again is not None:
            _ask(own, subject, see(case.place, False), see(again.place, True), generator, same=True)
        others = [of for name, of in offered.items() if name != subject]
        if others:
            one = others[number % len(others)]
            _ask(other, subject, see(case.place, False), see(one.place, True), generator, same=False)
    return own, other


def field_of_view(
    sides: Sequence[int], patch_size: int, *, last: bool, key: Sequence[str], seed: int
) -> tuple[slice, ...]:
    """Return the part of a scan that is shown: whole patches, begun at any voxel in a quarter of where it could begin.

    It is the quarter at the one end or, for scans of the kind that is searched (`last`), at the other; `seed` says
    along which axes the ends change their places.
    """
    turned = numpy_generator(seed, "field of view").integers(2, size=3)
    generator = numpy_generator(seed, "field of view", *key)
    part = []
    for side, turn in zip(sides, turned, strict=True):
        length = min(side, max(1, int(side * SHOWN) // patch_size) * patch_size)
        start = int(generator.integers(int((side - length) * CORNER) + 1))
        if last != bool(turn):
            start = side - length - start
        part.append(slice(start, start + length))
    return tuple(part)


def _tokens(
    case: Case,
    scaled: Scaled,
    labels: Integer[ndarray, "depth height width"],
    part: tuple[slice, ...],
    patch_size: int,
    size: Grid | None,
) -> tuple[Tokens, Bool[Tensor, "d h w"]]:
    """Return the tokens of a part of a scan that count, and where in its grid they are."""

    def counted_in(within: tuple[slice, ...]) -> tuple[Bool[Tensor, "d h w"], Tensor, ndarray]:
        volume = scaled.volume[(slice(None), *within)]
        counted = occupied_tokens(frame(volume, patch_size, size=size), patch_size)
        tissues = prevailing(labels[within], patch_size, size)
        if case.label is not None:
            counted &= tissues > 0
        begin = np.eye(4)
        begin[:3, 3] = [side.start for side in within]
        return counted, tissues, scaled.affine @ begin @ token_centres(volume.shape, patch_size, size=size)

    whole, _, to_mm = counted_in(tuple(slice(0, side) for side in labels.shape))
    everywhere = moved(to_mm, whole.nonzero().numpy())
    box_mm = np.percentile(everywhere, BOX, axis=0) if len(everywhere) else np.zeros((2, 3))
    counted, tissues, to_mm = counted_in(part)
    return Tokens(counted.nonzero().numpy(), to_mm, tissues[counted].numpy(), box_mm), counted


def _pairs(origin: Sequence[Case], goal: Sequence[Case]) -> dict[str, tuple[Case, Case | None]]:
    """Return a scan of each subject, and one of the other kind of the same session, the only one that is aligned to it.

    Where no session of a subject has both, it is the subject's first scan, and None.
    """
    pairs: dict[str, tuple[Case, Case | None]] = {}
    for case in origin:
        if case.subject in pairs and pairs[case.subject][1] is not None:
            continue
        alike = (of for of in goal if (of.subject, of.session) == (case.subject, case.session))
        again = next((of for of in alike if of.place != case.place), None)
        if case.subject not in pairs or again is not None:
            pairs[case.subject] = (case, again)
    return pairs


def _first_scans(cases: Sequence[Case]) -> dict[str, Case]:
    """Return the first case of each subject."""
    first: dict[str, Case] = {}
    for case in cases:
        first.setdefault(case.subject, case)
    return first


def _ask(
    answers: Answers, subject: str, origin: View, goal: View, generator: np.random.Generator, *, same: bool
) -> None:
    """Look up some of the tokens of `origin` whose place is shown in `goal`, and add what was found."""
    places = (same_place if same else corresponding_place)(origin.tokens, goal.tokens)
    rows = np.sort(generator.permutation(np.flatnonzero(there(goal.tokens, places)))[:QUERIES])
    places = places[rows]
    for name, features in origin.features.items():
        found = goal.tokens.places[most_alike(features[rows], goal.features[name])]
        measured = within_one_token(found, places) if same else distance_mm(goal.tokens, found, places)
        answers.measured.setdefault(name, []).append(measured.astype(np.float64))
    answers.subjects += [subject] * len(rows)
    if same:
        answers.blind.append(guessed_share(goal.tokens, places))
    else:
        answers.blind.append(blind_mm(goal.tokens, places))
        answers.oracle.append(oracle_mm(goal.tokens, places, origin.tokens.labels[rows]))
