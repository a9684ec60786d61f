"""The command line: every command explains itself, and bad input is one line."""

import inspect
import resource
from pathlib import Path

import pytest
from typer.main import get_command

from support.command import error_of, process, voxelwave
from voxelwave.cli import COMMANDS, GROUPS, commands_of, main
from voxelwave.errors import InputError

CONFIG = str(Path(__file__).parents[1] / "configs" / "pretrain" / "demo.yaml")
EVERY_COMMAND = [*((name,) for name in COMMANDS), *((group, name) for group in GROUPS for name in GROUPS[group][0])]
# Packages that take long to import, so that no command may need them before it runs.
HEAVY = ("torch", "numpy", "scipy", "sklearn", "monai", "nibabel", "matplotlib", "pydantic", "lightning_fabric", "timm")


def source(path):
    return f"data.sources=[{{path: {path}, modality: mri}}]"


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "scan.nii").write_bytes(b"this is no volume")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "missing.yaml"], "cannot read config missing.yaml: No such file"),
        (["pretrain", CONFIG, "--set", "training.epoch=3"], "unknown key 'training.epoch'; known here: epochs"),
        (["pretrain", CONFIG, "--set", "training.epochs=many"], "key 'training.epochs'"),
        (["pretrain", CONFIG, "--set", source("nowhere")], "mri source 'nowhere' does not exist"),
        (["pretrain", CONFIG, "--set", source("empty")], "mri source 'empty'"),
        (["pretrain", CONFIG, "--set", source("broken")], "scan.nii"),
        (["pretrain", CONFIG, "--set", "data.crop_size=[50, 48, 48]"], "not divisible by the backbone's patch_size 4"),
        (["pretrain", CONFIG, "--set", "model.backbone.num_heads=5"], "embed_dim 96 is not divisible by num_heads 5"),
        (["pretrain", CONFIG, "--set", "training.device=cuda:99"], "training.device=cuda:99"),
        (["pretrain", CONFIG, "--set", "loss.shallow_depth=9"], "shallow_depth must lie in 0…3"),
        (["synthesize", "out", "--num-mri", "0", "--num-ct", "0"], "ask for 1 or more"),
        (["synthesize", "out", "--contrasts", "T1,CT"], "--contrasts are those of --num-heads"),
        (["synthesize", ""], "an argument is empty"),
        (["phantom", "train", "--out-dir", ""], "an argument is empty"),
        (["phantom", "train", "--out-dir", "/"], "--out-dir /: the folder of a run has letters"),
        (["phantom", "train", "--out-dir", "my+run"], "--out-dir my+run: the folder of a run has letters"),
        (["subsample", "train", CONFIG, "--out-dir", "~no_such_person/x"], "there is no such home folder"),
        (["phantom", "train", "--set", "run.out_dir=~no_such_person/x"], "there is no such home folder"),
        (["phantom", "train", "--set", 'run.out_dir="a\\0b"'], "a path has no character of value 0"),
        (["phantom", "train", "--set", "run.seed=99999999999999999999"], "key 'run.seed'"),
        (["phantom", "train", "--train-length", "4000000000000"], "--train-length"),
        (["phantom", "preview", "--set", "data.image_size=3000000"], "key 'data.image_size'"),
        (["finetune", "missing.yaml"], "cannot read config missing.yaml: No such file"),
        (["inspect", "nowhere"], "nowhere"),
        (["export", "empty", "out", "--format", "torchscript"], "unknown format 'torchscript'; known: safetensors"),
        (["export", "empty", "out", "--format", "bundle"], "no backbone in empty"),
        (["predict", "empty", "broken", "out"], "no model.safetensors in empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_is_one_line_and_exit_code_2(folders, arguments, message):
    assert message in error_of(voxelwave(*arguments, folder=folders))
    assert not (folders / "checkpoints").exists()


def test_python_m_voxelwave_ends_in_the_same_way(folders):
    given = ["pretrain", CONFIG, "--set", source("broken")]
    ended = process("-m", "voxelwave", *given, folder=folders)
    assert ended == voxelwave(*given, folder=folders)
    assert "scan.nii" in error_of(ended)


@pytest.mark.parametrize("command", EVERY_COMMAND, ids="-".join)
def test_every_command_explains_itself(command):
    ended = voxelwave(*command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert f"Usage: voxelwave {' '.join(command)} " in ended.out
    function = (GROUPS[command[0]][0] if command[0] in GROUPS else COMMANDS)[command[-1]]
    assert inspect.getdoc(function).splitlines()[0] in ended.out
    for parameter in get_command(commands_of({command[-1]: function})).params:
        assert parameter.help
        assert {part in ended.out for part in (*parameter.opts, parameter.help)} == {True}, parameter.name


def test_the_groups_name_their_commands():
    for group, table in (((), COMMANDS), *(((name,), table) for name, (table, _) in GROUPS.items())):
        ended = voxelwave(*group, "--help")
        assert ended.code == 0
        rows = [line.strip("│ ").split() for line in ended.out.splitlines()]
        assert {row[0] for row in rows if row} >= set(table)


def test_nothing_heavy_is_imported_before_a_command_runs():
    code = f"import sys, voxelwave.cli; print(sorted({set(HEAVY)} & set(sys.modules)))"
    assert process("-c", code).out.strip() == "[]"


def cpu_seconds(*arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process(*arguments).code == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_imports_nothing_heavy():
    ended = process("-X", "importtime", "-m", "voxelwave", "--help")
    assert "Usage: " in ended.out
    imported = {line.rpartition("|")[2].strip() for line in ended.err.splitlines()}
    assert "voxelwave.cli" in imported
    assert not imported & set(HEAVY)


def test_help_takes_three_times_as_long_as_an_import_of_numpy_at_most():
    helped, numpy = [], []
    for _ in range(6):  # what else runs slows one down, and may not slow down all
        helped.append(cpu_seconds("-m", "voxelwave", "--help"))
        numpy.append(cpu_seconds("-c", "import numpy"))
    assert min(helped) < 3 * min(numpy)


@pytest.mark.parametrize("error", [InputError, lambda name: OSError(2, "No such file", name)])
def test_an_error_is_one_line_that_no_terminal_acts_on_whatever_a_file_is_called(capsys, error):
    def failing():
        raise error("a\x1b[2J\x9b1m\nprepared: 999 mri")

    with pytest.raises(SystemExit) as ended:
        main(failing)
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert shown.startswith("voxelwave: a\\x1b[2J\\x9b1m\\nprepared: 999 mri")
    assert shown.count("\n") == 1


def test_a_terminal_that_lacks_a_sign_is_no_error(folders):
    ended = process("-m", "voxelwave", "inspect", "broken", folder=folders, PYTHONIOENCODING="ascii")
    assert ended.code == 0
    assert "scan.nii" in ended.out
