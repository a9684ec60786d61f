"""The components and the job that CONTRIBUTING.md shows are what it calls them: complete."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from support.command import ROOT, process
from voxelwave.data.listing.manifest import MANIFEST, Row, write_manifest

EXAMPLES = "random_tokens or spatial_triplet or mean_mixer or pet or count"
LISTING = re.compile(r"`((?:source|tests)/[\w/]+\.py)`\n\n```python\n(.*?)```", re.DOTALL)
CHANGE = re.compile(r"`(source/[\w/]+\.py)`\n\n```diff\n(.*?)```", re.DOTALL)
ADDED = re.compile(r"^ (.*)\n\+(.*)\n", re.MULTILINE)


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the tree with the files that are shown, and the lines that are added to others."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "source", tree / "source")
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shown = LISTING.findall(text)
    assert len(shown) == 12
    for name, code in shown:
        assert not (tree / name).exists()
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(code)
    changes = CHANGE.findall(text)
    assert [name for name, _ in changes] == ["source/voxelwave/cli.py"]
    for name, change in changes:
        for before, added in ADDED.findall(change):
            code = (tree / name).read_text()
            assert code.count(f"{before}\n") == 1
            (tree / name).write_text(code.replace(f"{before}\n", f"{before}\n{added}\n"))
    return tree


def run(tree, *command):
    return process(*command, folder=tree, PYTHONPATH=str(tree / "source"))


def test_the_examples_pass_their_tests_and_those_of_every_component(changed):
    shutil.copy(Path(__file__).with_name("test_components.py"), changed / "tests")
    ended = run(changed, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", changed, "-k", EXAMPLES, "tests")
    assert ended.code == 0, ended.out + ended.err
    assert int(re.search(r"(\d+) passed", ended.out)[1]) >= 18


def test_the_job_that_is_shown_is_a_command(changed, tmp_path):
    accepted = Row(file="a_T1", modality="mri", status="accepted")
    write_manifest(tmp_path / MANIFEST, [accepted, Row(file="b_T1", modality="mri", status="refused")])
    ended = run(changed, "-m", "voxelwave", "count", tmp_path)
    assert (ended.code, ended.out, ended.err) == (0, "1 mri\n", "")
    assert re.search(r"^│ count +Show how many volumes", run(changed, "-m", "voxelwave", "--help").out, re.MULTILINE)


def test_the_layers_hold_with_the_job_that_is_shown(changed):
    """With its folder on the line of jobs, which is asked for; there an import of another job is found."""
    settings, last = (ROOT / "pyproject.toml").read_text(), " | synthesize"
    assert settings.count(f'{last}"') == 1
    (changed / "pyproject.toml").write_text(settings)
    check = ("-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())")
    ended = run(changed, *check)
    assert ended.code == 1
    assert "- voxelwave.jobs.count" in ended.out
    (changed / "pyproject.toml").write_text(settings.replace(f'{last}"', f'{last} | count"'))
    ended = run(changed, *check)
    assert ended.code == 0, ended.out
    wrong = changed / "source/voxelwave/jobs/count/wrong.py"
    wrong.write_text("import voxelwave.jobs.prepare.run\n")
    ended = run(changed, *check)
    wrong.unlink()
    assert ended.code == 1
    assert "voxelwave.jobs.count is not allowed to import voxelwave.jobs.prepare" in ended.out


def test_the_model_behind_a_mask_trains_by_the_command_that_is_shown(tmp_path):
    (code,) = re.findall(r"`mine\.py`\n\n```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 15
    (tmp_path / "mine.py").write_text(code)
    small = ["data.source=phantoms", "data.volumes=6", "data.slices=1", "data.size=32"]
    short = ["training.epochs=2", "training.batch_size=4", "run.tensorboard=false"]
    settings = [part for setting in (*small, *short) for part in ("--set", setting)]
    learned = ["--learn-mask", "--drop-rate", ".4", "--mask-lr", ".1", "--out-dir", "run"]
    ended = process("-m", "voxelwave", "subsample", "train", "--model", "mine.py", *learned, *settings, folder=tmp_path)
    assert ended.code == 0, ended.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["kept"] == round(0.6 * 32 * 32)
