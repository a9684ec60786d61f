"""The section of a configuration that says of what pairs of views are made, and how these differ."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from voxelwave.contracts import Grid
from voxelwave.data.batches.pair_geometry import Geometry
from voxelwave.data.listing.cases import Case, find_cases
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import Section

# Of views of scans, by modality: two of one scan differ in what its scanner, or whoever looks at it, has chosen.
DEFAULT_OF_VIEWS: dict[str, dict[str, dict[str, Any]]] = {
    "mri": {"bias_field": {}, "gamma": {}, "noise": {}},
    "ct": {"window_jitter": {}, "noise": {}},
}


class PairsConfig(Section):
    """Pairs of views of one head, each with its own crop, spacing and turn.

    `source` says what the views are of: `rendered` takes the label maps of generated heads, and renders them while
    training; `scans` takes two scans of one session of a subject, which their affines align; `views` takes one scan
    twice. `cases` is a list of cases, or a folder that `synthesize` or `prepare` wrote, and `split` the one of its
    splits that is used, such as "train"; null takes all.

    A view is at `spacing_mm`, stretched by up to exp(`log_stretch`) along each axis and turned by up to `degrees` about
    each. `shared` is the part of a crop's sides that the two have in common at least, before they are
    stretched and turned. Of `rendered` alone: a view has
    one of the `contrasts`, two views of a head different ones; `stripped` (0.3) is the probability that a view has no
    skull; `label` is a word of the names of the label maps, where a prepared image has several. Of `scans` and `views`
    alone: `modalities` of the scans that are used.
    """

    cases: str
    split: str | None = None
    source: Literal["rendered", "scans", "views"] = "rendered"
    contrasts: Annotated[list[Literal["T1", "T2", "FLAIR", "MRA", "random", "CT"]], Field(min_length=2)] | None = None
    modalities: Annotated[list[str], Field(min_length=1)] | None = None
    spacing_mm: PositiveFloat = 1.0
    degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    log_stretch: Annotated[float, Field(ge=0, le=1)] = 0.15
    shared: Annotated[float, Field(ge=0, le=1)] = 0.5
    stripped: Annotated[float, Field(ge=0, le=1)] | None = None
    label: str | None = None

    @field_validator("contrasts", "modalities")
    @classmethod
    def _once(cls, named: list[str] | None) -> list[str] | None:
        if named is not None and len(set(named)) < len(named):
            raise ValueError("two views of a head are of different contrasts, or modalities: name each once")
        return named

    @model_validator(mode="after")
    def _of_its_source(self) -> PairsConfig:
        needed, others = (
            ("contrasts", ("modalities",)) if self.of_labels else ("modalities", ("contrasts", "stripped", "label"))
        )
        if strange := [name for name in others if getattr(self, name) is not None]:
            raise ValueError(f"source: {self.source} takes no '{strange[0]}': leave it out")
        if getattr(self, needed) is None:
            raise ValueError(f"source: {self.source} needs '{needed}'")
        if self.of_labels and self.stripped is None:
            self.stripped = 0.3
        return self

    def find_cases(self) -> list[Case]:
        """Return the cases of `cases` and `split`; raises InputError where there is none."""
        cases = find_cases(self.cases, label=(self.label or "") if self.of_labels else None, targets=())
        chosen = [case for case in cases if self.split in (None, case.split)]
        if not chosen:
            known = ", ".join(sorted({case.split or "none" for case in cases}))
            raise InputError(f"key 'data.pairs.split': {self.cases} has no case of '{self.split}'; its splits: {known}")
        return chosen

    @property
    def of_labels(self) -> bool:
        """Whether the tissue of each voxel of a view is known."""
        return self.source == "rendered"

    def geometry(self, crop_size: Grid) -> Geometry:
        """How views may lie."""
        return Geometry(
            crop_size,
            spacing_mm=self.spacing_mm,
            degrees=self.degrees,
            log_stretch=self.log_stretch,
            shared=self.shared,
        )
