"""The specialists of one file: one of them trained, or all, on several GPUs side by side."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from voxelwave.engine.signals import exit_code_when_stopped, stop_on_signal
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.outcome import Outcome
from voxelwave.jobs.reconstruct.plan import Plan
from voxelwave.jobs.reconstruct.router.config import router_config_of
from voxelwave.jobs.reconstruct.router.training import train_router_from
from voxelwave.jobs.reconstruct.train import train_reconstruction

POLL_S = 0.2


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
    # What is wrong with the router is said before anything is trained.
    wanted = router_config_of(plan, str(path)) if plan.router or router else None
    if router and wanted is not None:
        exit_code_when_stopped(wanted.run.exit_code_when_stopped)
        complete = train_router_from(wanted, resume=resume, console=console)
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
        if not train_router_from(router_config_of(plan, str(path)), resume=goes_on, console=console):
            return Outcome(complete=False, when_stopped=code)
    gpus = torch.cuda.device_count() if configs[chosen[0]].training.device in ("auto", "cuda") else 0
    if gpus > 1 and len(chosen) > 1:
        command = [sys.executable, "-m", "voxelwave", "reconstruct", "train", str(path)]
        command += [part for override in overrides for part in ("--set", override)]
        command += ["--resume"] * resume + ([] if block is None else ["--block", str(block)])
        complete = _side_by_side({name: [*command, "--specialist", name] for name in chosen}, gpus, code, console)
        return Outcome(complete, when_stopped=code)
    for name in chosen:
        if name:
            console.say(f"specialist {name}")
        if not train_reconstruction(configs[name], block=block, resume=resume, console=console):
            return Outcome(complete=False, when_stopped=code)
    return Outcome()


def _side_by_side(commands: Mapping[str, Sequence[str]], gpus: int, stopped: int, console: Console) -> bool:
    """Run each command on a GPU that is free; True where all ended well, False where they were stopped.

    Raises InputError where one failed, once all others have ended.
    """
    waiting, free = list(commands), list(range(gpus))
    running: dict[str, tuple[int, subprocess.Popen[bytes]]] = {}
    failed, complete = list[str](), True
    with stop_on_signal() as signalled:
        while running or (waiting and not signalled.heard()):
            while waiting and free and not signalled.heard():
                name, gpu = waiting.pop(0), free.pop(0)
                console.say(f"specialist {name}, GPU {gpu}")
                environment = os.environ | {"CUDA_VISIBLE_DEVICES": _visible(gpu)}
                running[name] = gpu, subprocess.Popen(commands[name], env=environment)
            if signalled.heard():
                # A signal that only this process heard is handed on; each of them saves and ends.
                for _, process in running.values():
                    process.terminate()
                for _, process in running.values():
                    process.wait()
            for name, (gpu, process) in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                free.append(gpu)
                del running[name]
                complete &= code != stopped
                if code not in (0, stopped):
                    failed.append(f"specialist {name} ended with exit code {code}")
            time.sleep(POLL_S)
    if failed:
        raise InputError(f"{'; '.join(failed)}: see above; the others go on with --resume")
    return complete and not waiting


def _visible(gpu: int) -> str:
    """Return what CUDA calls the GPU with this number among those that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[gpu] if visible else str(gpu)
