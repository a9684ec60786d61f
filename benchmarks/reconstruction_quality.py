"""What a small PromptMR+ is worth beside classical reconstructions and other people's networks.

python benchmarks/reconstruction_quality.py [--seeds 0 1 2] [--arms A B] [--rates 4 8] [--workers 1]
python benchmarks/reconstruction_quality.py --report

Data: `semi_synthetic.py`; arms: `reconstruction_arms.py`. All networks are trained for the same time, that of
`OUR_STEPS` steps of PromptMR+ on one thread, which are about five CPU-minutes; one network for each acceleration. How
many steps of each that is, is measured first, of all arms in one go, which asks for an idle machine; from there on it
may be busy. The learning rate of an arm is chosen before, on seed 100 and the validation images, in an eighth of the
time at 4×; so are the settings of the classical methods, on the validation images. A rate with which a whole training
ends below its short one, or no better than zero-filling, on the validation images has diverged, and the next best is
taken. Every finished cell is a line of results/reconstruction_quality.jsonl; called again, the study goes on. An arm
whose library is missing is left out. Times, images and weights are kept in --out; --report only writes table and
picture of what is finished.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from measuring import RESULTS
from reconstruction_arms import (
    CLASSICAL,
    NETWORKS,
    OUR_STEPS,
    OURS,
    ZERO_FILLED,
    classical,
    estimated_maps,
    missing_library,
    settings,
    size,
)
from reconstruction_summary import write_report
from semi_synthetic import (
    NUM_CENTER,
    OTHERS,
    RATES,
    SPLIT,
    TEST,
    TRAIN,
    VALIDATION,
    held_out,
    lines,
    training_example,
)
from voxelwave.evaluation.image_quality import nmse, psnr_db, ssim
from voxelwave.losses.structural_similarity import StructuralSimilarityLoss
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.fourier import along_readout

CELLS = RESULTS / "reconstruction_quality.jsonl"
WARM_UP, ROUNDS = 2, 9
CHOICE_SEED, CHOICE_RATE, CHOICE_SHARE = 100, 4, 1 / 8
LEARNING_RATES = (1e-3, 2e-3, 4e-3)
RATE_STEP, MOST_RATES = 2.0, 5  # the next one beyond an end of the grid, should the best be there
LARGEST_GRADIENT = 1.0
# Whole lines leave the rows of an image independent of each other, so that a network can learn from a band of them in a
# part of the time. In the same time that gives PromptMR+ and the U-Net better validation images than whole images do.
BAND_ROWS, BAND_SHARE = 32, 0.75
Cell = dict[str, Any]
Scores = list[float | None]


class Steps(NamedTuple):
    """How many steps of a band an arm has, and how many of whole images after them."""

    bands: int
    whole: int

    def share_of_time(self, step: int) -> float:
        """Return which share of the training's time has passed before a step."""
        if step < self.bands:
            return BAND_SHARE * step / self.bands
        return BAND_SHARE + (1 - BAND_SHARE) * (step - self.bands) / self.whole


def step(network: nn.Module, number: int, seed: int, *, rate: int, whole: bool) -> Tensor:
    """Return the loss of one step's image, or of a band of it."""
    count = SPLIT[TRAIN].stop
    epoch, place = divmod(number, count)
    order = torch.randperm(count, generator=torch_generator(seed, "order", epoch))
    kspace, target = training_example(int(order[place]), seed, epoch)
    data_range = target.amax((1, 2))
    if not whole:
        kspace, target = band(kspace, target, torch_generator(seed, "band", number))
    loss: Tensor = StructuralSimilarityLoss()(network(kspace, lines(rate), NUM_CENTER), target, data_range)
    return loss


def train(network: nn.Module, rate: int, seed: int, *, steps: Steps, learning_rate: float) -> None:
    """Train on bands of images, and at the end on whole ones."""
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for number in range(sum(steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 + math.cos(math.pi * steps.share_of_time(number))) / 2
        optimizer.zero_grad()
        step(network, number, seed, rate=rate, whole=number >= steps.bands).backward()
        if nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT).isfinite():
            optimizer.step()


def made(arm: str) -> nn.Module:
    """Return a network with random weights."""
    # Convolutions of few channels, with their gradients, take less time in this layout.
    network: nn.Module = NETWORKS[arm]().to(memory_format=torch.channels_last)
    return network


def seconds(arms: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return the CPU time of a step of each arm on a band and on a whole image, medians of rounds in turn."""
    networks = {arm: made(arm) for arm in arms}
    optimizers = {arm: torch.optim.Adam(network.parameters(), lr=1e-4) for arm, network in networks.items()}
    found: dict[tuple[str, bool], list[float]] = {}
    for number in range(WARM_UP + ROUNDS):
        for arm, network in networks.items():
            for whole in (False, True):
                began = time.process_time()
                optimizers[arm].zero_grad()
                step(network, number, CHOICE_SEED, rate=CHOICE_RATE, whole=whole).backward()
                nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
                optimizers[arm].step()
                if number >= WARM_UP:
                    found.setdefault((arm, whole), []).append(time.process_time() - began)
    return {arm: (median(found[arm, False]), median(found[arm, True])) for arm in arms}


def due_steps(arms: Sequence[str], record: Path) -> dict[str, Steps]:
    """Return the steps of each arm in the time that PromptMR+ takes for its own, as kept in `record`."""
    taken = json.loads(record.read_text()) if record.exists() else {}
    if not {*arms} <= {*taken}:
        taken = seconds(list(dict.fromkeys((OURS, *arms))))
        record.write_text(json.dumps(taken, indent=1) + "\n")

    def in_time(arm: str, total: float) -> Steps:
        of_band, of_whole = taken[arm]
        return Steps(round(BAND_SHARE * total / of_band), round((1 - BAND_SHARE) * total / of_whole))

    a_second = sum(in_time(OURS, 1e6)) / 1e6
    return {arm: in_time(arm, OUR_STEPS / a_second) for arm in arms}


def band(kspace: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return k-space and target of adjacent rows of the image."""
    first = int(torch.randint(target.shape[1] - BAND_ROWS + 1, (), generator=generator))
    rows = slice(first, first + BAND_ROWS)
    return along_readout(along_readout(kspace, inverse=True)[..., rows, :], inverse=False), target[:, rows]


def scores(images: list[Tensor], split: str) -> dict[str, Scores]:
    """Return the scores of each image of a split, None where a network that diverged said no number.

    The data range is the target's largest value.
    """
    pairs = [(image, target) for image, (_, target) in zip(images, held_out(split), strict=True)]
    measures = {"ssim": ssim, "psnr_db": psnr_db, "nmse": nmse}
    found = {name: [of(image, target) for image, target in pairs] for name, of in measures.items()}
    return {name: [round(x, 6) if math.isfinite(x) else None for x in values] for name, values in found.items()}


def mean(values: Scores) -> float:
    """Return the mean; not a number where one of them is None."""
    return sum(math.nan if value is None else value for value in values) / len(values)


def fill_network(arm: str, rate: int, seed: int, steps: Steps, learning_rate: float, folder: Path) -> Cell:
    """Train a network and score it: on the validation images with the seed of choices, else on the test images."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    network = made(arm)
    train(network, rate, seed, steps=steps, learning_rate=learning_rate)
    network.eval()
    with torch.no_grad():
        images = {
            split: [network(kspace, lines(rate), NUM_CENTER) for kspace, _ in held_out(split)]
            for split in ((VALIDATION,) if seed == CHOICE_SEED else (VALIDATION, TEST, OTHERS))
        }
    if seed != CHOICE_SEED:
        kept = folder / f"{arm.replace(' ', '_').replace(',', '')}_{rate}x_{seed}.pt"
        torch.save(torch.cat(images[TEST]), kept)
        torch.save(network.state_dict(), kept.with_suffix(".pth"))
    return {
        "arm": arm,
        "rate": rate,
        "seed": seed,
        "learning_rate": learning_rate,
        "steps": sum(steps),
        "parameters": size(network),
        **{split: scores(of, split) for split, of in images.items()},
    }


def fill_classical(method: str, rate: int) -> Cell:
    """Choose the settings by either measure on the validation images, and score both choices on the test images."""
    torch.set_num_threads(1)
    sampled = lines(rate)
    maps: dict[str, Tensor] = {}

    def of_split(split: str, setting: dict[str, Any]) -> list[Tensor]:
        kspace = torch.cat([kspace for kspace, _ in held_out(split)])
        many = sampled.expand(len(kspace), -1)
        name = setting.get("maps", "")
        key = f"{split} {name}"
        if name and key not in maps:
            maps[key] = estimated_maps(name, kspace, many)
        return list(classical(method, setting, maps.get(key, torch.empty(0)))(kspace, many, NUM_CENTER).split(1))

    grid: list[Cell] = [{"setting": setting, **_means(of_split(VALIDATION, setting))} for setting in settings(method)]
    cell: Cell = {"arm": method, "rate": rate, "seed": 0, "grid": grid, "chosen": {}, TEST: {}, OTHERS: {}}
    for measure, named in (("ssim", ("ssim",)), ("psnr_db", ("psnr_db", "nmse"))):
        chosen = max(grid, key=lambda row: row[measure])["setting"]
        cell["chosen"][measure] = chosen
        for split in (TEST, OTHERS):
            found = scores(of_split(split, chosen), split)
            cell[split].update({name: found[name] for name in named})
    return cell


def _means(images: list[Tensor]) -> dict[str, float]:
    return {name: round(mean(values), 5) for name, values in scores(images, VALIDATION).items()}


def read_cells() -> list[Cell]:
    """Return the cells that are filled."""
    return [json.loads(line) for line in CELLS.read_text().splitlines()] if CELLS.exists() else []


def tried_rates(cells: list[Cell], arm: str) -> dict[float, float]:
    """Return the SSIM of the validation images by learning rate."""
    of_arm = [cell for cell in cells if (cell["arm"], cell["seed"]) == (arm, CHOICE_SEED)]
    # A run that diverged has no number, which is greater than none and less than none.
    return {cell["learning_rate"]: max(-1.0, mean(cell[VALIDATION]["ssim"])) for cell in of_arm}


def diverged(cell: Cell, cells: list[Cell]) -> bool:
    """Tell whether a whole training ended below the short one with its rate, or no better than zero-filling.

    On the validation images at its own acceleration, at which short ones may not have been run.
    """
    if cell["arm"] not in NETWORKS or cell["seed"] == CHOICE_SEED or VALIDATION not in cell:
        return bool(cell.get("diverged", False))  # as was seen of the first ones, which were not validated
    short = tried_rates(cells, cell["arm"])[cell["learning_rate"]]
    zero_filled = (of["grid"][0]["ssim"] for of in cells if (of["arm"], of["rate"]) == (ZERO_FILLED, cell["rate"]))
    least = max(next(zero_filled, 0.0), short if cell["rate"] == CHOICE_RATE else 0.0)
    return not mean(cell[VALIDATION]["ssim"]) > least


def chosen_rate(cells: list[Cell], arm: str) -> float:
    """Return the learning rate with the best validation images, of those with which no whole training diverged."""
    failed = {cell["learning_rate"] for cell in cells if cell["arm"] == arm and diverged(cell, cells)}
    tried = {rate: ssim for rate, ssim in tried_rates(cells, arm).items() if rate not in failed}
    return max(tried, key=lambda rate: tried[rate])


def rates_to_try(cells: list[Cell], arm: str) -> list[float]:
    """Return the learning rates that are missing: of the grid, then beyond it until the best is not at an end."""
    tried = tried_rates(cells, arm)
    if left := [rate for rate in LEARNING_RATES if rate not in tried]:
        return left
    best = max(tried, key=lambda rate: tried[rate])
    beyond = {min(tried): best / RATE_STEP, max(tried): best * RATE_STEP}
    return [beyond[best]] if best in beyond and len(tried) < MOST_RATES else []


def standing(cells: list[Cell]) -> list[Cell]:
    """Return the cells but for those of networks whose rate diverged, which are trained again with another one."""
    failed = {(cell["arm"], cell["learning_rate"]) for cell in cells if diverged(cell, cells)}
    return [
        cell
        for cell in cells
        if cell["arm"] not in NETWORKS
        or cell["seed"] == CHOICE_SEED
        or (cell["arm"], cell["learning_rate"]) not in failed
    ]


def waves(arms: list[str], seeds: list[int]) -> list[list[tuple[str, int]]]:
    """Return (arm, seed) in the order in which cells are filled: two arms with all seeds, then seed by seed."""
    first, rest = arms[:2], arms[2:]
    return [[(arm, seed) for seed in seeds for arm in first], [(arm, seed) for seed in seeds for arm in rest]]


def main() -> None:
    """Fill the cells that are missing, and write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, choices=RATES)
    parser.add_argument("--arms", nargs="+", default=[*CLASSICAL, *NETWORKS], choices=[*CLASSICAL, *NETWORKS])
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--out", type=Path, default=Path("data/reconstruction_quality"))
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    networks = [arm for arm in NETWORKS if arm in arguments.arms]
    for arm in list(networks):
        if library := missing_library(arm):
            print(f"{arm} is left out: {library} is not installed")
            networks.remove(arm)
    if not arguments.report:
        methods = [method for method in CLASSICAL if method in arguments.arms]
        steps = due_steps(networks, folder / "seconds.json")
        print(steps, flush=True)
        with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
            study(pool, Asked(methods, waves(networks, arguments.seeds), arguments.rates, steps), folder)
    write_report(standing(read_cells()), RESULTS, folder)


@dataclass(frozen=True)
class Asked:
    """What the study is to fill: classical methods, networks with their seeds in waves, rates, and steps by network."""

    methods: list[str]
    waves: list[list[tuple[str, int]]]
    rates: Sequence[int]
    steps: dict[str, Steps]


def study(pool: ProcessPoolExecutor, asked: Asked, folder: Path) -> None:
    """Fill what is missing."""
    filled = {(cell["arm"], cell["rate"], cell["seed"]) for cell in standing(read_cells())}
    finish([
        pool.submit(fill_classical, method, rate)
        for method in asked.methods for rate in asked.rates if (method, rate, 0) not in filled
    ])  # fmt: skip
    for wave in asked.waves:
        arms = list(dict.fromkeys(arm for arm, _ in wave))
        short = {arm: Steps(*(max(round(CHOICE_SHARE * count), 1) for count in asked.steps[arm])) for arm in arms}
        while jobs := [
            pool.submit(fill_network, arm, CHOICE_RATE, CHOICE_SEED, short[arm], rate, folder)
            for arm in arms for rate in rates_to_try(read_cells(), arm)
        ]:  # fmt: skip
            finish(jobs)
        while jobs := [
            pool.submit(fill_network, arm, rate, seed, asked.steps[arm], chosen_rate(read_cells(), arm), folder)
            for arm, seed in wave for rate in asked.rates if (arm, rate, seed) not in filled
        ]:  # fmt: skip
            finish(jobs)
            filled = {(cell["arm"], cell["rate"], cell["seed"]) for cell in standing(read_cells())}


def finish(jobs: list[Future[Cell]]) -> None:
    """Write each cell when it is done, and print its means."""
    for job in as_completed(jobs):
        cell = job.result()
        with CELLS.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(cell, separators=(",", ":")) + "\n")
        of = cell.get(TEST) or cell[VALIDATION]
        means = ", ".join(f"{name} {mean(of[name]):.4f}" for name in ("ssim", "psnr_db"))
        print(f"{cell['arm']} {cell['rate']}x seed {cell['seed']} {cell.get('learning_rate', '')}: {means}", flush=True)


if __name__ == "__main__":
    main()
