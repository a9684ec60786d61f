"""What is shown or logged is one line a record, and libraries are silent that log what is no news to a user."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("voxelwave")
# Controls of a terminal (C0, C1), ends of a line, and signs that turn the direction of what follows.
UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return `text` as one line, with control characters and bytes that are no UTF-8, of file names, written out."""
    return UNSHOWN.sub(lambda sign: sign[0].encode("unicode-escape").decode("ascii"), text)


def _one_line(record: logging.LogRecord) -> bool:
    """Escape what a name of a file, or a text out of one, would do to a terminal."""
    record.msg, record.args = printable(record.getMessage()), None
    return True


logger.addFilter(_one_line)


@contextmanager
def silenced(logger: logging.Logger) -> Iterator[None]:
    """Keep `logger` silent."""
    # Taking the handlers away, as nibabel's own suppressor does, makes Python print for want of one.
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
