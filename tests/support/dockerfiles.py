"""Read Dockerfiles, and run their steps without an engine: in a Debian root of their own, or in a plain folder."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

HOST_NETWORK = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
SYSTEM_TOOLS = ("apt-get", "useradd")
# /dev/shm as small as Docker makes it.
IN_ROOT = """set -e; root=$1; shift
mount --bind /dev "$root/dev"; mount -t tmpfs -o size=64m tmpfs "$root/dev/shm"; mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do mount --bind "$1" "$root$2"; shift 2; done; shift
exec chroot "$@" """


@dataclass(frozen=True)
class Instruction:
    """One instruction: `RUN --mount=… command` has the name RUN, flags and a value."""

    name: str
    flags: tuple[str, ...]
    value: str


def parse(path: Path) -> list[Instruction]:
    """Return the instructions of a Dockerfile, comments dropped and lines joined."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    instructions = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, *words = line.split(maxsplit=1)
        value, flags = " ".join(words).strip(), []
        while value.startswith("--"):
            flag, _, value = value.partition(" ")
            flags.append(flag)
            value = value.lstrip()
        instructions.append(Instruction(name, tuple(flags), re.sub(r"\s{2,}", " ", value)))
    return instructions


def pip_settings() -> dict[str, str]:
    """What pip is told on this machine by files and environment: indexes, folders of wheels, certificates."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    settings = {}
    for line in lines:
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = ast.literal_eval(value)
    return settings


@dataclass
class Image:
    """The one stage of an image, made step by step under `root`.

    Args:
        chroot: `root` holds a Debian system, and the steps run in it as they would in an image; needs root's rights.
            Else paths are moved under `root`, this Python takes the place of the image's, and steps that change a
            system (apt-get, useradd, USER) are left out.
        caches: folders of this machine for cache mounts, by target.
    """

    root: Path
    context: Path
    chroot: bool
    arguments: dict[str, str]
    caches: dict[str, Path]
    pip: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0:0"
    env: dict[str, str] = field(default_factory=dict)
    log: str = ""

    def __post_init__(self) -> None:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.env = {"PATH": path if self.chroot else f"{sys.base_prefix}/bin:{path}", "HOME": self.place("/root")}
        self.binds = [(str(cache), target) for target, cache in self.caches.items()]
        self.network = {name: os.environ[name] for name in HOST_NETWORK if name in os.environ}
        self.network |= {f"PIP_{name.upper().replace('-', '_')}": value for name, value in self.pip.items()}
        Path(self.inside("/tmp")).mkdir(exist_ok=True, parents=True)
        for target, cache in self.caches.items():
            cache.mkdir(parents=True, exist_ok=True)
            link = Path(self.inside(target))
            link.parent.mkdir(parents=True, exist_ok=True)
            if not self.chroot:
                link.symlink_to(cache)
        if self.chroot:
            for name in ("resolv.conf", "hosts"):
                shutil.copy(f"/etc/{name}", self.inside(f"/etc/{name}"))
            if "cert" in self.pip:
                shutil.copy(self.pip["cert"], self.inside("/run/certificates.crt"))
                self.network["PIP_CERT"] = "/run/certificates.crt"
            # What pip finds on this machine: folders of wheels, and indexes with the files that lie beside them.
            places = [word for value in self.pip.values() for word in value.split()]
            folders = [word for word in places if word.startswith("/") and Path(word).is_dir()]
            folders += [str(Path(word[7:]).parent) for word in places if word.startswith("file:///")]
            self.binds += [(folder, folder) for folder in dict.fromkeys(folders)]
            for _, target in self.binds:
                Path(self.inside(target)).mkdir(parents=True, exist_ok=True)

    def inside(self, path: str) -> str:
        """Where a path of the image lies on this machine."""
        return f"{self.root}{path}"

    def place(self, text: str) -> str:
        """Text with its paths as the steps have to see them."""
        return text if self.chroot else re.sub(r"(?<![\w./])/(?=(opt|workspace|root|tmp)\b)", f"{self.root}/", text)

    def build(self, instructions: list[Instruction]) -> None:
        """Run the instructions in their order."""
        for step in instructions:
            getattr(self, f"_{step.name.lower()}")(step)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command as the image's user in its folder."""
        command = f"cd {shlex.quote(self.place(self.workdir))} && {self.place(command)}"
        shell = ["/bin/sh", "-c", command]
        if self.chroot:
            binds = [part for bind in self.binds for part in bind]
            # The mounts are those of a namespace, and go with it.
            spaces = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]
            into = ["sh", "-c", IN_ROOT, "sh", str(self.root), *binds, "--"]
            shell = [*spaces, *into, f"--userspec={self.user}", "--groups=", str(self.root), *shell]
        return subprocess.run(shell, env={**self.network, **self.env}, capture_output=True, text=True, timeout=900)

    def _from(self, step: Instruction) -> None:
        assert self.workdir == "/", "one stage only"

    def _arg(self, step: Instruction) -> None:
        name, _, default = step.value.partition("=")
        self.env[name] = self.arguments.get(name, default)

    def _env(self, step: Instruction) -> None:
        for assignment in shlex.split(step.value):
            name, _, value = assignment.partition("=")
            self.env[name] = Template(self.place(value)).safe_substitute(self.env)

    def _workdir(self, step: Instruction) -> None:
        self.workdir = step.value
        Path(self.inside(self.workdir)).mkdir(parents=True, exist_ok=True)

    def _user(self, step: Instruction) -> None:
        self.user = step.value

    def _copy(self, step: Instruction) -> None:
        *sources, target = step.value.split()
        folder = Path(self.inside(str(Path(self.workdir) / target)))
        for source in (self.context / name for name in sources):
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(source, folder, ignore=ignore, dirs_exist_ok=True)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder)

    def _run(self, step: Instruction) -> None:
        if not self.chroot and step.value.startswith(SYSTEM_TOOLS):
            return
        result = self.run(step.value)
        said = result.stdout + result.stderr
        assert result.returncode == 0, f"RUN {step.value}\nended with {result.returncode}:\n{said[-6000:]}"
        self.log += said

    def _entrypoint(self, step: Instruction) -> None:
        assert step.value.startswith("[")

    _cmd = _entrypoint
