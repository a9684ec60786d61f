"""The components that CONTRIBUTING.md shows are what it calls them: complete."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = "random_tokens or spatial_triplet or mean_mixer or pet"
LISTING = re.compile(r"`((?:source|tests)/[\w/]+\.py)`\n\n```python\n(.*?)```", re.DOTALL)


def test_the_examples_pass_their_tests_and_those_of_every_component(tmp_path):
    shutil.copytree(ROOT / "source", tmp_path / "source")
    shown = LISTING.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert len(shown) == 8
    for name, code in shown:
        assert not (tmp_path / name).exists()
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
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
    assert int(found[1]) >= 16
