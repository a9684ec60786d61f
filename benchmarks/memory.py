"""What of a process is in memory, and fresh processes to measure it in."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

PROCESS = Path("/proc/self")
MB = 2**20


def resident_mb() -> tuple[float, float]:
    """Return what of this process is in memory, and how much of that is its own and no file's."""
    rollup = (PROCESS / "smaps_rollup").read_text()
    return _mb("Rss", rollup), _mb("Anonymous", rollup)


def peak_mb() -> float:
    """Return the most of this process that was in memory at once; unlike `getrusage`, without that of its parent."""
    return _mb("VmHWM", (PROCESS / "status").read_text())


def forget_peak() -> None:
    """Count the peak from here on."""
    (PROCESS / "clear_refs").write_text("5\n")


def family_mb() -> tuple[float, float]:
    """Return what of this process and all below it is in memory, pages that they share counted for each, and once."""
    main = psutil.Process()
    infos = [process.memory_full_info() for process in (main, *main.children(recursive=True))]
    return sum(info.rss for info in infos) / MB, sum(info.pss for info in infos) / MB


def in_fresh_process(script: str, task: str, *arguments: object) -> dict[str, Any]:
    """Run `script --task TASK ARGUMENTS` in a process that has done nothing yet; return the JSON of its last line."""
    command = [sys.executable, script, "--task", task, *map(str, arguments)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return figures


def _mb(name: str, text: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1]) / 1024
