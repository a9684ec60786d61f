import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from support.dockerfiles import Image, parse, pip_settings

ROOT = Path(__file__).parents[1]
DOCKERFILES = [ROOT / "docker" / name for name in ("Dockerfile", "Dockerfile.cpu")]
CPU = ROOT / "docker" / "Dockerfile.cpu"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))

both = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


@both
def test_hadolint_finds_nothing(path):
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([hadolint, path], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@both
def test_an_image_ends_as_a_user_without_rights_after_the_doctor(path):
    steps = parse(path)
    by_name = {step.name: step.value for step in steps}  # the last of each
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", by_name["USER"])
    assert "voxelwave doctor --require minkowski" in by_name["RUN"]
    names = [step.name for step in steps]
    assert names[-2:] == ["ENTRYPOINT", "CMD"]
    assert (by_name["ENTRYPOINT"], by_name["WORKDIR"]) == ('["entrypoint.sh"]', "/workspace")
    assert names[::-1].index("RUN") < names[::-1].index("USER")


@pytest.mark.parametrize(
    ("given", "run"),
    [
        ([], "voxelwave"),
        (["pretrain", "a b.yaml"], "voxelwave,pretrain,a b.yaml"),
        (["python", "x.py", "--set", "a=b"], "python,x.py,--set,a=b"),
        (["sh", "-c", "true"], "sh,-c,true"),
        (["foqus-train", "--epochs", "1"], "foqus-train,--epochs,1"),
        (["voxelwave", "doctor"], "voxelwave,doctor"),
    ],
)
def test_the_entry_point_runs_commands_of_voxelwave_and_python_as_it_stands(tmp_path, given, run):
    for name in ("voxelwave", "foqus-train", "python", "sh"):
        (tmp_path / name).write_text(f'#!{shutil.which("sh")}\nprintf "%s" {name}; for x; do printf ",%s" "$x"; done\n')
        (tmp_path / name).chmod(0o755)
    ended = subprocess.run(
        [ROOT / "docker" / "entrypoint.sh", *given], env={"PATH": str(tmp_path)}, capture_output=True
    )
    assert (ended.stdout.decode(), ended.returncode) == (run, 0)


@both
def test_bases_are_exact_and_nothing_is_fetched_past_the_package_managers(path):
    defaults = {}
    for step in parse(path):
        if step.name == "ARG":
            name, _, value = step.value.partition("=")
            defaults[f"${{{name}}}"] = value
        if step.name == "FROM":
            tag = step.value.split()[0].partition(":")[2]
            for name, value in defaults.items():
                tag = tag.replace(name, value)
            assert re.search(r"\d+\.\d+\.\d+|\d{8}", tag), step.value
        assert step.name != "ADD"
        assert not (step.name == "RUN" and re.search(r"\b(curl|wget|git clone)\b", step.value))


@both
def test_no_list_of_packages_and_no_download_stays_in_a_layer(path):
    for step in parse(path):
        if "apt-get" in step.value:
            assert step.value.endswith("rm -rf /var/lib/apt/lists/*")
        if step.name == "RUN" and ("pip install" in step.value or "install_minkowski" in step.value):
            assert "--mount=type=cache,target=/root/.cache/pip" in step.flags


def test_the_builder_is_given_what_is_copied_and_no_more():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    admitted = {line[1:] for line in ignore if line.startswith("!")}
    copied = [step for path in DOCKERFILES for step in parse(path) if step.name == "COPY" and not step.flags]
    sources = {source for step in copied for source in step.value.split()[:-1]}
    assert sources == admitted
    assert "*" in ignore
    assert all((ROOT / source).exists() for source in sources)


@both
def test_an_image_installs_what_is_locked_and_its_own_source(path):
    steps = [step.value for step in parse(path)]
    *locked, source = [install for step in steps for install in re.findall(r"(?<=pip install ).*?(?=;| &&|$)", step)]
    by_index = [install for install in locked if "requirements/index.txt" in install]
    assert len(by_index) == (path != CPU)  # a choice of the builder, of the locked versions
    assert [re.findall(r"requirements/([\w-]+)\.txt", install) for install in locked if install not in by_index] == (
        [["torch-cpu"], ["torch-cpu", "run"]] if path == CPU else [["torch-pypi"], ["run"]]
    )
    assert all("--require-hashes" in install for install in locked if install not in by_index)
    assert source == "--no-deps --no-build-isolation ."


def test_the_production_config_finds_its_data_and_its_runs_in_the_volumes():
    from voxelwave.jobs.pretrain.config import load_config

    config = load_config(ROOT / "configs" / "pretrain" / "production.yaml")
    places = [config.run.out_dir, *(source.path for source in config.data.sources)]
    assert {Path(place).parts[0] for place in places} == {"checkpoints", "data"}
    for path in DOCKERFILES:
        assert any("/workspace/data /workspace/checkpoints" in step.value for step in parse(path))


def test_every_check_before_a_merge_runs_the_steps_of_the_image():
    for place in (".ci/run", ".github/workflows/ci.yml"):
        targets = re.findall(r"make ([\w-]+)$", (ROOT / place).read_text(), re.MULTILINE)
        assert targets == ["lint", "minkowski", "test", "test-image"], place


@pytest.fixture
def root(tmp_path):
    """Where the image is made; it takes 2 GB and does not stay."""
    yield tmp_path / "root"
    shutil.rmtree(tmp_path / "root", ignore_errors=True)


@pytest.mark.image
def test_the_steps_of_the_cpu_image_make_an_environment_that_trains(root, minkowski):
    """Every step runs: in a new Debian where debootstrap and root's rights are there, else in an empty folder.

    Only where MinkowskiEngine has been built before, since its wheel spares the minutes of building it again.
    """
    index = torch_index()
    debian = os.geteuid() == 0 and shutil.which("debootstrap") is not None and bootstrap(root)
    image = Image(
        root, ROOT, chroot=debian, arguments={"TORCH_INDEX": index}, caches=caches(debian), pip=pip_settings()
    )

    image.build(parse(CPU))
    assert not list(Path(image.inside("/tmp")).iterdir())
    assert "voxelwave can train here" in image.log
    assert re.search(r"cpu, minkowski +│ a step trains in fp32, bf16", image.log)

    help_text = image.run("entrypoint.sh --help")
    assert (help_text.returncode, "pretrain" in help_text.stdout) == (0, True)
    script = image.run("entrypoint.sh python source/train_phase0_subset.py --set data.sources=[]")
    assert (script.returncode, "configs/pretrain/subset.yaml" in script.stderr) == (2, True), script.stderr
    no_data = image.run("entrypoint.sh pretrain configs/pretrain/production.yaml")
    assert no_data.returncode == 2
    assert "mri source 'data/processed/openmind/OpenMind_processed/MRI_T1' does not exist" in no_data.stderr
    if debian:
        assert "docker run --shm-size=8g" in image.log
        assert image.run("touch data/file checkpoints/file").returncode == 0
        assert image.run("touch file").returncode != 0
        image.user = "12345:12345"
        as_another = image.run("voxelwave doctor /tmp/runs")
        assert as_another.returncode == 0, as_another.stdout + as_another.stderr


def torch_index():
    """The Dockerfile's index of torch, or pip's own where that is out of reach; it has to hold a CPU build."""
    default = next(step.value for step in parse(CPU) if step.value.startswith("TORCH_INDEX=")).partition("=")[2]
    for index in (default, pip_settings().get("index-url", "https://pypi.org/simple")):
        try:
            urllib.request.urlopen(urllib.request.Request(f"{index}/torch/", method="HEAD"), timeout=20).close()
        except OSError:
            continue
        return index
    reason = "no package index within reach: the image's steps cannot run"
    if os.environ.get("VOXELWAVE_REQUIRE_MINKOWSKI"):
        pytest.fail(reason)
    pytest.skip(reason)


def release():
    """The Debian of the base, such as bookworm."""
    return re.search(r"debian:(\w+)", CPU.read_text())[1]


def caches(debian):
    """What cache mounts keep between builds: pip's folder, and the wheels of this distribution."""
    wheels = Path(os.environ.get("VOXELWAVE_WHEELS", CACHE / "voxelwave" / "wheels"))
    if debian and platform.freedesktop_os_release().get("VERSION_CODENAME") != release():
        wheels = wheels / release()
    return {"/root/.cache/pip": CACHE / "pip", "/root/.cache/voxelwave/wheels": wheels}


def bootstrap(root):
    """Make a small Debian; False where its archive is out of reach."""
    made = subprocess.run(["debootstrap", "--variant=minbase", release(), root], capture_output=True, text=True)
    if made.returncode:
        shutil.rmtree(root, ignore_errors=True)
        return False
    # As in Debian's images: what is thrown away needs no fsync.
    (root / "etc/dpkg/dpkg.cfg.d/docker-apt-speedup").write_text("force-unsafe-io\n")
    return True
