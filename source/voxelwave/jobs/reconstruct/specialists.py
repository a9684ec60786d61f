"""The specialists of one file: one of them trained, or all, on several GPUs side by side."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from voxelwave.engine.signals import exit_code_when_stopped
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.outcome import Outcome
from voxelwave.jobs.common.side_by_side import Place, run_side_by_side
from voxelwave.jobs.reconstruct.plan import Plan
from voxelwave.jobs.reconstruct.router.config import RouterConfig, router_config_of
from voxelwave.jobs.reconstruct.router.training import train_router_from
from voxelwave.jobs.reconstruct.train import made_missing, train_reconstruction


def train_specialists(
    path: Path,
    plan: Plan,
    *,
    specialist: str | None = None,
    every: bool = False,
    router: bool = False,
    block: int | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> Outcome:
    """Train the one specialist that is asked for, the `router` between them, or `every` one of these.

    Where there are several GPUs, each trains one at a time, in a process of its own that is called with `path` and
    `overrides`; else they are trained one after the other. Stopped, and called again with `resume`, all go on.
    Raises InputError where it is not said which of several is meant, and where a process of one fails.
    """
    console, configs = console or Console(), plan.specialists
    asked_for = [name for name, on in (("--all", every), ("--specialist", specialist), ("--router", router)) if on]
    if len(asked_for) > 1 or (router and block is not None):
        raise InputError(
            f"{' and '.join([*asked_for, *['--block'] * router][:2])} cannot be asked for at once: give one"
        )
    # What is wrong with the router is said before anything is trained.
    wanted = router_config_of(plan, str(path)) if plan.router or router else None
    if router and wanted is not None:
        exit_code_when_stopped(wanted.run.exit_code_when_stopped)
        complete = _train_router(wanted, plan, resume=resume, console=console)
        return Outcome(complete, when_stopped=wanted.run.exit_code_when_stopped)
    chosen = list(configs) if every or (len(configs) == 1 and specialist is None) else [specialist or ""]
    if unknown := [name for name in chosen if name not in configs]:
        names = ", ".join(name for name in configs if name) or "none, the file has no 'specialists'"
        asked = f"there is no specialist '{unknown[0]}'" if unknown[0] else "it is not said which specialist to train"
        raise InputError(f"{path}: {asked}: --specialist takes one of {names}; --all trains all of them")
    code = configs[chosen[0]].run.exit_code_when_stopped
    exit_code_when_stopped(code)
    if every and len({config.data.anatomy for config in configs.values()}) > 1:
        console.say("router")
        # A later block goes on from runs that are there, and this is one of them.
        goes_on = resume or (block is not None and block > 1)
        if not _train_router(router_config_of(plan, str(path)), plan, resume=goes_on, console=console):
            return Outcome(complete=False, when_stopped=code)
    gpus = torch.cuda.device_count() if configs[chosen[0]].training.device in ("auto", "cuda") else 0
    if gpus > 1 and len(chosen) > 1:
        command = [sys.executable, "-m", "voxelwave", "reconstruct", "train", str(path)]
        command += [part for override in overrides for part in ("--set", override)]
        command += ["--resume"] * resume + ([] if block is None else ["--block", str(block)])
        complete = run_side_by_side(
            {f"specialist {name}": [*command, "--specialist", name] for name in chosen},
            [_on_gpu(gpu) for gpu in range(gpus)],
            when_stopped=code,
            console=console,
            goes_on="the others go on with --resume",
        )
        return Outcome(complete, when_stopped=code)
    for name in chosen:
        if name:
            console.say(f"specialist {name}")
        if not train_reconstruction(configs[name], block=block, resume=resume, console=console):
            return Outcome(complete=False, when_stopped=code)
    return Outcome()


def _train_router(config: RouterConfig, plan: Plan, *, resume: bool, console: Console) -> bool:
    """Train the router on the files of all specialists, of which those that are missing are made first."""
    if not all(made_missing(of.data, console) for of in plan.specialists.values()):
        return False
    return train_router_from(config, resume=resume, console=console)


def _on_gpu(gpu: int) -> Place:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return Place(f"GPU {gpu}", {"CUDA_VISIBLE_DEVICES": visible.split(",")[gpu] if visible else str(gpu)})
