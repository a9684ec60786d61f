"""Silence for libraries that log what is no news to a user."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced(logger: logging.Logger) -> Iterator[None]:
    """Keep `logger` silent."""
    # Taking the handlers away, as nibabel's own suppressor does, makes Python print for want of one.
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
