"""What is installed, what is missing and what to do, and whether training runs here: one line a finding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.doctor.machine import Finding, check_folders, check_machine, check_packages, check_shared_memory
from voxelwave.ops.texts import one_line

REQUIRABLE = ("minkowski", "cuda")
_COLOURS = {"ok": "green", "note": "yellow", "problem": "red"}


def doctor(folders: Sequence[Path] = (), *, require: Sequence[str] = (), console: Console | None = None) -> int:
    """Print a table of findings and return how many are problems.

    `folders` are those that a run would write to, beside the current one; what `require` names is a problem where it
    is missing. A small model is trained for one step with every backend and precision that runs here. Raises
    InputError for a `require` that is not known.
    """
    for name in require:
        if name not in REQUIRABLE:
            raise InputError(f"unknown --require '{name}': use {' or '.join(REQUIRABLE)}")
    checks: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
        ("packages", check_packages),
        ("machine", check_machine),
        ("shared memory", check_shared_memory),
        ("folders", lambda: check_folders(folders)),
        ("training", lambda: _training(require)),
    )
    findings = [finding for name, check in checks for finding in _guarded(name, check)]
    problems = sum(finding.level == "problem" for finding in findings)
    verdict = "voxelwave can train here" if not problems else f"{problems} problem{'s' * (problems > 1)} to solve first"
    (console or Console()).print(_table(findings), verdict)
    return problems


def _training(require: Sequence[str]) -> Iterable[Finding]:
    # Imported here: a package that is missing or broken is a finding, not a traceback.
    from voxelwave.jobs.doctor.training import check_training

    return check_training(require)


def _guarded(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of a check; one that fails is a problem itself, and the others still run."""
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        findings.append(Finding("problem", name, reason, "solve what stands above first, then install voxelwave again"))
    return findings


def _table(findings: Iterable[Finding]) -> Table:
    table = Table("", "what", "found", "what to do")
    for column in table.columns[1:]:
        column.overflow = "fold"
    for finding in findings:
        colour = _COLOURS[finding.level]
        table.add_row(
            f"[{colour}]{finding.level}[/{colour}]",
            *(escape(text) for text in (finding.what, finding.found, finding.remedy)),
        )
    return table
