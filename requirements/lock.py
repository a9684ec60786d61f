"""Write the lock files of this folder from pyproject.toml: every package with its version and the hashes of its files.

python requirements/lock.py [option of `uv pip compile` …]

A version that is locked and still fits stays; `--upgrade-package NAME` or `--upgrade` takes newer ones.

| file | what it adds |
|---|---|
| run.txt | what voxelwave imports, with the readers of DICOM, and what builds it |
| dev.txt, umap.txt | the extra of that name, less what run.txt and dev.txt hold |
| torch-pypi.txt | torch as PyPI has it, with the CUDA libraries that it needs on Linux |
| torch-cpu.txt | torch without CUDA, whose version ends in +cpu; PyTorch's index alone has it |
| minkowski.txt, tools.txt | the dependency group of that name, complete |
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

FOLDER = Path(__file__).parent
PYPROJECT = FOLDER.parent / "pyproject.toml"
DOCKERFILE = FOLDER.parent / "docker" / "Dockerfile.cpu"
# Installed as `torch-….txt` says, and by nothing else.
TORCH = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)")

Entries = dict[str, str]  # by name: the requirement with its hashes, some lines


def entries(text: str) -> Entries:
    """Return the entries of a lock; one name has several where its version depends on the platform."""
    found: Entries = {}
    for entry in re.findall(r"^[a-z0-9].*\n(?: .*\n)*", text, re.MULTILINE):
        name = re.split("[=; ]", entry, maxsplit=1)[0]
        found[name] = found.get(name, "") + entry
    return found


def read(name: str) -> Entries:
    """Return what a lock of this folder holds, nothing where it is not there."""
    path = FOLDER / f"{name}.txt"
    return entries(path.read_text()) if path.exists() else {}


def compile_lock(*sources: str, known: Entries, fixed: Entries | None = None) -> Entries:
    """Resolve `sources` for every Python and platform.

    Args:
        known: versions to keep where they fit.
        fixed: versions that must be kept.
    """
    python = tomllib.loads(PYPROJECT.read_text())["project"]["requires-python"].removeprefix(">=")
    with TemporaryDirectory() as folder:
        output, constraints = Path(folder) / "lock.txt", Path(folder) / "constraints.txt"
        output.write_text("".join(known.values()))
        constraints.write_text("".join(fixed.values()) if fixed else "")
        options = ["--universal", "--fork-strategy=fewest", "--generate-hashes", "--no-annotate", "--no-header"]
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", *options, "--python-version", python]
        files = ["--constraints", str(constraints), "--output-file", str(output)]
        if subprocess.run([*command, *files, *sources, *sys.argv[1:]], cwd=FOLDER.parent).returncode:
            sys.exit(f"lock.py: uv found no versions for {' '.join(sources)}; nothing was written")
        return entries(output.read_text())


def cpu_build(version: str) -> Entries:
    """Return torch's CPU build of `version`: as locked, or where that is another version from the image's index."""
    known = read("torch-cpu")
    if known.get("torch", "").startswith(f"torch=={version}+cpu "):
        return known
    default = re.search(r"^ARG TORCH_INDEX=(\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert default
    index = os.environ.get("TORCH_INDEX", default[1])
    with TemporaryDirectory() as folder:
        wanted = Path(folder) / "torch.in"
        wanted.write_text(f"torch=={version}+cpu\n")
        return compile_lock(str(wanted), "--no-deps", "--default-index", index, known={})


def main() -> None:
    """Write every lock file, or none."""
    names = ("run", "dev", "umap", "torch-pypi")
    known = {package: entry for name in names for package, entry in read(name).items()}
    locks: dict[str, Entries] = {}

    # 1. One resolution after the other, each with the versions of those before it.
    locked: Entries = {}
    with TemporaryDirectory() as folder:
        build = Path(folder) / "build.in"
        build.write_text("\n".join(tomllib.loads(PYPROJECT.read_text())["build-system"]["requires"]))
        for name, extras in {"run": ["dicom"], "dev": ["dicom", "dev"], "umap": ["umap"]}.items():
            options = [word for extra in extras for word in ("--extra", extra)]
            resolved = compile_lock("pyproject.toml", str(build), *options, known=known, fixed=locked)
            # An entry comes again where it holds for more platforms.
            locks[name] = {package: entry for package, entry in resolved.items() if locked.get(package) != entry}
            locked |= locks[name]

    # 2. torch and what it alone brings, in its two builds.
    locks["torch-pypi"] = {package: locked[package] for package in locked if TORCH.fullmatch(package)}
    for lock in (locks["run"], locks["dev"], locks["umap"]):
        for package in locks["torch-pypi"]:
            lock.pop(package, None)
    version = re.match(r"torch==(\S+)", locked["torch"])
    assert version
    locks["torch-cpu"] = cpu_build(version[1])

    # 3. Environments of their own.
    for name in ("minkowski", "tools"):
        locks[name] = compile_lock("--group", name, known=read(name), fixed=locked)

    for name, lock in locks.items():
        text = "".join(lock[package] for package in sorted(lock))
        (FOLDER / f"{name}.txt").write_text(f"# Written by `make lock`, from pyproject.toml.\n{text}")


if __name__ == "__main__":
    main()
