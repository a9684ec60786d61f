"""Which of several specialists reconstructs a volume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from voxelwave.contracts import Reconstruction
from voxelwave.data.kspace.files import KspaceFile
from voxelwave.engine.checkpoint import BEST
from voxelwave.errors import InputError
from voxelwave.jobs.reconstruct.config import ReconstructionConfig
from voxelwave.jobs.reconstruct.model import Trained, load_reconstruction, num_slices
from voxelwave.jobs.reconstruct.plan import ROUTER, load_plan
from voxelwave.jobs.reconstruct.router.training import Router, anatomy_of, load_router
from voxelwave.jobs.reconstruct.schedule import blocks_of
from voxelwave.ops.files import content_mark
from voxelwave.ops.loggers import logger
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.sampled_lines import Acceleration, acceleration_of, lines_of
from voxelwave.unrolled.classical import Grappa, L1Wavelet
from voxelwave.unrolled.sense import Sense
from voxelwave.unrolled.sensitivity import low_resolution_maps
from voxelwave.unrolled.zero_filled import zero_filled

NETWORK = "network"
# By the number of coils at once, which sigpy and pygrappa do not know, and settings of the method.
CLASSICAL: dict[str, Callable[..., Reconstruction]] = {
    "zero_filled": lambda number: partial(zero_filled, coils_at_once=number),
    "sense": lambda number, **settings: Sense(
        coils_at_once=number, maps=partial(low_resolution_maps, coils_at_once=number), **settings
    ),
    "l1_wavelet": lambda number, **settings: L1Wavelet(**settings),
    "grappa": lambda number, **settings: Grappa(**settings),
}
REGULARISED = ("sense", "l1_wavelet", "grappa")
METHODS = (NETWORK, *CLASSICAL)
CONFIGS = (".yaml", ".yml")
DRAWN = 32  # masks, whose rates differ where lines are random
FAR = 1.25  # a rate over that of the specialist, or the other way round
ERRORS = 3  # standard errors that a rate read from random lines may be off by


def distance_of(acceleration: float, rate: float) -> float:
    """Return how far two rates lie apart on a logarithmic scale."""
    return abs(math.log(acceleration / rate))


def pick_specialist(
    anatomy: str, acceleration: float, specialists: Mapping[str, tuple[str, float]], *, error: float = 0.0
) -> str:
    """Return the name of the specialist of `anatomy` whose rate is nearest to `acceleration` on a logarithmic scale.

    Of two that are as near the one with the lower rate is taken. A rate that is more than a quarter away is warned of,
    but for one that random lines do not tell from that of the specialist.

    Args:
        acceleration: nominal, as `physics.sampled_lines.acceleration_of` reads it from a mask, with its `error`.
        specialists: by name, the anatomy and the rate that each was trained for.

    Raises InputError where none is of that anatomy, ValueError for a rate that is not above 0.
    """
    if not all(0 < rate < math.inf for rate in (acceleration, *(rate for _, rate in specialists.values()))):
        raise ValueError(f"rates lie above 0, got {acceleration} and {dict(specialists)}")
    rates = {name: rate for name, (of, rate) in specialists.items() if of == anatomy}
    if not rates:
        known = ", ".join(sorted({of for of, _ in specialists.values()})) or "none"
        raise InputError(f"no specialist is of '{anatomy}', they are of {known}: train one, or name a run by hand")

    name = min(rates, key=lambda name: (distance_of(acceleration, rates[name]), rates[name]))
    if distance_of(acceleration, rates[name]) > max(math.log(FAR), ERRORS * error) + 1e-9:
        logger.warning(
            "warning: an acceleration of %.3g, and the nearest specialist of %s, %s, was trained for %.3g",
            *(acceleration, anatomy, name, rates[name]),
        )
    return name


def drawn_rate(config: ReconstructionConfig, width: int) -> float:
    """Return the nominal rate of a mask as a specialist was trained with last, as `acceleration_of` reads it.

    Some masks, as fastMRI's, keep the share of all lines at what is configured, and others the distance of lines
    outside of the centre; the masks of files are read in one way.
    """
    sampling = blocks_of(config.blocks)[-1].sampling()
    if sampling is None:
        return config.data.acceleration
    try:
        drawn = [lines_of(sampling((1, width), torch_generator("rate", number))) for number in range(DRAWN)]
        return fmean(acceleration_of(lines).nominal for lines in drawn)
    except ValueError:  # single places, or too few lines for this mask
        return config.data.acceleration


class Specialist(NamedTuple):
    """A way to reconstruct: `name` is that of its run, `rate` the nominal one of its masks as they are drawn."""

    name: str
    rate: float
    method: str
    reconstruct: Reconstruction
    neighbours: int
    config: ReconstructionConfig

    def as_configured(self, read: Acceleration, *, drawn: bool) -> Acceleration:
        """Return a rate as the configuration counts it, where it is about that of the specialist.

        Some masks keep the share of all lines at their rate. What was `drawn` by the configuration is of its rate, and
        so is what random lines do not tell from it.
        """
        samplings = blocks_of(self.config.blocks)[-1].config.samplings
        said = [one.settings["acceleration"] for one in samplings if "acceleration" in one.settings]
        said = said or [self.config.data.acceleration]
        if any(one != said[0] for one in said) or not isinstance(said[0], (int, float)):
            return read  # one of several
        distance = distance_of(read.nominal, self.rate)
        if drawn or distance < ERRORS * read.error:
            return read._replace(nominal=float(said[0]))
        return read._replace(nominal=read.nominal * said[0] / self.rate) if distance < math.log(FAR) else read


class Specialists:
    """What a run folder holds, or a folder of several runs: one network is in memory at a time.

    For a classical method `path` may be a configuration in place of a run. `coils_at_once` bounds the memory that a
    reconstruction takes; None takes all coils. `regularisation` is that of a classical method, None its default.
    Raises InputError where there is none, and for a regularisation that the method does not have or that is below 0.
    """

    def __init__(
        self,
        path: Path,
        *,
        method: str,
        device: torch.device,
        coils_at_once: int | None = None,
        regularisation: float | None = None,
    ) -> None:
        if regularisation is not None and method not in REGULARISED:
            raise InputError(f"method '{method}' has no regularisation; these have one: {', '.join(REGULARISED)}")
        if regularisation is not None and not 0 <= regularisation < math.inf:
            raise InputError(f"the regularisation is at least 0, got {regularisation}")
        self.method, self.device, self._coils_at_once = method, device, coils_at_once
        self._settings = {} if regularisation is None else {"regularisation": regularisation}
        self.router: Router | None = None
        if method != NETWORK and path.is_file() and path.suffix in CONFIGS:
            self.configs: dict[str, ReconstructionConfig] = load_plan(path).specialists
            self.paths = dict.fromkeys(self.configs, path)
            name, config = next(iter(self.configs.items()))
            self._picked = self._classical(name, config)
            return
        if path.is_dir() and not (path / BEST).exists():
            runs = sorted(place.parent for place in path.glob(f"*/{BEST}"))
            if any(run.name == ROUTER for run in runs):
                self.router = load_router(path / ROUTER)
                self.router.network.to(device)
            self.paths = {run.name: run for run in runs if run.name != ROUTER}
        else:
            self.paths = {path.name: path}
        if not self.paths:
            raise InputError(f"{path} holds no run: give the folder of one, or the one that holds those of specialists")
        self.configs = {}
        for name, run in self.paths.items():
            trained = load_reconstruction(run)  # so that a damaged one is known before anything is reconstructed
            self.configs[name] = trained.config
        self._picked = self._specialist(name, trained)

    @property
    def marks(self) -> dict[str, str]:
        """What the weights follow from, by name."""
        return {name: content_mark(path / BEST if path.is_dir() else path) for name, path in self.paths.items()}

    def anatomy(self, file: KspaceFile) -> str:
        """Return the anatomy of a file, "" where nothing says it: the router's, or the only one that is known.

        Raises InputError where networks are of several anatomies and there is no router.
        """
        known = {config.data.anatomy or "" for config in self.configs.values()}
        if len(known) == 1:
            return known.pop()
        if self.router is None and self.method != NETWORK:
            return ""
        if self.router is None:
            names = ", ".join(sorted(known - {""}))
            raise InputError(
                f"the runs are of {names}, and no router is beside them: train one with `voxelwave reconstruct train "
                "CONFIG --router`, or name one run"
            )
        return anatomy_of(self.router, file)[0]

    def pick(self, anatomy: str, acceleration: Acceleration | None, width: int) -> Specialist:
        """Return the specialist for an anatomy, "" for any, and the rate of lines; None is that of the first."""
        drawn = {
            name: ((of.data.anatomy or "") if anatomy else "", drawn_rate(of, width))
            for name, of in self.configs.items()
        }
        wanted, error = next(rate for _, rate in drawn.values()), 0.0
        if acceleration is not None:
            wanted, error = acceleration.nominal, acceleration.error
        name = pick_specialist(anatomy, wanted, drawn, error=error)
        if self._picked.name != name:
            self._picked = (
                self._specialist(name, load_reconstruction(self.paths[name]))
                if self.method == NETWORK
                else self._classical(name, self.configs[name])
            )
        return self._picked._replace(rate=drawn[name][1])

    def _specialist(self, name: str, trained: Trained) -> Specialist:
        network, config = trained
        if self.method != NETWORK:
            return self._classical(name, config)
        # Every network of the registry has it.
        network.coils_at_once = self._coils_at_once  # type: ignore[assignment]
        reconstruct: Reconstruction = network.to(self.device)
        return Specialist(name, 0.0, self.method, reconstruct, num_slices(network) // 2, config)

    def _classical(self, name: str, config: ReconstructionConfig) -> Specialist:
        reconstruct = CLASSICAL[self.method](self._coils_at_once, **self._settings)
        return Specialist(name, 0.0, self.method, reconstruct, 0, config)
