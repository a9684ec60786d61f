"""The runs of a study, and what each of them is trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxelwave.jobs.subsample.config import FIXED_MASKS, LEARNED, StudyConfig

CASES, IMAGES = "cases", "images"


@dataclass(frozen=True)
class Case:
    """One mask at one drop rate with one seed; `mask_lr` is one of several that validation chooses among, or None."""

    mask: str
    drop_rate: float
    seed: int
    mask_lr: float | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        rate = "" if self.mask_lr is None else f"_lr{self.mask_lr}"
        return f"{self.mask}_{self.drop_rate}{rate}_seed{self.seed}"

    @property
    def learned(self) -> bool:
        """Whether its mask is learned."""
        return self.mask not in FIXED_MASKS

    def config(self, study: StudyConfig, folder: Path) -> dict[str, Any]:
        """Return the configuration of its run, as plain values, in the `folder` of the study."""
        raw: dict[str, Any] = study.model_dump(mode="json", exclude={"study"})
        raw["run"] |= {"out_dir": str(folder / CASES), "name": self.name, "seed": self.seed}
        raw["data"]["source"] = str(folder / IMAGES)
        raw["mask"] |= {"drop_rate": self.drop_rate, "learn": self.learned}
        if not self.learned:
            raw["mask"] |= {"fixed": self.mask, "mask_lr": None}
        elif self.mask != LEARNED and self.mask != study.mask.rule.name:
            raw["mask"] |= {"rule": {"name": self.mask}, "mask_lr": None}
        if self.mask_lr is not None:
            raw["mask"]["mask_lr"] = self.mask_lr
        return raw


def cases_of(config: StudyConfig) -> list[Case]:
    """Return all runs; those of the first seed, and of what is compared, come first."""
    study = config.study
    return [
        Case(mask, drop_rate, seed, mask_lr)
        for seed in study.seeds
        for masks in (study.masks, study.controls)
        for drop_rate in study.drop_rates
        for mask in masks
        for mask_lr in (study.mask_lrs if mask == LEARNED and study.mask_lrs else (None,))
    ]


def chosen_by_validation(cases: Sequence[Case], psnr_db: Mapping[str, float]) -> list[Case]:
    """Return of each mask and drop rate the cases of the rate whose PSNR on validation is highest, over all seeds."""
    rates: dict[tuple[str, float], dict[float | None, list[float]]] = {}
    for case in cases:
        rates.setdefault((case.mask, case.drop_rate), {}).setdefault(case.mask_lr, []).append(psnr_db[case.name])
    best = {
        key: max(of, key=lambda mask_lr, of=of: sum(of[mask_lr]) / len(of[mask_lr]))  # type: ignore[misc]
        for key, of in rates.items()
    }
    return [case for case in cases if best[case.mask, case.drop_rate] == case.mask_lr]
