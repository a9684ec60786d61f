import io
import sys
from pathlib import Path

import pytest
import torch

from support.command import error_of, process, voxelwave
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.doctor import machine as doctor_machine
from voxelwave.jobs.doctor import training as doctor_training
from voxelwave.jobs.doctor.run import doctor
from voxelwave.ops.cores import memory_limit


def examine(*folders, require=()):
    """Number of problems, and the report."""
    said = io.StringIO()
    problems = doctor(list(folders), require=list(require), console=Console(file=said, width=300))
    return problems, said.getvalue()


def line(report, what):
    """The level, finding and remedy of one line of the report."""
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in report.splitlines() if "│" in row]
    (found,) = [(row[0], row[2], row[3]) for row in rows if row[1] == what]
    return found


def installed(tmp_path, monkeypatch, version):
    """Let MinkowskiEngine be there as this version says."""
    folder = tmp_path / f"minkowskiengine-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: MinkowskiEngine\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def no_minkowski(monkeypatch):
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)
    monkeypatch.setattr(doctor_training, "installed_version", lambda package: None)


def test_where_all_works_every_backend_trains_and_the_exit_code_is_0(tmp_path):
    ended = process("-m", "voxelwave", "doctor", tmp_path, CUDA_VISIBLE_DEVICES="", COLUMNS="200")
    assert (ended.code, ended.err) == (0, ""), ended.out
    assert "voxelwave can train here" in ended.out
    for what in ("voxelwave", "Python", "dependencies", "CPU", "memory", "torch", "MinkowskiEngine"):
        assert line(ended.out, what)
    for backend in ("gather", "dense"):
        level, found, _ = line(ended.out, f"cpu, {backend}")
        assert (level, "fp32, bf16" in found) == ("ok", True)
    assert line(ended.out, "GPU")[0] == "note"


def test_minkowski_that_is_there_trains_too(minkowski):
    problems, report = examine(require=["minkowski"])
    assert problems == 0
    assert line(report, "MinkowskiEngine")[0] == "ok"
    assert line(report, "cpu, minkowski")[0] == "ok"


def test_a_missing_minkowski_is_a_note_until_it_is_required(no_minkowski):
    problems, report = examine()
    level, found, remedy = line(report, "MinkowskiEngine")
    assert (problems, level) == (0, "note")
    assert "not installed" in found
    assert "install_minkowski.sh" in remedy
    assert "cpu, minkowski" not in report
    problems, report = examine(require=["minkowski"])
    assert (problems, line(report, "MinkowskiEngine")[0]) == (1, "problem")


def test_minkowski_of_another_torch_is_named_and_not_tried(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "0.5.4+torch2.9.1.cu130.abcdef12")
    problems, report = examine()
    level, found, remedy = line(report, "MinkowskiEngine")
    assert (problems, level) == (0, "note")
    assert "0.5.4+torch2.9.1.cu130.abcdef12" in found
    assert "was built for torch 2.9.1, and this is" in remedy
    assert "docker/install_minkowski.sh" in remedy
    assert "cpu, minkowski" not in report
    assert examine(require=["minkowski"])[0] == 1


def test_a_required_gpu_that_is_missing_is_exit_code_1(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ended = voxelwave("doctor", "--require", "cuda")
    assert ended.code == 1
    level, _, remedy = line(ended.out, "GPU")
    assert level == "problem"
    assert remedy
    assert "1 problem to solve first" in ended.out


def test_an_unknown_requirement_is_one_line_and_exit_code_2():
    said = error_of(voxelwave("doctor", "--require", "tpu"))
    assert said == "voxelwave: unknown --require 'tpu': use minkowski or cuda"


def test_without_torch_there_is_a_report_and_no_traceback():
    code = "import sys; sys.modules['torch'] = None; from voxelwave.cli import main; main()"
    ended = process("-c", code, "doctor", COLUMNS="200")
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert "ModuleNotFoundError" in line(ended.out, "training")[1]


def test_a_backend_that_fails_is_a_problem_and_the_others_are_tried(monkeypatch, no_minkowski):
    def fails(device, sparse, precision):
        if sparse == "gather":
            raise RuntimeError("illegal instruction")
        return 1.0

    monkeypatch.setattr(doctor_training, "train_step", fails)
    problems, report = examine()
    level, found, remedy = line(report, "cpu, gather")
    assert (problems, level) == (1, "problem")
    assert found == "fp32: RuntimeError: illegal instruction"
    assert "model.sparse=dense" in remedy
    assert line(report, "cpu, dense")[0] == "ok"


def test_backends_that_disagree_are_a_problem(monkeypatch, no_minkowski):
    monkeypatch.setattr(doctor_training, "train_step", lambda device, sparse, precision: float(sparse == "dense"))
    problems, report = examine()
    assert (problems, line(report, "cpu, agreement")[0]) == (1, "problem")


def test_shared_memory_as_small_as_docker_makes_it_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_machine, "SMALL_SHARED_MEMORY", 10**18)
    (finding,) = doctor_machine.check_shared_memory(tmp_path)
    assert finding.level == "note"
    assert "--shm-size=8g" in finding.remedy
    assert list(doctor_machine.check_shared_memory(tmp_path / "none")) == []


def test_folders_that_take_no_files_are_problems(tmp_path):
    file = tmp_path / "file"
    file.touch()
    problems, report = examine(Path("/proc"), file, tmp_path / "new" / "folder")
    assert problems == 2
    assert "/proc takes no files" in report
    assert f"{file} takes no files: Not a directory" in report
    assert f"{tmp_path}/new/folder: does not exist yet" in report
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_machine, "CHECKPOINTS", 10**18)
    levels = {finding.what: finding.level for finding in doctor_machine.check_folders([tmp_path])}
    assert levels["folder"] == "note"


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({}, None),
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "8000000000\n"}, 8 * 10**9),
        ({"memory/memory.limit_in_bytes": "4096\n"}, 4096),
    ],
)
def test_the_limit_of_a_container_is_found(tmp_path, files, memory):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_limit(tmp_path) == memory


def test_a_package_that_is_missing_or_too_old_is_a_problem_with_its_remedy(monkeypatch):
    versions = {"blosc2": None, "numpy": "1.26.4"}
    monkeypatch.setattr(doctor_machine, "installed_version", lambda package: versions.get(package, "1000"))
    findings = {finding.what: finding for finding in doctor_machine.check_packages()}
    assert findings["blosc2"].found == "is not installed"
    assert findings["numpy"].found == "1.26.4, which does not fit"
    assert findings["numpy"].remedy == "pip install 'numpy>=2.0'"
    assert {name for name, finding in findings.items() if finding.level == "problem"} == {"blosc2", "numpy"}


def test_a_missing_extra_is_a_note(monkeypatch):
    versions = {"pydicom": None}
    monkeypatch.setattr(doctor_machine, "installed_version", lambda package: versions.get(package, "1000"))
    findings = {finding.what: finding for finding in doctor_machine.check_packages()}
    assert findings["dicom"].level == "note"
    assert "voxelwave[dicom]" in findings["dicom"].remedy
