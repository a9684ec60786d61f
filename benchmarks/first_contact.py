"""How long a newcomer waits: for `voxelwave --help`, and with flags for `make demo` and `make test` in a clean clone.

python benchmarks/first_contact.py [--demo] [--test]

What was measured before and is not measured now stays in the result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measuring import RESULTS, report, seconds

ROOT = Path(__file__).parent.parent
NAME = "first_contact"
TARGETS = {"help_s": 0.5, "make_demo_min": 2.5, "make_test_min": 6}


def help_seconds() -> float:
    """Return the median wall time of `voxelwave --help` in five calls, after one that fills the file cache."""
    command = [str(Path(sys.executable).with_name("voxelwave")), "--help"]
    return seconds(lambda: subprocess.run(command, check=True, capture_output=True), repeats=5)


def minutes_of_make(*, demo: bool, test: bool) -> dict[str, float]:
    """Clone what is committed into an empty folder, and time setting up and the asked targets, each apart."""
    targets = ["setup", *(["demo"] if demo else []), *(["test"] if test else [])]
    with TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), folder], check=True)
        return {
            f"make_{target}_min": _minutes(["make", f"PYTHON={sys.executable}", target], folder) for target in targets
        }


def _minutes(command: list[str], folder: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True)
    return (time.perf_counter() - began) / 60


def measured_before() -> dict[str, Any]:
    """Return the figures of an earlier call."""
    path = RESULTS / f"{NAME}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    """Measure what was asked for, and report it beside the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", action="store_true", help="time `make demo` in a clean clone")
    parser.add_argument("--test", action="store_true", help="time `make test` in a clean clone")
    arguments = parser.parse_args()
    figures = measured_before() | {"help_s": help_seconds()}
    if arguments.demo or arguments.test:
        figures |= minutes_of_make(demo=arguments.demo, test=arguments.test)
    report(NAME, figures | {"targets": TARGETS})


if __name__ == "__main__":
    main()
