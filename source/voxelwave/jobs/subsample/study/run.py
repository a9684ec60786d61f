"""A study: every mask at every drop rate, trained side by side, then tested once, and told on a page."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch
import yaml

from voxelwave.engine.checkpoint import BEST
from voxelwave.engine.signals import exit_code_when_stopped
from voxelwave.errors import InputError
from voxelwave.jobs.common.config_file import naming
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.outcome import Outcome
from voxelwave.jobs.common.run_folder import claimed, write_config
from voxelwave.jobs.common.side_by_side import Place, run_side_by_side
from voxelwave.jobs.subsample.config import StudyConfig, SubsampleConfig, check_subsample_config
from voxelwave.jobs.subsample.data import SubsampleSteps
from voxelwave.jobs.subsample.images import RECORD, Parted, read_stored, store
from voxelwave.jobs.subsample.model import build_layer
from voxelwave.jobs.subsample.own_model import OwnModel, read_own_model
from voxelwave.jobs.subsample.parts import load_images
from voxelwave.jobs.subsample.scoring import open_once
from voxelwave.jobs.subsample.study.cases import CASES, IMAGES, Case, cases_of, chosen_by_validation
from voxelwave.jobs.subsample.study.report import write_report
from voxelwave.jobs.subsample.study.testing import load_case, read_results, test_cases
from voxelwave.jobs.subsample.train import RESULTS
from voxelwave.ops.cores import available_cores
from voxelwave.ops.files import size_and_sha256, write_text
from voxelwave.ops.texts import read_yaml
from voxelwave.ops.workers import MOST_WORKERS

SETTINGS, OWN_MODEL = "study.yaml", "own_model.py"
# What may differ between a study and its continuation.
FREE = ("workers",)


def run_study(config: StudyConfig, *, own: OwnModel | None = None, console: Console | None = None) -> Outcome:
    """Train all cases, test those that validation chooses, and write report.html and cases.csv; called again, go on.

    The images of the test are scored once all cases are trained; before, they are only checked.
    Raises InputError for what cannot be used, and for a folder that holds another study.
    """
    console, folder = console or Console(), config.run_folder()
    code = config.run.exit_code_when_stopped
    exit_code_when_stopped(code)
    with claimed(folder):
        # 1. Images, of which those of training and validation are what the cases see. What does not fit is said before
        #    the settings of the study are written.
        parted = load_images(config.data, console=console)
        if parted.open_test is None:
            raise InputError(
                f"data.source={config.data.source} holds no images of a test: name the source of the images"
            )
        cases = cases_of(config)
        _check_cases(config, cases, parted, folder)
        own = _same_study(config, folder, own)
        _same_images(parted, folder)
        # 2. Cases.
        if not _train(config, cases, folder, own, console):
            console.say("stopped, the same command goes on")
            return Outcome(complete=False, when_stopped=code)
        # 3. What validation chooses is tested, once all of it was found to be whole.
        results = {case.name: read_results(folder / CASES / case.name) for case in cases}
        validated = {name: of["scores"]["validation"]["network"]["psnr_db"] for name, of in results.items()}
        chosen = chosen_by_validation(cases, validated)
        trained = [load_case(folder / CASES / case.name, case, results[case.name], own) for case in chosen]
        weights = [size_and_sha256(folder / CASES / case.name / BEST)[1] for case in chosen]
        test = open_once(folder, hashlib.sha256("".join(weights).encode()).hexdigest(), parted.open_test)
        tested = test_cases(config, trained, parted, test, folder, console=console)
        if tested is None:
            return Outcome(complete=False, when_stopped=code)
        # 4. Tables and pictures.
        write_report(config, chosen, tested, parted, folder, own=own, console=console)
    return Outcome()


def _check_cases(config: StudyConfig, cases: list[Case], parted: Parted, folder: Path) -> None:
    """Raise InputError where a mask cannot be made, or two cases would have one folder."""
    for case in cases:
        with naming(f"case {case.name}"):
            checked = check_subsample_config(SubsampleConfig, case.config(config, folder))
            build_layer(checked.mask, parted.training.shape, seed=case.seed, training=parted.training.kspace)
    SubsampleSteps(parted.training, batch_size=config.training.batch_size, seed=0)


def _same_images(parted: Parted, folder: Path) -> None:
    """Store the images of a study that begins; raises InputError where it began with others."""
    if not (folder / IMAGES / RECORD).exists():
        store(parted, folder / IMAGES)
        return
    stored = read_stored(folder / IMAGES)
    for name in ("training", "validation"):
        if getattr(stored, name).fingerprint != getattr(parted, name).fingerprint:
            raise InputError(
                f"{folder} began with other images of {name}: data.source has changed; choose another run.name"
            )


def _same_study(config: StudyConfig, folder: Path, own: OwnModel | None) -> OwnModel | None:
    """Write the settings of a study that begins, and a copy of the user's model, which all its cases are trained with.

    Raises InputError where the folder holds a study with others.
    """
    settings = config.model_dump(mode="json")
    for name in FREE:
        del settings["study"][name]
    settings |= {"run": {"seed": config.run.seed}, "own_model": None if own is None else own.checksum}
    record, kept = folder / SETTINGS, folder / OWN_MODEL
    if not record.exists():
        if own is not None:
            write_text(kept, own.source)
        write_text(record, yaml.safe_dump(settings, sort_keys=False))
        write_config(folder, config)
    try:
        before = read_yaml(record)
    except (OSError, ValueError):
        raise InputError(f"{record} cannot be read: choose another run.name") from None
    if before != settings:
        differing = [name for name in settings if not isinstance(before, dict) or before.get(name) != settings[name]]
        raise InputError(
            f"{folder} holds a study with another '{(differing or ['setting'])[0]}': choose another run.name"
        )
    return None if own is None else read_own_model(kept)


def _train(config: StudyConfig, cases: list[Case], folder: Path, own: OwnModel | None, console: Console) -> bool:
    """Train the cases that are not trained yet; False where that was stopped."""
    missing = [case for case in cases if not (folder / CASES / case.name / RESULTS).exists()]
    if not missing:
        return True
    settings = folder / "settings"
    settings.mkdir(exist_ok=True)
    commands = {}
    for case in missing:
        raw = case.config(config, folder)
        write_text(settings / f"{case.name}.yaml", yaml.safe_dump(raw, sort_keys=False))
        command = [sys.executable, "-m", "voxelwave", "subsample", "train", str(settings / f"{case.name}.yaml")]
        commands[case.name] = [*command, "--resume", *([] if own is None else ["--model", str(own.path)])]
    workers = num_workers(config)
    threads = {"OMP_NUM_THREADS": str(max(available_cores() // workers, 1))}
    console.say(f"{len(cases)} cases, {len(missing)} of them to train, {workers} side by side")
    done = len(cases) - len(missing)

    def ended(name: str) -> None:
        nonlocal done
        done += 1
        psnr = read_results(folder / CASES / name)["scores"]["validation"]["network"]["psnr_db"]
        console.say(f"{done} of {len(cases)}: {name}, validation {psnr:.2f} dB")

    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    places = [Place(f"process {number + 1}", threads) for number in range(workers)]
    code = config.run.exit_code_when_stopped
    return run_side_by_side(commands, places, when_stopped=code, console=console, logs=logs, ended=ended)


def num_workers(config: StudyConfig) -> int:
    """Return how many processes work side by side; where nobody says it, one on a GPU, else one for each core."""
    if config.study.workers:
        return config.study.workers
    on_gpu = config.training.device != "cpu" and torch.accelerator.is_available()
    return 1 if on_gpu else min(available_cores(), MOST_WORKERS)
