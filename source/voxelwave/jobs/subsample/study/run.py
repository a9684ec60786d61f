"""A study: every mask at every drop rate, trained side by side, then tested once, and told on a page."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import yaml

from voxelwave.engine.signals import exit_code_when_stopped
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.outcome import Outcome
from voxelwave.jobs.common.run_folder import claimed, write_config
from voxelwave.jobs.common.side_by_side import Place, run_side_by_side
from voxelwave.jobs.subsample.config import StudyConfig, SubsampleConfig, check_subsample_config
from voxelwave.jobs.subsample.images import RECORD, load_images, store
from voxelwave.jobs.subsample.model import BEST
from voxelwave.jobs.subsample.own_model import OwnModel
from voxelwave.jobs.subsample.scoring import open_once
from voxelwave.jobs.subsample.study.cases import CASES, IMAGES, Case, cases_of, chosen_by_validation
from voxelwave.jobs.subsample.study.report import write_report
from voxelwave.jobs.subsample.study.testing import test_cases
from voxelwave.jobs.subsample.train import RESULTS
from voxelwave.ops.cores import available_cores
from voxelwave.ops.files import size_and_sha256, write_text
from voxelwave.ops.texts import read_json, read_yaml

SETTINGS = "study.yaml"
# What may differ between a study and its continuation.
FREE = ("workers",)


def run_study(config: StudyConfig, *, own: OwnModel | None = None, console: Console | None = None) -> Outcome:
    """Train all cases, test those that validation chooses, and write report.html and cases.csv; called again, go on.

    The images of the test are read once all cases are trained, and not before.
    Raises InputError for what cannot be used, and for a folder that holds another study.
    """
    console, folder = console or Console(), config.run_folder()
    code = config.run.exit_code_when_stopped
    exit_code_when_stopped(code)
    with claimed(folder):
        _same_study(config, folder, own)
        # 1. Images, of which those of training and validation are what the cases see.
        parted = load_images(config.data, console=console)
        assert parted.open_test is not None
        if not (folder / IMAGES / RECORD).exists():
            store(parted, folder / IMAGES)
        # 2. Cases.
        cases = cases_of(config)
        if not _train(config, cases, folder, own, console):
            console.say("stopped, the same command goes on")
            return Outcome(complete=False, when_stopped=code)
        # 3. What validation chooses is tested.
        validated = {case.name: _validation_psnr(folder / CASES / case.name) for case in cases}
        chosen = chosen_by_validation(cases, validated)
        weights = [size_and_sha256(folder / CASES / case.name / BEST)[1] for case in chosen]
        test = open_once(folder, hashlib.sha256("".join(weights).encode()).hexdigest(), parted.open_test)
        tested = test_cases(config, chosen, parted, test, folder, own, console=console)
        if tested is None:
            return Outcome(complete=False, when_stopped=code)
        # 4. Tables and pictures.
        write_report(config, chosen, tested, parted, folder, console=console)
    return Outcome()


def _same_study(config: StudyConfig, folder: Path, own: OwnModel | None) -> None:
    """Write the settings of a study that begins; raises InputError where the folder holds one with others."""
    settings = config.model_dump(mode="json")
    for name in FREE:
        del settings["study"][name]
    settings |= {"run": {"seed": config.run.seed}, "own_model": None if own is None else own.checksum}
    record = folder / SETTINGS
    if not record.exists():
        write_text(record, yaml.safe_dump(settings, sort_keys=False))
        write_config(folder, config)
        return
    try:
        before = read_yaml(record)
    except (OSError, ValueError):
        raise InputError(f"{record} cannot be read: choose another run.name") from None
    if before != settings:
        differing = [name for name in settings if not isinstance(before, dict) or before.get(name) != settings[name]]
        raise InputError(f"{folder} holds a study with another '{differing[0]}': choose another run.name")


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
        check_subsample_config(SubsampleConfig, raw, f"case {case.name}")
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
        console.say(f"{done} of {len(cases)}: {name}, validation {_validation_psnr(folder / CASES / name):.2f} dB")

    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    places = [Place(f"process {number + 1}", threads) for number in range(workers)]
    code = config.run.exit_code_when_stopped
    return run_side_by_side(commands, places, when_stopped=code, console=console, logs=logs, ended=ended)


def num_workers(config: StudyConfig) -> int:
    """Return how many processes work side by side."""
    return config.study.workers or available_cores()


def _validation_psnr(folder: Path) -> float:
    """Return what a case reached on validation; raises InputError where its results cannot be read."""
    try:
        return float(read_json(folder / RESULTS)["scores"]["validation"]["network"]["psnr_db"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder / RESULTS} cannot be read: delete {folder}, and start the study again") from None
