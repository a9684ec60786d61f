"""What the hooks of a commit refuse, and that no file of the repository is of that kind."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
HOOKS = {
    hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
}
# Made here, so that this file is none of them.
REFUSED = {
    "large-files": "x" * (1024 * 1024 + 1),
    "merge-markers": f"{'<' * 7} HEAD\n",
    "private-keys": f"-----BEGIN RSA {'PRIVATE'} KEY-----\n",
}


def passes(hook, folder, *files):
    program, *options = shlex.split(HOOKS[hook]["entry"])
    command = [Path(sys.executable).with_name(Path(program).name), *options, *files]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


@pytest.mark.parametrize("hook", REFUSED)
def test_a_hook_refuses_what_it_is_for_and_no_file_of_the_repository(hook, tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / "good").write_text("nothing\n")
    (tmp_path / "bad").write_text(REFUSED[hook])
    assert passes(hook, tmp_path, "good")
    assert not passes(hook, tmp_path, "good", "bad")
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert passes(hook, ROOT, *(name for name in listed.stdout.split("\0") if (ROOT / name).is_file()))


def test_the_requirements_are_the_locks_that_a_run_needs():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    named = [line.removeprefix("-r ") for line in lines if not line.startswith("#")]
    assert named == ["requirements/torch-pypi.txt", "requirements/run.txt"]
    assert all((ROOT / name).exists() for name in named)
