"""The components and the job that CONTRIBUTING.md shows are what it calls them: complete."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = "random_tokens or spatial_triplet or mean_mixer or pet or count"
LISTING = re.compile(r"`((?:source|tests)/[\w/]+\.py)`\n\n```python\n(.*?)```", re.DOTALL)
CHANGE = re.compile(r"`(source/[\w/]+\.py)`\n\n```diff\n(.*?)```", re.DOTALL)
ADDED = re.compile(r"^ (.*)\n\+(.*)\n", re.MULTILINE)


def test_the_examples_pass_their_tests_and_those_of_every_component(tmp_path):
    shutil.copytree(ROOT / "source", tmp_path / "source")
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shown = LISTING.findall(text)
    assert len(shown) == 12
    for name, code in shown:
        assert not (tmp_path / name).exists()
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    for name, change in CHANGE.findall(text):
        for before, added in ADDED.findall(change):
            code = (tmp_path / name).read_text()
            assert code.count(f"{before}\n") == 1
            (tmp_path / name).write_text(code.replace(f"{before}\n", f"{before}\n{added}\n"))
    shutil.copy(Path(__file__).with_name("test_components.py"), tmp_path / "tests")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", tmp_path, "-k", EXAMPLES, "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "source")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None
    assert int(found[1]) >= 17
