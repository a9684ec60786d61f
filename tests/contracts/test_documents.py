"""What the documents point at is there, and every job has its page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from voxelwave.cli import COMMANDS, GROUPS
from voxelwave.data.listing.cases import find_cases
from voxelwave.jobs.pretrain.config import load_config
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for place in (".", "docs", "docs/jobs", "docs/formats", "data", "checkpoints")
    for path in ROOT.glob(f"{place}/*.md")
)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


def _anchors(document: Path) -> set[str]:
    """The names that GitHub gives to headings: lower case, no punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_file_and_a_heading(document):
    for place, anchor in LINK.findall(document.read_text()):
        target = document if not place else document.parent / place
        assert target.exists(), place
        assert not anchor or anchor in _anchors(target), f"{place}#{anchor}"


def test_every_job_has_a_page_and_a_row_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for job in (*COMMANDS, *GROUPS):
        assert f"| [{job}](docs/jobs/{job}.md) |" in readme
        assert (ROOT / "docs" / "jobs" / f"{job}.md").read_text().startswith(f"# voxelwave {job}\n")


def test_the_readme_has_at_most_1200_words():
    assert len((ROOT / "README.md").read_text().split()) <= 1200


def test_the_table_of_configurations_says_what_they_are():
    rows = re.findall(r"^\| `(\w+)\.yaml` \|(.*)\|.*\|$", (ROOT / "docs/jobs/pretrain.md").read_text(), re.MULTILINE)
    configs = ROOT / "configs" / "pretrain"
    assert {name for name, _ in rows} == {path.stem for path in configs.glob("*.yaml")}
    for name, row in rows:
        crop, patch, shape, millions = (cell.strip() for cell in row.split("|"))
        config = load_config(configs / f"{name}.yaml")
        of = config.model.backbone.settings
        assert [int(crop.removesuffix("³"))] * 3 == list(config.data.crop_size)
        assert (patch, shape) == (str(of["patch_size"]), f"{of['embed_dim']} / {of['depth']} / {of['num_heads']}")
        if "production" not in name:  # which take seconds to build
            weights = sum(weight.numel() for weight in build_pretrainer(config).parameters())
            assert f"{weights / 1e6:.1f}" == millions


@pytest.mark.parametrize("code", [0, 2, 130])
def test_the_batch_script_puts_a_job_that_was_stopped_into_the_queue_again_and_no_other(tmp_path, code):
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", (ROOT / "docs/jobs/pretrain.md").read_text(), re.DOTALL)
    commands = {"srun": '"$@"', "voxelwave": f"exit {code}", "scontrol": 'echo "$@" >> queue'}
    for name, does in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    given = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "42"}
    assert subprocess.run(["bash", "-c", script], cwd=tmp_path, env=given).returncode == code
    queue = tmp_path / "queue"
    assert (queue.read_text() if queue.exists() else "") == ("requeue 42\n" if code == 130 else "")


def test_the_program_that_joins_a_table_of_targets_with_a_prepared_folder_writes_a_list(tmp_path):
    program = re.search(r"```python\n(.*?)```", (ROOT / "docs/jobs/finetune.md").read_text(), re.DOTALL)[1]
    rows = [
        "file,subject,modality,status,output",
        "/scans/a#1.2.3,p1,ct,accepted,ct/a.vxw",
        "/scans/b#1.2.4,p2,mri,accepted,mri/b.vxw",
        "/scans/b_seg.nii,p2,label,accepted,labels/b.vxw",
        "/scans/c#1.2.5,p3,mri,refused,",
        "/scans/d#1.2.6,p4,mri,accepted,mri/d.vxw",
    ]
    prepared = tmp_path / "data" / "prepared"
    for image in ("ct/a.vxw", "mri/b.vxw", "mri/d.vxw"):
        (prepared / image).parent.mkdir(parents=True, exist_ok=True)
        (prepared / image).touch()
    (prepared / "manifest.csv").write_text("\n".join(rows) + "\n")
    table = "SeriesInstanceUID,Modality,Aneurysm Present,Basilar Tip\n1.2.3,CTA,1,0\n1.2.4,MRA,0,0\n1.2.5,MRA,1,1\n"
    (tmp_path / "train.csv").write_text(table)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    cases = find_cases(prepared / "targets.csv", targets=["Aneurysm Present", "Basilar Tip"])
    assert [(case.image, case.subject, case.modality) for case in cases] == [
        (prepared / "ct/a.vxw", "p1", "ct"),
        (prepared / "mri/b.vxw", "p2", "mri"),
    ]
    assert [dict(case.targets) for case in cases] == [
        {"Aneurysm Present": 1, "Basilar Tip": 0},
        {"Aneurysm Present": 0, "Basilar Tip": 0},
    ]
