"""Scalars for TensorBoard, written by the process that has them.

torch's SummaryWriter writes in a thread, whose errors, as of a full disk, reach the terminal as tracebacks.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from voxelwave.ops.files import naming


class EventFile:
    """A new event file in `folder`; what earlier ones hold from `start_step` on is no longer shown.

    Raises OSError, with the path, where the disk does not take it.
    """

    def __init__(self, folder: Path, *, start_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        begun = f"{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self._path = folder / f"events.out.tfevents.{begun}"
        self._file = self._path.open("xb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=start_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step by their tags."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=Summary(value=scalars))

    def _write(self, **fields: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        with naming(self._path):
            self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def flush(self) -> None:
        """Let readers see what was written."""
        with naming(self._path):
            self._file.flush()

    def close(self) -> None:
        """Write what is left."""
        with naming(self._path):
            self._file.close()
