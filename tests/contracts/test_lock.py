"""The lock files agree with pyproject.toml and with each other: nothing is installed that they do not name and hash."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, GROUPS = PYPROJECT["project"], PYPROJECT["dependency-groups"]
EXTRAS = PROJECT["optional-dependencies"]
# What a file has to hold, with the files that are installed before it.
ASKED = {
    "run torch-cpu": [*PROJECT["dependencies"], *EXTRAS["dicom"], *PYPROJECT["build-system"]["requires"]],
    "run torch-pypi": [*PROJECT["dependencies"], *EXTRAS["dicom"], *PYPROJECT["build-system"]["requires"]],
    "run dev": [*EXTRAS["classical"], *EXTRAS["dicom"], *EXTRAS["export"], *EXTRAS["dev"]],
    "run dev umap": EXTRAS["umap"],
    "minkowski": GROUPS["minkowski"],
    "tools": GROUPS["tools"],
}


def entries(names):
    """Each entry of lock files as a requirement and its hashes."""
    for name in names.split():
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        for entry in re.findall(r"^[^#\s].*\n(?:[ \t].*\n)*", text, re.MULTILINE):
            requirement, *hashes = entry.replace("\\\n", "\n").split("--hash=sha256:")
            yield Requirement(requirement.strip()), [value.strip() for value in hashes]


@pytest.mark.parametrize("names", ASKED)
def test_what_pyproject_asks_for_is_locked_at_a_version_that_fits(names):
    locked = {canonicalize_name(entry.name): entry for entry, _ in entries(names)}
    for wanted in map(Requirement, ASKED[names]):
        if wanted.name == PROJECT["name"]:
            continue
        entry = locked.get(canonicalize_name(wanted.name))
        assert entry is not None, f"{wanted.name} is not in {names}: make lock"
        (pin,) = entry.specifier
        assert Version(pin.version).public in wanted.specifier, f"{entry} in {names} is not {wanted}: make lock"


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_entry_has_one_version_and_hashes_and_no_address(path):
    text = path.read_text()
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE)
    assert list(entries(path.stem))
    for entry, hashes in entries(path.stem):
        assert [pin.operator for pin in entry.specifier] == ["=="]
        assert hashes
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes)


def test_the_files_agree_on_versions_and_only_those_of_torch_bring_cuda():
    versions = {}
    for path in LOCKS:
        for entry, _ in entries(path.stem):
            (pin,) = entry.specifier
            version = versions.setdefault(canonicalize_name(entry.name), Version(pin.version).public)
            assert Version(pin.version).public == version, f"{entry} in {path.name}: make lock"
            if not path.stem.startswith("torch-"):
                assert not re.match(r"torch$|triton$|nvidia-|cuda-", entry.name), path.name
    assert {path.stem for path in LOCKS} == {name for names in ASKED for name in names.split()}


def test_actions_are_named_by_commit_with_their_version():
    uses = [
        line.strip()
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert uses
    for line in uses:
        assert re.fullmatch(r"- uses: [\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
