"""A folder that a call fills and the same call goes on with; the settings of what it holds never change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from voxelwave.errors import InputError
from voxelwave.ops.files import locked, write_text
from voxelwave.ops.texts import read_json, to_json
from voxelwave.registry import shortened

RECORD, COMPLETE = "synthesize.json", "complete"


@contextmanager
def filling(
    out: Path, settings: dict[str, Any], *, things: str, planned: Sequence[Path] = ()
) -> Iterator[Callable[[], None]]:
    """Keep other processes out of `out`, which becomes a folder, and yield what to call once all `things` are there.

    `settings` are plain values, as JSON holds them; `planned` are the files that are to be made.
    Raises InputError where `out` is a file, is being filled already, or holds things made with other settings, or some
    of the planned files without a record of theirs.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give a folder to write the {things} to")
    record = out / RECORD
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        if not _refuse_other_settings(record, settings, things):
            foreign = next((path for path in planned if path.exists()), None)
            if foreign is not None:
                raise InputError(f"{foreign} is there, and no {record.name} says how it was made: give another folder")

        def say(complete: bool) -> None:
            write_text(record, to_json(settings | {COMPLETE: complete}))

        # Before the first of them, so that a call that was interrupted cannot be continued with other settings.
        say(complete=False)
        yield lambda: say(complete=True)


def is_filled(out: Path, settings: dict[str, Any], *, things: str) -> bool:
    """Tell whether a call with these settings came to its end; raises InputError where others were used."""
    record = out / RECORD
    return _refuse_other_settings(record, settings, things) and bool(read_json(record).get(COMPLETE))


def _refuse_other_settings(record: Path, settings: dict[str, Any], things: str) -> bool:
    """Raise InputError where `record` tells of other settings; return whether there is one."""
    if not record.exists():
        return False
    try:
        made = read_json(record)
        differing = [
            f"{key} {shortened(str(made.get(key)))} and not {shortened(str(settings.get(key)))}"
            for key in dict.fromkeys([*settings, *made])
            if key != COMPLETE and made.get(key) != settings.get(key)
        ]
    except (ValueError, AttributeError, TypeError):
        raise InputError(f"{record} cannot be read: delete its folder, or give another one") from None
    if differing:
        raise InputError(
            f"{record.parent} holds {things} made with {', '.join(differing)}: delete it, or give another folder"
        )
    return True
