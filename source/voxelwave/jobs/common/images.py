"""The images that a job goes through one after the other, and what is said of those that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from voxelwave.data.listing.cases import Case
from voxelwave.data.listing.discovery import home_expanded
from voxelwave.data.listing.images import find_images
from voxelwave.data.scaled import Scaled
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.console import Console, tracked
from voxelwave.ops.files import size_and_sha256
from voxelwave.ops.loggers import printable
from voxelwave.ops.texts import one_line


class Origin(NamedTuple):
    """Which image a result is of."""

    image: str
    bytes: int
    sha256: str

    def same_content(self, other: Origin) -> bool:
        """Tell whether both are of the same voxels, wherever these lie now."""
        return (self.bytes, self.sha256) == (other.bytes, other.sha256)


def origin_of(case: Case) -> Origin:
    """Return the origin that a result of `case` has; raises UnusableVolume where its file cannot be read."""
    try:
        return Origin(printable(case.place), *size_and_sha256(*case.files))
    except OSError as error:
        raise UnusableVolume(f"cannot be read: {error.strerror}") from None


def is_of(case: Case, row: Mapping[str, str]) -> bool:
    """Tell whether a row is of the image of a case as it is now, and read as the modality that it is said to be.

    Raises UnusableVolume where its file cannot be read.
    """
    now = origin_of(case)
    same = (row["bytes"], row["sha256"]) == (str(now.bytes), now.sha256)
    return same and case.modality in ("", row["modality"])


class Images:
    """The images at `source`, as `find_images` lists them.

    Attributes:
        cases: all of them; the modality is "" where no list and no `modality` says it.
        refused: the path and the reason of each of them that could not be used.

    Raises InputError where there is nothing, or no such modality.
    """

    def __init__(self, source: str, modality: str | None) -> None:
        self.cases, self._label_maps, self._unread, self._others = find_images(source, modality)
        self.refused, self._notes = list[str](), list[str]()
        self._source, place = source, home_expanded(source)
        self._root = place if place.is_dir() else None

    @property
    def unusable(self) -> list[str]:
        """The path and the reason of each image, and of each file of a format that is not read."""
        return [*self._unread, *self.refused]

    def without(self, has: Callable[[Case], bool]) -> list[Case]:
        """Return the cases that `has` does not know; those for which it raises UnusableVolume are refused."""
        todo = []
        for case in self.cases:
            try:
                if not has(case):
                    todo.append(case)
            except UnusableVolume as unusable:
                self.refused.append(f"{case.image}: {unusable}")
        return todo

    def each(
        self,
        cases: Sequence[Case],
        reader: ScanReader,
        use: Callable[[Case, Scaled], None],
        *,
        verb: str,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Read each of `cases` once, call `use` with it and its scan, and return how many times that went well.

        Args:
            use: gets the case with its modality.
            verb: what is done to an image, such as "predicted".
        """
        done = 0
        for case in tracked(cases, f"{verb} images"):
            if should_stop():
                break
            try:
                scan = reader(case.image, case.modality, root=self._root, series=case.series)
                if scan.source.note:
                    self._notes.append(f"{case.image}: {scan.source.note}")
                use(replace(case, modality=scan.modality), scan)
                done += 1
            except UnusableVolume as unusable:
                self.refused.append(f"{case.image}: {unusable}")
            except (RuntimeError, MemoryError) as error:  # what does not fit into memory
                reason = one_line(error)
                self.refused.append(f"{case.image}: cannot be {verb}: {type(error).__name__}: {reason}")
        return done

    def say(self, console: Console) -> None:
        """List what was left out, and why; raises InputError where that is all there is."""
        for title, lines in (
            ("label maps, left out", self._label_maps),
            ("of another modality than --modality, left out", self._others),
            ("notes", self._notes),
            ("cannot be used", self.unusable),
        ):
            if lines:
                console.say(f"{title}: {len(lines)}", *(f"  {line}" for line in lines))
        if len(self.refused) == len(self.cases):
            first = self.refused[0]
            raise InputError(f"none of the {len(self.cases)} files at '{self._source}' can be used; the first, {first}")
