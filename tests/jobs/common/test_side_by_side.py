import json
import os
import signal
import sys
import threading
import time
from itertools import pairwise

import psutil
import pytest

from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.side_by_side import Place, run_side_by_side

PLACES = [Place(f"place {number}", {"THE_PLACE": number}) for number in "35"]


def script(text):
    return [sys.executable, "-c", f"import json, os, pathlib, sys, time\n{text}"]


def run(commands, **options):
    return run_side_by_side(commands, PLACES, when_stopped=130, console=Console(quiet=True), **options)


def test_each_process_has_a_place_that_is_free(tmp_path):
    record = (
        "began = time.time(); time.sleep(0.3)\n"
        "seen = [os.environ['THE_PLACE'], began, time.time()]\n"
        "pathlib.Path(sys.argv[1]).write_text(json.dumps(seen))"
    )
    commands = {name: [*script(record), str(tmp_path / name)] for name in "abc"}
    assert run(commands)
    seen = [json.loads((tmp_path / name).read_text()) for name in "abc"]
    assert {place for place, _, _ in seen} == {"3", "5"}
    for place in "35":
        times = sorted((began, ended) for of, began, ended in seen if of == place)
        assert all(first[1] <= second[0] for first, second in pairwise(times))


def test_what_fails_is_named_once_all_others_have_ended(tmp_path):
    commands = {"bad": script("sys.exit(2)"), "good": script("time.sleep(0.5); open(sys.argv[1], 'w')")}
    commands["good"].append(str(tmp_path / "done"))
    with pytest.raises(InputError, match="bad ended with exit code 2"):
        run(commands)
    assert (tmp_path / "done").exists()


def test_one_that_was_stopped_leaves_all_incomplete():
    assert not run({"a": script("sys.exit(130)"), "b": script("pass")})


def test_with_logs_the_last_line_of_what_fails_is_told_and_who_ended_well_is_called(tmp_path):
    done = []
    commands = {"bad": script("print('first'); sys.exit('no such file: x')"), "good": script("print('fine')")}
    with pytest.raises(InputError, match=r"bad ended with exit code 1 \(no such file: x\)"):
        run(commands, logs=tmp_path, ended=done.append)
    assert done == ["good"]
    assert (tmp_path / "good.log").read_text() == "fine\n"


def test_none_is_left_at_work_where_the_parent_fails(tmp_path):
    (tmp_path / "b.log").mkdir()  # a log that cannot be opened
    commands = {
        "a": [*script("pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"), str(tmp_path / "pid")],
        "b": script("pass"),
    }
    with pytest.raises(OSError, match="directory"):
        run(commands, logs=tmp_path)
    time.sleep(0.1)
    if (tmp_path / "pid").exists():  # it may have been ended before its first line
        assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_command_that_dies_of_the_signal_was_stopped():
    ask = threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGTERM))
    ask.start()
    assert not run({"deaf": script("time.sleep(60)")})  # with Python's own way of ending at SIGTERM
